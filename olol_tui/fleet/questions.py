"""Passphrases: asked by a connection that waits, answered by whoever sits at a console."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import PassphraseQuestion


class Questions:
    """One question at a time; the others wait for it.

    A question that nobody answers stands for as long as the connection waits for it.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[str | None] | None = None
        self.open: PassphraseQuestion | None = None

    async def ask(self, path: Path, complaint: str) -> str | None:
        """`ssh.keys.AskPassphrase`."""
        async with self._turn:
            self._answer = asyncio.get_running_loop().create_future()
            self.open = PassphraseQuestion(str(path), complaint)
            self._changed()
            try:
                return await self._answer
            finally:
                self.open = self._answer = None
                self._changed()

    def answer(self, path: str, passphrase: str | None) -> None:
        """Raises OlolError when nobody asked for that one."""
        if self.open is None or self._answer is None or self.open.path != path:
            raise OlolError(
                f"nobody asks for the passphrase of {path}", title="There is no such question"
            )
        if not self._answer.done():
            self._answer.set_result(passphrase)
