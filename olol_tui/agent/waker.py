"""Waiting that ends early when something happens to the process, or is wished of it."""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable, TypeVar

_T = TypeVar("_T")


class Woken(Exception):
    """The process ended or a wish arrived while something was awaited."""


class Waker:
    """Args: check: raises Woken when what is awaited became pointless."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def until(self, timeout_s: float | None) -> None:
        """Return when woken, or after `timeout_s`."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except asyncio.TimeoutError:
            return
        self._event.clear()

    async def race(self, call: Awaitable[_T]) -> _T:
        """The result of a call to the engine, or Woken as soon as that became pointless."""
        task = asyncio.ensure_future(call)
        try:
            while not task.done():
                wake = asyncio.ensure_future(self._event.wait())
                await asyncio.wait({task, wake}, return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                self._event.clear()
                self._check()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
