"""Silence is told at its moment, and a loop that stood still is none."""

from __future__ import annotations

import asyncio
import time

from olol_tui.fleet.silence import Silence

AFTER_S = 0.2
BOUND_S = 30.0


async def test_silence_is_told_once_and_ends_with_the_next_word() -> None:
    told: asyncio.Queue[float] = asyncio.Queue()
    silence = Silence(AFTER_S, lambda: told.put_nowait(time.monotonic()))
    assert not silence
    silence.heard()
    heard_s = time.monotonic()
    async with asyncio.timeout(BOUND_S):
        assert await told.get() - heard_s >= AFTER_S * 0.99
        assert silence
        silence.heard()
        assert not silence
        await told.get()
    assert silence
    assert told.empty()


async def test_what_came_while_the_loop_stood_still_counts() -> None:
    told: list[bool] = []
    silence = Silence(AFTER_S, lambda: told.append(True))
    silence.heard()
    time.sleep(2 * AFTER_S)
    # The alarm is due and so is what lies unread: it is read a moment later.
    for _ in range(3):
        await asyncio.sleep(0)
    assert not silence
    silence.heard()
    await asyncio.sleep(AFTER_S / 4)
    assert not told
    silence.close()


async def test_a_loop_that_stands_still_time_and_again_tells_it_nevertheless() -> None:
    told = asyncio.Event()
    silence = Silence(AFTER_S, told.set)
    silence.heard()
    async with asyncio.timeout(BOUND_S):
        while not told.is_set():
            time.sleep(1.5 * AFTER_S)
            await asyncio.sleep(0.01)
    assert silence


async def test_nothing_is_told_once_it_is_closed() -> None:
    told: list[bool] = []
    silence = Silence(AFTER_S / 4, lambda: told.append(True))
    silence.heard()
    silence.close()
    await asyncio.sleep(AFTER_S)
    assert not told and not silence
