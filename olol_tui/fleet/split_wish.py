"""What should exist for one split, kept over restarts of the controller."""

from __future__ import annotations

import msgspec

from olol_tui.fleet.snapshot import Mesh
from olol_tui.models.names import canonical
from olol_tui.models.store_layers import StoreLayers


class Way(msgspec.Struct, frozen=True):
    """How the head's node reaches a worker on another one."""

    road: Mesh
    host: str = ""
    user: str = ""
    port: int = 22
    host_key: str = ""


class PartWish(msgspec.Struct, frozen=True):
    """The share of one device. Sizes are bytes."""

    node: str
    device: str
    """UUID."""
    label: str
    layers: int
    has_output: bool = False
    planned_bytes: int = 0
    weights_bytes: int = 0
    kv_bytes: int = 0
    buffers_bytes: int = 0
    """Estimated before anything learned: what the head's log is held against."""
    worker: str = ""
    """Engine id; empty where the head drives the GPU itself."""
    binary: str = ""
    """Of its worker."""
    way: Way | None = None
    """None on the head's own node."""
    forward: str = ""
    """Engine id of the forward on the head's node."""


class SplitWish(msgspec.Struct, frozen=True):
    """A head and its parts in the order of the engine's devices."""

    id: str
    model: str
    """As the head's library writes it."""
    node: str
    engine: str
    """Id of the head."""
    path: str
    chat_template: str = ""
    num_ctx: int = 4096
    slots: int = 1
    binary: str = ""
    args: tuple[str, ...] = ()
    is_direct: bool = False
    """Requests come to the head without SSH."""
    layers: StoreLayers = StoreLayers()
    """What an Ollama store adds to requests of the model."""
    parts: tuple[PartWish, ...] = ()
    head_key: str = ""
    """With which the head's node is let in at the workers'."""
    tokens_factor: float = 1.0
    reason: str = ""
    keep_alive_s: float = 300.0
    architecture: str = ""
    load: str = ""
    """Names model and settings for what is learned of its buffers."""

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset((self.node, *(part.node for part in self.parts)))

    @property
    def helpers(self) -> tuple[str, ...]:
        """Ids of workers and forwards."""
        ids = [one for part in self.parts for one in (part.worker, part.forward)]
        return tuple(filter(None, ids))


class Ports(msgspec.Struct):
    """What the stages of a split have learned: last known ports and builds.

    Kept over restarts too: without them a new controller would take forwards and head away
    until it had heard of all workers again.
    """

    workers: dict[str, int] = msgspec.field(default_factory=dict)
    """By worker id, on its node."""
    ways: dict[str, int] = msgspec.field(default_factory=dict)
    """By worker id, on the head's node."""
    builds: dict[str, str] = msgspec.field(default_factory=dict)
    """What each worker is built from."""


class KeptSplit(msgspec.Struct, frozen=True):
    wish: SplitWish
    ports: Ports = msgspec.field(default_factory=Ports)


def replace_way(wish: SplitWish, part: PartWish, way: Way) -> SplitWish:
    """The same split with another road to one of its parts."""
    forward = part.forward if way.road == "ssh" else ""
    changed = msgspec.structs.replace(part, way=way, forward=forward)
    parts = tuple(changed if one == part else one for one in wish.parts)
    return msgspec.structs.replace(wish, parts=parts)


def split_id(model: str) -> str:
    return f"split/{canonical(model)}"
