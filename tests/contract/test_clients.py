"""The official `ollama` and `openai` clients against `olol-tui --serve`, as a user runs it.

Over the embedded engine and llama-server (a real model behind a translation) and over
simulated GPUs (engines that speak Ollama themselves): a client must not notice the difference.
llama-server takes part when it is on PATH or OLOL_TEST_LLAMA_SERVER names one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest

from tests.contract.client_service import REPLY_S, Service

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [
    {"role": "user", "content": "Write a very long story about the sea, chapter by chapter."}
]
"""Long enough that an engine can be killed in the middle of the reply."""
SHORT = {"temperature": 0, "num_predict": 16}


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=REPLY_S) as client:
        yield client


# -- ollama


def test_ollama_chat_streaming_and_not(service, native):
    whole = native.chat(service.model, FRANCE, options=SHORT)
    parts = list(native.chat(service.model, FRANCE, options=SHORT, stream=True))
    assert len(parts) > 3
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    text = "".join(part.message.content or "" for part in parts)
    if service.real:
        assert text == whole.message.content == "The capital of France is Paris."
    assert whole.message.role == "assistant"
    for last in (whole, parts[-1]):
        assert last.done_reason in ("stop", "length")
        assert last.model == service.model
        assert last.prompt_eval_count and last.eval_count
        assert last.total_duration and last.eval_duration
        assert last.total_duration > last.eval_duration > 1000, "nanoseconds"


def test_ollama_generate_streaming_and_not(service, native):
    whole = native.generate(service.model, "The capital of France is", options=SHORT)
    assert whole.done and whole.response
    parts = list(
        native.generate(service.model, "The capital of France is", options=SHORT, stream=True)
    )
    assert parts[-1].done and parts[-1].eval_count
    if service.real:
        assert "".join(part.response for part in parts) == whole.response
        raw = native.generate(service.model, "The capital of France is", raw=True, options=SHORT)
        assert raw.response.startswith(" Paris")


def test_ollama_format(service, native):
    if not service.real:
        pytest.skip("a simulated engine holds no model that could follow a schema")
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    reply = native.chat(
        service.model, FRANCE, format=schema, options={"temperature": 0, "num_predict": 64}
    )
    assert list(json.loads(reply.message.content or "")) == ["capital"]


def test_ollama_list_show_and_ps(service, native):
    native.generate(service.model, "Hi", options={"num_predict": 1})
    listed = {model.model: model for model in native.list().models}
    entry = listed[service.model]
    assert entry.digest and len(entry.digest) == 64
    assert entry.size and entry.size > 10**6
    assert entry.details and entry.details.quantization_level
    shown = native.show(service.model)
    assert shown.details and shown.details.family == entry.details.family
    assert "completion" in (shown.capabilities or [])
    assert shown.modelinfo
    running = {model.model: model for model in native.ps().models}
    # Ollama loads two models of one file once, and tells of it by the name it was loaded by.
    loaded = running.get(service.model) or running[service.tool_model]
    assert loaded.context_length
    assert loaded.expires_at


def test_ollama_embed(service, native):
    batch = native.embed(service.embedding_model, ["one", "two three"])
    assert len(batch.embeddings) == 2
    assert sum(x * x for x in batch.embeddings[0]) == pytest.approx(1, abs=1e-3)
    single = native.embed(service.embedding_model, "one")
    assert single.embeddings[0] == pytest.approx(batch.embeddings[0], abs=1e-3)
    legacy = native.embeddings(service.embedding_model, "one")
    assert len(legacy.embedding) == len(batch.embeddings[0])
    assert native.embed(service.embedding_model, "").embeddings == []
    assert native.embeddings(service.embedding_model, "").embedding == []


def test_ollama_load_and_unload(service, native):
    loaded = native.generate(service.model)
    assert (loaded.done, loaded.done_reason) == (True, "load")
    assert native.chat(service.model).done_reason == "load"
    gone = native.generate(service.model, keep_alive=0)
    assert (gone.done, gone.done_reason) == (True, "unload")
    deadline = time.monotonic() + 30
    while any(model.model == service.model for model in native.ps().models):
        assert time.monotonic() < deadline, "the model stays loaded"
        time.sleep(0.1)
    assert native.generate(service.model, "Hi", options={"num_predict": 1}).done


def test_ollama_errors(service, native):
    with pytest.raises(ollama.ResponseError) as caught:
        native.chat("no-such-model", FRANCE)
    assert (caught.value.status_code, caught.value.error) == (
        404,
        "model 'no-such-model' not found",
    )
    with pytest.raises(ollama.ResponseError) as caught:
        list(native.generate("no-such-model", "Hi", stream=True))
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as caught:
        native.show("no-such-model")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as caught:
        native.generate(service.model, "Hi", options={"temperature": "hot"})  # type: ignore[typeddict-item]
    assert caught.value.status_code in (400, 500)


async def test_ollama_async_client_that_leaves_frees_its_slot(service):
    client = ollama.AsyncClient(host=service.url, timeout=REPLY_S)
    try:
        options = {"num_predict": 2000, "temperature": 2.0}
        seen = 0
        async for _ in await client.chat(service.model, FRANCE, options=options, stream=True):
            seen += 1
            if seen == 3:
                break
    finally:
        await client._client.aclose()
    async with httpx.AsyncClient(base_url=service.url) as watcher:
        deadline = time.monotonic() + 15
        while (await watcher.get("/api/status")).json()["queue"]["running"]:
            assert time.monotonic() < deadline, "the request of a client that left goes on"
            await asyncio.sleep(0.05)


def engine_pid(http: httpx.Client) -> int:
    """Of the engine in which a request is decoding; the snapshot may be a moment behind."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        fleet = http.get("/olol/v1/fleet").json()
        busy = {item["engine"] for item in fleet["requests"] if item["state"] == "decode"}
        for node in fleet["nodes"]:
            for engine in node["engines"]:
                if engine["id"] in busy and engine["pid"]:
                    return int(engine["pid"])
        time.sleep(0.02)
    pytest.fail("no engine is decoding")


