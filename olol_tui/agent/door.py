"""Keeps authorized_keys equal to which heads may reach which worker of this agent."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import Iterable

from . import permits
from .errors import EngineError

log = logging.getLogger(__name__)

RETRY_S = 30.0
"""After a disk that refused."""


def owner_of(state: Path) -> str:
    """Names an agent by its state directory, which names the machine too."""
    return hashlib.sha256(str(state).encode()).hexdigest()[:16]


class Door:
    """One per agent. What stands in the file from an earlier run is ours, and replaced."""

    def __init__(self, state: Path, path: Path | None = None) -> None:
        self._owner = owner_of(state)
        self._path = path
        self._wanted: frozenset[str] = frozenset()
        self._applied: frozenset[str] | None = None
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self.problem = ""

    def want(self, permitted: Iterable[tuple[str, int]]) -> None:
        """Let these keys through to these ports, and no others."""
        lines = frozenset(permits.line(key, port, self._owner) for key, port in permitted)
        if lines != self._wanted:
            self._wanted = lines
            self._news.set()

    async def keep(self) -> None:
        """Write after every change, for ever; at first also what was left behind."""
        self._news.set()
        while True:
            await self._news.wait()
            self._news.clear()
            await self._apply()
            if self.problem:
                try:
                    await asyncio.wait_for(self._news.wait(), RETRY_S)
                except asyncio.TimeoutError:
                    self._news.set()

    async def shut(self) -> None:
        """Nobody is let in any more."""
        self._wanted = frozenset()
        await self._apply()

    async def _apply(self) -> None:
        async with self._writing:
            wanted = self._wanted
            if wanted == self._applied:
                return
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(None, permits.apply, wanted, self._owner, self._path)
            except EngineError as error:
                self.problem = error.message
                log.error("%s", error.message)
            else:
                self._applied, self.problem = wanted, ""
