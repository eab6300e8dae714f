"""A command from the shell: sent to the running core and followed until it is done.

The work belongs to the core. Leaving here never stops it.
"""

from __future__ import annotations

import asyncio
from typing import TextIO

from olol_tui.errors import LinkError
from olol_tui.fleet.commands import AnyCommand
from olol_tui.fleet.snapshot import Fleet, Operation
from olol_tui.paths import Paths
from olol_tui.remote import RemoteLink

APPEARS_WITHIN_S = 10.0
"""The operation of an accepted command is in a snapshot at most a beat later."""


class Progress:
    """Tells an operation's steps: one line redrawn on a terminal, one line a step elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._redraw = out.isatty()
        self._last = ""
        self._width = 0

    def tell(self, operation: Operation) -> None:
        text = operation.title
        if operation.message:
            text += f": {operation.message}"
        if self._redraw:
            percent = "" if operation.progress is None else f" {operation.progress:.0%}"
            self._draw(text + percent, end="\r")
        elif text != self._last:
            self._draw(text, end="\n")
        self._last = text

    def end(self, glyph: str, operation: Operation) -> None:
        said = f": {operation.message}" if operation.message else ""
        self._draw(f"{glyph} {operation.title}{said}", end="\n")
        if operation.hint:
            self._draw(operation.hint, end="\n")

    def _draw(self, text: str, *, end: str) -> None:
        shown = "".join(char if char.isprintable() else " " for char in text)
        padding = " " * (self._width - len(shown)) if self._redraw else ""
        self._width = len(shown) if end == "\r" else 0
        self._out.write(f"{shown}{padding}{end}")
        self._out.flush()


async def run_command(paths: Paths, command: AnyCommand, out: TextIO) -> int:
    """Send the command, follow its operation, return the exit code.

    Raises:
        OlolError: nobody answers, or the core refuses.
    """
    progress = Progress(out)
    async with RemoteLink(paths.control_socket) as link:
        accepted = await link.submit(command)
        if not accepted.operation:
            return 0
        try:
            ended = await _followed(link, accepted.operation, progress)
        except asyncio.CancelledError:
            out.write("\nnot waiting any longer; it goes on: olol-tui status\n")
            raise
    progress.end("●" if ended.state == "done" else "✖", ended)
    return 0 if ended.state == "done" else 1


async def _followed(link: RemoteLink, operation_id: str, progress: Progress) -> Operation:
    """The operation as it ended."""
    seen = False
    try:
        async with asyncio.timeout(APPEARS_WITHIN_S) as patience:
            async for fleet in link.changes():
                if not link.connected:
                    raise LinkError(
                        "the core stopped while it worked on this",
                        hint="When it runs again, see what became of it: olol-tui status",
                    )
                operation = _operation(fleet, operation_id)
                if operation is None:
                    if seen:
                        break
                    continue
                seen = True
                patience.reschedule(None)
                if operation.state != "running":
                    return operation
                progress.tell(operation)
    except TimeoutError:
        pass
    raise LinkError(
        f"the core accepted the command but does not show its operation {operation_id}",
        hint="See what it does: olol-tui status",
    )


def _operation(fleet: Fleet, operation_id: str) -> Operation | None:
    return next((found for found in fleet.operations if found.id == operation_id), None)
