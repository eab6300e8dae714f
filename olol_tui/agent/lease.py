"""Which controller may change what runs here: one at a time, as long as it shows itself.

Two consoles on one node would start and stop each other's engines. So the controller that
sets the desired engines holds a lease: it claims it again every few seconds, and when nothing
came for `LEASE_S` another one may take over. What only looks is never refused.

The name outlives the agent (a file, written when it changes): after a restart of the agent
the holder has the same time to come back. A call without a name (curl, `olol-tui stop`) can
change nothing while somebody holds the lease, except end the agent.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from .errors import BadRequest, Held
from .records import atomic_write

log = logging.getLogger(__name__)

LEASE_S = 15.0
HEADER = "x-olol-controller"
"""`ID NAME`: who asks. The id survives restarts of the console, the name is for people."""

_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_MAX_NAME_CHARS = 100


@dataclass(frozen=True)
class Controller:
    """Who calls."""

    id: str
    name: str
    """`ops@laptop`."""

    @classmethod
    def parse(cls, header: str) -> Controller | None:
        """None without a header.

        Raises:
            BadRequest: it is not `ID NAME`.
        """
        if not header.strip():
            return None
        identity, _, name = header.strip().partition(" ")
        name = "".join(char for char in name if char.isprintable()).strip()[:_MAX_NAME_CHARS]
        if not _ID.fullmatch(identity):
            raise BadRequest(f"{HEADER}: expected an id and a name, got {header[:80]!r}")
        return cls(identity, name or "another console")


class Lease:
    """The one lease of this agent.

    Args:
        path: where the holder's name is kept.
        changed: called when the holder changes, for whoever watches.
    """

    def __init__(
        self,
        path: Path,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._changed = changed
        self._clock = clock
        self._holder: Controller | None = None
        self._since_wall = 0.0
        self._until_s = 0.0
        self._load()

    def claim(self, who: Controller | None) -> None:
        """Make `who` the holder, or renew what it holds.

        Raises:
            Held: another one does.
        """
        self.check(who)
        if who is None:
            return
        self._until_s = self._clock() + LEASE_S
        if self._holder == who:
            return
        if self._holder is None or self._holder.id != who.id:
            log.info("the engines are now managed by %s", who.name)
            self._since_wall = time.time()
        self._holder = who
        self._store()
        self._changed()

    def check(self, who: Controller | None) -> None:
        """Raises Held when somebody else holds the lease."""
        holder = self._holder
        if holder is None or not self._live() or (who is not None and holder.id == who.id):
            return
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._since_wall))
        raise Held(
            f"managed by {holder.name} since {since}",
            f"It is released when that console ends, or is silent for {LEASE_S:.0f} s.",
            holder.name,
            self._since_wall,
        )

    def release(self, who: Controller | None) -> None:
        """The holder leaves orderly: the next one need not wait."""
        if who is not None and self._holder is not None and self._holder.id == who.id:
            log.info("%s manages the engines no more", self._holder.name)
            self._holder = None
            self._store()
            self._changed()

    def shown(self) -> dict[str, Any] | None:
        """For hello and telemetry; None when nobody holds it."""
        if self._holder is None or not self._live():
            return None
        return {
            "id": self._holder.id,
            "name": self._holder.name,
            "since_wall": self._since_wall,
        }

    def _live(self) -> bool:
        return self._clock() < self._until_s

    def _load(self) -> None:
        try:
            data = json.loads(self._path.read_bytes())
            holder = Controller(str(data["id"]), str(data["name"]))
            since_wall = float(data["since_wall"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s is ignored: %s", self._path, error)
            return
        self._holder, self._since_wall = holder, since_wall
        self._until_s = self._clock() + LEASE_S

    def _store(self) -> None:
        """A disk that refuses costs the memory over a restart, nothing else."""
        try:
            if self._holder is None:
                self._path.unlink()
            else:
                atomic_write(self._path, json.dumps(self.shown()).encode())
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
