"""Answers for the whole fleet, in the shapes of Ollama, OpenAI and OLOL."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from olol_tui.errors import ModelNotFound
from olol_tui.fleet.snapshot import (
    Device,
    Engine,
    Fleet,
    GatewayState,
    Loaded,
    Model,
    Node,
    Request,
)
from olol_tui.gateway.dialects import aggregate, show

GPU0 = Device("GPU-a", 0, "RTX 4090", "nvidia", vram_bytes=24 << 30, used_bytes=1 << 30)
GPU1 = Device("GPU-b", 1, "RTX 4090", "nvidia", vram_bytes=24 << 30)
CPU = Device("cpu", 0, "EPYC", "cpu")
QWEN_OLD = Model("qwen3:8b", "sha256:old", 5, "2026-01-01T00:00:00Z", family="qwen3")
QWEN = Model(
    "qwen3:8b",
    "sha256:new",
    6,
    "2026-02-01T10:20:30.123456789+02:00",
    family="qwen3",
    families=("qwen3",),
    parameter_size="8.2B",
    quantization="Q4_K_M",
    capabilities=("completion", "tools", "thinking"),
    context_length=40960,
)
SMOL = Model("smollm2:135m", "sha256:smol", 1, "2026-03-01T00:00:00Z", path="/x.gguf")

FLEET = Fleet(
    version="0.1.0",
    nodes=(
        Node(
            "n1",
            "ready",
            devices=(GPU0, GPU1),
            library=(QWEN_OLD,),
            engines=(
                Engine(
                    "n1/ollama-gpu0",
                    "n1",
                    "ollama",
                    "ready",
                    ("GPU-a",),
                    "127.0.0.1:4001",
                    version="0.31.2",
                    loaded=(Loaded("qwen3:8b", "sha256:old", 7, 6, 8192, "2026-10-01T12:05:00Z"),),
                ),
                Engine(
                    "n1/ollama-gpu1",
                    "n1",
                    "ollama",
                    "backoff",
                    ("GPU-b",),
                    version="0.9.10",
                    loaded=(Loaded("qwen3:8b", "sha256:old", 7, 7, 8192, "x", pinned=True),),
                ),
                Engine("n1/rpc-gpu1", "n1", "rpc-server", "ready", ("GPU-b",), "127.0.0.1:50052"),
            ),
        ),
        Node(
            "local",
            "ready",
            devices=(CPU,),
            library=(QWEN, SMOL),
            runner="embedded",
            engines=(
                Engine(
                    "local/embedded-cpu-smollm2",
                    "local",
                    "embedded",
                    "ready",
                    ("cpu",),
                    "127.0.0.1:4002",
                    model="smollm2:135m",
                    loaded=(Loaded("smollm2:135m", size_bytes=2, context_length=4096),),
                ),
            ),
        ),
        Node(
            "box",
            "ready",
            "endpoint",
            engines=(
                Engine(
                    "box",
                    "box",
                    "endpoint",
                    "ready",
                    address="10.0.0.9:11434",
                    version="0.30.0",
                    loaded=(Loaded("me/secret:1b", "sha256:s", 9),),
                ),
            ),
        ),
    ),
    requests=(
        Request("r1", "decode", "qwen3:8b", "ollama", "/api/chat", "c", 1, engine="n1/ollama-gpu0"),
        Request("r2", "done", "qwen3:8b", "ollama", "/api/chat", "c", 1, engine="n1/ollama-gpu0"),
    ),
    gateway=GatewayState(queued=3, running=1, tokens_per_s=12.5),
)


def test_tags_are_the_union_by_name_with_the_newest_version_and_exact_fields():
    listed = aggregate.tags(FLEET)["models"]
    assert [model["name"] for model in listed] == ["smollm2:135m", "qwen3:8b", "me/secret:1b"]
    assert listed[1] == {
        "name": "qwen3:8b",
        "model": "qwen3:8b",
        "modified_at": "2026-02-01T10:20:30.123456789+02:00",
        "size": 6,
        "digest": "new",
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "qwen3",
            "families": ["qwen3"],
            "parameter_size": "8.2B",
            "quantization_level": "Q4_K_M",
        },
        "capabilities": ["completion", "tools", "thinking"],
    }
    assert listed[2]["modified_at"] == aggregate.ZERO_TIME


def test_what_was_deleted_is_not_listed_while_it_is_still_loaded():
    nodes = tuple(replace(node, library=()) for node in FLEET.nodes)
    assert set(aggregate.library(replace(FLEET, nodes=nodes))) == {"me/secret:1b"}


def test_ps_has_one_row_a_replica_with_its_place():
    rows = aggregate.ps(FLEET)["models"]
    places = {(row["name"], row["node"], row["gpu"]): row for row in rows}
    assert set(places) == {
        ("qwen3:8b", "n1", "gpu0"),
        ("qwen3:8b", "n1", "gpu1"),
        ("smollm2:135m", "local", "cpu"),
        ("me/secret:1b", "box", ""),
    }
    row = places["qwen3:8b", "n1", "gpu0"]
    assert (row["size"], row["size_vram"], row["context_length"]) == (7, 6, 8192)
    assert (row["expires_at"], row["digest"]) == ("2026-10-01T12:05:00Z", "old")
    assert row["details"]["family"] == "qwen3"
    assert rows[-1] is row, "what stays longest comes first"


def test_pinned_and_unlimited_replicas_expire_in_the_far_future():
    rows = {(row["name"], row["gpu"]): row for row in aggregate.ps(FLEET)["models"]}
    assert rows["qwen3:8b", "gpu1"]["expires_at"] == aggregate.NEVER
    assert rows["smollm2:135m", "cpu"]["expires_at"] == aggregate.NEVER


def test_the_version_is_the_lowest_that_all_ollamas_speak():
    assert aggregate.version(FLEET) == {"version": "0.9.10"}
    assert aggregate.version(Fleet()) == {"version": aggregate.API_VERSION}


def test_openai_models():
    models = {item["id"]: item for item in aggregate.openai_models(FLEET)["data"]}
    assert models["qwen3:8b"] == {
        "id": "qwen3:8b",
        "object": "model",
        "created": 1769934030,
        "owned_by": "library",
    }
    assert models["me/secret:1b"]["owned_by"] == "me"
    assert models["me/secret:1b"]["created"] == 0
    assert aggregate.openai_model(FLEET, "QWEN3:8B") == models["qwen3:8b"]
    with pytest.raises(ModelNotFound, match="model 'nope' not found"):
        aggregate.openai_model(FLEET, "nope")


def test_status_is_a_superset_of_olols_and_ollamas():
    status = aggregate.status(FLEET)
    assert status["cloud"] == {"disabled": True, "source": "config"}
    assert set(status) >= {"sessions", "distributed_inference", "version", "nodes", "gpus", "queue"}
    assert (status["server_count"], status["healthy_server_count"]) == (4, 3)
    assert status["model_count"] == 3
    server = status["servers"]["n1/ollama-gpu0"]
    assert (server["load"], server["healthy"], server["device_type"]) == (1, True, "cuda")
    assert "n1/rpc-gpu1" not in status["servers"], "a worker answers no client"
    assert status["models"]["smollm2:135m"]["servers"] == ["local/embedded-cpu-smollm2"]
    assert status["models"]["qwen3:8b"]["servers"] == ["n1/ollama-gpu0", "n1/ollama-gpu1"]
    assert status["models"]["me/secret:1b"]["servers"] == ["box"]
    assert status["queue"]["queued"] == 3
    assert [gpu["gpu"] for gpu in status["gpus"]] == ["gpu0", "gpu1", "cpu"]


def test_olols_models_and_servers():
    models = aggregate.olol_models(FLEET)
    assert models["count"] == 3
    assert models["models"]["qwen3:8b"]["context"] == {"current": 8192, "max": 40960}
    assert aggregate.olol_servers(FLEET)["count"] == 4


def test_show_has_what_clients_read():
    shown = show.show(QWEN)
    assert shown["model_info"]["general.architecture"] == "qwen3"
    assert shown["model_info"]["qwen3.context_length"] == 40960
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["details"]["quantization_level"] == "Q4_K_M"
    assert "template" not in shown
    bare = show.show(Model("x", chat_template="chatml"))
    assert (bare["model_info"], bare["template"]) == ({}, "chatml")
    assert bare["modified_at"] == aggregate.ZERO_TIME


def test_an_empty_fleet_answers_empty_lists():
    assert aggregate.tags(Fleet()) == {"models": []}
    assert aggregate.ps(Fleet()) == {"models": []}
    assert aggregate.openai_models(Fleet()) == {"object": "list", "data": []}
    assert aggregate.status(Fleet())["server_count"] == 0


def test_every_answer_is_ready_for_json():
    for answer in (
        aggregate.tags(FLEET),
        aggregate.ps(FLEET),
        aggregate.status(FLEET),
        aggregate.olol_models(FLEET),
        aggregate.olol_servers(FLEET),
        show.show(SMOL),
    ):
        assert json.loads(msgspec.json.encode(answer)) == answer