def test_an_engine_that_dies_mid_stream_is_an_error_for_both_clients(
    service, native, compatible, http
):
    """Never a clean end: the last line is an error, and the next request is served again."""
    options = {"num_predict": 2000, "temperature": 0.0}
    stream = native.chat(service.model, STORY, options=options, stream=True)
    assert not next(stream).done
    os.kill(engine_pid(http), signal.SIGKILL)
    with pytest.raises(ollama.ResponseError, match="upstream lost"):
        for part in stream:
            assert not part.done
    assert native.chat(service.model, FRANCE, options=SHORT).done
    chunks = compatible.chat.completions.create(
        model=service.model, messages=STORY, max_tokens=2000, temperature=0.0, stream=True
    )
    next(chunks)
    os.kill(engine_pid(http), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="upstream lost"):
        for chunk in chunks:
            assert not chunk.choices or chunk.choices[0].finish_reason is None
    assert native.chat(service.model, FRANCE, options=SHORT).done


# -- openai


def test_openai_chat_streaming_and_not(service, compatible):
    asked: dict[str, Any] = {
        "model": service.model,
        "messages": FRANCE,
        "temperature": 0,
        "max_tokens": 16,
    }
    whole = compatible.chat.completions.create(**asked)
    assert whole.model == service.model
    assert whole.usage and whole.usage.completion_tokens and whole.usage.prompt_tokens
    chunks = list(
        compatible.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    if service.real:
        assert text == whole.choices[0].message.content == "The capital of France is Paris."
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens
    assert any(chunk.choices and chunk.choices[0].finish_reason for chunk in chunks)


def test_openai_completions(service, compatible):
    whole = compatible.completions.create(
        model=service.model, prompt="The capital of France is", max_tokens=5, temperature=0
    )
    assert whole.choices[0].text
    pieces = list(
        compatible.completions.create(
            model=service.model, prompt="One two", max_tokens=5, stream=True
        )
    )
    assert pieces[-1].choices[0].finish_reason or len(pieces) > 1


def test_openai_embeddings_and_models(service, compatible):
    vectors = compatible.embeddings.create(model=service.embedding_model, input=["a", "b"])
    assert [item.index for item in vectors.data] == [0, 1]
    assert len(vectors.data[0].embedding) > 100
    assert service.model in [model.id for model in compatible.models.list()]
    assert compatible.models.retrieve(service.model).owned_by == "library"


def test_openai_errors(service, compatible):
    with pytest.raises(openai.NotFoundError) as missing:
        compatible.chat.completions.create(model="no-such-model", messages=FRANCE)
    assert missing.value.body["message"] == "model 'no-such-model' not found"
    assert missing.value.type == "not_found_error"
    with pytest.raises(openai.NotFoundError):
        compatible.models.retrieve("no-such-model")
    with pytest.raises(openai.BadRequestError) as wrong:
        compatible.chat.completions.create(model=service.model, messages="hi")  # type: ignore[arg-type]
    assert wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="too short"):
        compatible.chat.completions.create(model=service.model, messages=[])


