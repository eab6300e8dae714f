"""Splits that were given up: what they said last, and another try."""

from __future__ import annotations

from collections.abc import Callable

from olol_tui.console.dialogs.ask import Answer, Ask
from olol_tui.console.dialogs.picker import Item, Picker
from olol_tui.console.views.base import Host
from olol_tui.fleet.commands import RetrySplit
from olol_tui.fleet.snapshot import Split
from olol_tui.render.line import Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.text import clean

_LOG_LINES = 6


def failed_splits(host: Host) -> list[Split]:
    return [split for split in host.scene.fleet.splits if split.state == "failed"]


def retry(host: Host) -> None:
    """Ask about the one that failed, or which of several."""
    failed = failed_splits(host)
    if len(failed) == 1:
        _confirm(host, failed[0])
    elif failed:
        items = [Item(one.id, f"{one.model} {one.error}", _row(one)) for one in failed]
        by_id = {one.id: one for one in failed}
        picker = Picker(host, "Try which split again?", lambda: items)
        host.ask(picker, lambda chosen: _confirm(host, by_id[chosen]))


def _row(split: Split) -> Callable[[int, Palette], Line]:
    def draw(width: int, p: Palette) -> Line:
        row = Row(width, p.base).put(split.model, p.bright, 34).gap()
        return row.put(split.error, p.crit, row.left).end()

    return draw


def _confirm(host: Host, split: Split) -> None:
    text = [("bright", f"Split {clean(split.model)} again?"), ("warn", clean(split.error))]
    text += [("muted", clean(line.strip())) for line in split.log_tail[-_LOG_LINES:]]
    dialog = Ask(host, "Retry a split", text, [Answer("yes", "Retry")], width=92)
    host.ask(dialog, lambda _: host.submit(RetrySplit(split.model)))
