"""Bars and graphs from block characters.

Histories are bytes (see `history`): level 0 is «no sample», 1..255 is 0..100 %. A graph
row is one `charmap_decode` of those bytes, so a redraw costs one C call a row.
"""

from __future__ import annotations

from codecs import charmap_decode
from functools import lru_cache

BLOCKS = " ▁▂▃▄▅▆▇█"


@lru_cache(maxsize=64)
def _row_table(row: int, rows: int) -> str:
    """Glyph of every level for one row (0 = bottom) of a graph `rows` high.

    A sample of 0 % still draws the lowest block: an idle GPU differs from no sample.
    """
    glyphs = [" "]
    for level in range(1, 256):
        eighths = max(1, round((level - 1) * 8 * rows / 254))
        glyphs.append(BLOCKS[min(8, max(0, eighths - 8 * row))])
    return "".join(glyphs)


def spark(levels: bytes, width: int) -> str:
    """One row of the newest `width` samples, right-aligned, in exactly `width` cells."""
    if width <= 0:
        return ""
    text: str = charmap_decode(levels[-width:], "strict", _row_table(0, 1))[0]
    return text if len(text) == width else text.rjust(width)


def graph(levels: bytes, width: int, rows: int) -> list[str]:
    """`rows` rows, top first, of the newest `width` samples."""
    if width <= 0:
        return [""] * rows
    newest = levels[-width:]
    return [
        charmap_decode(newest, "strict", _row_table(row, rows))[0].rjust(width)
        for row in range(rows - 1, -1, -1)
    ]


@lru_cache(maxsize=4096)
def _bar(halves: int, width: int) -> tuple[str, str]:
    full, half = divmod(halves, 2)
    filled = "━" * full + ("╸" if half else "")
    return filled, "─" * (width - len(filled))


def bar(fraction: float | None, width: int) -> tuple[str, str]:
    """Filled and empty part of a bar, together `width` cells, in steps of half a cell.

    Heavy and light lines tell the parts apart without colour.
    """
    if width <= 0:
        return "", ""
    if fraction is None:
        return "", "─" * width
    halves = round(min(1.0, max(0.0, fraction)) * width * 2)
    return _bar(max(1, halves) if fraction > 0 else 0, width)


def level(fraction: float | None) -> int:
    """The byte that a history keeps for 0..1; None is «no sample»."""
    if fraction is None:
        return 0
    if fraction <= 0.0:
        return 1
    return 255 if fraction >= 1.0 else int(fraction * 254 + 1.5)
