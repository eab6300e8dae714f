"""Reads the header of a GGUF file into plain values.

Files come from anywhere: every length is checked against what is left of the file and
against a cap, lists are counted, and what llama.cpp would refuse is refused here too
(double names, tensors that overlap or lie outside the file).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from .errors import Malformed

_MAGIC = b"GGUF"
_MAX_HEADER_BYTES = 64 * 1024 * 1024
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_KEY_BYTES = 1 << 16
_MAX_TEXT_BYTES = 4 * 1024 * 1024
_MAX_KEPT_ITEMS = 4096
_MAX_TEXTS = 1 << 22
"""Of all lists together: large vocabularies have 262,144 tokens and twice as many merges."""
_MAX_DIMENSIONS = 8
_MAX_WEIGHTS = 1 << 46
"""Of one tensor: a thousand times the largest that exist."""
_CHUNK_BYTES = 1 << 20

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

TENSOR_TYPES = {
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
class Tensor:
    """One entry of the list of tensors."""

    name: str
    dimensions: tuple[int, ...]
    kind: str
    weights: int
    size_bytes: int
    """For a type not known here: the room up to the next tensor."""


@dataclass(frozen=True)
class Raw:
    """A header as it stands in the file."""

    pairs: dict[str, Any]
    """Long lists and lists of texts are None here."""
    lengths: dict[str, int]
    """Items of every list."""
    tensors: tuple[Tensor, ...]


def read_raw(file: BinaryIO, path: str, size_bytes: int) -> Raw:
    """Read to the end of the list of tensors, never a weight.

    Raises:
        Malformed: not GGUF, an unknown version, lengths that cannot be, or cut short.
        OSError: the file cannot be read.
    """
    return _Reader(file, path, size_bytes).raw()


class _Reader:
    """A cursor over the header that refuses lengths which cannot be."""

    def __init__(self, file: BinaryIO, path: str, size_bytes: int) -> None:
        self._file = file
        self._path = path
        self._size_bytes = size_bytes
        self._buffer = b""
        self._at = 0
        self._consumed = 0
        self._texts = 0
        self._lengths: dict[str, int] = {}

    def raw(self) -> Raw:
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
            if key in pairs:
                raise self._bad(f"it has the field {key!r} twice")
            pairs[key] = self._value(self._number("I"), key)
        return Raw(pairs, self._lengths, self._tensors(tensor_count, pairs))

    def _tensors(self, count: int, pairs: dict[str, Any]) -> tuple[Tensor, ...]:
        found: list[tuple[str, tuple[int, ...], int, int, int]] = []
        names: set[str] = set()
        for _ in range(count):
            name = self._text(_MAX_KEY_BYTES)
            if name in names:
                raise self._bad(f"it has the tensor {name!r} twice")
            names.add(name)
            dimensions = self._number("I")
            if dimensions > _MAX_DIMENSIONS:
                raise self._bad(f"tensor {name!r} has {dimensions} dimensions")
            shape = tuple(self._number("Q") for _ in range(dimensions))
            weights = 1
            for length in shape:
                weights *= length
            if weights > _MAX_WEIGHTS:
                raise self._bad(f"tensor {name!r} of {weights} weights cannot be")
            found.append((name, shape, self._number("I"), self._number("Q"), weights))
        return self._placed(found, pairs)

    def _placed(
        self, found: list[tuple[str, tuple[int, ...], int, int, int]], pairs: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Sizes, and that every tensor has its own place inside the file."""
        alignment = pairs.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._bad(f"its alignment of {alignment!r} cannot be")
        start = -(-self._consumed // alignment) * alignment
        room = max(0, self._size_bytes - start)
        order = sorted(range(len(found)), key=lambda index: found[index][3])
        sizes = [0] * len(found)
        for place, index in enumerate(order):
            name, _, kind, offset, weights = found[index]
            after = found[order[place + 1]][3] if place + 1 < len(order) else None
            _, block, block_bytes = TENSOR_TYPES.get(kind, ("", 0, 0))
            if block:
                sizes[index] = -(-weights // block) * block_bytes
            else:
                sizes[index] = (room if after is None else after) - offset
            end = offset + sizes[index]
            if end > room or sizes[index] < 0:
                raise self._bad(
                    f"it ends after {self._size_bytes} bytes, its tensors need "
                    f"{start + end}: the file is cut short"
                )
            if after is not None and end > after:
                other = found[order[place + 1]][0]
                raise self._bad(f"tensors {name!r} and {other!r} overlap")
        return tuple(
            Tensor(name, shape, TENSOR_TYPES.get(kind, (f"type {kind}", 0, 0))[0], weights, size)
            for (name, shape, kind, _, weights), size in zip(found, sizes)
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
            self._lengths[key] = count
            width = struct.calcsize("<" + _SCALARS[inner])
            if count > _MAX_KEPT_ITEMS:
                self._skip(count * width)
                return None
            return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self._take(count * width)))
        if inner == _STRING:
            self._lengths[key] = count
            self._check(count * 8)
            self._skip_texts(count, key)
            return None
        raise self._bad(f"field {key!r} is a list of the unknown type {inner}")

    def _skip_texts(self, count: int, key: str) -> None:
        """Step over texts; a tight loop, because vocabularies have hundreds of thousands."""
        self._texts += count
        if self._texts > _MAX_TEXTS:
            raise self._bad(f"field {key!r} is a list of {count} texts: that cannot be")
        length_of = struct.Struct("<Q").unpack_from
        while count:
            buffer, at, end = self._buffer, self._at, len(self._buffer) - 8
            while count and at <= end:
                after = at + 8 + length_of(buffer, at)[0]
                if after > len(buffer):
                    break
                at = after
                count -= 1
            self._consumed += at - self._at
            self._at = at
            if count:
                # This one crosses the end of what has been read.
                self._skip(self._number("Q"))
                count -= 1
                if self._at >= len(self._buffer) and count:
                    self._fill(1)

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
