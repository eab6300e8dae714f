"""Tiny GGUF files, written byte by byte, well-formed or not."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

_KINDS = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "?": 7, "Q": 10, "q": 11, "d": 12}

ALIGNMENT = 32
"""Weights begin at a multiple of this."""

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": ("I", 15),
    "llama.context_length": ("I", 2048),
    "llama.block_count": ("I", 2),
    "llama.embedding_length": ("I", 64),
    "llama.attention.head_count": ("I", 4),
    "llama.attention.head_count_kv": ("I", 2),
    "tokenizer.ggml.tokens": ["<s>", "a", "b"],
    "tokenizer.ggml.scores": ("f", [0.0, -1.0, -2.0]),
    "tokenizer.chat_template": "{{ messages }}",
}

TENSORS: dict[str, tuple[tuple[int, ...], int]] = {
    "token_embd.weight": ((64, 32), 0),
    "blk.0.attn_q.weight": ((64, 64), 0),
}
"""name: (dimensions, ggml type)"""


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(given: Any) -> bytes:
    """A field's value with its type: text, list of texts, or (struct code, number or list)."""
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    if isinstance(given, list):
        return struct.pack("<IIQ", 9, 8, len(given)) + b"".join(map(text, given))
    code, number = given
    if isinstance(number, list):
        head = struct.pack("<IIQ", 9, _KINDS[code], len(number))
        return head + struct.pack(f"<{len(number)}{code}", *number)
    return struct.pack("<I" + code, _KINDS[code], number)


def header(
    fields: dict[str, Any],
    tensors: dict[str, tuple[tuple[int, ...], int]],
    *,
    version: int = 3,
) -> bytes:
    data = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    data += b"".join(text(key) + value(given) for key, given in fields.items())
    offset = 0
    for name, (dimensions, kind) in tensors.items():
        data += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        data += struct.pack("<IQ", kind, offset)
        size = 4
        for dimension in dimensions:
            size *= dimension
        offset += size
    return data


def write_gguf(path: Path, **change: Any) -> Path:
    """A loadable-looking file of a llama with two float tensors; `change` overrides fields."""
    fields = {**LLAMA, **{key.replace("__", "."): given for key, given in change.items()}}
    fields = {key: given for key, given in fields.items() if given is not None}
    data = header(fields, TENSORS)
    data += b"\0" * (-len(data) % ALIGNMENT)
    path.write_bytes(data + b"\0" * (64 * 32 + 64 * 64) * 4)
    return path
