"""What a model is made of: bytes and dimensions layer by layer, read off its GGUF header.

Pure. The agent sends plain facts (fields of the architecture, bytes per block and tensor);
what they mean for each architecture is decided here, so that an older agent on a node never
computes with older rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from olol_tui.models.architectures import attends, caveat, recurs, state_bytes, windows
from olol_tui.models.loadable import verdict

_MAX_LAYERS = 512
"""llama.cpp's own limit."""
_MAX_SIZE = 1 << 32
_INPUT = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})
"""First part of the names of what stays on the head's CPU."""


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
    query_elements: int
    """Of one token's queries, all heads of the widest layer."""
    key_elements: tuple[int, ...]
    """Of one token's keys, all heads of the layer; 0 where nothing is cached."""
    value_elements: tuple[int, ...]
    windows: tuple[int, ...]
    """Tokens a layer looks back; 0 for the whole context."""
    recurrent_bytes: tuple[int, ...]
    """State of one sequence, whatever the context."""
    context_length: int | None = None
    """Longest context it was trained for, tokens."""
    experts_width: int = 0
    """Elements of one token inside the experts it uses."""
    expert_bytes: int = 0
    """Of the layers' weights, those of experts: a token reads only some of them."""
    experts: int = 0
    experts_used: int = 0
    is_tied: bool = False
    loads: bool | None = True
    """Whether upstream llama.cpp loads the file; None when nobody knows."""
    caveat: str = ""
    """Why it does not, or what the sizes leave out; one sentence, usually empty."""

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def weights_bytes(self) -> int:
        """On devices, when everything is offloaded."""
        return sum(self.layers) + self.output_bytes

    @property
    def read_bytes(self) -> int:
        """Weights that one generated token reads."""
        if not self.experts or not self.experts_used:
            return self.weights_bytes
        idle = 1 - self.experts_used / self.experts
        return self.weights_bytes - int(self.expert_bytes * idle)


def shape_of(facts: Mapping[str, Any]) -> Shape:
    """The shape that an agent's facts describe.

    Raises:
        ShapeError: something is missing or cannot be.
    """
    fields = facts.get("fields") or {}
    architecture = str(facts.get("architecture") or "")
    layers = _layers(facts, fields)
    count = len(layers)
    heads = _per_layer(fields, "attention.head_count", count, 0)
    kv_heads = tuple(
        given if given is not None else own
        for own, given in zip(
            heads, _per_layer(fields, "attention.head_count_kv", count, None), strict=True
        )
    )
    feed = _per_layer(fields, "feed_forward_length", count, 0)
    spans = windows(architecture, fields, count)
    cached = attends(architecture, fields, kv_heads, feed)
    keeps = recurs(architecture, fields, kv_heads, feed)
    state = state_bytes(architecture, fields, heads[0]) if any(keeps) else 0
    keys, values = _head_sizes(fields, heads, spans)
    used = max(_per_layer(fields, "expert_used_count", count, 0))
    inner = _per_layer(fields, "expert_feed_forward_length", count, 0)
    entering, leaving, is_tied = _outer(facts)
    found = verdict(facts)
    return Shape(
        architecture=architecture,
        file_bytes=int(facts.get("size_bytes") or 0),
        layers=layers,
        embedding_bytes=entering,
        output_bytes=leaving,
        vocabulary=int(facts.get("vocabulary") or 0),
        embedding_length=_whole(fields, "embedding_length"),
        feed_forward=max(feed),
        query_elements=max(size * n for size, n in zip(keys, heads, strict=True)),
        key_elements=tuple(
            size * n if used else 0 for size, n, used in zip(keys, kv_heads, cached, strict=True)
        ),
        value_elements=tuple(
            size * n if used else 0 for size, n, used in zip(values, kv_heads, cached, strict=True)
        ),
        windows=spans,
        recurrent_bytes=tuple(state if kept else 0 for kept in keeps),
        context_length=fields.get("context_length"),
        experts_width=used * (3 * max(inner) + 2 * _whole(fields, "embedding_length")),
        expert_bytes=sum(facts.get("experts") or ()),
        experts=int(fields.get("expert_count") or 0),
        experts_used=used,
        is_tied=is_tied,
        loads=found.loads,
        caveat=found.reason or caveat(architecture),
    )


def _layers(facts: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[int, ...]:
    count = _whole(fields, "block_count")
    sizes = tuple(int(size) for size in facts.get("blocks") or ())
    if not 0 < count <= _MAX_LAYERS or not any(sizes):
        raise ShapeError("the header names no layers")
    if len(sizes) > count:
        raise ShapeError(f"the header says {count} layers and has tensors of {len(sizes)}")
    return sizes + (0,) * (count - len(sizes))


def _outer(facts: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Bytes that stay with the input, bytes that go with the output, whether both share one."""
    tensors: Mapping[str, int] = facts.get("tensors") or {}
    entering = sum(size for name, size in tensors.items() if name.partition(".")[0] in _INPUT)
    embedding = int(tensors.get("token_embd.weight", 0))
    output = int(tensors.get("output.weight", 0))
    # Norms of the embedding are computed where the embedding is.
    first = sum(size for name, size in tensors.items() if name.startswith("token_embd_norm"))
    rest = sum(tensors.values()) - entering - output - first
    is_tied = output == 0
    return entering + first, rest + (embedding if is_tied else output), is_tied


def _head_sizes(
    fields: Mapping[str, Any], heads: tuple[int, ...], spans: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """Elements of one head's key and value by layer; layers with a window may have their own."""
    default = _whole(fields, "embedding_length") // heads[0] if heads[0] else 0
    found = []
    for name in ("key", "value"):
        size = _size(fields, f"attention.{name}_length", default)
        windowed = _size(fields, f"attention.{name}_length_swa", size)
        found.append([windowed if span else size for span in spans])
    if _size(fields, "attention.key_length_mla", 0) and _size(
        fields, "attention.value_length_mla", 0
    ):
        # Multi-head latent attention keeps one compressed key, values are part of it.
        found[1] = [0] * len(heads)
    return found[0], found[1]


def _size(fields: Mapping[str, Any], key: str, default: int) -> int:
    return _whole(fields, key) if key in fields else default


def _whole(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ShapeError(f"the header does not say {key}")
    if not 0 <= value <= _MAX_SIZE:
        raise ShapeError(f"{key} of {value} cannot be")
    return value


def _per_layer(fields: Mapping[str, Any], key: str, count: int, default: Any) -> tuple[Any, ...]:
    """A field that is one number for all layers or a list with one for each."""
    value = fields.get(key)
    if value is None:
        return (default,) * count
    if isinstance(value, list):
        if len(value) < count:
            raise ShapeError(f"{key} has {len(value)} entries for {count} layers")
        items = value[:count]
    else:
        items = [value] * count
    if not all(isinstance(item, int) and 0 <= item <= _MAX_SIZE for item in items):
        raise ShapeError(f"{key} holds what cannot be")
    return tuple(int(item) for item in items)
