"""The steps that make a machine a node: what was done, what runs, what failed and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style

from olol_tui.fleet.snapshot import Node, ProvisionStep
from olol_tui.render.box import wrap
from olol_tui.render.charts import bar
from olol_tui.render.history import FleetHistory
from olol_tui.render.line import Line, Row
from olol_tui.render.palette import Palette, Palettes
from olol_tui.render.text import cells, clean, count, percent, tenths

MARKS = {
    "waiting": "·",
    "running": "▸",
    "done": "✓",
    "unchanged": "✓",
    "skipped": "–",
    "failed": "✕",
    "cancelled": "_",
}
"""One cell each; what a colour says, the mark says too."""

_ENDED_WELL = frozenset({"done", "unchanged", "skipped"})
_CHECKS = frozenset({"connect", "facts", "python", "health", "engines", "traffic", "proof"})
"""Steps that look and change nothing, also when they are done."""
_NAME_WIDTH = 9
_TOOK_WIDTH = 6
_INDENT = 2 + 2 + _NAME_WIDTH + _TOOK_WIDTH + 2
_ROOMY = 72
"""From this width a line is enough for what a step says."""
_NARROW_INDENT = 4
"""Where the words of a failure stand below their step when the pane is narrow."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, as a whole."""

    title: str
    """`Provision` or `Uninstall`."""
    state: str
    """`running`, `failed`, `cancelled`, `done` or `waiting`."""
    words: str
    short: str
    """The same for a narrow column: `step 3/9`."""
    took_s: float


def progress(
    node: str, steps: Sequence[ProvisionStep], history: FleetHistory, now_s: float
) -> Progress:
    """The run that these steps are of."""
    title = "Uninstall" if any(s.name in ("remove", "proof") for s in steps) else "Provision"
    took_s = sum(s.took_s or 0.0 for s in steps)
    for index, step in enumerate(steps, start=1):
        where = f"step {index}/{len(steps)}"
        if step.state == "running":
            since_s = history.step_since_s(node, step.name)
            took_s += 0.0 if since_s is None else now_s - since_s
            return Progress(title, "running", f"{where}: {step.name}", where, took_s)
        if step.state == "failed":
            return Progress(title, "failed", f"failed at {step.name}", "failed", took_s)
        if step.state == "cancelled":
            return Progress(title, "cancelled", f"stopped at {step.name}", "stopped", took_s)
    if not all(s.state in _ENDED_WELL for s in steps):
        return Progress(title, "waiting", "about to start", "starting", took_s)
    changed = sum(1 for s in steps if s.state == "done" and s.name not in _CHECKS)
    if title == "Uninstall":
        words = "all of ours is gone" if changed else "there was nothing of ours"
    else:
        words = f"{count(changed, 'step')} changed something" if changed else "nothing to change"
    return Progress(title, "done", words, "", took_s)


def is_running(node: Node) -> bool:
    return any(step.state == "running" for step in node.steps)


def has_failed(node: Node) -> bool:
    """Whether the last run stopped before its end: a retry goes on from there."""
    return not is_running(node) and any(s.state in ("failed", "cancelled") for s in node.steps)


_KEY_CHANGED = re.compile(r"(?:The host key changed: )?(.+?): known (.+); offered (.+)")


def fault_lines(text: str) -> list[str]:
    """A failure in lines; of a changed host key, old and new stand below each other."""
    changed = _KEY_CHANGED.fullmatch(clean(text))
    if changed is None:
        return [text]
    host, old, new = changed.groups()
    return [f"The host key of {host} changed.", f"known:   {old}", f"offered: {new}"]


def _style(state: str, p: Palette) -> Style:
    return {
        "waiting": p.faint,
        "running": p.loading,
        "done": p.ok,
        "unchanged": p.ok,
        "skipped": p.muted,
        "failed": p.crit,
        "cancelled": p.warn,
    }[state]


def _words(step: ProvisionStep) -> str:
    if step.message:
        return step.message
    return "no change" if step.state == "unchanged" else ""


