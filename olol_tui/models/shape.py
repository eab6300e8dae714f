"""What a model is made of: bytes and dimensions layer by layer, read off its GGUF header.

Pure. The agent sends plain facts (fields of the architecture, bytes per block and tensor);
what they mean for each architecture is decided here, so that an older agent on a node never
computes with older rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_LAYERS = 4096
_PATTERNS: dict[str, int] = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma-embedding": 6,
    "cohere2": 4,
    "olmo2": 4,
    "gpt-oss": 2,
    "llama4": 4,
    "exaone4": 4,
}
"""Every n-th layer sees the whole context, the others a window; from llama.cpp's models."""


class ShapeError(ValueError):
    """The header does not say what is needed to plan; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything that memory depends on. Sizes are bytes; tuples have one entry a layer."""

    architecture: str
    file_bytes: int
    layers: tuple[int, ...]
    """Weights of each `blk.N.`."""
    embedding_bytes: int
    """Token embedding and what else enters first: stays in the head's memory, mapped."""
    output_bytes: int
    """Output matrix and norms: with the output layer. Tied models hold the embedding twice."""
    vocabulary: int
    embedding_length: int
    feed_forward: int
    key_elements: tuple[int, ...]
    """Key elements of one token, all heads of the layer; 0 where there is no attention."""
    value_elements: tuple[int, ...]
    windows: tuple[int, ...]
    """Tokens a layer looks back; 0 for the whole context."""
    recurrent_bytes: tuple[int, ...]
    """State per sequence, whatever the context."""
    context_length: int | None = None
    experts: int = 0
    experts_used: int = 0
    is_tied: bool = False
    unsupported: str = ""
    """Why upstream llama.cpp does not load this file; empty when it should."""

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def weights_bytes(self) -> int:
        """On devices, when everything is offloaded."""
        return sum(self.layers) + self.output_bytes


def shape_of(facts: Mapping[str, Any]) -> Shape:
    """The shape that an agent's facts describe.

    Raises:
        ShapeError: something is missing or cannot be.
    """
    fields = facts.get("fields") or {}
    tensors = facts.get("tensors") or {}
    blocks = tuple(int(x) for x in facts.get("blocks") or ())
    count = _whole(fields, "block_count")
    if not 0 < count <= _MAX_LAYERS or not any(blocks):
        raise ShapeError("the header names no layers")
    layers = (blocks + (0,) * count)[:count]
    heads = _per_layer(fields, "attention.head_count", count, 0)
    kv_heads = _per_layer(fields, "attention.head_count_kv", count, None)
    kv_heads = tuple(h if k is None else k for h, k in zip(heads, kv_heads, strict=True))
    width = _whole(fields, "embedding_length")
    default = width // max(heads) if any(heads) else 0
    key = fields.get("attention.key_length") or default
    value = fields.get("attention.value_length") or default
    embedding = int(tensors.get("token_embd.weight", 0))
    output = int(tensors.get("output.weight", 0))
    is_tied = output == 0
    norms = sum(int(size) for name, size in tensors.items() if name.startswith("output_norm"))
    return Shape(
        architecture=str(facts.get("architecture") or ""),
        file_bytes=int(facts.get("size_bytes") or 0),
        layers=layers,
        embedding_bytes=embedding,
        output_bytes=(embedding if is_tied else output) + norms,
        vocabulary=int(facts.get("vocabulary") or 0),
        embedding_length=width,
        feed_forward=max(_per_layer(fields, "feed_forward_length", count, 0)),
        key_elements=tuple(key * n for n in kv_heads),
        value_elements=tuple(value * n for n in kv_heads),
        windows=_windows(str(facts.get("architecture")), fields, count),
        recurrent_bytes=(0,) * count,
        context_length=fields.get("context_length"),
        experts=int(fields.get("expert_count") or 0),
        experts_used=int(fields.get("expert_used_count") or 0),
        is_tied=is_tied,
    )


def _windows(architecture: str, fields: Mapping[str, Any], count: int) -> tuple[int, ...]:
    window = int(fields.get("attention.sliding_window") or 0)
    pattern = _PATTERNS.get(architecture, 0)
    if not window or not pattern:
        return (0,) * count
    return tuple(0 if il % pattern == pattern - 1 else window for il in range(count))


def _whole(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ShapeError(f"the header does not say {key}")
    return value


def _per_layer(fields: Mapping[str, Any], key: str, count: int, default: Any) -> tuple[Any, ...]:
    """A field that is one number for all layers or a list with one for each."""
    value = fields.get(key)
    if value is None:
        return (default,) * count
    if isinstance(value, list):
        if len(value) < count:
            raise ShapeError(f"{key} has {len(value)} entries for {count} layers")
        return tuple(int(x) for x in value[:count])
    return (int(value),) * count
