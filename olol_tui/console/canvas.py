"""The one widget of a screen: draws lines that pure renderers made.

It overrides `render_lines`, which skips Textual's style cache: 64 changing devices cost
6 ms a tick this way and 123 ms as a widget tree. Rows whose segments did not change keep
their Strip, and only the rows that did are sent to the terminal.
"""

from __future__ import annotations

from rich.style import Style
from textual.events import Click, MouseScrollDown, MouseScrollUp, Resize
from textual.filter import ANSIToTruecolor
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from olol_tui.render.line import Frame, Hit, Line


class Canvas(Widget, can_focus=True):
    """Shows one Frame."""

    DEFAULT_CSS = """
    Canvas {
        width: 1fr;
        height: 1fr;
        &:focus { background-tint: 0%; }
    }
    """

    class Clicked(Message):
        """A click on something that the frame names."""

        def __init__(self, hit: Hit, *, double: bool) -> None:
            super().__init__()
            self.hit = hit
            self.double = double

    class Scrolled(Message):
        """The wheel, in rows."""

        def __init__(self, rows: int) -> None:
            super().__init__()
            self.rows = rows

    class Resized(Message):
        """The canvas has a new size; its frame must be drawn again."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: list[Line] = []
        self._strips: list[Strip] = []
        self._hits: list[Hit] = []
        self._width = 0
        self._blank = Style()

    def show(self, frame: Frame, width: int, blank: Style) -> None:
        """Take a new frame and refresh the rows that differ from the old one.

        Args:
            width: cells of every line of the frame.
            blank: style of what the frame does not cover.
        """
        self._hits = frame.hits
        old, new = self._lines, frame.lines
        if len(old) != len(new) or width != self._width or blank is not self._blank:
            self._lines, self._width, self._blank = new, width, blank
            self._strips = [Strip(line, width) for line in new]
            self.refresh()
            return
        changed: list[int] = []
        for y, line in enumerate(new):
            if line != old[y]:
                self._strips[y] = Strip(line, width)
                changed.append(y)
        self._lines = new
        if changed:
            self.refresh(*_bands(changed, width))

    def render_lines(self, crop: Region) -> list[Strip]:
        width, height = self.size
        strips = self._strips[:height]
        if len(strips) < height:
            strips.extend([Strip.blank(width, self._blank)] * (height - len(strips)))
        strips = strips[crop.y : crop.bottom]
        for line_filter in self.get_line_filters():
            # Palettes are in true colour already; the others (NO_COLOR, dim) do apply.
            if not isinstance(line_filter, ANSIToTruecolor):
                background = self.background_colors[1]
                strips = [strip.apply_filter(line_filter, background) for strip in strips]
        if crop.x or crop.width != width or any(s.cell_length != width for s in strips):
            strips = [s.crop_extend(crop.x, crop.right, self._blank) for s in strips]
        return strips

    @property
    def text(self) -> str:
        """What is on the canvas, for tests and for copying."""
        return "\n".join("".join(s.text for s in line) for line in self._lines)

    def on_resize(self, event: Resize) -> None:
        self.post_message(self.Resized())

    def on_click(self, event: Click) -> None:
        hit = next((h for h in self._hits if h.contains(event.x, event.y)), None)
        if hit is not None:
            event.stop()
            self.post_message(self.Clicked(hit, double=event.chain > 1))

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Scrolled(3))

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Scrolled(-3))


def _bands(rows: list[int], width: int) -> list[Region]:
    """Regions that cover the changed rows; neighbours within two rows are joined."""
    bands: list[Region] = []
    start = last = rows[0]
    for y in rows[1:]:
        if y - last > 2:
            bands.append(Region(0, start, width, last - start + 1))
            start = y
        last = y
    bands.append(Region(0, start, width, last - start + 1))
    return bands
