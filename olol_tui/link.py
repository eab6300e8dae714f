"""What a console or the CLI needs of a running core, wherever it runs.

Two implementations: `core.Core` (this process) and `remote.RemoteLink` (control socket of
a `--serve`). Reads give the same Fleet; wishes go through `submit`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from olol_tui.fleet.commands import Accepted, AnyCommand
from olol_tui.fleet.snapshot import Fleet


class Link(Protocol):
    @property
    def fleet(self) -> Fleet:
        """The latest snapshot; a new object whenever anything changed."""
        ...

    @property
    def embedded(self) -> bool:
        """True when quitting this process stops the gateway too."""
        ...

    def changes(self) -> AsyncIterator[Fleet]:
        """Every new snapshot; slow readers skip to the latest."""
        ...

    async def submit(self, command: AnyCommand) -> Accepted:
        """Ask for a change.

        Raises:
            OlolError: refused at once (unknown model or device, does not fit, read-only).
        """
        ...

    def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        """Log lines of an engine (or of the agent: engine ""), last `tail` first, then live."""
        ...
