"""Memory of the simulated device and what is resident in it.

Follows Ollama's scheduler: requests for a resident model go straight to it; the others
wait in one line for a load; one load at a time; idle models make room, least recently
used first, busy ones never; another num_ctx is a reload once the model is idle.

Callbacks instead of tasks: whoever asks gets a Lease, whose owner must close it.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from typing import TYPE_CHECKING

from .catalogue import SimModel
from .claims import Lease, Runner
from .keep_alive import FOREVER
from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_QUEUE = "server busy, please try again.  maximum pending requests exceeded"
_FAR_FUTURE_S = 2**63 / 1e9
"""Go's longest duration: how Ollama writes «never expires»."""


class Host:
    """The device's memory and the models in it."""

    def __init__(
        self,
        settings: Settings,
        log: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._log = log
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._runners: dict[str, Runner] = {}
        self._pending: collections.deque[Lease] = collections.deque()
        self._loading: Runner | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._advancing = False
        self.loads = 0
        self.evictions = 0

    # -- asking ---------------------------------------------------------------------

    def acquire(
        self,
        model: SimModel,
        num_ctx: int,
        keep_alive_s: float | None,
        on_ready: Callable[[], None],
        on_error: Callable[[int, str], None],
    ) -> Lease:
        """Claims a model; `on_ready` or `on_error` is called now or later."""
        num_ctx = min(max(num_ctx, 4), model.context_length)
        lease = Lease(self, model, num_ctx, keep_alive_s, on_ready, on_error)
        runner = self._usable(lease)
        if runner is not None:
            self._use(lease, runner)
        elif len(self._pending) >= self._settings.max_queue:
            lease.refused(503, MAX_QUEUE)
        else:
            self._pending.append(lease)
            self._advance()
        return lease

    def expire(self, model: SimModel) -> None:
        """Unloads the model now, or as soon as it is idle."""
        runner = self._runners.get(model.name)
        if runner is None:
            return
        runner.session_s = 0.0
        if runner.ready and runner.refs == 0:
            self._unload(runner, "unload was asked for")
            self._advance()

    def enter_line(self, lease: Lease) -> None:
        runner = lease.runner
        if runner is None:
            raise RuntimeError("a slot was asked for before the model was there")
        if runner.active < runner.slots and not runner.line:
            runner.active += 1
            lease.slot_granted()
        else:
            runner.line.append(lease)
        self._on_change()

    def leave(self, lease: Lease) -> None:
        runner = lease.runner
        if runner is None:
            if self._pending and self._pending[0] is lease:
                for other in self._runners.values():
                    other.draining = False  # it was to make room for this request
            if lease in self._pending:
                self._pending.remove(lease)
            self._drop_unwanted_load()
            self._advance()
            return
        if lease.has_slot:
            runner.active -= 1
        elif lease in runner.line:
            runner.line.remove(lease)
        while runner.line and runner.active < runner.slots:
            runner.active += 1
            runner.line.popleft().slot_granted()
        runner.refs -= 1
        runner.used_mono = time.monotonic()
        if runner.refs == 0:
            self._idle(runner)
        self._on_change()
        self._advance()

    # -- looking --------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests that wait for a load or for a slot."""
        return len(self._pending) + sum(len(r.line) for r in self._runners.values())

    @property
    def active(self) -> int:
        return sum(r.active for r in self._runners.values())

    @property
    def loading(self) -> Runner | None:
        return self._loading

    def used_bytes(self) -> int:
        """Memory in use now; a model on its way counts by its progress."""
        return sum(int(r.vram_bytes * r.progress()) for r in self._runners.values())

    def resident(self) -> list[Runner]:
        return [r for r in self._runners.values() if r.ready]

    def expires_wall(self, runner: Runner) -> float:
        """When it will be unloaded, Unix seconds; a busy one counts from now, as in Ollama."""
        if runner.expires_wall is not None:
            return runner.expires_wall
        return time.time() + min(runner.session_s, _FAR_FUTURE_S)

    # -- doing ----------------------------------------------------------------------

    def _usable(self, lease: Lease) -> Runner | None:
        runner = self._runners.get(lease.model.name)
        if runner is None or not runner.ready or runner.draining:
            return None
        return runner if runner.num_ctx == lease.num_ctx else None

    def _use(self, lease: Lease, runner: Runner) -> None:
        lease.runner = runner
        runner.refs += 1
        runner.used_mono = time.monotonic()
        runner.expires_wall = None
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        if lease.keep_alive_s is not None:
            runner.session_s = lease.keep_alive_s
        lease.granted()

    def _advance(self) -> None:
        """Serves the line of requests that need a load, as far as it goes now."""
        if self._advancing:  # granting may close leases, which comes back here
            return
        self._advancing = True
        try:
            self._serve_resident()
            while self._pending and self._loading is None and self._place(self._pending[0]):
                self._serve_resident()
        finally:
            self._advancing = False
        self._on_change()

    def _serve_resident(self) -> None:
        for lease in list(self._pending):
            runner = self._usable(lease)
            if runner is not None and not lease.closed:
                self._pending.remove(lease)
                self._use(lease, runner)

    def _place(self, lease: Lease) -> bool:
        """Starts the load that this request needs; False when it has to wait."""
        runner = self._runners.get(lease.model.name)
        if runner is not None:  # resident with another num_ctx, or on its way out
            runner.draining = True
            if runner.refs > 0:
                return False
            self._unload(runner, f"num_ctx {runner.num_ctx} becomes {lease.num_ctx}")
        settings = self._settings
        load_s = lease.model.size_bytes / settings.load_bytes_s
        newcomer = Runner(lease.model, lease.num_ctx, self._slots_for(lease.model), load_s)
        if newcomer.vram_bytes > settings.vram_bytes:
            self._pending.popleft()
            lease.refused(500, _too_big(newcomer.vram_bytes, settings.vram_bytes))
            return True
        if not self._make_room(newcomer.vram_bytes):
            return False
        self._runners[lease.model.name] = newcomer
        newcomer.session_s = settings.keep_alive_s
        self._loading = newcomer
        self.loads += 1
        self._log(
            f"load {lease.model.name} num_ctx={lease.num_ctx} parallel={newcomer.slots} "
            f"vram={_human(newcomer.vram_bytes)} seconds={load_s:.2f}"
        )
        self._load_timer = self._loop.call_later(load_s, self._loaded, newcomer)
        return True

    def _slots_for(self, model: SimModel) -> int:
        return self._settings.slots if "completion" in model.capabilities else 1

    def _make_room(self, wanted_bytes: int) -> bool:
        while True:
            resident = self._runners.values()
            if sum(r.vram_bytes for r in resident) + wanted_bytes <= self._settings.vram_bytes:
                return True
            idle = [r for r in resident if r.ready and r.refs == 0]
            if not idle:
                # Nobody new joins the one that was used longest ago: it will fall idle.
                busy = [r for r in resident if r.ready]
                if busy and not any(r.draining for r in busy):
                    min(busy, key=lambda r: r.used_mono).draining = True
                return False
            self.evictions += 1
            self._unload(min(idle, key=lambda r: r.used_mono), "memory is needed")

    def _loaded(self, runner: Runner) -> None:
        self._loading = None
        self._load_timer = None
        runner.ready = True
        self._log(f"loaded {runner.model.name} after {runner.load_s:.2f} s")
        self._advance()
        if runner.refs == 0 and self._runners.get(runner.model.name) is runner:
            self._idle(runner)

    def _drop_unwanted_load(self) -> None:
        """As Ollama: when everybody who waits for a load has left, it is aborted."""
        runner = self._loading
        if runner is None or any(p.model is runner.model for p in self._pending):
            return
        if self._load_timer is not None:
            self._load_timer.cancel()
            self._load_timer = None
        self._loading = None
        del self._runners[runner.model.name]
        self._log(f"client connection closed before {runner.model.name} loaded, aborting load")

    def _idle(self, runner: Runner) -> None:
        if runner.draining or runner.session_s <= 0:
            self._unload(runner, "idle")
        elif runner.session_s == FOREVER or math.isinf(runner.session_s):
            runner.expires_wall = time.time() + _FAR_FUTURE_S
        else:
            runner.expires_wall = time.time() + runner.session_s
            runner.timer = self._loop.call_later(runner.session_s, self._expired, runner)

    def _expired(self, runner: Runner) -> None:
        self._unload(runner, "keep_alive is over")
        self._advance()

    def _unload(self, runner: Runner, why: str) -> None:
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        del self._runners[runner.model.name]
        self._log(f"unload {runner.model.name}: {why}")
        self._on_change()


def _too_big(wanted_bytes: int, free_bytes: int) -> str:
    return (
        f"model requires more system memory ({_human(wanted_bytes)}) "
        f"than is available ({_human(free_bytes)})"
    )


def _human(size_bytes: float) -> str:
    """As Ollama's format.HumanBytes2: binary units, one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024 or unit == "GiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
