"""The help page, generated from the action table."""

from __future__ import annotations

from olol_tui.actions import Action, allowed, groups_on, show_key
from olol_tui.render.line import Line, Row, beside, blank
from olol_tui.render.palette import Palette
from olol_tui.render.text import cells
from olol_tui.render.tiles import GLYPHS

_KEYS_WIDTH = 9


def _action_line(action: Action, width: int, palette: Palette, *, read_only: bool) -> Line:
    gone = not allowed(action, read_only=read_only)
    keys = " ".join(show_key(k) for k in action.keys)
    row = Row(width, palette.base)
    row.put(keys, palette.faint if gone else palette.strong, max(_KEYS_WIDTH, cells(keys) + 1))
    if action.group not in _SHORT:
        row.put("▲ " if action.dangerous else "  ", palette.faint if gone else palette.warn)
    return row.put(action.help, palette.faint if gone else palette.base, row.left).end()


def _legend(width: int, palette: Palette) -> Line:
    words = {
        "ok": "works",
        "idle": "idle",
        "loading": "loading",
        "warn": "warning",
        "crit": "failed",
        "stale": "stale",
        "lost": "lost",
        "cordoned": "cordoned",
    }
    row = Row(width, palette.base)
    for state, word in words.items():
        row.put(GLYPHS[state], palette.state(state)).put(f" {word} ", palette.muted)
    return row.put("P", palette.pinned).put(" pinned", palette.muted).end()


_SHORT = frozenset({"Screens", "Moving", "General"})
"""Groups whose rows are short enough for two columns."""


def _group_lines(
    group: str, found: list[Action], width: int, palette: Palette, *, read_only: bool
) -> list[Line]:
    if group not in _SHORT or width < 76:
        return [_action_line(a, width, palette, read_only=read_only) for a in found]
    half = width // 2
    rows = -(-len(found) // 2)
    left = [_action_line(a, half, palette, read_only=read_only) for a in found[:rows]]
    right = [_action_line(a, width - half, palette, read_only=read_only) for a in found[rows:]]
    return beside([(left, half), (right, width - half)], rows, palette.base)


def draw_help(screen: str, width: int, palette: Palette, *, read_only: bool) -> list[Line]:
    """All actions of a screen by group; what read-only takes away is greyed."""
    lines: list[Line] = []
    for group, found in groups_on(screen).items():
        if lines:
            lines.append(blank(width, palette.base))
        lines.append(Row(width, palette.base).put(group, palette.accent).end())
        lines.extend(_group_lines(group, found, width, palette, read_only=read_only))
    lines.append(blank(width, palette.base))
    lines.append(_legend(width, palette))
    if read_only:
        words = "▲ changes the fleet: not available, this console is read-only"
    else:
        words = "▲ changes the fleet: asks first where something is lost, gone with --read-only"
    lines.append(Row(width, palette.base).put(words, palette.muted, width).end())
    mouse = "click chooses, double click opens, the wheel moves; shift+drag selects text"
    lines.append(Row(width, palette.base).put(mouse, palette.faint, width).end())
    return lines
