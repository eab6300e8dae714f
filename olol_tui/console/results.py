"""Tells how operations ended, once each."""

from __future__ import annotations

from collections.abc import Callable

from olol_tui.fleet.snapshot import Fleet, Operation


def _ended(fleet: Fleet) -> list[Operation]:
    return [operation for operation in fleet.operations if operation.state != "running"]


class Results:
    def __init__(self, fleet: Fleet, say: Callable[..., None]) -> None:
        """What has ended in `fleet` is old news; `say` takes words and `severity`."""
        self._say = say
        self._told = {operation.id for operation in _ended(fleet)}

    def tell(self, fleet: Fleet) -> None:
        """Say what ended since the last snapshot."""
        for operation in _ended(fleet):
            if operation.id in self._told:
                continue
            self._told.add(operation.id)
            words = f"{operation.title}: {operation.message or operation.state}"
            if operation.hint:
                words += f"\n{operation.hint}"
            failed = operation.state == "failed"
            self._say(words, severity="error" if failed else "information")
        self._told &= {operation.id for operation in fleet.operations}
