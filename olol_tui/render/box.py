"""Framed windows, and the pieces that stand in them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.segment import Segment

from olol_tui.render.charts import bar
from olol_tui.render.fit import Fit
from olol_tui.render.line import Frame, Hit, Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.text import cells, clean, size, size_pair


def boxed(
    body: Frame, width: int, palette: Palette, *, title: str, hint: str = "", danger: bool = False
) -> Frame:
    """A frame of `width` cells around lines of `width - 4`, a title above, a hint below."""
    edge_style = palette.crit if danger else palette.accent
    top = Row(width - 1, palette.base).raw("╭─", 2, edge_style).gap()
    top.put(title, palette.crit if danger else palette.bright, min(cells(title), width - 8)).gap()
    top.raw("─" * top.left, top.left, edge_style)
    bottom = Row(width - 1, palette.base).raw("╰", 1, edge_style)
    hint = f" {hint} " if hint and cells(hint) + 6 <= width else ""
    bottom.raw("─" * (bottom.left - cells(hint) - 1), bottom.left - cells(hint) - 1, edge_style)
    bottom.put(hint, palette.muted).raw("─" * bottom.left, bottom.left, edge_style)
    left, right = Segment("│ ", edge_style), Segment(" │", edge_style)
    lines = [[*top.end(), Segment("╮", edge_style)]]
    lines.extend([left, *line, right] for line in body.lines)
    lines.append([*bottom.end(), Segment("╯", edge_style)])
    return Frame(lines, [hit.moved(2, 1) for hit in body.hits])


def wrap(text: str, width: int) -> list[str]:
    """The cleaned text in lines of at most `width` cells."""
    return textwrap.wrap(clean(text), max(8, width), break_long_words=True) or [""]


def paragraph(text: str, width: int, palette: Palette, style: str = "base") -> list[Line]:
    chosen = getattr(palette, style)
    return [Row(width, palette.base).put(line, chosen).end() for line in wrap(text, width)]


def buttons(labels: Sequence[tuple[str, str]], focused: int, width: int, palette: Palette) -> Frame:
    """A row of `(value, label)` buttons, right-aligned; stacked when they do not fit."""
    texts = [f"  {label}  " for _, label in labels]
    needed = sum(cells(t) + 2 for t in texts)
    frame = Frame()
    if needed <= width:
        row = Row(width, palette.base).to(width - needed)
        for index, text in enumerate(texts):
            row.gap(2)
            frame.hits.append(Hit(row.used, 0, cells(text), 1, "choice", labels[index][0]))
            row.put(text, palette.chip if index == focused else palette.empty_button)
        frame.lines.append(row.end())
        return frame
    for index, text in enumerate(texts):
        frame.hits.append(Hit(0, index, width, 1, "choice", labels[index][0]))
        style = palette.chip if index == focused else palette.empty_button
        frame.lines.append(Row(width, palette.base).put(text, style).end())
    return frame


def memory_change(fit: Fit, word: str, width: int, palette: Palette) -> list[Line]:
    """Two bars: a device's memory before and after a load."""
    if fit.before_bytes is None or not fit.total_bytes:
        return []
    lines: list[Line] = []
    after = fit.before_bytes if fit.after_bytes is None else fit.after_bytes
    bar_width = max(8, min(48, width - 30))
    for label, value in (("before", fit.before_bytes), ("after", after)):
        fraction = value / fit.total_bytes
        full, empty = bar(fraction, bar_width)
        style = palette.crit if fraction > 1 else palette.warn if fraction > 0.95 else palette.vram
        row = Row(width, palette.base).put(f"{word} {label}", palette.muted, 13)
        row.raw(full, len(full), style).raw(empty, len(empty), palette.empty).gap()
        lines.append(row.put(size_pair(value, fit.total_bytes), palette.base).end())
    return lines


def place_row(
    name: str, detail: str, fit: Fit, width: int, name_width: int, palette: Palette
) -> Line:
    """One model of a library in the picker."""
    row = Row(width, palette.base)
    row.put(name, palette.base if fit.possible else palette.muted, name_width).gap()
    row.put(size(fit.need_bytes or None), palette.base, 6, ">").gap(2)
    row.put(detail, palette.muted, 14).gap()
    style = {
        "fits": palette.ok,
        "evicts": palette.warn,
        "waits": palette.warn,
        "never": palette.crit,
    }.get(fit.verdict, palette.muted)
    glyph = {"fits": "●", "evicts": "▲", "waits": "▲", "never": "✕", "loaded": "·"}.get(
        fit.verdict, " "
    )
    row.put(f"{glyph} ", style)
    if fit.possible and fit.after_bytes is not None and row.left > 24:
        row.put(f"→ {size_pair(fit.after_bytes, fit.total_bytes)}", palette.base, 13).gap()
    return row.put(fit.words, style, row.left).end()


def facts(pairs: Sequence[tuple[str, str]], width: int, palette: Palette) -> list[Line]:
    """Label and value, values wrapped; an empty label continues, an empty pair is a gap."""
    label_width = max((cells(label) for label, _ in pairs), default=0) + 2
    lines: list[Line] = []
    for label, value in pairs:
        for index, part in enumerate(wrap(value, width - label_width)):
            row = Row(width, palette.base).put("" if index else label, palette.muted, label_width)
            lines.append(row.put(part, palette.base).end())
    return lines
