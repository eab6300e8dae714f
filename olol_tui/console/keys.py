"""The action table as Textual's bindings."""

from __future__ import annotations

from textual.binding import Binding

from olol_tui.actions import ACTIONS


def bindings() -> list[Binding | tuple[str, str] | tuple[str, str, str]]:
    """One for each key; what it does is looked up by the action's name."""
    return [
        Binding(key, f"perform('{a.name}')", a.label, show=False, id=f"{a.name}.{key}")
        for a in ACTIONS
        for key in a.keys
    ]
