"""Engines that compute: a real model served by the embedded engine and by llama-server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.at_hand import LLAMA_SERVER, needs_embedded, needs_llama_server
from tests.contract.agent_rig import QUICK, Agent, agent, alive

NAME = "smollm2:135m"

embedded = pytest.param("embedded", marks=pytest.mark.embedded)
llama_server = pytest.param(
    "llama-server",
    marks=[pytest.mark.llama_server, needs_llama_server],
)

pytestmark = needs_embedded


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent(tmp_path_factory.mktemp("node"), policy={**QUICK, "poll_s": 0.5}) as running:
        yield running


@pytest.fixture(scope="module")
def model(node: Agent) -> dict[str, Any]:
    models = node.http.post("/v1/models", json={"store": "/nonexistent"}).json()["models"]
    return next(m for m in models if m["name"] == NAME)


def runner(kind: str, model: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": f"local/{kind}-cpu-smollm2",
        "kind": kind,
        "devices": ["cpu"],
        "slots": 2,
        "num_ctx": 1024,
        "binary": LLAMA_SERVER if kind == "llama-server" else "",
        "model": {key: model[key] for key in ("name", "path", "chat_template")},
        **more,
    }


@pytest.fixture(scope="module", params=[embedded, llama_server])
def engine(
    request: pytest.FixtureRequest, node: Agent, model: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The status of a ready engine of each kind."""
    spec = runner(request.param, model)
    assert node.put(spec).status_code == 200
    yield node.until_state(spec["id"], "ready", timeout_s=120)
    node.put(generation=2)
    node.until(lambda: not node.engines(), "it stopped")


def post(engine: dict[str, Any], path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"http://{engine['address']}{path}", json=body, timeout=120, trust_env=False)


def test_the_packaged_model_is_described_by_its_header(model: dict[str, Any]) -> None:
    assert model["family"] == "llama"
    assert model["parameter_size"] == "134.52M"
    assert model["quantization"] == "Q4_1"
    assert model["context_length"] == 8192
    assert model["size_bytes"] == Path(model["path"]).stat().st_size
    assert model["digest"].startswith("sha256:")
    assert "completion" in model["capabilities"]


def test_a_ready_runner_reports_its_model_as_loaded(
    engine: dict[str, Any], model: dict[str, Any]
) -> None:
    assert engine["model"] == NAME
    assert engine["loading"] == []
    (loaded,) = engine["loaded"]
    assert loaded["name"] == NAME
    assert loaded["digest"] == model["digest"]
    assert loaded["context_length"] == 1024
    kv_bytes = 2 * 30 * 3 * 64 * 2 * 1024 * 2
    assert loaded["size_bytes"] == model["size_bytes"] + kv_bytes
    assert loaded["vram_bytes"] == 0


def test_it_answers_a_chat(engine: dict[str, Any]) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    reply = post(engine, "/v1/chat/completions", body).json()
    assert "Paris" in reply["choices"][0]["message"]["content"]
    assert reply["usage"]["completion_tokens"] > 0


def test_it_streams_a_completion(engine: dict[str, Any]) -> None:
    body = {"prompt": "The capital of France is", "n_predict": 4, "temperature": 0, "stream": True}
    url = f"http://{engine['address']}/completion"
    with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as reply:
        events = [json.loads(x[6:]) for x in reply.iter_lines() if x.startswith("data: {")]
    assert "Paris" in "".join(event["content"] for event in events)
    assert events[-1]["stop"] is True


def test_it_embeds_beside_completing(engine: dict[str, Any]) -> None:
    """Both from one address: pooling is on, and completions do not notice."""
    texts = ["a cat on the mat", "a kitten on the rug", "quarterly tax report"]
    reply = post(engine, "/v1/embeddings", {"input": texts, "model": NAME}).json()
    cat, kitten, tax = (row["embedding"] for row in reply["data"])
    assert len(cat) == 576
    assert sum(x * x for x in cat) == pytest.approx(1, abs=1e-3)

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert dot(cat, kitten) > dot(cat, tax)
    test_it_answers_a_chat(engine)


def test_an_input_longer_than_the_default_batch_is_embedded(engine: dict[str, Any]) -> None:
    reply = post(engine, "/v1/embeddings", {"input": "word " * 560, "model": NAME})
    assert reply.status_code == 200, reply.text


def test_slots_are_as_asked(engine: dict[str, Any]) -> None:
    url = f"http://{engine['address']}/slots"
    slots = httpx.get(url, timeout=30, trust_env=False).json()
    assert [slot["n_ctx"] for slot in slots] == [1024, 1024]


@pytest.mark.embedded
def test_a_loading_runner_is_starting_and_says_what_it_loads(
    node: Agent, model: dict[str, Any]
) -> None:
    spec = runner("embedded", model, id="local/second")
    with node.http.stream("GET", "/v1/telemetry/stream?hz=20") as reply:
        lines = reply.iter_lines()
        node.put(spec)
        seen = list(_until_ready(lines, spec["id"]))
    starting = [e for e in seen if e["state"] == "starting" and e["pid"]]
    assert starting
    assert all(e["loading"][0]["name"] == NAME and not e["loaded"] for e in starting)
    assert seen[-1]["loading"] == []


def _until_ready(lines: Iterator[str], identity: str) -> Iterator[dict[str, Any]]:
    """The engine's status in every frame until it is ready."""
    for line in lines:
        for engine in json.loads(line)["engines"]:
            if engine["id"] == identity:
                yield engine
                if engine["state"] == "ready":
                    return


@pytest.mark.embedded
def test_a_killed_agent_finds_the_same_process_answering(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    spec = runner("embedded", model)
    with agent(tmp_path) as node:
        node.put(spec)
        first = node.until_state(spec["id"], "ready", timeout_s=120)
        node.kill()
        test_it_answers_a_chat(first)
        node.start()
        assert node.until_state(spec["id"], "ready")["pid"] == first["pid"]
        assert node.http.post("/v1/shutdown", json={"engines": "stop"}).status_code == 200
        assert node.process is not None
        assert node.process.wait(60) == 0
        assert not alive(first["pid"])


@pytest.mark.embedded
def test_a_file_that_is_cut_short_is_refused_with_the_reason(
    node: Agent, model: dict[str, Any], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    with Path(model["path"]).open("rb") as file:
        cut.write_bytes(file.read(8_000_000))
    spec = runner("embedded", {**model, "path": str(cut)}, id="local/cut")
    node.put(spec)
    status = node.until_state("local/cut", "failed")
    assert "cut short" in status["error"]
    gone = runner("embedded", {**model, "path": str(tmp_path / "no.gguf")}, id="local/cut")
    node.put(gone)
    node.until(lambda: "does not exist" in node.engine("local/cut")["error"], "another reason")
