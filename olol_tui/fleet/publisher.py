"""Publishes snapshots: once a tick, and soon after every change, never more than 20 a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from olol_tui.fleet.snapshot import Fleet

log = logging.getLogger("olol.fleet.publisher")

MIN_GAP_S = 0.05
_T = TypeVar("_T")


class Publisher:
    """Builds and hands out snapshots.

    Args:
        build: makes the next Fleet; told whether this is a tick (True) or a change.
    """

    def __init__(self, build: Callable[[bool], Fleet], *, tick_s: float) -> None:
        self._build = build
        self._tick_s = tick_s
        self._fleet = Fleet()
        self._dirty = asyncio.Event()
        self._callbacks: list[Callable[[Fleet], None]] = []
        self._readers: set[asyncio.Event] = set()
        self._closed = False

    @property
    def fleet(self) -> Fleet:
        return self._fleet

    def poke(self) -> None:
        self._dirty.set()

    def publish(self, *, is_tick: bool = True) -> None:
        """Build and hand out a snapshot now.

        A fault in building keeps the old snapshot: readers see it age, and the log says why.
        """
        try:
            fleet = self._build(is_tick)
        except Exception:
            log.exception("the snapshot could not be built")
            return
        self._fleet = fleet
        for callback in tuple(self._callbacks):
            try:
                callback(fleet)
            except Exception:
                log.exception("a reader of the fleet failed")
        for reader in self._readers:
            reader.set()

    async def run(self) -> None:
        """Publish for ever."""
        loop = asyncio.get_running_loop()
        last_s = loop.time()
        tick_at_s = last_s + self._tick_s
        while True:
            try:
                async with asyncio.timeout_at(tick_at_s):
                    await self._dirty.wait()
            except TimeoutError:
                pass
            # Changes come in bursts: what follows within the gap rides along.
            gap_s = last_s + MIN_GAP_S - loop.time()
            if gap_s > 0:
                await asyncio.sleep(gap_s)
            self._dirty.clear()
            last_s = loop.time()
            is_tick = last_s >= tick_at_s
            if is_tick:
                # Not a multiple of the tick: after a stall, ticks that were missed are lost.
                tick_at_s = last_s + self._tick_s
            self.publish(is_tick=is_tick)

    def close(self) -> None:
        """End all readers."""
        self._closed = True
        for reader in self._readers:
            reader.set()

    def on_change(self, callback: Callable[[Fleet], None]) -> Callable[[], None]:
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    async def changes(self) -> AsyncIterator[Fleet]:
        """The present snapshot, then each later one; the latest when the reader is slow."""
        news = asyncio.Event()
        self._readers.add(news)
        try:
            while not self._closed:
                news.clear()
                yield self._fleet
                await news.wait()
        finally:
            self._readers.discard(news)

    async def until(self, check: Callable[[], _T | None], timeout_s: float) -> _T:
        """The first result of `check` that is not None, asked again after every snapshot.

        Raises:
            TimeoutError
        """
        news = asyncio.Event()
        self._readers.add(news)
        try:
            async with asyncio.timeout(timeout_s):
                while (result := check()) is None:
                    news.clear()
                    await news.wait()
        finally:
            self._readers.discard(news)
        return result
