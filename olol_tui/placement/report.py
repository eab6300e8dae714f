"""What a model takes, where it fits and where not, and the split it would get.

Pure; as values, for JSON and for `olol-tui model fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from olol_tui.models.learned import Learned
from olol_tui.models.memory import Settings, load_key, need
from olol_tui.models.shape import Shape
from olol_tui.placement.shares import Refusal, SplitDevice, SplitPlan
from olol_tui.units import format_size


@dataclass(frozen=True, slots=True)
class Parts:
    """Memory on one device that holds everything, in bytes."""

    weights: int
    output: int
    cache: int
    buffers: int
    """Estimated, or as a log had them; the rest is exact."""

    @property
    def total(self) -> int:
        return self.weights + self.output + self.cache + self.buffers


@dataclass(frozen=True, slots=True)
class Spot:
    """One device, and what the whole model would leave on it."""

    where: str
    free_bytes: int
    need_bytes: int
    """With what a process takes on such a device by itself."""
    has_file: bool

    @property
    def left_bytes(self) -> int:
        """Negative where it does not fit."""
        return self.free_bytes - self.need_bytes


@dataclass(frozen=True, slots=True)
class PlannedShare:
    """One device of the split, bytes by part."""

    where: str
    layers: int
    has_output: bool
    is_worker: bool
    weights: int
    cache: int
    buffers: int
    overhead: int
    free: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.buffers + self.overhead


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to `olol-tui model fit`."""

    model: str
    architecture: str
    layers: int
    ctx: int
    slots: int
    cache_type: str
    parts: Parts
    host_bytes: int
    """Main memory of the machine with the head, beside the devices."""
    loads: bool | None
    """Whether upstream llama.cpp loads the file, which a split needs."""
    caveat: str = ""
    places: tuple[Spot, ...] = ()
    shares: tuple[PlannedShare, ...] = ()
    tokens_factor: float | None = None
    reasons: tuple[str, ...] = ()
    refusal: str = ""
    buffers_known: bool = False
    """It was loaded so before, and the engine's log told of its buffers."""


def report(model: str, shape: Shape, settings: Settings, learned: Learned | None = None) -> Report:
    """What the model takes, on whatever device."""
    wanted = need(shape, settings, learned)
    return Report(
        model=model,
        architecture=shape.architecture,
        layers=shape.layer_count,
        ctx=settings.ctx,
        slots=settings.slots,
        cache_type=settings.cache_type,
        parts=Parts(
            sum(wanted.weights), wanted.output_bytes, wanted.kv_bytes, wanted.most_compute_bytes
        ),
        host_bytes=wanted.host_bytes,
        loads=shape.loads,
        caveat=shape.caveat,
        buffers_known=learned is not None and learned.knows(load_key(shape, settings)),
    )


def with_fleet(
    bare: Report,
    devices: Sequence[SplitDevice],
    found: SplitPlan | Refusal,
    learned: Learned | None = None,
) -> Report:
    """Where it fits among these devices, and what a split over them would be."""
    overhead = (learned or Learned()).overhead_bytes
    places = tuple(
        Spot(
            device.where,
            device.free_bytes,
            bare.parts.total + overhead(device.vendor),
            device.has_blob,
        )
        for device in devices
    )
    if isinstance(found, Refusal):
        said = "; ".join((found.message, *found.reasons))
        return replace(bare, places=places, refusal=said)
    shares = tuple(
        PlannedShare(
            where=share.device.where,
            layers=share.layers,
            has_output=share.has_output,
            is_worker=not share.is_local,
            weights=share.weights_bytes,
            cache=share.kv_bytes,
            buffers=share.compute_bytes,
            overhead=share.overhead_bytes,
            free=share.device.free_bytes,
        )
        for share in found.shares
    )
    return replace(
        bare,
        places=places,
        shares=shares,
        tokens_factor=found.tokens_factor,
        reasons=found.reasons,
    )


def lines(found: Report) -> list[str]:
    """As text, a fact a line."""
    slots = "" if found.slots == 1 else f" × {found.slots} slots"
    parts = found.parts
    told = "as its engine logged them" if found.buffers_known else "estimated"
    said = [
        f"{found.model}: {found.architecture}, {found.layers} layers; "
        f"{found.ctx} tokens{slots}, {found.cache_type} cache",
        "",
        f"  {'layers':<14}{format_size(parts.weights):>12}",
        f"  {'output layer':<14}{format_size(parts.output):>12}",
        f"  {'cache':<14}{format_size(parts.cache):>12}",
        f"  {'buffers':<14}{format_size(parts.buffers):>12}  {told}",
        f"  {'together':<14}{format_size(parts.total):>12}  and "
        f"{format_size(found.host_bytes)} of main memory",
    ]
    if found.caveat:
        said += ["", found.caveat]
    if found.places:
        said += ["", *(_spot(spot) for spot in found.places)]
    if found.shares:
        said += ["", *_split(found)]
    elif found.refusal:
        said += ["", f"No split: {found.refusal}"]
    return said


def _spot(place: Spot) -> str:
    left = place.left_bytes
    verdict = (
        f"● fits, {format_size(left)} left" if left >= 0 else f"✖ {format_size(-left)} too much"
    )
    file = "" if place.has_file else ", the file is not there"
    return (
        f"  {place.where:<20} {format_size(place.need_bytes):>10} of "
        f"{format_size(place.free_bytes):>10} free  {verdict}{file}"
    )


def _split(found: Report) -> list[str]:
    if len(found.shares) == 1:
        return [f"No split is needed: {'; '.join(found.reasons)}"]
    if found.loads is False:
        return ["It would be split so, but llama.cpp does not load the file."]
    factor = f", about {found.tokens_factor:.0%} of the speed" if found.tokens_factor else ""
    said = [f"Split over {len(found.shares)} devices{factor}:"]
    for share in found.shares:
        layers = f"{share.layers} layers" if share.layers != 1 else "1 layer"
        role = "worker" if share.is_worker else "head's own"
        output = " + output" if share.has_output else ""
        said.append(
            f"  {share.where:<20} {layers + output:<20} {format_size(share.total):>10} of "
            f"{format_size(share.free):>10} free  ({format_size(share.weights)} weights, "
            f"{format_size(share.cache)} cache, {format_size(share.buffers + share.overhead)} "
            f"buffers; {role})"
        )
    return [*said, *(f"  {reason}" for reason in found.reasons)]
