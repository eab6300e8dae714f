"""Shapes of models: sizes by layer from loose files and Ollama's store, and hostile headers."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olol_tui.agent.errors import BadRequest, Malformed, NotFound
from olol_tui.agent.shape import file_facts, shape
from tests.contract.gguf_files import ALIGNMENT, LLAMA, header, text, write_gguf


def tensor(name: str, dimensions: tuple[int, ...], kind: int, offset: int) -> bytes:
    data = text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return data + struct.pack("<IQ", kind, offset)


def file_of(path: Path, *tensors: bytes, room: int = 4096, fields: dict[str, Any] = LLAMA) -> str:
    data = header(fields, {})
    data = data[:8] + struct.pack("<Q", len(tensors)) + data[16:] + b"".join(tensors)
    path.write_bytes(data + b"\0" * (-len(data) % ALIGNMENT + room))
    return str(path)


def test_sizes_by_layer_and_the_architectures_own_fields(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "m.gguf",
        tensor("token_embd.weight", (32, 8), 8, 0),
        tensor("blk.0.attn_q.weight", (32, 4), 1, 288),
        tensor("blk.1.ffn_up_exps.weight", (32, 2, 2), 0, 544),
        tensor("output_norm.weight", (32,), 0, 1056),
        tensor("v.blk.0.weight", (32,), 0, 1184),
    )
    found = shape({"path": path})
    assert found["architecture"] == "llama"
    assert found["blocks"] == [256, 512]
    assert found["experts"] == [0, 512]
    assert found["tensors"] == {"token_embd.weight": 8 * 34, "output_norm.weight": 128}
    assert found["others"] == {"v": 128}
    assert found["fields"]["attention.head_count_kv"] == 2
    assert found["vocabulary"] == 3
    assert found["layers"] == {}
    assert len(json.dumps(found)) < 2000


def test_a_type_of_tensor_that_is_not_known_takes_the_room_it_has(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "m.gguf", tensor("blk.0.a.weight", (8,), 250, 0), tensor("b.weight", (8,), 0, 96)
    )
    assert file_facts(path)["blocks"] == [96]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([tensor("a.weight", (64,), 0, 0), tensor("b.weight", (64,), 0, 128)], "overlap"),
        ([tensor("a.weight", (64,), 0, 0), tensor("a.weight", (64,), 0, 256)], "twice"),
        ([tensor("a.weight", (1 << 62, 4), 0, 0)], "cannot be"),
        ([tensor("a.weight", (1 << 63,) * 8, 0, 0)], "cannot be"),
        ([tensor("a.weight", (4,), 0, 1 << 63)], "cut short"),
        ([tensor("a.weight", (4,), 250, 1 << 63)], "cut short"),
        ([tensor("blk.99999.a.weight", (4,), 0, 0)], "block number"),
    ],
)
def test_tensors_that_cannot_be_are_refused(
    tmp_path: Path, tensors: list[bytes], words: str
) -> None:
    with pytest.raises(Malformed, match=words):
        file_facts(file_of(tmp_path / "m.gguf", *tensors))


@pytest.mark.parametrize("alignment", [0, 3, 1 << 40])
def test_an_alignment_that_cannot_be_is_refused(tmp_path: Path, alignment: int) -> None:
    fields = {**LLAMA, "general.alignment": ("Q", alignment)}
    with pytest.raises(Malformed):
        file_facts(file_of(tmp_path / "m.gguf", tensor("a.weight", (4,), 0, 0), fields=fields))


def test_lists_that_would_take_forever_are_refused(tmp_path: Path) -> None:
    """Empty texts take 8 bytes each: a file of 40 MB could hold five million."""
    count = 5_000_000
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, count)
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 8 * count)
    with pytest.raises(Malformed, match="texts"):
        file_facts(str(path))


FIELD = st.one_of(
    st.builds(lambda n: struct.pack("<IQ", 10, n), st.integers(0, 2**64 - 1)),
    st.builds(lambda s: struct.pack("<I", 8) + text(s), st.binary(max_size=20)),
    st.builds(
        lambda kind, count, data: struct.pack("<IIQ", 9, kind, count) + data,
        st.integers(0, 14),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=40),
    ),
    st.binary(max_size=30),
)
KEYS = st.sampled_from(
    [
        "llama.block_count",
        "llama.attention.head_count_kv",
        "general.alignment",
        "tokenizer.ggml.tokens",
    ]
)
TENSOR = st.builds(
    tensor,
    st.sampled_from(["blk.0.a", "blk.1.b", "token_embd.weight", "blk.-1.x", "", "output.weight"]),
    st.lists(st.integers(0, 2**64 - 1), max_size=9).map(tuple),
    st.integers(0, 50),
    st.integers(0, 2**64 - 1),
)


@settings(max_examples=200, deadline=None)
@given(
    fields=st.lists(st.tuples(KEYS, FIELD), max_size=4),
    tensors=st.lists(TENSOR, max_size=4),
    counts=st.tuples(st.integers(0, 5), st.integers(0, 6)),
    cut=st.integers(0, 4000),
)
def test_any_header_is_facts_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory,
    fields: list[tuple[str, bytes]],
    tensors: list[bytes],
    counts: tuple[int, int],
    cut: int,
) -> None:
    """Never another exception, never more than a few kilobytes of facts."""
    data = b"GGUF" + struct.pack("<IQQ", 3, counts[0], counts[1] + 1)
    data += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    data += b"".join(text(key) + field for key, field in fields) + b"".join(tensors)
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.write_bytes((data + b"\0" * 4000)[: len(data) + 4000 - cut])
    try:
        found = file_facts(str(path))
    except Malformed as error:
        assert str(path) in error.message
        return
    assert len(json.dumps(found)) < 50_000


def blob(store: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def pulled(store: Path, place: str, *layers: tuple[str, bytes]) -> None:
    manifest = {
        "config": blob(store, b"{}"),
        "layers": [
            {"mediaType": f"application/vnd.ollama.image.{kind}", **blob(store, data)}
            for kind, data in layers
        ],
    }
    path = store / "manifests" / place
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest))


def test_a_model_of_the_store_by_its_name(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "m").read_bytes()
    store = tmp_path / "store"
    pulled(
        store,
        "registry.ollama.ai/library/tiny/Latest",
        ("model", weights),
        ("projector", b"eyes"),
        ("adapter", b"a"),
        ("template", b"{{ .Prompt }}"),
        ("params", b'{"stop": ["x"]}'),
    )
    pulled(store, "hf.co/u/m/Q4_K_M", ("model", weights))
    found = shape({"name": "TINY", "store": str(store)})
    assert found["architecture"] == "llama"
    layers = found["layers"]
    assert found["path"] == layers["path"]
    assert Path(layers["projectors"][0]).read_bytes() == b"eyes"
    assert Path(layers["template"]).read_bytes() == b"{{ .Prompt }}"
    assert Path(layers["params"]).read_bytes() == b'{"stop": ["x"]}'
    assert "system" not in layers
    assert shape({"name": "hf.co/u/m:q4_k_m", "store": str(store)})["blocks"] == [64 * 64 * 4]


def test_what_is_not_there_and_what_cannot_be_used(tmp_path: Path) -> None:
    store = tmp_path / "store"
    pulled(store, "registry.ollama.ai/library/mlx/latest", ("tensor", b"x"))
    pulled(store, "registry.ollama.ai/library/cut/latest", ("model", b"GGUF"))
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"no")
    with pytest.raises(NotFound):
        shape({"name": "none", "store": str(store)})
    with pytest.raises(NotFound):
        shape({"path": str(tmp_path / "none.gguf")})
    with pytest.raises(BadRequest, match="no GGUF"):
        shape({"name": "mlx", "store": str(store)})
    with pytest.raises(BadRequest, match="cut short"):
        shape({"name": "cut", "store": str(store)})
    with pytest.raises(BadRequest, match="cut short"):
        shape({"path": str(junk)})
    for bad in ({}, {"path": 3}, {"name": "../../etc/x"}, {"name": "a/b/c/d/e"}):
        with pytest.raises(BadRequest):
            shape({**bad, "store": str(store)} if "name" in bad else bad)
