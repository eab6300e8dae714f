"""A window over a screen: one canvas, sized by what it draws."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from textual.app import ComposeResult
from textual.events import Key, Paste, Resize
from textual.screen import ModalScreen

from olol_tui.console.canvas import Canvas
from olol_tui.render.line import Frame
from olol_tui.render.palette import Palettes
from olol_tui.render.scene import Scene

T = TypeVar("T")


class DialogHost(Protocol):
    """What a dialog reads of the app."""

    @property
    def scene(self) -> Scene: ...


class Dialog(ModalScreen[T | None], Generic[T]):
    """Base of all windows. The result is None when it was cancelled."""

    DEFAULT_CSS = """
    Dialog {
        align: center middle;
        background: $background 60%;
    }
    """

    wanted_width = 72

    def __init__(self, host: DialogHost) -> None:
        super().__init__()
        self._host = host
        self._canvas = Canvas()
        self._early: list[Key] | None = []
        """Keys typed before the window was there; None once it is."""

    @property
    def scene(self) -> Scene:
        return self._host.scene

    @property
    def palettes(self) -> Palettes:
        return self._host.scene.palettes

    def compose(self) -> ComposeResult:
        yield self._canvas

    def on_mount(self) -> None:
        # On a small terminal they would cover the question and its buttons.
        self.app.clear_notifications()
        self.repaint()
        self._canvas.focus()
        early, self._early = self._early or [], None
        for key in early:
            if self.is_current:
                self.typed(key)
            else:
                self.app.post_message(key)

    def on_resize(self, event: Resize) -> None:
        self.repaint()

    def on_canvas_resized(self) -> None:
        self.repaint()

    def draw(self, width: int, height: int) -> Frame:
        """The whole window, `width` cells wide and at most `height` rows."""
        raise NotImplementedError

    def repaint(self) -> None:
        """Draw again: a key was pressed, or the fleet changed behind the window."""
        width = min(self.wanted_width, max(20, self.size.width - 2))
        frame = self.draw(width, max(6, self.size.height - 2))
        self._canvas.styles.width = width
        self._canvas.styles.height = len(frame.lines)
        self._canvas.show(frame, width, self.palettes.panel.base)

    def typed(self, key: Key) -> None:
        """Every key ends here: nothing behind the window hears it."""
        if self._early is not None:
            self._early.append(key)
        elif key.key in ("escape", "ctrl+c"):
            self.dismiss(None)
        else:
            self.pressed(key)
            if self.is_current:
                self.repaint()

    def pressed(self, key: Key) -> None:
        """A key other than escape."""

    def on_paste(self, event: Paste) -> None:
        event.stop()
        self.pasted(event.text)
        self.repaint()

    def pasted(self, text: str) -> None:
        """Text from the clipboard."""

    def on_canvas_clicked(self, event: Canvas.Clicked) -> None:
        event.stop()
        self.chosen(event.hit.value, double=event.double)
        if self.is_current:
            self.repaint()

    def chosen(self, value: str, *, double: bool) -> None:
        """A click on something the frame named."""

    def on_canvas_scrolled(self, event: Canvas.Scrolled) -> None:
        event.stop()
        self.scrolled(event.rows)
        self.repaint()

    def scrolled(self, rows: int) -> None:
        """The wheel."""
