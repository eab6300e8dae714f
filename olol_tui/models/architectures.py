"""What llama.cpp does differently from one architecture to the next.

Pure tables and rules, as its `models/*.cpp` have them: which layers see a window only, which
keep a recurrent state, which have no cache at all. An architecture that is not listed is taken
for a plain transformer, whose cache is the largest of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WINDOWS: dict[str, tuple[int, bool, int]] = {
    "afmoe": (4, False, 0),
    "cohere2": (4, False, 0),
    "cohere2moe": (4, True, 0),
    "exaone-moe": (4, False, 128),
    "exaone4": (4, False, 0),
    "gemma-embedding": (6, False, 0),
    "gemma2": (2, False, 4096),
    "gemma3": (6, False, 0),
    "gemma3n": (5, False, 0),
    "gpt-oss": (2, False, 0),
    "laguna": (4, True, 0),
    "llama4": (4, False, 8192),
    "mellum": (4, False, 0),
    "modern-bert": (3, True, 0),
    "muse-glimmer": (4, False, 0),
    "olmo2": (4, False, 0),
    "plamo3": (8, False, 0),
    "smallthinker": (4, True, 4096),
}
"""Every n-th layer sees the whole context (n, whether it is the first of n, window by default)."""
_OWN_PATTERN = frozenset(
    {"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"}
)
"""The file lists the layers with a window."""
_NO_CACHE = frozenset(
    {
        "bert", "clef", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3",
        "llada", "llada-moe", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1",
        "wavtokenizer-dec",
    }
)  # fmt: skip
"""They read all tokens at once and keep nothing."""
_RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})
_BY_HEADS = frozenset(
    {
        "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2",
        "lfm2moe", "nemotron_h", "nemotron_h_moe", "plamo2",
    }
)  # fmt: skip
"""Hybrids: a layer without KV heads is recurrent."""
_BY_INTERVAL = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
"""Hybrids: every n-th layer attends, the others are recurrent."""
_FEED_FORWARD_LAYERS = frozenset({"nemotron_h", "nemotron_h_moe"})
"""A layer with a feed-forward part is nothing else."""
_MORE_CACHE = frozenset(
    {
        "deepseek32",
        "deepseek4",
        "dots3note",
        "glm-dsa",
        "glm5-next",
        "hy_v4",
        "minimax-m3",
        "qwen4exp",
    }
)
"""They keep an index beside the KV cache, which is not counted here."""


def windows(architecture: str, fields: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """How many tokens back each layer sees; 0 for all of them."""
    everything = (0,) * count
    period, is_first, default = _WINDOWS.get(architecture, (0, False, 0))
    window = _number(fields, "attention.sliding_window", default)
    if architecture in ("llama4", "smallthinker") and window:
        window = default
    if architecture == "exaone4" and count != 64:
        return everything
    if architecture in ("lfm2", "lfm2moe"):
        return (window,) * count if architecture == "lfm2" else everything
    if not window or (not period and architecture not in _OWN_PATTERN):
        return everything
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return tuple(window if il < len(pattern) and pattern[il] else 0 for il in range(count))
    period = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else period
    if not period:
        return (window,) * count
    whole = 0 if is_first else period - 1
    return tuple(0 if il % period == whole else window for il in range(count))


def attends(
    architecture: str, fields: Mapping[str, Any], kv_heads: Sequence[int], feed: Sequence[int]
) -> tuple[bool, ...]:
    """Which layers have a KV cache of their own."""
    count = len(kv_heads)
    if architecture in _NO_CACHE or architecture in _RECURRENT:
        return (False,) * count
    trunk = _trunk(fields, count)
    if architecture in _BY_INTERVAL:
        state = recurs(architecture, fields, kv_heads, feed)
        return tuple(il < trunk and not state[il] for il in range(count))
    own = count
    if architecture == "gemma3n":
        own = 20
    elif architecture == "gemma4":
        own = count - _number(fields, "attention.shared_kv_layers", 0)
    dense = architecture in _FEED_FORWARD_LAYERS
    return tuple(
        il < min(own, trunk) and heads > 0 and not (dense and feed[il])
        for il, heads in enumerate(kv_heads)
    )


def recurs(
    architecture: str, fields: Mapping[str, Any], kv_heads: Sequence[int], feed: Sequence[int]
) -> tuple[bool, ...]:
    """Which layers keep a recurrent state."""
    count = len(kv_heads)
    trunk = _trunk(fields, count)
    if architecture in _RECURRENT or architecture == "falcon-h1":
        return (True,) * count
    if architecture in _BY_INTERVAL:
        given = fields.get("attention.recurrent_layers")
        if isinstance(given, list):
            return tuple(il < len(given) and bool(given[il]) for il in range(count))
        every = _number(fields, "full_attention_interval", _BY_INTERVAL[architecture])
        return tuple(il < trunk and (il + 1) % max(1, every) != 0 for il in range(count))
    if architecture in _BY_HEADS:
        dense = architecture in _FEED_FORWARD_LAYERS
        return tuple(
            il < trunk and heads == 0 and not (dense and feed[il])
            for il, heads in enumerate(kv_heads)
        )
    return (False,) * count


def state_bytes(architecture: str, fields: Mapping[str, Any], heads: int) -> int:
    """Of one recurrent layer and one sequence: two float tensors, whatever the context."""
    width = _number(fields, "embedding_length", 0)
    kernel = max(0, _number(fields, "ssm.conv_kernel", 0) - 1)
    inner, state = _number(fields, "ssm.inner_size", 0), _number(fields, "ssm.state_size", 0)
    if head := _number(fields, "wkv.head_size", 0):
        return 4 * (_number(fields, "token_shift_count", 2) * width + width * head)
    if window := _number(fields, "shortconv.l_cache", 0):
        return 4 * (width * (window - 1) + state * inner)
    if head := _number(fields, "kda.head_dim", 0):
        return 4 * (3 * (kernel or 3) * heads * head + head * head * heads)
    if architecture == "minimax-01":
        head = _number(fields, "attention.key_length", width // heads if heads else 0)
        return 4 * head * head * heads
    return 4 * (
        kernel * (inner + 2 * _number(fields, "ssm.group_count", 0) * state) + state * inner
    )


def caveat(architecture: str) -> str:
    """What the formulas leave out for this architecture; usually nothing."""
    if architecture in _MORE_CACHE:
        return f"{architecture} keeps an index beside its KV cache, which is not counted"
    return ""


def _trunk(fields: Mapping[str, Any], count: int) -> int:
    """Layers without those that predict further tokens and are not run."""
    return count - min(count, _number(fields, "nextn_predict_layers", 0))


def _number(fields: Mapping[str, Any], key: str, default: int) -> int:
    value = fields.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
