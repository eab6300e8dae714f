"""What an operator can ask of the fleet. Commands flow down through the controller alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec


class Command(msgspec.Struct, frozen=True, tag_field="command"):
    """Base of all commands; encoded with its name in the field `command`."""


class Place(Command, frozen=True, tag="place"):
    """Load a model of the library on a device and keep it for `keep_alive_s`."""

    model: str
    node: str
    device: str
    """UUID, `gpu0` or index."""
    keep_alive_s: float | None = None
    """None: the engine's default; negative: until unloaded."""
    num_ctx: int | None = None


class Unload(Command, frozen=True, tag="unload"):
    model: str
    node: str
    device: str


class Move(Command, frozen=True, tag="move"):
    """Load on the target first, then unload at the source: no moment without the model."""

    model: str
    node: str
    device: str
    to_node: str
    to_device: str


class SetPin(Command, frozen=True, tag="pin"):
    """A pinned model is loaded, stays, and returns after an engine restart."""

    model: str
    node: str
    device: str
    pinned: bool = True


class CancelRequest(Command, frozen=True, tag="cancel"):
    request: str


class RerouteRequest(Command, frozen=True, tag="reroute"):
    """Send a queued request to an engine or node, or away from one; both empty: wherever it is
    served first."""

    request: str
    to: str = ""
    away: str = ""


class PauseModel(Command, frozen=True, tag="pause"):
    """Requests of a model wait, until it is resumed; what runs goes on. Kept over restarts."""

    model: str
    paused: bool = True


class RetrySplit(Command, frozen=True, tag="retry"):
    """Try a split again that failed and was given up."""

    model: str


class RestartEngine(Command, frozen=True, tag="restart"):
    engine: str


class SetCordon(Command, frozen=True, tag="cordon"):
    """Take no new work on a node (or take it again)."""

    node: str
    cordoned: bool = True


class Drain(Command, frozen=True, tag="drain"):
    """Cordon a node and let its requests end: those that run longer than 120 s are cut."""

    node: str


class SetRole(Command, frozen=True, tag="role"):
    """Change what one GPU is for; the engines of the others are not touched.

    Kept over restarts, before what the configuration says.
    """

    node: str
    device: str
    """UUID, `gpu0` or index."""
    role: Literal["ollama", "shared", "rpc", "off", ""]
    """"": as configured again."""


class AddNode(Command, frozen=True, tag="add-node"):
    """Write a node into the configuration and connect to it."""

    name: str
    host: str = ""
    """Empty: the name says it (a Host of ~/.ssh/config)."""
    user: str = ""
    port: int | None = None
    simulated_gpus: int | None = None
    """So many simulated GPUs, everything else real."""
    simulated_vram_bytes: int | None = None


class RemoveNode(Command, frozen=True, tag="remove-node"):
    """Take a node out of the configuration. What runs on it stays: see Uninstall."""

    node: str


class Provision(Command, frozen=True, tag="provision"):
    """Install or mend what a node needs; after a failure it goes on from the failed step."""

    node: str


class CancelProvision(Command, frozen=True, tag="cancel-provision"):
    """Stop a running Provision or Uninstall; what is done stays done."""

    node: str


class Uninstall(Command, frozen=True, tag="uninstall"):
    """Take off a node what was installed, models excepted, and prove it."""

    node: str


class TrustHostKey(Command, frozen=True, tag="trust-host-key"):
    """Answer a node's HostKeyQuestion with yes."""

    node: str
    fingerprint: str
    """The one that was shown: another one may stand there by now."""


class GivePassphrase(Command, frozen=True, tag="passphrase"):
    """Answer a PassphraseQuestion. Kept in memory only."""

    path: str
    passphrase: str | None
    """None: not now; nodes that need the key say so."""

    def __repr__(self) -> str:
        return f"GivePassphrase({self.path!r}, …)"


class Reconnect(Command, frozen=True, tag="reconnect"):
    """Try a node again now: after a mended key or configuration, or out of impatience."""

    node: str


class AdoptEndpoint(Command, frozen=True, tag="adopt-endpoint"):
    """Use an Ollama that somebody else runs on a node (`Node.foreign`), or stop using it.

    It becomes an engine of that node, reached over its road; never started, stopped or
    restarted by us.
    """

    node: str
    url: str
    adopted: bool = True


AnyCommand = (
    Place
    | Unload
    | Move
    | SetPin
    | CancelRequest
    | RerouteRequest
    | PauseModel
    | RetrySplit
    | RestartEngine
    | SetCordon
    | Drain
    | SetRole
    | AddNode
    | RemoveNode
    | Provision
    | CancelProvision
    | Uninstall
    | TrustHostKey
    | GivePassphrase
    | Reconnect
    | AdoptEndpoint
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A command was taken; its progress is the Operation with this id in the Fleet."""

    operation: str


def encode_command(command: AnyCommand) -> bytes:
    return msgspec.json.encode(command)


def decode_command(raw: bytes) -> AnyCommand:
    """Raises msgspec.ValidationError with the field that is wrong."""
    command: AnyCommand = msgspec.json.decode(raw, type=AnyCommand)
    return command
