"""The memory that llama.cpp takes for a model: weights, KV cache, compute buffers.

Pure. Weights and KV cache follow llama.cpp's allocation exactly; compute buffers and what a
process takes by itself are estimates, replaced by what engines logged where that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from olol_tui.models.learned import Learned
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
_ROWS, _FIRST_ROWS = 6, 9
"""Rows of the model's width in the compute buffer; what the first device has beyond them."""
_MASK_BYTES = 8
"""Of one token against one cell of the cache."""


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
class Need:
    """Memory by part, in bytes. Tuples have one entry a layer."""

    weights: tuple[int, ...]
    kv: tuple[int, ...]
    output_bytes: int
    """Weights of the output layer: on the last device."""
    rows_bytes: int
    """Buffers for intermediate results on each device with layers; an estimate, as the masks.

    Fitted to what llama.cpp logs with flash attention: a handful of rows as wide as the layers
    for each token of a batch. Within 3 % for small dense models.
    """
    masks: Mapping[int, int]
    """Attention masks by the window they are for; 0 is the whole context."""
    spans: tuple[int | None, ...]
    """Which mask each layer uses; None for layers that do not attend."""
    first_bytes: int
    """More buffers on the first device, which takes the input in."""
    logits_bytes: int
    """More buffers on the last device, which gives the output."""
    embedding_bytes: int
    """In the main memory of the head's machine, mapped from the file."""

    def compute_bytes(self, first: int, count: int) -> int:
        """Buffers on a device with `count` layers from `first` on, being neither end."""
        if not count:
            return 0
        used = set(self.spans[first : first + count])
        return self.rows_bytes + sum(self.masks[span] for span in used if span is not None)

    @property
    def largest_compute_bytes(self) -> int:
        """Of any device between the ends."""
        return self.rows_bytes + sum(self.masks.values())

    @property
    def host_bytes(self) -> int:
        """Main memory of the head's machine beside what a process takes anyway."""
        return self.embedding_bytes + self.largest_compute_bytes

    @property
    def weights_bytes(self) -> int:
        return sum(self.weights) + self.output_bytes

    @property
    def kv_bytes(self) -> int:
        return sum(self.kv)

    @property
    def most_compute_bytes(self) -> int:
        """Of a device that is first and last at once."""
        return self.largest_compute_bytes + self.first_bytes + self.logits_bytes

    @property
    def total_bytes(self) -> int:
        """On one device that holds everything, without the overhead of a process."""
        return self.weights_bytes + self.kv_bytes + self.most_compute_bytes


def need(shape: Shape, settings: Settings, learned: Learned | None = None) -> Need:
    """What the model takes when started with these settings."""
    if learned is None:
        return _need(shape, settings, 1.0)
    load = load_key(shape, settings)
    return _need(shape, settings, learned.compute_factor(shape.architecture, load))


def load_key(shape: Shape, settings: Settings) -> str:
    """Names what compute buffers depend on, for what was learned of them.

    By sizes and not by name: another quantization of the model has the same buffers.
    """
    one = "u" if settings.is_unified else ""
    return (
        f"{shape.architecture} {shape.layer_count}x{shape.embedding_length}+{shape.feed_forward}"
        f"+{shape.vocabulary} {settings.ctx}x{settings.slots}{one} {settings.cache_type}"
        f" {settings.ubatch}"
    )


@lru_cache(maxsize=1024)
def _need(shape: Shape, settings: Settings, factor: float) -> Need:
    width = shape.embedding_length
    feed = max(shape.feed_forward * 3, shape.experts_width)
    row = 4 * settings.ubatch * factor
    spans = tuple(
        span if keys else None for span, keys in zip(shape.windows, shape.key_elements, strict=True)
    )
    cells = _cells(settings)
    masks = {
        span: int(
            _MASK_BYTES
            * settings.ubatch
            * factor
            * (_window_cells(span, cells, settings) if span else cells)
        )
        for span in dict.fromkeys(spans)
        if span is not None
    }
    return Need(
        weights=shape.layers,
        kv=kv_bytes(shape, settings),
        output_bytes=shape.output_bytes,
        rows_bytes=int(row * (feed + _ROWS * width + shape.query_elements)),
        masks=masks,
        spans=spans,
        first_bytes=int(row * _FIRST_ROWS * width),
        logits_bytes=settings.slots * shape.vocabulary * 4,
        embedding_bytes=shape.embedding_bytes,
    )


def kv_bytes(shape: Shape, settings: Settings) -> tuple[int, ...]:
    """KV cache and recurrent state of each layer, all slots."""
    block, size = CACHE_TYPES[settings.cache_type]
    streams = 1 if settings.is_unified else settings.slots
    cells = _cells(settings)
    layers = list(
        zip(
            shape.key_elements,
            shape.value_elements,
            shape.windows,
            shape.recurrent_bytes,
            strict=True,
        )
    )
    kinds: dict[tuple[int, int, int, int], int] = {}
    for key, value, window, state in set(layers):
        kept = _window_cells(window, cells, settings) if window else cells
        token = (-(-key // block) + -(-value // block)) * size
        kinds[key, value, window, state] = kept * streams * token + state * settings.slots
    return tuple(kinds[layer] for layer in layers)


def _cells(settings: Settings) -> int:
    """Tokens that one cache holds."""
    return _padded(settings.ctx * settings.slots if settings.is_unified else settings.ctx)


def _window_cells(window: int, cells: int, settings: Settings) -> int:
    shared = settings.slots if settings.is_unified else 1
    return min(cells, _padded(window * shared + settings.ubatch))


def _padded(cells: int) -> int:
    return -(-cells // _PAD_CELLS) * _PAD_CELLS
