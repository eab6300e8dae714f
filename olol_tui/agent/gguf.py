"""What a GGUF file says of itself, read from its header alone.

Only the first megabytes are read: key-value pairs and tensor descriptions, never
weights; token lists are stepped over. Every length is checked against what is left of
the file and against a cap, because files come from anywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import Malformed
from .gguf_reader import Raw, read_raw

_EDGE_BYTES = 1 << 20
_MAX_LAYERS = 4096
"""More cannot be; a list of as many entries must not be made."""

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4",
}  # fmt: skip
"""`general.file_type`, as llama.cpp numbers it."""


@dataclass(frozen=True)
class Header:
    """The facts of one file that the rest of the program uses."""

    path: str
    size_bytes: int
    architecture: str
    name: str
    parameters: int
    quantization: str
    context_length: int | None
    embedding_length: int | None
    layers: int
    has_chat_template: bool
    capabilities: tuple[str, ...]
    tensors: int
    kv_bytes_per_token: int
    """Size of one token in a full-precision (f16) KV cache, 0 when the header cannot say."""

    @property
    def parameter_size(self) -> str:
        return human_count(self.parameters)


def read_header(path: str) -> Header:
    """Read the header, or give the cached one while the file is unchanged.

    Raises:
        Malformed: not GGUF, an unknown version, lengths that cannot be, or cut short.
        OSError: the file cannot be read.
    """
    status = Path(path).stat()
    return _read_cached(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_cached(path: str, size_bytes: int, _mtime_ns: int) -> Header:
    with Path(path).open("rb") as file:
        return _describe(read_raw(file, path, size_bytes), path, size_bytes)


def replica_bytes(path: str, context_tokens: int) -> int:
    """Memory of a replica: weights and KV cache; weights alone when the header is odd."""
    try:
        header = read_header(path)
    except (OSError, Malformed):
        try:
            return Path(path).stat().st_size
        except OSError:
            return 0
    return header.size_bytes + header.kv_bytes_per_token * context_tokens


@lru_cache(maxsize=1024)
def _digest_cached(path: str, size_bytes: int, _mtime_ns: int) -> str:
    state = hashlib.sha256(b"olol loose gguf %d\n" % size_bytes)
    with Path(path).open("rb") as file:
        state.update(file.read(_EDGE_BYTES))
        file.seek(max(0, size_bytes - _EDGE_BYTES))
        state.update(file.read(_EDGE_BYTES))
    return f"sha256:{state.hexdigest()}"


def loose_digest(path: str) -> str:
    """A stable name of a file's content: its length and both ends.

    The same on every node that holds the file, without reading gigabytes at start.
    """
    status = Path(path).stat()
    return _digest_cached(path, status.st_size, status.st_mtime_ns)


def human_count(count: int) -> str:
    """Parameters as Ollama writes them: `134.52M`, `8.0B` as `8B`."""
    for unit, letter, decimals in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 1)):
        if count >= unit:
            number = count / unit
            return (
                f"{number:.0f}{letter}" if number.is_integer() else f"{number:.{decimals}f}{letter}"
            )
    return str(count) if count else ""


def _describe(raw: Raw, path: str, size_bytes: int) -> Header:
    types: Counter[str] = Counter()
    for tensor in raw.tensors:
        types[tensor.kind] += tensor.weights
    pairs = raw.pairs
    architecture = architecture_of(raw, path)

    def number(key: str) -> int | None:
        value = pairs.get(f"{architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    template = pairs.get("tokenizer.chat_template")
    file_type = pairs.get("general.file_type")
    common = types.most_common(1)[0][0] if types else ""
    prefixes = {tensor.name.partition(".")[0] for tensor in raw.tensors}
    return Header(
        path=path,
        size_bytes=size_bytes,
        architecture=architecture,
        name=str(pairs.get("general.name") or ""),
        parameters=sum(types.values()),
        quantization=_FILE_TYPES.get(file_type, common) if file_type is not None else common,
        context_length=number("context_length"),
        embedding_length=number("embedding_length"),
        layers=number("block_count") or 0,
        has_chat_template=bool(template),
        capabilities=_capabilities(number("pooling_type"), template, prefixes),
        tensors=len(raw.tensors),
        kv_bytes_per_token=_kv_bytes_per_token(architecture, pairs),
    )


def architecture_of(raw: Raw, path: str) -> str:
    """Raises Malformed when the header does not name it."""
    architecture = raw.pairs.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise Malformed(f"{path}: it does not name its architecture")
    return architecture


def _capabilities(pooling: int | None, template: Any, prefixes: set[str]) -> tuple[str, ...]:
    """As Ollama derives them: embedding models pool, tools show in the template."""
    if pooling is not None:
        return ("embedding",)
    found = ["completion"]
    if isinstance(template, str) and "tools" in template:
        found.append("tools")
    if prefixes & {"v", "mm"}:
        found.append("vision")
    return tuple(found)


def _kv_bytes_per_token(architecture: str, pairs: dict[str, Any]) -> int:
    def field(key: str) -> Any:
        return pairs.get(f"{architecture}.{key}")

    layers, heads, width = (
        field("block_count"),
        field("attention.head_count"),
        field("embedding_length"),
    )
    if isinstance(heads, list):
        heads = max(heads, default=0)
    if not all(isinstance(v, int) and v > 0 for v in (layers, heads, width)):
        return 0
    if layers > _MAX_LAYERS:
        return 0
    kv_heads = field("attention.head_count_kv")
    per_layer = kv_heads if isinstance(kv_heads, list) else [kv_heads or heads] * layers
    if not all(isinstance(n, int) for n in per_layer):
        return 0
    key, value = field("attention.key_length"), field("attention.value_length")
    key = key if isinstance(key, int) else math.ceil(width / heads)
    value = value if isinstance(value, int) else math.ceil(width / heads)
    return sum(per_layer) * (key + value) * 2
