"""Who this controller is to the agents: one of them manages a node at a time.

The id lies in the state directory, so that a console that was killed and started again is
the same one and need not wait for its own lease to lapse. Two that run at once never have
the same: the state directory is locked by whoever uses it.
"""

from __future__ import annotations

import getpass
import logging
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from olol_tui.files import write_atomic

log = logging.getLogger("olol.fleet.identity")

HEADER = "X-Olol-Controller"
_ID = re.compile(r"[a-z0-9-]{16,64}")


@dataclass(frozen=True, slots=True)
class Identity:
    id: str
    name: str
    """`ops@laptop`: for people."""

    @property
    def headers(self) -> dict[str, str]:
        name = self.name.encode("ascii", "replace").decode("ascii")
        return {HEADER: f"{self.id} {name}"}


def load(path: Path) -> Identity:
    """The identity kept in `path`; a new one is written there. Blocks."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    if not _ID.fullmatch(text):
        text = f"c-{secrets.token_hex(12)}"
        try:
            write_atomic(path, text.encode("ascii") + b"\n")
        except OSError as error:
            # It works without: only a restart has to wait for the old lease.
            log.warning("%s cannot be written: %s", path, error)
    return Identity(text, _name())


def _name() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # No entry in passwd: an arbitrary uid in a container.
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
