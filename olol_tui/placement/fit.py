"""Does a model fit a device, and what would have to go for it?

Pure: sizes and residents in, a verdict with a sentence out. Estimates follow llama.cpp's
memory: weights + KV cache of all slots + compute buffers, as the file's header has its layers.
Where nobody has read that, the KV cache is guessed from the parameter count, and the sentence
says «about»; a size measured on a running engine always wins.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from olol_tui.fleet.snapshot import Model
from olol_tui.units import format_size

KV_BYTES_PER_TOKEN_1B = 55_000
KV_EXPONENT = 0.42
"""f16 KV cache grows as 55 kB × (billions of parameters)^0.42 a token: within 20 % for
Llama 8B (131 kB) and 70B (328 kB), SmolLM2 135M (23 kB), Qwen3 8B (147 kB) and 32B (262 kB)."""
COMPUTE_FLOOR_BYTES = 64 * 2**20
COMPUTE_SHARE = 1 / 16
"""Compute buffers, of the weights, above the floor."""
_BITS_PER_WEIGHT = 4.9
"""Of Q4_K_M, the default of Ollama's library: for models that do not say their parameters."""
_PARAMETERS = re.compile(r"\s*(?:(\d+)x)?(\d+(?:\.\d+)?)\s*([KMBT])\s*", re.IGNORECASE)
_BILLIONS = {"K": 1e-6, "M": 1e-3, "B": 1.0, "T": 1e3}

