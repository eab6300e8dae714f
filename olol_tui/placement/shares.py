"""What goes into the planning of a split and what comes out: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from olol_tui.models.memory import Need, Settings
from olol_tui.units import format_size, format_speed

Vendor = Literal["nvidia", "amd", "cpu", "simulated", "unknown"]
Level = Literal["gpu", "node", "nodes"]
Links = Mapping[tuple[str, str], "Link"]

TOKEN_BYTES = 2 * 4 * 4096
"""One row of activations there and one back, for a model of everyday width: what links are
compared by."""
USUAL_BYTES_S = 1.1e8
"""Of a link that nobody measured: one Gbit/s."""
MAX_DEVICES = 15
"""ggml schedules over 16 backends, one of them the head's CPU."""


@dataclass(frozen=True, slots=True)
class SplitDevice:
    """A device that may take layers."""

    node: str
    uuid: str
    label: str
    """`gpu0`, for people."""
    free_bytes: int
    """What a split may take: after `vram_limit`, the margin and what stays loaded."""
    vendor: Vendor = "nvidia"
    has_blob: bool = False
    """The node holds the model's file: only such a node can be the head."""
    speed_bytes_s: float | None = None
    """Weights read per second while decoding, measured; None for the vendor's usual."""

    @property
    def where(self) -> str:
        return f"{self.node}/{self.label}"


@dataclass(frozen=True, slots=True)
class Link:
    """The road from one node to another, as measured."""

    rtt_s: float
    bytes_s: float | None = None
    """How fast weights travelled; None where none did yet."""

    @property
    def token_s(self) -> float:
        """What a token waits on it: a round trip, and its activations there and back."""
        return self.rtt_s + TOKEN_BYTES / (self.bytes_s or USUAL_BYTES_S)


@dataclass(frozen=True, slots=True)
class Share:
    """What one device holds, in bytes."""

    device: SplitDevice
    is_local: bool
    """The head's process drives it; else a worker lends it through RPC."""
    first_layer: int
    layers: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    overhead_bytes: int
    has_output: bool = False
    rtt_s: float = 0.0
    """From the head to the worker; 0 on the head's own node."""
    is_measured: bool = True
    """The round trip was measured, not assumed."""
    bytes_s: float | None = None
    """How fast weights travel to it, as measured."""
    wait_s: float = 0.0
    """Of each token, for the way there and back."""
    uncorrected_bytes: int = 0
    """Of `compute_bytes`, before anything learned: what a log is held against."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes

    @property
    def left_bytes(self) -> int:
        return self.device.free_bytes - self.total_bytes


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Where everything lies."""

    level: Level
    shares: tuple[Share, ...]
    """In the engine's device order: RPC devices as given by `--rpc`, then the head's own GPUs.
    The last one belongs to the head's node and holds the output layer."""
    settings: Settings
    need: Need
    tokens_factor: float
    """Expected tokens/s of one request against one such device with room for all layers."""

    @property
    def head(self) -> Share:
        return self.shares[-1]

    @property
    def workers(self) -> tuple[Share, ...]:
        """Devices lent through RPC, in the order of `--rpc`."""
        return tuple(share for share in self.shares if not share.is_local)

    @property
    def tensor_split(self) -> tuple[int, ...]:
        """For `--tensor-split`: layers of each device; the output counts as one on the last."""
        return tuple(share.layers + share.has_output for share in self.shares)

    @property
    def total_bytes(self) -> int:
        return sum(share.total_bytes for share in self.shares)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why so, one sentence each."""
        head, count = self.head.device, len(self.shares)
        total = format_size(self.total_bytes)
        if self.level == "gpu":
            free = format_size(head.free_bytes)
            return (f"{head.where} holds all of it: {total} of {free} free",)
        said = [f"no single device of a node with the file has {total} free"]
        if self.level == "node":
            said.append(f"{count} devices of {head.node} are the fewest that hold it")
        else:
            said.append(f"no node with the file holds it alone; {count} devices are the fewest")
        said.append(f"{head.where} is the head: the file is on {head.node}")
        told = set()
        for share in self.shares:
            node = share.device.node
            if node in told or node == head.node:
                continue
            told.add(node)
            trip = f"{share.rtt_s * 1000:.2g} ms a round trip"
            trip += "" if share.is_measured else ", not measured"
            speed = "" if share.bytes_s is None else f", {format_speed(share.bytes_s)}"
            said.append(f"{head.node} to {node}: {trip}{speed}")
        return tuple(said)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why it cannot be, with numbers."""

    message: str
    need_bytes: int
    """The model's memory with the least overhead that any split would have."""
    available_bytes: int
    """Of the devices that could take part."""
    reasons: tuple[str, ...] = ()

    @property
    def missing_bytes(self) -> int:
        return max(0, self.need_bytes - self.available_bytes)
