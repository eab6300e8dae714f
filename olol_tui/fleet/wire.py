"""What agents say and hear, as types: the JSON of the agent API.

Devices and models travel under the field names of the snapshot and are decoded straight
into it. Unknown fields are ignored and most are optional, so that an agent may be older or
newer than the console.
"""

from __future__ import annotations

import msgspec

from olol_tui.fleet.snapshot import (
    Device,
    EngineKind,
    EngineState,
    Layout,
    Loaded,
    Loading,
    Model,
)

PROTOCOL = 1


class Holder(msgspec.Struct, frozen=True):
    """The controller that manages a node's engines."""

    id: str = ""
    name: str = ""
    since_wall: float = 0.0


class Hello(msgspec.Struct, frozen=True):
    protocol: int = 0
    version: str = ""
    sha256: str = ""
    """Of the zipapp it runs from."""
    pid: int = 0
    boot_id: str = ""
    machine_id: str = ""
    hostname: str = ""
    python: str = ""
    controller: Holder | None = None


class Installed(msgspec.Struct, frozen=True):
    """An engine kind that the node can start."""

    path: str = ""
    version: str = ""


class Foreign(msgspec.Struct, frozen=True):
    """An Ollama that runs on the node and is not ours."""

    url: str
    version: str = ""
    pid: int | None = None


class Inventory(msgspec.Struct, frozen=True):
    hostname: str = ""
    os: str = ""
    arch: str = ""
    cpus: int | None = None
    memory_bytes: int | None = None
    devices: tuple[Device, ...] = ()
    engines: dict[str, Installed | None] = msgspec.field(default_factory=dict)
    foreign: tuple[Foreign, ...] = ()
    errors: tuple[str, ...] = ()


class Models(msgspec.Struct, frozen=True):
    models: tuple[Model, ...] = ()
    errors: tuple[str, ...] = ()


class RunnerModel(msgspec.Struct, frozen=True):
    """The one model of a runner."""

    name: str
    path: str
    chat_template: str = ""


class Chain(msgspec.Struct, frozen=True):
    """Where the layers of a split go, as its head is told."""

    workers: tuple[str, ...]
    """`127.0.0.1:port`, in the order in which layers are computed; own GPUs come after them."""
    layers: tuple[int, ...]
    build: str = ""


class ForwardTo(msgspec.Struct, frozen=True):
    """A worker on another node, reached over its sshd."""

    host: str
    user: str
    port: int
    target: int
    """The worker's port on its own loopback."""
    host_key: str


class Spec(msgspec.Struct, frozen=True, omit_defaults=True):
    """An engine that should exist. Fields at their default are left to the agent."""

    id: str
    kind: EngineKind
    devices: tuple[str, ...]
    slots: int | None = None
    num_ctx: int = 0
    binary: str = ""
    models_dir: str = ""
    prune: bool = False
    env: dict[str, str] = msgspec.field(default_factory=dict)
    args: tuple[str, ...] = ()
    model: RunnerModel | None = None
    simulated: dict[str, float | int] = msgspec.field(default_factory=dict)
    listen: str = ""
    chain: Chain | None = None
    forward: ForwardTo | None = None
    permit: tuple[str, ...] = ()
    cache_bytes: int = 0


class RoundTrips(msgspec.Struct, frozen=True):
    seconds: tuple[float | None, ...] = ()


class MeshKey(msgspec.Struct, frozen=True):
    public_key: str = ""


class StatusLoading(msgspec.Struct, frozen=True):
    name: str
    started_mono: float = 0.0
    """The node's monotonic clock, seconds."""
    progress: float | None = None


class Status(msgspec.Struct, frozen=True):
    """An engine that does exist, as its agent sees it."""

    id: str
    kind: EngineKind
    state: EngineState
    devices: tuple[str, ...] = ()
    address: str = ""
    pid: int | None = None
    version: str = ""
    slots: int = 1
    model: str = ""
    loaded: tuple[Loaded, ...] = ()
    loading: tuple[StatusLoading, ...] = ()
    restarts: int = 0
    since_mono: float = 0.0
    """The node's monotonic clock, seconds."""
    retry_in_s: float | None = None
    error: str = ""
    log_tail: tuple[str, ...] = ()
    layout: Layout | None = None
    resident_bytes: int | None = None
    carries_bytes_s: float | None = None

    def loading_at(self, clock_offset_s: float) -> tuple[Loading, ...]:
        """`loading` with marks on the fleet clock."""
        return tuple(
            Loading(
                name=one.name, started_s=one.started_mono + clock_offset_s, progress=one.progress
            )
            for one in self.loading
        )


class Engines(msgspec.Struct, frozen=True):
    generation: int = 0
    engines: tuple[Status, ...] = ()


class Generation(msgspec.Struct, frozen=True):
    generation: int = 0


class Frame(msgspec.Struct, frozen=True):
    """One beat of telemetry."""

    seq: int = 0
    version: str = ""
    """Of the agent: it may become another one in the middle of a stream."""
    t_mono: float = 0.0
    t_wall: float | str = 0.0
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    generation: int = 0
    devices: tuple[Device, ...] = ()
    engines: tuple[Status, ...] = ()
    foreign: tuple[str, ...] = ()
    controller: Holder | None = None


class LogLine(msgspec.Struct, frozen=True):
    line: str = ""


class Problem(msgspec.Struct, frozen=True):
    title: str = ""
    message: str = ""
    hint: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """Body of every answer that is not a success."""

    error: Problem = msgspec.field(default_factory=Problem)
    held_by: Holder | None = None
    """Another controller manages the engines: nothing may be changed."""


class ClockMap:
    """Maps a node's monotonic clock to the fleet clock.

    The offset of a frame is its true offset plus its delay, so the least one is the best.
    The estimate may rise by 100 ppm, more than any crystal drifts, or a slow clock would
    leave it behind for good.
    """

    MAX_DRIFT = 1e-4

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self._seen_s = 0.0

    def observe(self, node_mono_s: float, now_s: float) -> None:
        sample = now_s - node_mono_s
        if self._offset_s is None:
            self._offset_s = sample
        else:
            drifted = self._offset_s + self.MAX_DRIFT * max(0.0, now_s - self._seen_s)
            self._offset_s = min(sample, drifted)
        self._seen_s = now_s

    def forget(self) -> None:
        """After a reconnect: the node may have booted."""
        self._offset_s = None

    @property
    def offset_s(self) -> float:
        """Add to a node's clock value; 0 before the first frame."""
        return self._offset_s or 0.0
