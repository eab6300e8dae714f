"""Clock mapping, publishing, operations and the overlay of what the controller knows first."""

from __future__ import annotations

import asyncio

import pytest

from olol_tui.errors import PlacementError
from olol_tui.fleet.operations import RESULT_SHOWN_S, OperationBook, Report
from olol_tui.fleet.overlay import FRESH_FOR_S, Overlay
from olol_tui.fleet.publisher import Publisher
from olol_tui.fleet.snapshot import Engine, Fleet, Loaded
from olol_tui.fleet.wire import ClockMap


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_clock_map_takes_the_least_delayed_frame_and_follows_drift() -> None:
    clocks = ClockMap()
    clocks.observe(1000.0, 50.2)
    clocks.observe(1001.0, 51.05)
    clocks.observe(1002.0, 52.9)
    assert clocks.offset_s == pytest.approx(-949.95, abs=0.001)
    for second in range(10_000):  # a node whose clock loses 50 ppm
        clocks.observe(1003.0 + second, 53.05 + second * 1.00005)
    assert clocks.offset_s == pytest.approx(-949.95 + 0.5, abs=0.01)


async def test_changes_within_the_gap_are_one_snapshot_and_slow_readers_skip() -> None:
    numbers = iter(range(1, 10_000))
    publisher = Publisher(lambda _tick: Fleet(seq=next(numbers)), tick_s=30)
    called: list[int] = []
    publisher.on_change(lambda fleet: called.append(fleet.seq))
    task = asyncio.create_task(publisher.run())
    changes = publisher.changes()
    assert (await anext(changes)).seq == 0
    async with asyncio.timeout(20):
        for _ in range(100):
            publisher.poke()
            await asyncio.sleep(0.002)
        last = await anext(changes)
    assert 2 <= len(called) <= 20
    assert last.seq == called[-1]
    publisher.close()
    task.cancel()
    await asyncio.wait([task])
    assert [f async for f in changes] == []


async def test_a_reader_that_fails_and_a_build_that_fails_stop_nobody() -> None:
    outcomes = iter([Fleet(seq=1), RuntimeError("bad"), Fleet(seq=2)])

    def build(_is_tick: bool) -> Fleet:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    publisher = Publisher(build, tick_s=1)
    called: list[int] = []
    unsubscribe = publisher.on_change(lambda _: 1 / 0)
    publisher.on_change(lambda fleet: called.append(fleet.seq))
    publisher.publish()
    publisher.publish()
    assert publisher.fleet.seq == 1
    unsubscribe()
    unsubscribe()
    publisher.publish()
    assert called == [1, 2]


async def test_until_asks_again_after_every_snapshot() -> None:
    publisher = Publisher(lambda _tick: Fleet(), tick_s=1)
    answers = iter([None, None, "yes"])

    async def publish() -> None:
        for _ in range(2):
            await asyncio.sleep(0)
            publisher.publish()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        assert await publisher.until(lambda: next(answers), 20) == "yes"
    with pytest.raises(TimeoutError):
        await publisher.until(lambda: None, 0.01)


async def test_operations_tell_progress_result_refusal_and_bugs() -> None:
    clock = Clock()
    book = OperationBook(clock, lambda: None)
    release = asyncio.Event()

    async def works(report: Report) -> str:
        report.say("half way", 0.5)
        await release.wait()
        return "there"

    async def refuses(_: Report) -> str:
        raise PlacementError("no room", hint="make some")

    async def breaks(_: Report) -> str:
        raise KeyError("oops")

    async with asyncio.TaskGroup() as tasks:
        book.open(tasks)
        first = book.start("first", works, key="k")
        assert book.start("first again", works, key="k") == first
        book.start("second", refuses)
        book.start("third", breaks)
        await asyncio.sleep(0)
        shown = book.view(clock())
        assert [o.state for o in shown] == ["running", "failed", "failed"]
        assert (shown[0].message, shown[0].progress) == ("half way", 0.5)
        assert (shown[1].message, shown[1].hint) == ("no room", "make some")
        assert "oops" in shown[2].message
        release.set()
    assert book.view(clock())[0].message == "there"
    assert not book.is_running(first)
    clock.now_s += RESULT_SHOWN_S + 1
    assert book.view(clock()) == ()


async def test_operations_end_with_the_group_that_owns_them() -> None:
    book = OperationBook(Clock(), lambda: None)

    async def forever(_: Report) -> str:
        await asyncio.Event().wait()
        return ""

    class Stop(Exception):
        pass

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            book.open(tasks)
            book.start("forever", forever)
            await asyncio.sleep(0)
            raise Stop
    assert [o.state for o in book.view(100.0)] == ["cancelled"]


def test_a_driven_load_shows_until_the_engine_tells_of_it() -> None:
    clock = Clock()
    overlay = Overlay(clock, lambda: None)
    engine = Engine("n/e", "n", "ollama", "ready")
    with overlay.loading("n/e", "Qwen3:8b", expected_s=4.0):
        clock.now_s += 1
        (mark,) = overlay.apply(engine, clock()).loading
        assert (mark.name, mark.started_s, mark.progress) == ("qwen3:8b", 100.0, 0.25)
        clock.now_s += 60
        (mark,) = overlay.apply(engine, clock()).loading
        assert mark.progress is not None and mark.progress < 1
        overlay.learned("n/e", (Loaded("qwen3:8b"),))
        shown = overlay.apply(engine, clock())
        assert not shown.loading and [x.name for x in shown.loaded] == ["qwen3:8b"]
    clock.now_s += FRESH_FOR_S
    assert overlay.apply(engine, clock()) is engine


def test_what_was_learned_of_a_dead_engine_is_not_shown() -> None:
    clock = Clock()
    overlay = Overlay(clock, lambda: None)
    overlay.learned("n/e", (Loaded("qwen3:8b"),))
    assert overlay.apply(Engine("n/e", "n", "ollama", "backoff"), clock()).loaded == ()