# -- what no client library sends


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/chat", b"", 400),
        ("POST", "/api/chat", b"{", 400),
        ("POST", "/api/chat", b"[]", 400),
        ("POST", "/api/chat", b'{"messages":[]}', 400),
        ("POST", "/api/chat", b'{"model":5}', 400),
        pytest.param("POST", "/api/generate", b'{"a":' * 50_000, 400, id="nested too deep"),
        ("POST", "/api/generate", b"\xff\xfe", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/embeddings", b'{"input":"x"}', 400),
        ("GET", "/api/chat", b"", 405),
        ("POST", "/api/tags", b"{}", 405),
        ("GET", "/no/such/path", b"", 404),
        ("POST", "/debug/pprof/heap", b"", 404),
    ],
)
def test_bad_requests_get_a_json_error(http, method, path, body, status):
    reply = http.request(method, path, content=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["message"] if path.startswith("/v1/") else isinstance(error, str)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", "hi"),
        ("options", "hot"),
        ("stream", "yes"),
        ("keep_alive", "5"),
        ("format", 3),
    ],
)
def test_wrong_types_are_refused_with_400(service, http, field, value):
    body = {"model": service.model, "messages": FRANCE, "options": {"num_predict": 1}}
    reply = http.post("/api/chat", json=body | {field: value})
    assert (reply.status_code, list(reply.json())) == (400, ["error"]), reply.text


def test_content_that_is_no_text_is_refused(service, http):
    if not service.real:
        pytest.skip("a simulated engine only counts what messages hold")
    message = {"role": "user", "content": {"text": "x"}}
    reply = http.post("/api/chat", json={"model": service.model, "messages": [message]})
    assert (reply.status_code, list(reply.json())) == (400, ["error"])


def test_the_command_line_client_finds_ollama(http):
    assert http.get("/").text == "Ollama is running"
    for path in ("/", "/api/tags", "/api/version"):
        assert http.head(path).status_code == 200
    assert http.get("/api/version").json()["version"][0].isdigit()


def test_curl_needs_no_content_type(service, http):
    body = json.dumps({"model": service.model, "prompt": "Hi", "options": {"num_predict": 2}})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = http.post("/api/generate", content=body, headers=headers)
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    assert json.loads(reply.text.splitlines()[-1])["done"] is True


def test_status_speaks_three_dialects_at_once(http):
    status = http.get("/api/status").json()
    assert status["cloud"]["disabled"] is True
    assert status["server_count"] == len(status["servers"])
    assert status["nodes"][0]["name"] == "local"