def draw_step(
    node: str,
    step: ProvisionStep,
    history: FleetHistory,
    now_s: float,
    width: int,
    p: Palette,
    *,
    cursor: bool,
) -> list[Line]:
    """One step: a line, and below a failure all its words and the way out."""
    style = _style(step.state, p)
    row = Row(width, p.base).raw("▶ " if cursor else "  ", 2, p.strong)
    row.raw(f"{MARKS[step.state]} ", 2, style)
    named = {"waiting": p.faint, "running": p.bright, "failed": p.crit}.get(step.state, p.base)
    row.put(step.name, named, _NAME_WIDTH)
    took_s = step.took_s
    if step.state == "running":
        since_s = history.step_since_s(node, step.name)
        took_s = None if since_s is None else now_s - since_s
    took = "" if took_s is None or step.state == "waiting" else tenths(took_s)
    row.put(took, p.muted, _TOOK_WIDTH, ">").gap(2)
    muted = step.state in ("waiting", "unchanged", "skipped")
    said = p.muted if muted else p.base
    below: list[Line] = []
    words = _words(step)
    if step.state == "failed":
        return _failure(step, row, width, p)
    if step.state == "running" and step.progress is not None:
        wide = max(6, min(24, row.left // 3))
        full, empty = bar(step.progress, wide)
        row.raw(full, len(full), p.loading).raw(empty, len(empty), p.empty).gap()
        row.put(percent(100 * step.progress), p.loading, 4, ">").gap()
        if width < _ROOMY:
            below, words = [Row(width, p.base).gap(_INDENT).put(words, said).end()], ""
    elif width < _ROOMY and cells(clean(words)) > row.left - 1:
        words, *rest = wrap(words, row.left - 1)
        second = Row(width, p.base).gap(_INDENT)
        below = [second.put(" ".join(rest), said, second.left - 1).end()]
    row.put(words, said, max(0, row.left - 1))
    lines = [row.end(), *below]
    if step.hint and step.state in ("skipped", "cancelled"):
        lines.extend(_hint(step.hint, width, p))
    return lines


def _failure(step: ProvisionStep, row: Row, width: int, p: Palette) -> list[Line]:
    told = fault_lines(_words(step) or "failed")
    if len(told) == 1 and cells(clean(told[0])) <= row.left - 1:
        lines = [row.put(told[0], p.crit, row.left - 1).end()]
    else:
        indent = _INDENT if width >= _ROOMY else _NARROW_INDENT
        parts = [part for words in told for part in wrap(words, width - indent - 1)]
        if indent == _INDENT:
            lines = [row.put(parts.pop(0), p.crit).end()]
        else:
            lines = [row.end()]
        lines.extend(Row(width, p.base).gap(indent).put(part, p.crit).end() for part in parts)
    if step.hint:
        lines.extend(_hint(step.hint, width, p))
    return lines


def _hint(hint: str, width: int, p: Palette) -> list[Line]:
    indent = _INDENT if width >= _ROOMY else _NARROW_INDENT
    parts = wrap(hint, width - indent - 3)
    return [
        Row(width, p.base).gap(indent).put("  " if i else "→ ", p.accent).put(part, p.base).end()
        for i, part in enumerate(parts)
    ]


def head_words(run: Progress, width: int, palettes: Palettes) -> Line:
    """The rule above the steps: what, how far, how long."""
    p = palettes.base
    row = Row(width, p.faint).raw("─ ", 2, p.faint).put(run.title, p.bright).gap()
    style = {"running": p.loading, "failed": p.crit, "cancelled": p.warn, "done": p.ok}
    row.put(run.words, style.get(run.state, p.muted), min(cells(run.words), row.left - 12)).gap()
    took = f" {tenths(run.took_s)} "
    row.raw("─" * (row.left - cells(took) - 1), row.left - cells(took) - 1, p.faint)
    return row.put(took, p.muted).raw("─", 1, p.faint).end()
