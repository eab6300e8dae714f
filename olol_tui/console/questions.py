"""Questions that the fleet asks by itself: unknown host keys, locked keys of ours.

A window opens when nothing else is being done, once for every question; a question that is
answered elsewhere closes its window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from textual.screen import ModalScreen

from olol_tui.console.dialogs.ask import Answer, Ask
from olol_tui.console.dialogs.base import Dialog
from olol_tui.console.dialogs.secret import Secret
from olol_tui.fleet.commands import AnyCommand, GivePassphrase, Provision, TrustHostKey
from olol_tui.fleet.snapshot import Fleet, HostKeyQuestion, Node
from olol_tui.render.box import facts
from olol_tui.render.line import Line, Row, beside
from olol_tui.render.palette import Palette
from olol_tui.render.scene import Scene
from olol_tui.render.steps import has_failed
from olol_tui.render.text import clean

Key = tuple[str, ...]
"""What makes a question the same one."""

ART_WIDTH = 21
"""Of the picture that `ssh-keygen -lv` draws, with a gap."""
COMPARE = "ssh-keygen -lf /etc/ssh/ssh_host_{}_key.pub"


class QuestionHost(Protocol):
    @property
    def scene(self) -> Scene: ...

    def submit(self, *commands: AnyCommand) -> None: ...

    def ask(
        self,
        dialog: ModalScreen[Any],
        then: Callable[[Any], None],
        *,
        cancelled: Callable[[], None] | None = None,
    ) -> None: ...


def pending(fleet: Fleet) -> dict[Key, Node | None]:
    """All open questions; None stands for the passphrase's."""
    found: dict[Key, Node | None] = {}
    if (locked := fleet.passphrase) is not None:
        found["passphrase", locked.path, locked.complaint] = None
    for node in fleet.nodes:
        if node.question is not None:
            found["host key", node.name, node.question.fingerprint] = node
    return found


class Questions:
    """Asks one at a time."""

    def __init__(self, host: QuestionHost) -> None:
        self._host = host
        self._asked: set[Key] = set()
        self._open: tuple[Key, Dialog[str]] | None = None

    def look(self, fleet: Fleet, *, idle: bool) -> None:
        """See what the snapshot asks.

        Args:
            idle: the operator is doing nothing that a window would interrupt.
        """
        found = pending(fleet)
        # A question that came back is a new one: its host key was forgotten, say.
        self._asked &= found.keys()
        if self._open is not None:
            key, dialog = self._open
            if key not in found and dialog.is_current:
                self._open = None
                dialog.dismiss(None)
            return
        if not idle:
            return
        for key, node in found.items():
            if key not in self._asked:
                self._ask(key, node, fleet)
                return

    def ask_about(self, node: Node) -> None:
        """Open a host key question again, although it was put aside."""
        if node.question is not None and self._open is None:
            key = ("host key", node.name, node.question.fingerprint)
            self._ask(key, node, self._host.scene.fleet)

    def _ask(self, key: Key, node: Node | None, fleet: Fleet) -> None:
        self._asked.add(key)
        dialog: Dialog[str]
        if node is not None and node.question is not None:
            others = sum(1 for n in fleet.nodes if n.question is not None)
            dialog = host_key_window(self._host, node, node.question, others)
            answer = self._trust(node, node.question)
            put_aside = self._closed
        elif (locked := fleet.passphrase) is not None:
            dialog = Secret(self._host, locked)
            path = locked.path

            def answer(text: str) -> None:
                self._answer(GivePassphrase(path=path, passphrase=text))

            def put_aside() -> None:
                still = self._open is not None
                self._closed()
                if still:
                    self._host.submit(GivePassphrase(path=path, passphrase=None))
        else:
            return
        self._open = (key, dialog)
        self._host.ask(dialog, answer, cancelled=put_aside)

    def _trust(self, node: Node, question: HostKeyQuestion) -> Callable[[str], None]:
        trust = TrustHostKey(node=node.name, fingerprint=question.fingerprint)

        def answer(_: str) -> None:
            now = self._host.scene.fleet.node(node.name)
            if now is not None and has_failed(now):
                # It was this key that the run stopped at.
                self._answer(trust, Provision(node=node.name))
            else:
                self._answer(trust)

        return answer

    def _answer(self, *commands: AnyCommand) -> None:
        self._closed()
        self._host.submit(*commands)

    def _closed(self) -> None:
        self._open = None


def host_key_window(
    host: QuestionHost, node: Node, question: HostKeyQuestion, others: int
) -> Dialog[str]:
    """The question whether a host is the one it says; «no» has the focus."""
    art = [clean(line) for line in question.randomart.splitlines()]

    def body(width: int, p: Palette) -> list[Line]:
        pairs = [
            ("node", node.name),
            ("host", question.host),
            ("key", question.key_type),
            ("fingerprint", question.fingerprint),
        ]
        kind = question.key_type.lower().partition("-")[0]
        pairs += [("", ""), ("compare with", COMPARE.format(kind)), ("", "on the machine itself")]
        if not art or width < 64 + ART_WIDTH:
            return facts(pairs, width, p)
        left = width - ART_WIDTH
        lines = facts(pairs, left, p)
        picture = [
            Row(ART_WIDTH, p.base).gap(2).put(line, p.muted, ART_WIDTH - 2).end() for line in art
        ]
        rows = max(len(lines), len(picture))
        return beside([(lines, left), (picture, ART_WIDTH)], rows, p.base)

    text = [
        ("bright", "This host is unknown."),
        ("base", "Nobody has vouched for its key yet: somebody in between would look the same."),
    ]
    more = f" (1 of {others})" if others > 1 else ""
    return Ask(
        host,
        f"Unknown host key{more}",
        text,
        [Answer("trust", "Trust this key")],
        danger=True,
        body=body,
        cancel="No",
        width=92,
    )