Verdict = Literal["loaded", "fits", "evicts", "waits", "never", "unknown"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory that a model takes."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    measured: bool = False
    """True when `weights_bytes` is the whole, as an engine reported it."""
    computed: bool = False
    """True when it comes from the layers in the file's header, and is no guess."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    def words(self) -> str:
        """`5.9 GiB by its header`, or `about 5.9 GiB` where that is a guess."""
        size = format_size(self.total_bytes)
        return f"{size} by its header" if self.computed else f"about {size}"

    def sentence(self) -> str:
        """`5.9 GiB (4.9 GiB weights, 576 MiB cache, 368 MiB buffers)`."""
        if self.measured:
            return f"{self.words()} (measured)"
        return (
            f"{self.words()} ({format_size(self.weights_bytes)} weights, "
            f"{format_size(self.kv_bytes)} cache, {format_size(self.compute_bytes)} buffers)"
        )


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is on the device now."""

    name: str
    bytes: int
    busy: bool = False
    pinned: bool = False
    expires_at: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that one engine may use, and who is in it."""

    where: str
    """`local/gpu0`, for sentences."""
    total_bytes: int | None
    free_bytes: int | None
    residents: tuple[Resident, ...] = ()
    lent_bytes: int = 0
    """What splits have of it; nobody else may."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdict on one model in one room."""

    verdict: Verdict
    need: Estimate
    reason: str
    """One sentence with numbers."""
    goes: tuple[str, ...] = ()
    """Models that must go first."""

    @property
    def is_refused(self) -> bool:
        return self.verdict == "never"


def parameters_billions(model: Model) -> float:
    """From the name on the label (`8.2B`, `8x7B`, `135M`), else from the file size."""
    match = _PARAMETERS.fullmatch(model.parameter_size)
    if match is not None:
        return int(match[1] or 1) * float(match[2]) * _BILLIONS[match[3].upper()]
    return model.size_bytes * 8 / _BITS_PER_WEIGHT / 1e9


def estimate(
    model: Model,
    *,
    num_ctx: int,
    slots: int = 1,
    vendor: str = "",
    measured_bytes: int | None = None,
) -> Estimate:
    """Memory of a model with `slots` contexts of `num_ctx` tokens.

    Args:
        vendor: of the device.
        measured_bytes: what an engine reported for the same model and context.
    """
    if measured_bytes:
        return Estimate(measured_bytes, 0, 0, measured=True)
    if (known := model.footprint) is not None:
        ctx = min(num_ctx, model.context_length or num_ctx)
        kv = known.kv_at(ctx, slots)
        rest = known.total_at(ctx, vendor, slots) - known.weights_bytes - kv
        return Estimate(known.weights_bytes, kv, rest, computed=True)
    is_generative = "completion" in model.capabilities
    context = min(num_ctx, model.context_length or num_ctx)
    billions = parameters_billions(model)
    kv = KV_BYTES_PER_TOKEN_1B * billions**KV_EXPONENT * context * slots if is_generative else 0
    compute = COMPUTE_FLOOR_BYTES + model.size_bytes * COMPUTE_SHARE
    return Estimate(model.size_bytes, int(kv), int(compute))


def judge(name: str, need: Estimate, room: Room, *, going: Collection[str] = ()) -> Fit:
    """Can the model be loaded in the room, now or after others went?

    Idle models go soonest expiry first; busy ones are waited for; pinned ones stay.

    Args:
        going: names of those that go in any case.
    """
    if any(resident.name == name for resident in room.residents):
        return Fit("loaded", need, f"{name} is already on {room.where}")
    if room.total_bytes is None:
        return Fit("unknown", need, f"{room.where} does not tell its memory")
    total = format_size(room.total_bytes)
    if need.total_bytes > room.total_bytes:
        return Fit(
            "never",
            need,
            f"{name} needs {need.sentence()}; {room.where} has {total} when empty",
        )
    free_bytes = room.total_bytes if room.free_bytes is None else room.free_bytes
    leaving = [r for r in room.residents if r.name in going and not r.pinned]
    if need.total_bytes <= free_bytes and not leaving:
        return Fit(
            "fits",
            need,
            f"{name} needs {need.words()}; "
            f"{room.where} has {format_size(free_bytes)} of {total} free",
        )
    return _make_room(name, need, room, free_bytes, leaving)


def without(name: str, room: Room) -> Room:
    """The room as it is when that resident has gone."""
    gone = sum(r.bytes for r in room.residents if r.name == name)
    if not gone:
        return room
    free = None if room.free_bytes is None else room.free_bytes + gone
    rest = tuple(r for r in room.residents if r.name != name)
    return replace(room, free_bytes=free, residents=rest)


def _make_room(
    name: str, need: Estimate, room: Room, free_bytes: int, leaving: Sequence[Resident]
) -> Fit:
    missing = need.total_bytes - free_bytes
    idle = [r for r in room.residents if not r.busy and not r.pinned and r not in leaving]
    busy = [r for r in room.residents if r.busy and not r.pinned and r not in leaving]
    pinned = [r for r in room.residents if r.pinned]
    # What never expires sorts last; of two that expire alike the larger frees more at once.
    idle.sort(key=lambda r: (r.expires_at or "~", -r.bytes))
    goes = [*leaving, *_until(idle, missing - sum(r.bytes for r in leaving))]
    freed = sum(r.bytes for r in goes)
    asks = f"{name} needs {need.words()}, {format_size(free_bytes)} is free"
    if freed >= missing:
        return Fit("evicts", need, f"{asks}: {_listed(goes)} will go", _names(goes))
    waits_for = _until(busy, missing - freed)
    if freed + sum(r.bytes for r in waits_for) >= missing:
        also = f", {_listed(goes)} will go" if goes else ""
        return Fit(
            "waits",
            need,
            f"{asks}: it waits until {_listed(waits_for)} is idle{also}",
            _names([*goes, *waits_for]),
        )
    movable = sum(r.bytes for r in room.residents if not r.pinned)
    fixed = sum(r.bytes for r in pinned) + room.lent_bytes
    if fixed and free_bytes + movable + fixed >= need.total_bytes:
        stays = [f"{_listed(pinned)} stays pinned"] if pinned else []
        stays += [f"a split holds {format_size(room.lent_bytes)}"] if room.lent_bytes else []
        return Fit(
            "never",
            need,
            f"{asks} and at most {format_size(free_bytes + movable)} can be freed on "
            f"{room.where}: {', '.join(stays)}",
        )
    # The rest is held by somebody else (another program, a desktop): it may go, so it is the
    # engine that has to say no.
    foreign = room_foreign_bytes(room)
    return Fit(
        "evicts",
        need,
        f"{asks} on {room.where} and other programs hold {format_size(foreign)}: it may fail",
        _names([*leaving, *idle]),
    )


def room_foreign_bytes(room: Room) -> int:
    """Memory in use that belongs to no resident model."""
    if room.total_bytes is None or room.free_bytes is None:
        return 0
    used = room.total_bytes - room.free_bytes
    return max(0, used - room.lent_bytes - sum(r.bytes for r in room.residents))


def _until(candidates: Sequence[Resident], missing_bytes: int) -> list[Resident]:
    chosen: list[Resident] = []
    for candidate in candidates:
        if missing_bytes <= 0:
            break
        chosen.append(candidate)
        missing_bytes -= candidate.bytes
    return chosen


def _names(residents: Sequence[Resident]) -> tuple[str, ...]:
    return tuple(resident.name for resident in residents)


def _listed(residents: Sequence[Resident]) -> str:
    return ", ".join(f"{r.name} ({format_size(r.bytes)})" for r in residents)
