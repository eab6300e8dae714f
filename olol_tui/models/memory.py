"""The memory that llama.cpp takes for a model: weights, KV cache, compute buffers.

Pure. Weights and KV cache follow llama.cpp's allocation exactly; compute buffers and what a
process takes by itself are estimates, replaced by what engines logged where that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from olol_tui.models.shape import Shape

MIB = 2**20
CACHE_TYPES: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}
"""Type of cached values: how many make a block, bytes of a block."""
_PAD_CELLS = 256
OVERHEAD_BYTES: dict[str, int] = {"nvidia": 450 * MIB, "amd": 450 * MIB, "cpu": 32 * MIB}
"""Of one process on a device beside its buffers: CUDA context, cuBLAS; by vendor."""
OVERHEAD_UNKNOWN_BYTES = 450 * MIB


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine is started, as far as memory depends on it."""

    ctx: int
    """Tokens of one slot."""
    slots: int = 1
    cache_type: str = "f16"
    ubatch: int = 512
    """Tokens computed at once."""
    is_unified: bool = False
    """One cache shared by all slots (`-kvu`) instead of one each."""

    def __post_init__(self) -> None:
        if self.cache_type not in CACHE_TYPES:
            known = ", ".join(CACHE_TYPES)
            raise ValueError(f"{self.cache_type!r} is no cache type: expected one of {known}")


@dataclass(frozen=True, slots=True)
class Learned:
    """What engines logged, against what was estimated."""

    compute_factor: float = 1.0
    compute_by_vendor: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Need:
    """Memory by part, in bytes. Tuples have one entry a layer."""

    weights: tuple[int, ...]
    kv: tuple[int, ...]
    output_bytes: int
    """Weights of the output layer: on the last device."""
    compute_bytes: int
    """Of every device that takes part."""
    host_bytes: int
    """Memory of the head's machine: the embedding, mapped from the file."""

    @property
    def total_bytes(self) -> int:
        """On one device, without the overhead of a process."""
        return sum(self.weights) + sum(self.kv) + self.output_bytes + self.compute_bytes


def need(shape: Shape, settings: Settings, learned: Learned | None = None) -> Need:
    """What the model takes when started with these settings."""
    return Need(
        weights=shape.layers,
        kv=kv_bytes(shape, settings),
        output_bytes=shape.output_bytes,
        compute_bytes=compute_bytes(shape, settings, learned or Learned()),
        host_bytes=shape.embedding_bytes,
    )


def kv_bytes(shape: Shape, settings: Settings) -> tuple[int, ...]:
    """KV cache and recurrent state of each layer, all slots."""
    block, size = CACHE_TYPES[settings.cache_type]
    streams = 1 if settings.is_unified else settings.slots
    total = settings.ctx * settings.slots if settings.is_unified else settings.ctx
    cells = _padded(total)
    shared = settings.slots if settings.is_unified else 1
    found = []
    for key, value, window, state in zip(
        shape.key_elements, shape.value_elements, shape.windows, shape.recurrent_bytes, strict=True
    ):
        kept = min(cells, _padded(window * shared + settings.ubatch)) if window else cells
        token = (-(-key // block) + -(-value // block)) * size
        found.append(kept * streams * token + state * settings.slots)
    return tuple(found)


def compute_bytes(shape: Shape, settings: Settings, learned: Learned) -> int:
    """Estimate of the buffers for intermediate results on one device."""
    batch = settings.ubatch
    acts = batch * 4 * (10 * shape.embedding_length + 3 * shape.feed_forward)
    mask = _padded(settings.ctx * settings.slots) * batch * 2
    return int((acts + mask) * learned.compute_factor)


def overhead_bytes(vendor: str) -> int:
    return OVERHEAD_BYTES.get(vendor, OVERHEAD_UNKNOWN_BYTES)


def _padded(cells: int) -> int:
    return -(-cells // _PAD_CELLS) * _PAD_CELLS
