"""Ask for the passphrase of a key. What is typed is never drawn."""

from __future__ import annotations

from textual.events import Key

from olol_tui.console.dialogs.base import Dialog, DialogHost
from olol_tui.console.line_edit import LineEdit
from olol_tui.fleet.snapshot import PassphraseQuestion
from olol_tui.render.box import boxed, paragraph
from olol_tui.render.line import Frame, Row, blank


class Secret(Dialog[str]):
    """The result is the passphrase; None: not now."""

    def __init__(self, host: DialogHost, question: PassphraseQuestion) -> None:
        super().__init__(host)
        self._question = question
        self._edit = LineEdit()

    def draw(self, width: int, height: int) -> Frame:
        p, inner = self.palettes.panel, width - 4
        frame = Frame([blank(inner, p.base)])
        frame.lines += paragraph(f"{self._question.path} is locked.", inner, p, "bright")
        told = "Its passphrase is kept in memory, is never written down, and is asked once."
        frame.lines += paragraph(told, inner, p, "muted")
        if self._question.complaint:
            frame.lines += paragraph(f"▲ {self._question.complaint}", inner, p, "warn")
        frame.lines.append(blank(inner, p.base))
        row = Row(inner, p.base).put("passphrase ", p.muted)
        dots = min(len(self._edit.text), max(0, row.left - 1))
        row.raw("•" * dots, dots, p.bright).raw(" ", 1, p.chip)
        frame.lines.append(row.end())
        frame.lines.append(blank(inner, p.base))
        return boxed(frame, width, p, title="A key is locked", hint="enter unlock  esc not now")

    def pressed(self, key: Key) -> None:
        if key.key == "enter":
            if self._edit.text:
                self.dismiss(self._edit.text)
        else:
            self._edit.handle(key)

    def pasted(self, text: str) -> None:
        self._edit.insert(text.rstrip("\r\n"))
