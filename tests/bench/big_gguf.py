"""A model file of real size that llama.cpp loads: Llama-2-7B's layers, fewer of them, of noise.

What is measured with it is how tensors travel; every one of its layers' seven matrices is
larger than the 10 MiB from which llama.cpp's workers keep tensors, and no two are alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.contract.gguf_files import ALIGNMENT, text, value

WIDTH, FEED, HEADS, VOCABULARY = 4096, 11008, 32, 32000
_F32, _Q8_0 = 0, 8
_BLOCK_VALUES, _BLOCK_BYTES = 32, 34
_BYTE, _NORMAL, _CONTROL = 6, 1, 3
"""Kinds of tokens."""

Tensors = dict[str, tuple[int, ...]]


def write(path: Path, layers: int) -> int:
    """Write the file; returns its bytes. It makes no sense of what it is asked."""
    tensors = _tensors(layers)
    with path.open("wb") as file:
        _header(file, layers, tensors)
        for dimensions in tensors.values():
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            for part in _weights(dimensions):
                file.write(part)
    return path.stat().st_size


def _tensors(layers: int) -> Tensors:
    found: Tensors = {"token_embd.weight": (WIDTH, VOCABULARY)}
    for layer in range(layers):
        block = f"blk.{layer}."
        found[f"{block}attn_norm.weight"] = found[f"{block}ffn_norm.weight"] = (WIDTH,)
        for name in ("q", "k", "v", "output"):
            found[f"{block}attn_{name}.weight"] = (WIDTH, WIDTH)
        found[f"{block}ffn_gate.weight"] = found[f"{block}ffn_up.weight"] = (WIDTH, FEED)
        found[f"{block}ffn_down.weight"] = (FEED, WIDTH)
    return found | {"output_norm.weight": (WIDTH,), "output.weight": (WIDTH, VOCABULARY)}


def _size(dimensions: tuple[int, ...]) -> int:
    if len(dimensions) == 1:
        return dimensions[0] * 4
    return dimensions[0] * dimensions[1] // _BLOCK_VALUES * _BLOCK_BYTES


def _header(file: IO[bytes], layers: int, tensors: Tensors) -> None:
    fields = _fields(layers)
    file.write(b"GGUF" + (3).to_bytes(4, "little"))
    file.write(len(tensors).to_bytes(8, "little") + len(fields).to_bytes(8, "little"))
    for key, given in fields.items():
        file.write(text(key) + value(given))
    offset = 0
    for name, dimensions in tensors.items():
        file.write(text(name) + len(dimensions).to_bytes(4, "little"))
        file.write(b"".join(one.to_bytes(8, "little") for one in dimensions))
        kind = _F32 if len(dimensions) == 1 else _Q8_0
        file.write(kind.to_bytes(4, "little") + offset.to_bytes(8, "little"))
        offset += -(-_size(dimensions) // ALIGNMENT) * ALIGNMENT


def _fields(layers: int) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [_CONTROL] * 3 + [_BYTE] * 256
    tokens += [f"t{number}" for number in range(VOCABULARY - len(tokens))]
    kinds += [_NORMAL] * (VOCABULARY - len(kinds))
    return {
        "general.architecture": "llama",
        "general.name": "Noise",
        "general.file_type": ("I", 7),
        "llama.context_length": ("I", 4096),
        "llama.block_count": ("I", layers),
        "llama.embedding_length": ("I", WIDTH),
        "llama.feed_forward_length": ("I", FEED),
        "llama.rope.dimension_count": ("I", WIDTH // HEADS),
        "llama.attention.head_count": ("I", HEADS),
        "llama.attention.head_count_kv": ("I", HEADS),
        "llama.attention.layer_norm_rms_epsilon": ("f", 1e-5),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": ("f", [0.0] * VOCABULARY),
        "tokenizer.ggml.token_type": ("i", kinds),
        "tokenizer.ggml.bos_token_id": ("I", 1),
        "tokenizer.ggml.eos_token_id": ("I", 2),
    }


def _weights(dimensions: tuple[int, ...]) -> Iterator[bytes]:
    """Ones for norms; noise of about a hundredth for matrices."""
    if len(dimensions) == 1:
        yield b"\x00\x00\x80\x3f" * dimensions[0]
        return
    left = _size(dimensions) // _BLOCK_BYTES
    while left:
        count = min(left, 1 << 19)
        noise = bytearray(os.urandom(count * _BLOCK_BYTES))
        # The scale of each block: 2^-12 as a half float.
        noise[0::_BLOCK_BYTES] = b"\x00" * count
        noise[1::_BLOCK_BYTES] = b"\x0c" * count
        yield bytes(noise)
        left -= count
