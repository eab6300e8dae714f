"""The simulated engine's store and its newer dialects: what Ollama would say, without weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from olol_tui.agent.simengine.shelf import listing
from tests.contract.simengine_process import SimProcess, sim_engine

SMALL = "all-minilm:latest"
"""Only in the pretended registry: not there before a pull."""


@pytest.fixture
def engine() -> Iterator[SimProcess]:
    with sim_engine(pull_bytes_s=1e9, reply_tokens=12) as running:
        yield running


def lines(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in reply.text.splitlines()]


def names(engine: SimProcess) -> list[str]:
    return [model["name"] for model in engine.http.get("/api/tags").json()["models"]]


def blob(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_pull_tells_each_layer_and_then_the_model_is_there(engine: SimProcess) -> None:
    assert SMALL not in names(engine)
    reply = engine.post("/api/pull", model="all-minilm")
    assert reply.headers["content-type"] == "application/x-ndjson"
    said = lines(reply)
    assert said[0] == {"status": "pulling manifest"}
    assert said[-1] == {"status": "success"}
    weights = [line for line in said if line.get("total", 0) > 10**6]
    completed = [line.get("completed", 0) for line in weights]
    assert completed == sorted(completed) and completed[-1] == weights[-1]["total"]
    assert len(completed) >= 2
    assert weights[0]["status"] == f"pulling {weights[0]['digest'][7:19]}"
    assert SMALL in names(engine)
    again = engine.post("/api/pull", model=SMALL, stream=False)
    assert again.json() == {"status": "success"}
    vectors = engine.post("/api/embed", model=SMALL, input="x").json()["embeddings"]
    assert len(vectors[0]) == 384


def test_a_pull_of_what_nobody_has_ends_in_an_error(engine: SimProcess) -> None:
    said = lines(engine.post("/api/pull", model="no/such"))
    assert said[-1] == {"error": "pull model manifest: file does not exist"}
    whole = engine.post("/api/pull", model="no/such", stream=False)
    assert (whole.status_code, list(whole.json())) == (500, ["error"])
    assert engine.post("/api/pull", model="a b").status_code == 400
    assert engine.post("/api/pull").json() == {"error": "invalid model name"}


def test_a_pull_goes_on_where_it_was_broken_off() -> None:
    with sim_engine(pull_bytes_s=1e8) as engine:
        with engine.http.stream("POST", "/api/pull", json={"model": "tinyllama:1.1b"}) as reply:
            for line in reply.iter_lines():
                if json.loads(line).get("completed", 0) > 10**6:
                    break
        engine.until(lambda stats: stats["cancelled"] == 1)
        with engine.http.stream("POST", "/api/pull", json={"model": "tinyllama:1.1b"}) as reply:
            parts = (json.loads(line) for line in reply.iter_lines())
            assert next(p for p in parts if "total" in p).get("completed", 0) > 10**6


def test_copy_delete_and_push(engine: SimProcess) -> None:
    assert engine.post("/api/copy", source="llama3.2:3b", destination="mine").status_code == 200
    assert "mine:latest" in names(engine)
    shown = engine.post("/api/show", model="mine").json()
    assert shown["details"]["parameter_size"] == "3.2B"
    assert lines(engine.post("/api/push", model="mine"))[-1] == {"status": "success"}
    assert "error" in lines(engine.post("/api/push", model="none"))[-1]
    missing = engine.post("/api/copy", source="none", destination="x")
    assert (missing.status_code, missing.json()) == (404, {"error": 'model "none" not found'})
    gone = engine.http.request("DELETE", "/api/delete", json={"model": "mine"})
    assert (gone.status_code, gone.content) == (200, b"")
    assert "mine:latest" not in names(engine)
    gone = engine.http.request("DELETE", "/api/delete", json={"model": "mine"})
    assert (gone.status_code, gone.json()) == (404, {"error": "model 'mine' not found"})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_blob_is_taken_in_and_a_model_made_of_it(engine: SimProcess, chunked: bool) -> None:
    data = b"GGUF" + bytes(3_000_000)
    digest = blob(data)
    pieces = (data[at : at + 70_001] for at in range(0, len(data), 70_001))
    assert engine.http.head(f"/api/blobs/{digest}").status_code == 404
    sent = engine.http.post(f"/api/blobs/{digest}", content=pieces if chunked else data)
    assert sent.status_code == 201
    assert engine.http.head(f"/api/blobs/{digest}").status_code == 200
    assert engine.http.post(f"/api/blobs/{digest}", content=b"any").status_code == 200
    made = lines(engine.post("/api/create", model="own", files={"m.gguf": digest}, system="Hi"))
    assert made[-1] == {"status": "success"}
    tag = next(
        m for m in engine.http.get("/api/tags").json()["models"] if m["name"] == "own:latest"
    )
    assert tag["size"] == len(data)
    small = lines(engine.post("/api/create", model="q", **{"from": "own"}, quantize="q4_K_M"))
    assert small[-1] == {"status": "success"}
    assert engine.post("/api/generate", model="q", prompt="a", stream=False).json()["done"]


def test_a_blob_that_is_another_or_none_is_refused(engine: SimProcess) -> None:
    wrong = engine.http.post(f"/api/blobs/{blob(b'a')}", content=b"b")
    assert wrong.status_code == 400
    assert wrong.json()["error"].startswith("digest mismatch")
    assert engine.http.post("/api/blobs/sha256:12", content=b"b").status_code == 400
    assert engine.http.get(f"/api/blobs/{blob(b'a')}").status_code == 405
    missing = engine.post("/api/create", model="m", files={"m.gguf": blob(b"a")}, stream=False)
    assert (missing.status_code, list(missing.json())) == (500, ["error"])
    for body in ({"files": {}}, {}, {"files": {"/x": blob(b"a")}}, {"files": {"x": "1"}}):
        assert engine.post("/api/create", model="m", stream=False, **body).status_code == 400


def test_engines_of_a_node_share_a_store_that_outlives_them(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with sim_engine(store=store) as one, sim_engine(store=store) as two:
        before = names(two)
        assert one.post("/api/pull", model=SMALL, stream=False).status_code == 200
        assert names(two) == [*before, SMALL]
        assert two.http.request("DELETE", "/api/delete", json={"model": "phi4:14b"}).is_success
        assert "phi4:14b" not in names(one)
    with sim_engine(store=store) as three:
        assert names(three) == [n for n in [*before, SMALL] if n != "phi4:14b"]
        assert names(three) == [model["name"] for model in listing(store)]


def test_store_faults_strike_the_store_only(engine: SimProcess) -> None:
    engine.fault("500", scope="store", after_tokens=2, count=1)
    assert engine.post("/api/chat", model="llama3.2:3b", messages=[]).status_code == 200
    said = lines(engine.post("/api/pull", model=SMALL))
    assert (len(said), said[-1]) == (3, {"error": "simulated fault"})
    assert lines(engine.post("/api/pull", model=SMALL))[-1] == {"status": "success"}


# -- Anthropic's and OpenAI's newer routes

ASK = {"model": "qwen3:8b", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]}


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for event in reply.text.strip().split("\n\n"):
        kind, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    return found


def test_a_message_whole_and_in_events(engine: SimProcess) -> None:
    whole = engine.post("/v1/messages", **ASK, temperature=0).json()
    assert (whole["type"], whole["role"], whole["stop_reason"]) == (
        "message",
        "assistant",
        "end_turn",
    )
    assert whole["usage"]["output_tokens"] > 5
    reply = engine.post("/v1/messages", **ASK, temperature=0, stream=True)
    assert reply.headers["content-type"] == "text/event-stream"
    said = events(reply)
    assert said[0]["type"] == "message_start" and said[-1] == {"type": "message_stop"}
    text = "".join(e["delta"]["text"] for e in said if e["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    assert said[-2]["usage"] == whole["usage"]


def test_a_tool_that_must_be_called_is_called_by_its_schema(engine: SimProcess) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
    tools = [{"name": "weather", "input_schema": schema}]
    asked = {**ASK, "tools": tools, "tool_choice": {"type": "any"}}
    block = engine.post("/v1/messages", **asked).json()["content"][0]
    assert (block["type"], block["name"], block["input"]) == (
        "tool_use",
        "weather",
        {"city": "Oslo"},
    )
    said = events(engine.post("/v1/messages", **asked, stream=True))
    parts = [e["delta"]["partial_json"] for e in said if e["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == {"city": "Oslo"}
    assert said[-2]["delta"]["stop_reason"] == "tool_use"


def test_thinking_is_a_block_of_its_own(engine: SimProcess) -> None:
    asked = {**ASK, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = engine.post("/v1/messages", **asked).json()
    assert [block["type"] for block in whole["content"]] == ["thinking", "text"]
    said = events(engine.post("/v1/messages", **asked, stream=True))
    starts = [e["content_block"]["type"] for e in said if e["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"model": "none"}, 404, "not_found_error"),
        ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": "hi"}, 400, "invalid_request_error"),
    ],
)
def test_errors_of_messages(
    engine: SimProcess, change: dict[str, Any], status: int, kind: str
) -> None:
    reply = engine.post("/v1/messages", **{**ASK, **change})
    body = reply.json()
    assert (reply.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)


def test_a_response_whole_and_in_events(engine: SimProcess) -> None:
    asked = {"model": "llama3.2:3b", "input": "Hi", "temperature": 0}
    whole = engine.post("/v1/responses", **asked).json()
    assert (whole["object"], whole["status"]) == ("response", "completed")
    said = events(engine.post("/v1/responses", **asked, stream=True))
    assert [e["sequence_number"] for e in said] == list(range(len(said)))
    text = "".join(e["delta"] for e in said if e["type"] == "response.output_text.delta")
    assert text == whole["output"][0]["content"][0]["text"]
    assert said[-1]["type"] == "response.completed"
    short = engine.post("/v1/responses", **asked, max_output_tokens=2).json()
    assert (short["status"], short["usage"]["output_tokens"]) == ("incomplete", 2)


def test_a_sound_is_transcribed(engine: SimProcess) -> None:
    form = {"model": (None, "llama3.2:3b"), "file": ("a.wav", b"RIFF\r\n--x", "audio/wav")}
    reply = engine.http.post("/v1/audio/transcriptions", files=form)
    assert "9 bytes of sound" in reply.json()["text"]
    plain = {**form, "response_format": (None, "text")}
    reply = engine.http.post("/v1/audio/transcriptions", files=plain)
    assert reply.headers["content-type"].startswith("text/plain")
    missing = engine.http.post("/v1/audio/transcriptions", files={"model": (None, "llama3.2:3b")})
    assert missing.json()["error"]["message"].startswith("file is required")
    assert engine.post("/v1/audio/transcriptions", model="x").status_code == 400
