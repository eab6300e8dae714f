"""The fleet at one instant: what every reader shares.

Frozen, with slots, built by the controller once a tick and on every change, encoded by
msgspec for the control API. Sizes are bytes, durations seconds, temperatures Celsius,
power watts. A field that a device does not support is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from olol_tui.models.footprint import Footprint

STALE_AFTER_BEATS = 2.5
"""Telemetry older than this many beats is stale: shown dimmed with its age. With beats of a
second readers know within three; a line that loses every hundredth packet comes not near it."""

NodeState = Literal["connecting", "ready", "lost", "failed"]
EngineKind = Literal[
    "ollama", "llama-server", "embedded", "simulated", "rpc-server", "forward", "endpoint"
]
EngineState = Literal["starting", "ready", "backoff", "failed", "stopping", "stopped"]
RequestState = Literal["queued", "dispatched", "prefill", "decode", "done", "failed", "cancelled"]
Severity = Literal["info", "warning", "critical"]

Role = Literal["", "ollama", "shared", "rpc", "off"]
"""What a GPU is for; "" where the question makes no sense (endpoints)."""
StepState = Literal["waiting", "running", "done", "unchanged", "skipped", "failed", "cancelled"]

RUNNERS: frozenset[EngineKind] = frozenset({"llama-server", "embedded"})
"""Engine kinds whose process serves exactly one model and speaks llama-server's dialect."""
HELPERS: frozenset[EngineKind] = frozenset({"rpc-server", "forward"})
"""Kinds that only work for the head of a split: never asked anything by a client."""

