"""Lines of segments with known widths: what every renderer returns.

A `Frame` also says what lies where (`hits`), so that the console finds the target of a
click by arithmetic instead of asking a widget tree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rich.segment import Segment
from rich.style import Style

from olol_tui.render.text import Align, cells, fit

Line = list[Segment]


@dataclass(frozen=True, slots=True)
class Hit:
    """A rectangle of a frame and what a click on it means."""

    x: int
    y: int
    width: int
    height: int
    kind: Literal["cursor", "action", "view", "choice"]
    value: str

    def contains(self, x: int, y: int) -> bool:
        return self.x <= x < self.x + self.width and self.y <= y < self.y + self.height

    def moved(self, dx: int, dy: int) -> Hit:
        return Hit(self.x + dx, self.y + dy, self.width, self.height, self.kind, self.value)


@dataclass(slots=True)
class Frame:
    """Lines of equal width, and what can be clicked on them."""

    lines: list[Line] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)

    def add(self, other: Frame) -> None:
        """Append another frame below this one."""
        below = len(self.lines)
        self.lines.extend(other.lines)
        self.hits.extend(hit.moved(0, below) for hit in other.hits)


class Row:
    """Builds one line of exactly `width` cells, left to right; what does not fit is cut.

    Blanks are held back and put in front of the next text: fewer segments make every
    later step of the frame cheaper.
    """

    __slots__ = ("_background", "_base", "_held", "_segments", "left", "width")

    def __init__(self, width: int, base: Style) -> None:
        self.width = width
        self.left = width
        """Cells that are still free."""
        self._base = base
        self._background = base.bgcolor
        self._segments: Line = []
        self._held = 0

    @property
    def used(self) -> int:
        return self.width - self.left

    def put(
        self, text: str, style: Style | None = None, width: int | None = None, align: Align = "<"
    ) -> Row:
        """Add cleaned text, in exactly `width` cells when given."""
        if width is None:
            width = cells(text)
        if width > self.left:
            width = self.left
        return self.raw(fit(text, width, align), width, style)

    def raw(self, text: str, width: int, style: Style | None = None) -> Row:
        """Add text that is known to be clean and `width` cells wide, one cell a character."""
        if width > self.left:
            width = self.left
            text = text[:width]
        if width <= 0:
            return self
        self.left -= width
        if style is None:
            style = self._base
        if self._held:
            if style.bgcolor is self._background:
                text = " " * self._held + text
            else:
                self._segments.append(Segment(" " * self._held, self._base))
            self._held = 0
        self._segments.append(Segment(text, style))
        return self

    def gap(self, width: int = 1) -> Row:
        if width > self.left:
            width = self.left
        if width > 0:
            self._held += width
            self.left -= width
        return self

    def to(self, column: int) -> Row:
        """Blank up to `column`, when it lies ahead."""
        return self.gap(column - self.used)

    def right(self, text: str, style: Style | None = None, margin: int = 0) -> Row:
        """Add text that ends `margin` cells before the end of the line."""
        width = cells(text)
        return self.to(self.width - width - margin).put(text, style)

    def end(self) -> Line:
        blank_cells = self._held + self.left
        if blank_cells:
            self._segments.append(Segment(" " * blank_cells, self._base))
            self._held = self.left = 0
        return self._segments


def blank(width: int, base: Style) -> Line:
    return [Segment(" " * width, base)] if width > 0 else []


def rule(width: int, style: Style) -> Line:
    return [Segment("─" * width, style)]


def beside(parts: Iterable[tuple[list[Line], int]], height: int, base: Style) -> list[Line]:
    """Columns of lines, each with its width, put side by side and filled to `height`."""
    columns = [(lines, width, blank(width, base)) for lines, width in parts]
    return [
        [
            segment
            for lines, _, empty in columns
            for segment in (lines[y] if y < len(lines) else empty)
        ]
        for y in range(height)
    ]


def text_of(line: Line) -> str:
    return "".join(segment.text for segment in line)
