"""Edits of the placement that are planned and not yet applied. Pure: keys in, commands out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from olol_tui.fleet.commands import AnyCommand, Move, Place, SetPin, Unload
from olol_tui.render.matrix import Cell
from olol_tui.render.tiles import TileKey

Kind = Literal["unload", "move", "place", "pin", "unpin"]

_ORDER: tuple[Kind, ...] = ("unload", "move", "place", "unpin", "pin")
"""What frees memory goes first."""


@dataclass(frozen=True, slots=True)
class Change:
    """One planned edit."""

    kind: Kind
    model: str
    at: TileKey
    to: TileKey | None = None
    """Target of a move."""

    @property
    def cells(self) -> frozenset[Cell]:
        """Every cell it touches."""
        ends = (self.at,) if self.to is None else (self.at, self.to)
        return frozenset((self.model, end) for end in ends)

    def command(self) -> AnyCommand:
        node, device = self.at
        if self.kind == "place":
            return Place(model=self.model, node=node, device=device)
        if self.kind == "unload":
            return Unload(model=self.model, node=node, device=device)
        if self.to is not None:
            return Move(
                model=self.model,
                node=node,
                device=device,
                to_node=self.to[0],
                to_device=self.to[1],
            )
        return SetPin(model=self.model, node=node, device=device, pinned=self.kind == "pin")


class Staged:
    """The plan of one console: edits in their order, with undo."""

    def __init__(self) -> None:
        self._now: tuple[Change, ...] = ()
        self._before: list[tuple[Change, ...]] = []

    def __iter__(self) -> Iterator[Change]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def toggle(self, change: Change) -> None:
        """Plan a change; the same once more takes it back, another one on its cells replaces it."""
        rest = tuple(c for c in self._now if not c.cells & change.cells)
        self._set(rest if change in self._now else (*rest, change))

    def undo(self) -> bool:
        """Take the last edit of the plan back; False when there is none."""
        if not self._before:
            return False
        self._now = self._before.pop()
        return True

    def discard(self) -> None:
        """Plan nothing; `undo` brings the plan back."""
        if self._now:
            self._set(())

    def applied(self) -> None:
        """The plan became commands: nothing is left to undo here."""
        self._now, self._before = (), []

    def drop(self, gone: frozenset[Change]) -> None:
        """Forget edits that the fleet no longer allows or that came true by themselves."""
        self._now = tuple(c for c in self._now if c not in gone)

    def _set(self, changes: tuple[Change, ...]) -> None:
        self._before.append(self._now)
        self._now = changes

    def marks(self) -> dict[Cell, str]:
        """What the matrix shows in each cell that the plan touches."""
        found: dict[Cell, str] = {}
        for change in self._now:
            if change.to is not None:
                found[change.model, change.at] = "[-]"
                found[change.model, change.to] = "[+]"
            else:
                signs = {"place": "[+]", "unload": "[-]", "pin": "[P]", "unpin": "[p]"}
                found[change.model, change.at] = signs[change.kind]
        return found

    def commands(self) -> tuple[AnyCommand, ...]:
        """As they are to be sent."""
        ordered = sorted(self._now, key=lambda change: _ORDER.index(change.kind))
        return tuple(change.command() for change in ordered)
