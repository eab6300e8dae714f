"""What an operator can ask of the fleet. Commands flow down through the controller alone."""

from __future__ import annotations

from dataclasses import dataclass

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


class RestartEngine(Command, frozen=True, tag="restart"):
    engine: str


class SetCordon(Command, frozen=True, tag="cordon"):
    """Take no new work on a node (or take it again)."""

    node: str
    cordoned: bool = True


AnyCommand = Place | Unload | Move | SetPin | CancelRequest | RestartEngine | SetCordon


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
