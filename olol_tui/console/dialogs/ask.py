"""A question with buttons; a dangerous one starts on Cancel, or wants a name typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.events import Key

from olol_tui.console.dialogs.base import Dialog, DialogHost
from olol_tui.console.line_edit import LineEdit
from olol_tui.render.box import boxed, buttons, paragraph
from olol_tui.render.line import Frame, Line, Row, blank
from olol_tui.render.palette import Palette

CANCEL = "cancel"

Body = Callable[[int, Palette], list[Line]]
"""Extra lines between text and buttons, for the inner width."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One button."""

    value: str
    label: str


class Ask(Dialog[str]):
    """Shows a question; the result is the value of the chosen answer."""

    def __init__(
        self,
        host: DialogHost,
        title: str,
        text: Sequence[tuple[str, str]],
        answers: Sequence[Answer],
        *,
        danger: bool = False,
        focus: str = CANCEL,
        type_first: str = "",
        body: Body | None = None,
        cancel: str = "Cancel",
        width: int = 72,
    ) -> None:
        """Ask.

        Args:
            text: paragraphs as (style name, words).
            answers: buttons before Cancel, which is always the last.
            danger: the frame says that it is.
            focus: value of the button that has focus at first.
            type_first: what must be typed before any answer but Cancel is taken.
            body: more lines, drawn below the text.
            cancel: label of the last button.
        """
        super().__init__(host)
        self.wanted_width = width
        self._title = title
        self._text = text
        self._answers = [*answers, Answer(CANCEL, cancel)]
        self._focus = next((i for i, a in enumerate(self._answers) if a.value == focus), 0)
        self._danger = danger
        self._type_first = type_first
        self._edit = LineEdit()
        self._focus_follows = True
        """What is typed moves the focus; until somebody moves it."""
        self._misspelt = False
        """Something else was typed and entered: that is said, and nothing done."""
        self._body = body

    def draw(self, width: int, height: int) -> Frame:
        p = self.palettes.panel
        inner = width - 4
        frame = Frame([blank(inner, p.base)])
        for style, words in self._text:
            frame.lines.extend(paragraph(words, inner, p, style))
        if self._body is not None and (extra := self._body(inner, p)):
            frame.lines.extend([blank(inner, p.base), *extra])
        if self._type_first:
            frame.lines.append(blank(inner, p.base))
            row = Row(inner, p.base).put("type ", p.muted).put(self._type_first, p.warn)
            row.put(" to go on: ", p.muted)
            self._edit.draw(row, p)
            frame.lines.append(row.end())
            if self._misspelt:
                frame.lines.extend(paragraph(f"That is not {self._type_first}.", inner, p, "warn"))
        frame.lines.append(blank(inner, p.base))
        labels = [(a.value, a.label) for a in self._answers]
        frame.add(buttons(labels, self._focus, inner, p))
        hint = "tab choose  enter do it  esc cancel"
        return boxed(frame, width, p, title=self._title, hint=hint, danger=self._danger)

    def pressed(self, key: Key) -> None:
        is_guess = self._focus_follows and bool(self._edit.text) and not self._typed()
        self._focus_follows = key.key not in ("tab", "right", "down", "shift+tab", "left", "up")
        self._misspelt = key.key == "enter" and is_guess and not self._misspelt
        if self._misspelt:
            return
        if key.key in ("tab", "right", "down"):
            self._focus = (self._focus + 1) % len(self._answers)
        elif key.key in ("shift+tab", "left", "up"):
            self._focus = (self._focus - 1) % len(self._answers)
        elif key.key == "enter":
            self._take(self._answers[self._focus].value)
        elif self._type_first and self._edit.handle(key):
            self._focus = 0 if self._typed() else len(self._answers) - 1

    def pasted(self, text: str) -> None:
        self._edit.insert(text)

    def chosen(self, value: str, *, double: bool) -> None:
        self._take(value)

    def _typed(self) -> bool:
        return self._edit.text.strip() == self._type_first

    def _take(self, value: str) -> None:
        if value == CANCEL:
            self.dismiss(None)
        elif not self._type_first or self._typed():
            self.dismiss(value)
