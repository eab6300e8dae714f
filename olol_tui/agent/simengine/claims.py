"""What a request may hold of the simulated device: a model's memory, then a slot of it.

Plain records; `host.Host` keeps the rules.
"""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .catalogue import SimModel
    from .host import Host


class Runner:
    """One model that is resident or on its way."""

    __slots__ = (
        "active",
        "draining",
        "expires_wall",
        "line",
        "load_s",
        "model",
        "num_ctx",
        "prompts",
        "ready",
        "refs",
        "session_s",
        "slots",
        "started_mono",
        "timer",
        "used_mono",
        "vram_bytes",
    )

    def __init__(self, model: SimModel, num_ctx: int, slots: int, load_s: float) -> None:
        self.model = model
        self.num_ctx = num_ctx
        self.slots = slots
        self.vram_bytes = model.vram_bytes(num_ctx, slots)
        self.load_s = load_s
        self.started_mono = time.monotonic()
        self.ready = False
        self.refs = 0
        """Requests that hold it, in a slot or in line for one."""
        self.active = 0
        self.line: collections.deque[Lease] = collections.deque()
        """Waiting for a slot, first come first served."""
        self.prompts: collections.deque[str] = collections.deque(maxlen=2 * slots)
        """Whose keys and values are still there, latest last."""
        self.draining = False
        """It is to be unloaded as soon as it is idle; takes no new requests."""
        self.session_s = 0.0
        self.used_mono = self.started_mono
        self.expires_wall: float | None = None
        self.timer: asyncio.TimerHandle | None = None

    def remember(self, prompt: str) -> float:
        """Takes a prompt into the cache; returns the share of it that was there already."""
        best, found = 0, None
        for one in self.prompts:
            common = _common(one, prompt)
            if common > best:
                best, found = common, one
        # A longer version of a prompt takes its place, as in a slot.
        if found is not None and best == len(found):
            self.prompts.remove(found)
        self.prompts.append(prompt)
        return best / max(1, len(prompt))

    def progress(self) -> float:
        """Share of the load that is done, 0..1."""
        if self.ready or self.load_s <= 0:
            return 1.0
        return min(1.0, (time.monotonic() - self.started_mono) / self.load_s)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Lease:
    """A request's claim on a model: first on its memory, then on a slot."""

    __slots__ = (
        "_host",
        "_on_error",
        "_on_ready",
        "_on_slot",
        "closed",
        "has_slot",
        "keep_alive_s",
        "model",
        "num_ctx",
        "runner",
    )

    def __init__(
        self,
        host: Host,
        model: SimModel,
        num_ctx: int,
        keep_alive_s: float | None,
        on_ready: Callable[[], None],
        on_error: Callable[[int, str], None],
    ) -> None:
        self._host = host
        self.model = model
        self.num_ctx = num_ctx
        self.keep_alive_s = keep_alive_s
        self._on_ready = on_ready
        self._on_error = on_error
        self._on_slot: Callable[[], None] = lambda: None
        self.runner: Runner | None = None
        self.has_slot = False
        self.closed = False

    def take_slot(self, on_slot: Callable[[], None]) -> None:
        """Calls `on_slot` at once or when it is this request's turn."""
        self._on_slot = on_slot
        self._host.enter_line(self)

    def close(self) -> None:
        """Gives everything back, wherever the request stands. Safe to call twice."""
        if not self.closed:
            self.closed = True
            self._host.leave(self)

    def granted(self) -> None:
        self._on_ready()

    def slot_granted(self) -> None:
        self.has_slot = True
        self._on_slot()

    def refused(self, status: int, message: str) -> None:
        self.closed = True
        self._on_error(status, message)