SplitState = Literal["planning", "starting", "loading", "ready", "backoff", "failed", "stopping"]
SplitRule = Literal["auto", "never", "always"]
"""Whether a model may be split over devices, or must be."""
Mesh = Literal["ssh", "relay", "direct"]
"""How a head reaches workers on other nodes."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a node's store or library holds."""

    name: str
    """Canonical name as shown to users: `llama3.2:3b`."""
    digest: str = ""
    size_bytes: int = 0
    modified_at: str = ""
    """RFC 3339."""
    format: str = "gguf"
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    quantization: str = ""
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int | None = None
    """Longest context the model was trained for, tokens."""
    path: str = ""
    """GGUF file on the node; empty when only an Ollama store holds it."""
    chat_template: str = ""
    """Jinja text or a llama.cpp template name that replaces the GGUF's own; usually empty."""
    footprint: Footprint | None = None
    """What it takes by its header; None: not read, or not known."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model resident in an engine: one replica."""

    name: str
    digest: str = ""
    size_bytes: int = 0
    vram_bytes: int = 0
    """Of size_bytes, what lies on the GPU. Less than size_bytes on a GPU: spilled to CPU."""
    context_length: int | None = None
    expires_at: str = ""
    """RFC 3339; empty when it never expires."""
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Loading:
    """A model on its way into an engine."""

    name: str
    started_s: float
    """Fleet clock."""
    progress: float | None = None
    """0..1, None when the engine does not say."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, a MIG slice, or the CPU of a node without GPU."""

    uuid: str
    index: int
    name: str
    vendor: Literal["nvidia", "amd", "cpu", "simulated", "unknown"] = "unknown"
    vram_bytes: int | None = None
    used_bytes: int | None = None
    lent_bytes: int = 0
    """Of used_bytes, what is reserved for splits, loaded or about to be."""
    util_percent: float | None = None
    temp_c: float | None = None
    temp_limit_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: float | None = None
    throttle: tuple[str, ...] = ()
    ecc_errors: int | None = None
    pcie_rx_bytes_s: float | None = None
    pcie_tx_bytes_s: float | None = None
    error: str = ""
    """Why the device gives no or partial facts: lost, hung, driver mismatch."""
    role: Role = ""
    note: str = ""
    """What its role means for whoever looks for an engine: `reserved for llama.cpp RPC`."""

    @property
    def label(self) -> str:
        """`gpu0`, or `cpu`: how a node's device is named on screen and in commands."""
        return "cpu" if self.vendor == "cpu" else f"gpu{self.index}"

    @property
    def free_bytes(self) -> int | None:
        if self.vram_bytes is None or self.used_bytes is None:
            return None
        return max(0, self.vram_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class Engine:
    """A process that computes."""

    id: str
    """Unique in the fleet: `local/ollama-gpu0`."""
    node: str
    kind: EngineKind
    state: EngineState
    devices: tuple[str, ...] = ()
    """UUIDs of the devices it may use."""
    address: str = ""
    """`127.0.0.1:41234` on its node, or host:port of an endpoint. Empty until known."""
    pid: int | None = None
    version: str = ""
    slots: int = 1
    """Requests of one model it runs at once."""
    model: str = ""
    """For kinds in RUNNERS: the one model it serves."""
    loaded: tuple[Loaded, ...] = ()
    loading: tuple[Loading, ...] = ()
    restarts: int = 0
    since_s: float = 0.0
    """Fleet clock at which it entered its state."""
    retry_in_s: float | None = None
    """While in back-off."""
    error: str = ""
    """Last failure, one sentence."""
    log_tail: tuple[str, ...] = ()
    """Last log lines of a failed engine."""
    cordoned: bool = False
    largest_ctx: int | None = None
    """Of a runner: more context than this was refused, it does not fit."""
    layout: Layout | None = None
    """Of a head: where its layers lie."""
    resident_bytes: int | None = None
    """Of a worker: memory its process holds, where that tells of what is loaded."""
    carries_bytes_s: float | None = None
    """Of a forward: how fast weights went through it, at their fastest."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """What a head put on one device, by its own log. Bytes."""

    device: str
    """Address of a worker as the head knows it, or a name such as `CUDA0` or `CPU`."""
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a ready head put its layers, by its own log."""

    buffers: tuple[Buffer, ...] = ()
    offloaded: int | None = None
    layers: int | None = None
    """With the output."""


@dataclass(frozen=True, slots=True)
class SplitPart:
    """The share that one device has of a split."""

    node: str
    device: str
    """UUID."""
    label: str
    """`gpu0`."""
    layers: int
    """Without the output."""
    has_output: bool = False
    planned_bytes: int = 0
    """Of weights and KV cache and buffers, as estimated."""
    planned_weights_bytes: int = 0
    planned_kv_bytes: int = 0
    engine: str = ""
    """Id of the worker; empty where the head drives the GPU itself."""
    road: Literal["", "loopback", "ssh", "relay", "direct"] = ""
    """How tensors travel to it."""
    rtt_s: float | None = None
    """From the head's node to it and back, as measured; None on the same node, or unknown."""
    bytes_s: float | None = None
    """How fast weights travelled to it, as measured."""
    state: EngineState = "starting"
    """Of its worker and the road there."""
    progress: float | None = None
    """0..1 of its weights, while loading."""
    real_layers: int | None = None
    """As the head's log has it, once it is ready."""
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    compute_bytes: int | None = None

    @property
    def where(self) -> str:
        return f"{self.node}/{self.label}"

    @property
    def real_bytes(self) -> int | None:
        sizes = (self.weights_bytes, self.kv_bytes, self.compute_bytes)
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True, slots=True)
class Split:
    """One model whose layers lie on several devices: a head and its workers."""

    id: str
    """`split/llama3.3:70b`."""
    model: str
    state: SplitState
    node: str = ""
    """The head's; empty while it is being planned."""
    engine: str = ""
    """Id of the head."""
    parts: tuple[SplitPart, ...] = ()
    """In the order in which layers are computed."""
    num_ctx: int = 0
    largest_ctx: int | None = None
    """More context than this was refused: it does not fit."""
    since_s: float = 0.0
    """Fleet clock at which it entered its state."""
    tokens_factor: float = 1.0
    """Expected tokens/s against one such device with room for everything."""
    restarts: int = 0
    restart_s: float | None = None
    """How long the last restart took, from the failure to ready."""
    reason: str = ""
    """Why these devices."""
    error: str = ""
    log_tail: tuple[str, ...] = ()

    @property
    def devices(self) -> frozenset[tuple[str, str]]:
        """(node, UUID) of all parts."""
        return frozenset((part.node, part.device) for part in self.parts)


