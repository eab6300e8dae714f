"""Small tasks of the interface: sending a command, reading a log. Never the gateway's work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Chores:
    """Keeps tasks alive until they end; a failure is logged and told, not fatal."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` gets one line about a chore that failed."""
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("a chore of the console failed", exc_info=error)
            self._tell(f"{type(error).__name__}: {error}")

    async def stop(self) -> None:
        """Cancel what still runs and wait for it."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
