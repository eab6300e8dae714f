"""What a GGUF file says of itself, read from its header alone.

Only the first megabytes are read: key-value pairs and tensor descriptions, never
weights; token lists are stepped over. Every length is checked against what is left of
the file and against a cap, because files come from anywhere.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from .errors import Malformed

_MAGIC = b"GGUF"
_MAX_HEADER_BYTES = 64 * 1024 * 1024
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_KEY_BYTES = 1 << 16
_MAX_TEXT_BYTES = 4 * 1024 * 1024
_MAX_KEPT_ITEMS = 4096
_CHUNK_BYTES = 1 << 20
_EDGE_BYTES = 1 << 20

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4",
}  # fmt: skip
"""`general.file_type`, as llama.cpp numbers it."""

_TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""ggml type: name, weights a block, bytes a block."""


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
        return _Reader(file, path, size_bytes).header()


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


class _Reader:
    """A cursor over the header that refuses lengths which cannot be."""

    def __init__(self, file: BinaryIO, path: str, size_bytes: int) -> None:
        self._file = file
        self._path = path
        self._size_bytes = size_bytes
        self._buffer = b""
        self._at = 0
        self._consumed = 0

    def header(self) -> Header:
        if self._take(4) != _MAGIC:
            raise self._bad("it does not start with GGUF")
        version = self._number("I")
        if version in (2 << 24, 3 << 24):
            raise self._bad("it is big-endian")
        if version not in (2, 3):
            raise self._bad(f"GGUF version {version} is not known")
        tensor_count, pair_count = self._number("Q"), self._number("Q")
        if tensor_count > _MAX_TENSORS or pair_count > _MAX_PAIRS:
            raise self._bad(f"{tensor_count} tensors and {pair_count} fields cannot be")
        pairs: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._text(_MAX_KEY_BYTES)
            pairs[key] = self._value(self._number("I"), key)
        return self._describe(pairs, tensor_count)

    def _describe(self, pairs: dict[str, Any], tensor_count: int) -> Header:
        parameters = 0
        end_bytes = 0
        types: Counter[str] = Counter()
        prefixes: set[str] = set()
        for _ in range(tensor_count):
            name = self._text(_MAX_KEY_BYTES)
            dimensions = self._number("I")
            if dimensions > 8:
                raise self._bad(f"tensor {name!r} has {dimensions} dimensions")
            weights = 1
            for _ in range(dimensions):
                weights *= self._number("Q")
            kind, offset = self._number("I"), self._number("Q")
            parameters += weights
            label, block, block_bytes = _TENSOR_TYPES.get(kind, (f"type {kind}", 0, 0))
            types[label] += weights
            prefixes.add(name.partition(".")[0])
            if block:
                end_bytes = max(end_bytes, offset + -(-weights // block) * block_bytes)
        if self._consumed + end_bytes > self._size_bytes:
            raise self._bad(
                f"it ends after {self._size_bytes} bytes, its tensors need "
                f"{self._consumed + end_bytes}: the file is cut short"
            )
        architecture = pairs.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._bad("it does not name its architecture")

        def number(key: str) -> int | None:
            value = pairs.get(f"{architecture}.{key}")
            return value if isinstance(value, int) and not isinstance(value, bool) else None

        template = pairs.get("tokenizer.chat_template")
        file_type = pairs.get("general.file_type")
        common = types.most_common(1)[0][0] if types else ""
        return Header(
            path=self._path,
            size_bytes=self._size_bytes,
            architecture=architecture,
            name=str(pairs.get("general.name") or ""),
            parameters=parameters,
            quantization=_FILE_TYPES.get(file_type, common) if file_type is not None else common,
            context_length=number("context_length"),
            embedding_length=number("embedding_length"),
            layers=number("block_count") or 0,
            has_chat_template=bool(template),
            capabilities=_capabilities(number("pooling_type"), template, prefixes),
            tensors=tensor_count,
            kv_bytes_per_token=_kv_bytes_per_token(architecture, pairs),
        )

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text(_MAX_TEXT_BYTES)
        if kind != _ARRAY:
            raise self._bad(f"field {key!r} has the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if inner in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[inner])
            if count > _MAX_KEPT_ITEMS:
                self._skip(count * width)
                return None
            return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self._take(count * width)))
        if inner == _STRING:
            self._check(count * 8)
            for _ in range(count):
                self._skip(self._number("Q"))
            return None
        raise self._bad(f"field {key!r} is a list of the unknown type {inner}")

    def _number(self, code: str) -> Any:
        width = struct.calcsize("<" + code)
        if len(self._buffer) - self._at < width:
            self._fill(width)
        value = struct.unpack_from("<" + code, self._buffer, self._at)[0]
        self._at += width
        self._consumed += width
        return value

    def _text(self, limit_bytes: int) -> str:
        length = self._number("Q")
        if length > limit_bytes:
            raise self._bad(f"a text of {length} bytes cannot be")
        return self._take(length).decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        if len(self._buffer) - self._at < count:
            self._fill(count)
        data = self._buffer[self._at : self._at + count]
        self._at += count
        self._consumed += count
        return data

    def _skip(self, count: int) -> None:
        inside = len(self._buffer) - self._at
        if count <= inside:
            self._at += count
        else:
            self._check(count)
            self._file.seek(count - inside, os.SEEK_CUR)
            self._buffer, self._at = b"", 0
        self._consumed += count

    def _check(self, count: int) -> None:
        """Refuse to go beyond the file or beyond what any header needs."""
        if self._consumed + count > self._size_bytes:
            raise self._bad("its header is cut short")
        if self._consumed + count > _MAX_HEADER_BYTES:
            raise self._bad(f"its header is longer than {_MAX_HEADER_BYTES >> 20} MiB")

    def _fill(self, count: int) -> None:
        self._check(count)
        rest = self._buffer[self._at :]
        self._buffer = rest + self._file.read(max(count - len(rest), _CHUNK_BYTES))
        self._at = 0
        if len(self._buffer) < count:
            raise self._bad("its header is cut short")

    def _bad(self, reason: str) -> Malformed:
        return Malformed(f"{self._path}: {reason}")


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
    kv_heads = field("attention.head_count_kv")
    per_layer = kv_heads if isinstance(kv_heads, list) else [kv_heads or heads] * layers
    key, value = field("attention.key_length"), field("attention.value_length")
    key = key if isinstance(key, int) else math.ceil(width / heads)
    value = value if isinstance(value, int) else math.ceil(width / heads)
    return sum(int(n) for n in per_layer) * (key + value) * 2
