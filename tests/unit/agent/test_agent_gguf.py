"""The GGUF header reader: facts of good files, reasons for bad ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olol_tui.agent.errors import Malformed
from olol_tui.agent.gguf import human_count, loose_digest, read_header, replica_bytes
from tests.contract.gguf_files import ALIGNMENT, LLAMA, TENSORS, header, text, write_gguf


def test_facts_of_a_llama(tmp_path: Path) -> None:
    found = read_header(str(write_gguf(tmp_path / "m.gguf")))
    assert found.architecture == "llama"
    assert found.name == "Tiny"
    assert found.parameters == 64 * 32 + 64 * 64
    assert found.parameter_size == "6.1K"
    assert found.quantization == "Q4_K_M"
    assert found.context_length == 2048
    assert found.embedding_length == 64
    assert found.layers == 2
    assert found.has_chat_template
    assert found.capabilities == ("completion",)
    assert found.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2


def test_quantization_comes_from_the_tensors_when_the_file_does_not_say(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", general__file_type=None)
    assert read_header(str(path)).quantization == "F32"


def test_capabilities(tmp_path: Path) -> None:
    tools = write_gguf(tmp_path / "t.gguf", tokenizer__chat_template="{% if tools %}{% endif %}")
    assert read_header(str(tools)).capabilities == ("completion", "tools")
    embed = write_gguf(tmp_path / "e.gguf", llama__pooling_type=("I", 1))
    assert read_header(str(embed)).capabilities == ("embedding",)
    eyes = tmp_path / "v.gguf"
    tensors = {"v.blk.0.weight": ((4, 4), 0)}
    eyes.write_bytes(header(LLAMA, tensors) + b"\0" * (64 + ALIGNMENT))
    assert read_header(str(eyes)).capabilities == ("completion", "vision")


def test_a_file_without_a_template_says_so(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tokenizer__chat_template=None)
    assert not read_header(str(path)).has_chat_template


def test_long_token_lists_are_stepped_over(tmp_path: Path) -> None:
    tokens = [f"token {n}" for n in range(200_000)]
    path = tmp_path / "m.gguf"
    fields = {**LLAMA, "tokenizer.ggml.tokens": tokens, "z.last": ("I", 7)}
    fields["tokenizer.ggml.scores"] = ("f", [0.5] * 200_000)
    path.write_bytes(header(fields, {}) + b"\0" * ALIGNMENT)
    assert read_header(str(path)).architecture == "llama"


def test_kv_heads_may_differ_by_layer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama__attention__head_count_kv=("I", [1, 0]))
    assert read_header(str(path)).kv_bytes_per_token == 1 * (16 + 16) * 2


def test_a_number_of_layers_that_cannot_be_costs_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama__block_count=("Q", 1 << 40))
    assert read_header(str(path)).kv_bytes_per_token == 0
    path = write_gguf(tmp_path / "n.gguf", llama__attention__head_count_kv=("f", [float("nan")]))
    assert read_header(str(path)).kv_bytes_per_token == 0


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    assert read_header(str(path)).name == "Tiny"
    write_gguf(path, general__name="Other one")
    assert read_header(str(path)).name == "Other one"


GOOD = header(LLAMA, TENSORS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (b"GG", "cut short"),
        (b"ELF\x7f" + GOOD[4:], "does not start with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + GOOD[8:], "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + GOOD[8:], "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "cannot be"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "cannot be"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62), "cannot be"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 99), "type 99"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 50),
            "cut short",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1),
            "a list of the unknown type 9",
        ),
        (header({}, {}), "does not name its architecture"),
        (header({"general.architecture": ("I", 3)}, {}), "does not name its architecture"),
        (GOOD, "its tensors need"),
        (GOOD[:200], "cut short"),
        (header(LLAMA, {"t": ((1,) * 9, 0)}), "9 dimensions"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(Malformed) as caught:
        read_header(str(path))
    assert words in caught.value.message
    assert str(path) in caught.value.message


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), junk=st.binary(min_size=1, max_size=9))
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, junk: bytes
) -> None:
    """Whatever a file holds: facts or Malformed, never another error, never a long read."""
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.write_bytes(GOOD[:place] + junk + GOOD[place + len(junk) :] + b"\0" * 30_000)
    try:
        found = read_header(str(path))
    except Malformed:
        return
    assert isinstance(found.parameters, int)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, ""), (999, "999"), (134_515_008, "134.52M"), (8_000_000_000, "8B"), (7_241e6, "7.2B")],
)
def test_counts_read_as_ollama_writes_them(count: Any, words: str) -> None:
    assert human_count(int(count)) == words


def test_a_digest_is_stable_and_depends_on_the_content(tmp_path: Path) -> None:
    one, copy = write_gguf(tmp_path / "a.gguf"), write_gguf(tmp_path / "b.gguf")
    assert loose_digest(str(one)) == loose_digest(str(copy))
    other = write_gguf(tmp_path / "c.gguf", general__name="Else")
    assert loose_digest(str(one)) != loose_digest(str(other))


def test_memory_of_a_replica(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    size = path.stat().st_size
    assert replica_bytes(str(path), 1000) == size + 256 * 1000
    junk = tmp_path / "junk"
    junk.write_bytes(b"x" * 10)
    assert replica_bytes(str(junk), 1000) == 10
    assert replica_bytes(str(tmp_path / "none"), 1000) == 0