@dataclass(frozen=True, slots=True)
class ProvisionStep:
    """One step of making a machine a node, or of taking everything off again."""

    name: str
    """`connect`, `facts`, `python`, `agent`, `engine`, `service`, `health`, `engines`, `traffic`;
    `remove` and `proof` of an uninstall."""
    state: StepState = "waiting"
    took_s: float | None = None
    """None until it has ended."""
    message: str = ""
    hint: str = ""
    progress: float | None = None
    """0..1 of an upload."""
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostKeyQuestion:
    """A host key that nobody has vouched for: answered by TrustHostKey, or left alone."""

    host: str
    """As known_hosts names it, for people: `gpu1.lan port 2222`."""
    key_type: str
    fingerprint: str
    """`SHA256:…`; the answer repeats it."""
    randomart: str = ""
    """The picture of `ssh-keygen -lv`, several lines."""


@dataclass(frozen=True, slots=True)
class PassphraseQuestion:
    """A private key of ours that is locked: answered by GivePassphrase."""

    path: str
    complaint: str = ""
    """What was wrong with the last answer."""


@dataclass(frozen=True, slots=True)
class NodeLink:
    """The way from one node to another, as measured."""

    node: str
    """The other."""
    rtt_s: float | None = None
    bytes_s: float | None = None
    """How fast weights of a split travelled."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: this one, one reached by SSH, or an endpoint somebody else runs."""

    name: str
    state: NodeState
    kind: Literal["local", "ssh", "endpoint"] = "local"
    devices: tuple[Device, ...] = ()
    engines: tuple[Engine, ...] = ()
    helpers: tuple[Engine, ...] = ()
    """Workers and forwards of splits."""
    library: tuple[Model, ...] = ()
    """What its store holds: what its engines can load without a download."""
    links: tuple[NodeLink, ...] = ()
    """To nodes whose devices it was measured against as the head of a split."""
    lends: bool = False
    """Whether its devices can hold layers of a split: llama.cpp's worker is there."""
    heads: bool = False
    """Whether it can run the head of a split."""
    runner: Literal["", "llama-server", "embedded"] = ""
    """Kind of single-model engine that the node can launch for a library model with a path."""
    foreign: tuple[str, ...] = ()
    """URLs of Ollama servers found on the node that we did not start: shown, never touched."""
    agent_version: str = ""
    age_s: float = 0.0
    """Since the last telemetry."""
    stale: bool = False
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    cordoned: bool = False
    pool: str = ""
    error: str = ""
    hint: str = ""
    """What to do about `error`."""
    host: str = ""
    """`ops@gpu1.lan:2222`: how it is reached; empty for this machine."""
    ssh_command: str = ""
    """What to type for a shell there; empty for this machine."""
    provisioned: bool | None = None
    """False: our agent was never installed there. None: not known yet, or no question."""
    steps: tuple[ProvisionStep, ...] = ()
    """Of the last or running Provision or Uninstall of this session."""
    question: HostKeyQuestion | None = None
    survives_reboot: bool | None = None
    """Whether agent and engines come back after a reboot without us; None: not known."""
    last_contact_s: float | None = None
    """Fleet clock at which it last said anything; None: never."""
    managed_by: str = ""
    """`ops@laptop since 12:03` when another controller manages it: then it is read-only here."""
    draining: bool = False
    """Cordoned, and a Drain waits for its last requests."""
    clock_ahead_s: float = 0.0
    """Its wall clock minus ours; 0 while that misleads nobody. All times here are ours."""


