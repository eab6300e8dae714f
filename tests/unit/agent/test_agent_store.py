"""What a node's disks hold: loose files, packages, an Ollama store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from olol_tui.agent.errors import BadRequest
from olol_tui.agent.store import file_name, models
from tests.contract.gguf_files import write_gguf

IMAGE = "application/vnd.ollama.image."


def ask(tmp_path: Path, **wanted: Any) -> tuple[dict[str, Any], list[str]]:
    """Models by name and errors; packages of this interpreter are left out."""
    reply = models({"store": str(tmp_path / "store"), **wanted})
    return {m["name"]: m for m in reply["models"] if m["name"] != "smollm2:135m"}, reply["errors"]


def blob(store: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def pull(
    store: Path, place: str, gguf: bytes, config: dict[str, Any], *extra: str
) -> tuple[Path, str]:
    """A model in an Ollama store; returns its manifest and what it digests to."""
    layers = [{"mediaType": f"{IMAGE}model", **blob(store, gguf)}]
    layers += [{"mediaType": IMAGE + kind, **blob(store, kind.encode())} for kind in extra]
    manifest = {
        "schemaVersion": 2,
        "config": blob(store, json.dumps(config).encode()),
        "layers": layers,
    }
    path = store / "manifests" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


CONFIG = {
    "model_format": "gguf",
    "model_family": "llama",
    "model_families": ["llama"],
    "model_type": "8.0B",
    "file_type": "Q4_K_M",
}


def test_an_ollama_store_is_read_from_its_manifests(tmp_path: Path) -> None:
    store = tmp_path / "store"
    gguf = write_gguf(tmp_path / "m").read_bytes()
    _, digest = pull(store, "registry.ollama.ai/library/llama3.1/8b", gguf, CONFIG, "params")
    pull(store, "registry.ollama.ai/somebody/tuned/latest", gguf, CONFIG, "projector")
    pull(store, "hf.co/u/m/Q4_K_M", gguf, {**CONFIG, "capabilities": ["completion", "thinking"]})
    found, errors = ask(tmp_path)
    assert errors == []
    assert set(found) == {"llama3.1:8b", "somebody/tuned:latest", "hf.co/u/m:Q4_K_M"}
    model = found["llama3.1:8b"]
    assert model["digest"] == digest
    assert model["family"] == "llama"
    assert model["parameter_size"] == "8.0B"
    assert model["quantization"] == "Q4_K_M"
    assert model["context_length"] == 2048
    assert model["capabilities"] == ["completion"]
    assert model["path"] == ""
    assert model["size_bytes"] == len(gguf) + len(b"params") + len(json.dumps(CONFIG))
    assert model["modified_at"].endswith("Z")
    assert found["somebody/tuned:latest"]["capabilities"] == ["completion", "vision"]
    assert found["hf.co/u/m:Q4_K_M"]["capabilities"] == ["completion", "thinking"]


def test_a_half_written_manifest_hides_nothing_else(tmp_path: Path) -> None:
    store = tmp_path / "store"
    gguf = write_gguf(tmp_path / "m").read_bytes()
    pull(store, "registry.ollama.ai/library/good/latest", gguf, CONFIG)
    bad, _ = pull(store, "registry.ollama.ai/library/bad/latest", gguf, CONFIG)
    bad.write_text(bad.read_text()[:40])
    evil, _ = pull(store, "registry.ollama.ai/library/evil/latest", gguf, CONFIG)
    evil.write_text(evil.read_text().replace("sha256:", "sha256:../../"))
    found, errors = ask(tmp_path)
    assert set(found) == {"good:latest"}
    assert len(errors) == 2
    assert any(str(bad) in error for error in errors)


def test_a_file_does_not_hide_a_model_of_the_store_with_its_name(tmp_path: Path) -> None:
    """Ollama's engines know only the store: hidden, what was just pulled could not be used."""
    given = write_gguf(tmp_path / "x.gguf")
    store = tmp_path / "store"
    pull(store, "registry.ollama.ai/library/mine/1b", given.read_bytes(), CONFIG)
    wanted = {"store": str(store), "files": [{"name": "mine:1b", "path": str(given)}]}
    paths = [m["path"] for m in models(wanted)["models"] if m["name"] == "mine:1b"]
    assert paths == [str(given), ""]


def test_no_store_is_no_error(tmp_path: Path) -> None:
    assert ask(tmp_path) == ({}, [])


def test_given_files_and_directories(tmp_path: Path) -> None:
    models_dir = tmp_path / "models" / "deep"
    models_dir.mkdir(parents=True)
    write_gguf(models_dir / "Qwen3-8B-Q5_K_M.gguf")
    write_gguf(models_dir / "mmproj-model.gguf")
    (models_dir / "notes.txt").write_text("no model")
    (models_dir / "broken.gguf").write_bytes(b"GGUF")
    given = write_gguf(tmp_path / "x.gguf")
    files = [{"name": "mine:1b", "path": str(given), "chat_template": "gemma"}]
    found, errors = ask(tmp_path, files=files, dirs=[str(tmp_path / "models")])
    assert set(found) == {"mine:1b", "qwen3-8b:q5_k_m"}
    assert found["mine:1b"]["path"] == str(given)
    assert found["mine:1b"]["chat_template"] == "gemma"
    assert found["mine:1b"]["capabilities"] == ["completion"]
    files[0]["chat_template"] = "{% for tool in tools %}{{ tool }}{% endfor %}"
    able, _ = ask(tmp_path, files=files)
    assert able["mine:1b"]["capabilities"] == ["completion", "tools"]
    assert found["mine:1b"]["quantization"] == "Q4_K_M"
    assert len(errors) == 1
    assert "broken.gguf" in errors[0]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    files = [{"name": "m", "path": str(tmp_path / "none.gguf")}]
    _, errors = ask(tmp_path, files=files, dirs=[str(tmp_path / "nowhere")])
    assert len(errors) == 2
    assert "none.gguf: No such file" in errors[0]
    assert "nowhere is not a directory" in errors[1]


def test_a_simulated_node_holds_the_catalogue(tmp_path: Path) -> None:
    reply = models({"store": str(tmp_path)}, simulated=True)
    names = [m["name"] for m in reply["models"]]
    assert "llama3.2:3b" in names
    assert "smollm2:135m" not in names


@pytest.mark.parametrize(
    "wanted",
    [
        {"files": "x"},
        {"files": ["x"]},
        {"files": [{"name": "m"}]},
        {"files": [{"name": 1, "path": "p"}]},
        {"dirs": [1]},
        {"store": 1},
    ],
)
def test_a_malformed_question_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        models(wanted)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct:q4_1"),
        ("gemma-3-270m-it-Q4_K_M.gguf", "gemma-3-270m-it:q4_k_m"),
        ("llama.gguf", "llama:latest"),
        ("my model (v2).GGUF", "my-model--v2-:latest"),
        ("phi-4-f16.gguf", "phi-4:f16"),
    ],
)
def test_a_loose_file_is_called_after_itself(file: str, name: str) -> None:
    assert file_name(Path(file)) == name