@dataclass(frozen=True, slots=True)
class Request:
    """One client call, as an operator sees it. Never holds prompt or reply."""

    id: str
    state: RequestState
    model: str
    dialect: Literal["ollama", "openai", "anthropic"]
    path: str
    client: str
    """Key name, or peer address."""
    age_s: float
    engine: str = ""
    where: str = ""
    """`node/gpu0`, empty while queued."""
    wait_s: float | None = None
    ttft_s: float | None = None
    total_s: float | None = None
    prompt_tokens: int | None = None
    tokens: int = 0
    """Reply tokens (chunks until the engine reports its count)."""
    tokens_per_s: float | None = None
    status: int | None = None
    error: str = ""
    why: str = ""
    """One line: why this engine, or why it still waits."""
    stream: bool = True
    priority: Literal["interactive", "batch"] = "interactive"
    position: int | None = None
    """In its model's queue, 1 is next; None when it does not wait, or is far behind."""
    expected_s: float | None = None
    """How much longer it is expected to wait; None when nobody can know."""
    deadline_s: float | None = None
    """Seconds until its client does not want it any more, while it waits."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """Demand for one model as the gateway sees it."""

    model: str
    queued: int = 0
    running: int = 0
    replicas: int = 0
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    pinned: bool = False
    loading: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class GatewayState:
    address: str = ""
    """`http://127.0.0.1:8000`, empty when not listening."""
    queued: int = 0
    running: int = 0
    tokens_per_s: float = 0.0
    requests_total: int = 0
    errors_total: int = 0
    ttft_p95_s: float | None = None
    models: tuple[ModelLoad, ...] = ()
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """Operator's wish: this model stays on this device, also after a restart."""

    model: str
    node: str
    device: str
    """Device UUID."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A command on its way: shown with progress, then its result for a while."""

    id: str
    title: str
    """`load qwen3:8b on n1/gpu0`"""
    state: Literal["running", "done", "failed", "cancelled"]
    started_s: float
    progress: float | None = None
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    severity: Severity
    where: str
    message: str
    since_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything at one instant."""

    seq: int = 0
    now_s: float = 0.0
    """Fleet clock (monotonic) when this was built; other *_s marks compare to it."""
    wall: str = ""
    """RFC 3339 time of this snapshot, UTC."""
    name: str = "local"
    version: str = ""
    nodes: tuple[Node, ...] = ()
    requests: tuple[Request, ...] = ()
    """Queued and running, then the latest finished ones, newest last."""
    gateway: GatewayState = field(default_factory=GatewayState)
    splits: tuple[Split, ...] = ()
    split_rules: dict[str, SplitRule] = field(default_factory=dict)
    """By canonical name, where it is not `auto`."""
    pins: tuple[Pin, ...] = ()
    paused: tuple[str, ...] = ()
    """Canonical names of models whose requests wait until an operator resumes them."""
    operations: tuple[Operation, ...] = ()
    alerts: tuple[Alert, ...] = ()
    passphrase: PassphraseQuestion | None = None
    """Asked one at a time."""

    def node(self, name: str) -> Node | None:
        return next((n for n in self.nodes if n.name == name), None)

    def engine(self, engine_id: str) -> Engine | None:
        return next((e for n in self.nodes for e in n.engines if e.id == engine_id), None)

    def split(self, split_id: str) -> Split | None:
        return next((s for s in self.splits if s.id == split_id), None)

    def split_of(self, engine_id: str) -> Split | None:
        """The split that the engine is the head of."""
        return next((s for s in self.splits if s.engine and s.engine == engine_id), None)

    def device(self, node: str, device: str) -> Device | None:
        """A device by node and UUID, label (`gpu0`) or bare index."""
        found = self.node(node)
        if found is None:
            return None
        return next(
            (d for d in found.devices if device in (d.uuid, d.label, str(d.index))),
            None,
        )


def encode(fleet: Fleet) -> bytes:
    """The snapshot as JSON."""
    return msgspec.json.encode(fleet)


def decode(raw: bytes) -> Fleet:
    """The snapshot from JSON; unknown fields are ignored so that versions may differ."""
    return msgspec.json.decode(raw, type=Fleet)
