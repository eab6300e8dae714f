"""The simulated engine as its clients see it: a real process on a real port."""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest

from tests.contract.simengine_process import REPOSITORY, SimProcess, sim_engine

GB = 1_000_000_000
CHAT = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture(scope="module")
def engine() -> Iterator[SimProcess]:
    """One engine for the tests that leave nothing behind."""
    with sim_engine(slots=8) as running:
        yield running


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


# -- native replies -------------------------------------------------------------------


def test_a_chat_streams_tokens_and_ends_with_counts_in_nanoseconds(engine: SimProcess) -> None:
    with engine.http.stream("POST", "/api/chat", json=CHAT) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        events = [json.loads(line) for line in response.iter_lines()]
    *tokens, last = events
    text = "".join(event["message"]["content"] for event in tokens)
    assert "simulated reply of llama3.2:3b" in text and "sky blue" in text
    assert not any(event["done"] for event in tokens)
    assert last["done"] is True and last["done_reason"] == "stop"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["eval_count"] == len(tokens) and last["prompt_eval_count"] > 4
    assert last["total_duration"] >= last["eval_duration"] > 1_000_000
    assert last["load_duration"] > 0 and last["prompt_eval_duration"] > 0


def test_generate_without_stream_is_one_object(engine: SimProcess) -> None:
    reply = engine.post("/api/generate", model="qwen3:8b", prompt="Hello", stream=False)
    body = reply.json()
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert body["model"] == "qwen3:8b" and body["done"] is True
    assert "simulated" in body["response"] and body["eval_count"] > 10


def test_the_same_seed_gives_the_same_text_and_another_does_not(engine: SimProcess) -> None:
    def say(**options: Any) -> str:
        body = {**CHAT, "stream": False, "options": options}
        return str(engine.post("/api/chat", **body).json()["message"]["content"])

    assert say(seed=7) == say(seed=7)
    assert say(seed=7) != say(seed=8)
    assert say(temperature=0) == say(temperature=0)
    assert say() != say()


def test_num_predict_and_stop_end_a_reply(engine: SimProcess) -> None:
    def ask(**options: Any) -> dict[str, Any]:
        return dict(engine.post("/api/chat", **CHAT, stream=False, options=options).json())

    short = ask(num_predict=4)
    assert (short["eval_count"], short["done_reason"]) == (4, "length")
    assert short["message"]["content"] == "This is a simulat"
    stopped = ask(stop=["simulated"])
    assert (stopped["message"]["content"], stopped["done_reason"]) == ("This is a ", "stop")
    assert ask(num_predict=-1)["done_reason"] == "stop"


def test_a_reply_ends_where_the_context_is_full(engine: SimProcess) -> None:
    body = {**CHAT, "model": "llama3.2:1b", "options": {"num_ctx": 24}, "stream": False}
    reply = engine.post("/api/chat", **body).json()
    assert reply["done_reason"] == "length"
    assert reply["prompt_eval_count"] + reply["eval_count"] == 24


def test_format_json_and_a_schema_give_valid_json(engine: SimProcess) -> None:
    free = engine.post("/api/chat", **CHAT, stream=False, format="json").json()
    assert json.loads(free["message"]["content"])["simulated"] is True
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9},
            "age": {"type": "integer", "minimum": 3, "maximum": 5},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2},
            "pet": {"$ref": "#/$defs/pet"},
        },
        "$defs": {"pet": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
    }
    shaped = engine.post("/api/chat", **CHAT, stream=False, format=schema).json()
    value = json.loads(shaped["message"]["content"])
    assert list(value) == ["name", "age", "tags", "pet"]
    assert 3 <= value["age"] <= 5 and len(value["name"]) <= 9 and isinstance(value["pet"], bool)
    assert len(value["tags"]) >= 2 and set(value["tags"]) <= {"a", "b"}


def test_thinking_comes_first_and_only_when_asked_for(engine: SimProcess) -> None:
    body = {**CHAT, "model": "qwen3:8b", "stream": False}
    assert "thinking" not in engine.post("/api/chat", **body).json()["message"]
    assert "thought" in engine.post("/api/chat", **body, think=True).json()["message"]["thinking"]
    stream = lines(engine.post("/api/chat", **{**body, "stream": True}, think=True))
    kinds = ["thinking" in event["message"] for event in stream[:-1]]
    assert kinds == sorted(kinds, reverse=True) and any(kinds) and not all(kinds)


def test_embeddings_are_unit_vectors_and_texts_that_share_words_are_near(
    engine: SimProcess,
) -> None:
    texts = ["the red apple", "a red apple fell", "quantum field theory"]
    body = engine.post("/api/embed", model="nomic-embed-text", input=texts).json()
    first, second, third = body["embeddings"]
    assert len(first) == 768
    for vector in (first, second, third):
        assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-5)

    def cosine(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert cosine(first, second) > cosine(first, third) + 0.2
    legacy = engine.post("/api/embeddings", model="nomic-embed-text", prompt=texts[0]).json()
    assert legacy["embedding"] == first
    short = engine.post("/api/embed", model="nomic-embed-text", input="x", dimensions=8).json()
    assert len(short["embeddings"][0]) == 8
    assert math.isclose(math.hypot(*short["embeddings"][0]), 1.0, abs_tol=1e-5)
    assert engine.post("/api/embed", model="nomic-embed-text", input="").json() == {
        "model": "nomic-embed-text",
        "embeddings": [],
    }


# -- errors ---------------------------------------------------------------------------

ERRORS: list[tuple[str, Any, int, str]] = [
    ("/api/chat", {"model": "nope"}, 404, "model 'nope' not found"),
    ("/api/generate", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
    ("/api/embed", {"model": "no", "input": "x"}, 404,
     'model "no" not found, try pulling it first'),
    ("/api/show", {"model": "nope"}, 404, "model 'nope' not found"),
    ("/api/chat", {"messages": []}, 400, "model is required"),
    ("/api/chat", b"", 400, "missing request body"),
    ("/api/chat", b"{bad", 400, "invalid character 'b' looking for beginning of value"),
    ("/api/chat", b'{"model":', 400, "unexpected EOF"),
    ("/api/chat", [1], 400, "json: cannot unmarshal array into Go value of type api.ChatRequest"),
    ("/api/chat", {"model": 3}, 400,
     "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"),
    ("/api/generate", {"model": "qwen3:8b", "prompt": ["x"]}, 400,
     "json: cannot unmarshal array into Go struct field GenerateRequest.prompt of type string"),
    ("/api/generate", {"model": "qwen3:8b", "keep_alive": "5"}, 400,
     'time: missing unit in duration "5"'),
    ("/api/generate", {"model": "qwen3:8b", "keep_alive": "soon"}, 400,
     'time: invalid duration "soon"'),
    ("/api/generate", {"model": "qwen3:8b", "keep_alive": "5d"}, 400,
     'time: unknown unit "d" in duration "5d"'),
    ("/api/generate", {"model": "qwen3:8b", "keep_alive": True}, 400, "Unsupported type: 'bool'"),
    ("/api/generate", {"model": "qwen3:8b", "prompt": "x", "options": {"num_ctx": "1k"}}, 500,
     'option "num_ctx" must be of type integer'),
    ("/api/generate", {"model": "qwen3:8b", "prompt": "x", "raw": True, "system": "y"}, 400,
     "raw mode does not support template, system, or context"),
    ("/api/generate", {"model": "nomic-embed-text", "prompt": "x"}, 400,
     '"nomic-embed-text" does not support generate'),
    ("/api/chat", {**CHAT, "think": True}, 400, '"llama3.2:3b" does not support thinking'),
    ("/api/embed", {"model": "nomic-embed-text", "input": [1]}, 400, "invalid input type"),
    ("/api/embed", {"model": "nomic-embed-text", "input": "a b " * 3000, "truncate": False}, 400,
     "the input length exceeds the context length"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "message"), ERRORS)
def test_errors_are_ollamas(
    engine: SimProcess, path: str, body: Any, status: int, message: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = engine.http.post(path, content=raw)
    assert (reply.status_code, reply.json()) == (status, {"error": message})


def test_openai_errors_have_openais_shape(engine: SimProcess) -> None:
    reply = engine.post("/v1/chat/completions", **{**CHAT, "model": "nope"})
    assert reply.status_code == 404
    assert reply.json()["error"] == {
        "message": "model 'nope' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }
    empty = engine.post("/v1/chat/completions", model="qwen3:8b", messages=[])
    assert (empty.status_code, empty.json()["error"]["type"]) == (400, "invalid_request_error")


def test_small_routes_wrong_paths_and_wrong_methods(engine: SimProcess) -> None:
    http = engine.http
    assert http.get("/").text == "Ollama is running"
    assert http.head("/").status_code == 200 and http.head("/").content == b""
    assert "simulated" in http.get("/api/version").json()["version"]
    assert http.get("/api/nothing").status_code == 404
    wrong = http.get("/api/chat")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    tags = http.get("/api/tags").json()["models"]
    assert {"llama3.2:3b", "nomic-embed-text:latest", "llama3.3:70b"} <= {m["name"] for m in tags}
    assert all(len(m["digest"]) == 64 and m["size"] > 0 and m["details"] for m in tags)
    show = engine.post("/api/show", model="QWEN3:8B").json()
    assert show["details"]["quantization_level"] == "Q4_K_M"
    assert show["model_info"]["qwen3.context_length"] == 40960
    assert "tools" in show["capabilities"]


# -- memory, loads, slots ---------------------------------------------------------------


def test_load_and_unload_requests_and_ps_agree() -> None:
    with sim_engine() as engine:
        loaded = engine.post("/api/generate", model="qwen3:8b", keep_alive="10m").json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        (entry,) = engine.http.get("/api/ps").json()["models"]
        assert entry["name"] == "qwen3:8b" and entry["size"] == entry["size_vram"] > 5 * GB
        assert entry["context_length"] == 4096
        assert engine.stats()["used_bytes"] == entry["size_vram"]
        unloaded = engine.post("/api/chat", model="qwen3:8b", keep_alive=0).json()
        assert unloaded["done_reason"] == "unload"
        assert engine.http.get("/api/ps").json() == {"models": []}
        assert engine.stats()["used_bytes"] == 0


def test_keep_alive_expires_stays_for_ever_or_ends_with_the_request() -> None:
    def resident(engine: SimProcess) -> list[str]:
        return sorted(m["name"] for m in engine.http.get("/api/ps").json()["models"])

    with sim_engine() as engine:
        engine.post("/api/generate", model="llama3.2:1b", keep_alive="200ms")
        engine.post("/api/generate", model="llama3.2:3b", keep_alive=-1)
        engine.post("/api/generate", model="qwen3:8b", keep_alive="-1s")
        assert engine.http.get("/api/ps").json()["models"][0]["expires_at"] > "2200"
        engine.until(lambda stats: resident(engine) == ["llama3.2:3b", "qwen3:8b"])
        body = {**CHAT, "options": {"num_predict": 2}, "keep_alive": 0}
        engine.post("/api/chat", **body)
        assert resident(engine) == ["qwen3:8b"]


def test_the_model_used_longest_ago_makes_room_and_a_busy_one_never_does() -> None:
    # Each takes about 2.7 GB: two fit, three do not.
    with sim_engine(vram_bytes=6 * GB, decode_tps=20, reply_tokens=400, models=[
        {"name": name, "size_bytes": 2 * GB} for name in ("a", "b", "c")
    ]) as engine:  # fmt: skip
        engine.post("/api/generate", model="a")
        engine.post("/api/generate", model="b")
        busy = engine.raw("/api/generate", model="a", prompt="x")
        engine.until(lambda stats: stats["running"] == 1)
        engine.post("/api/generate", model="c")
        names = {m["name"] for m in engine.http.get("/api/ps").json()["models"]}
        assert names == {"a:latest", "c:latest"}  # b was idle, a was not
        assert engine.stats()["evictions"] == 1
        other = engine.raw("/api/generate", model="c", prompt="x")
        engine.until(lambda stats: stats["running"] == 2)
        third = engine.raw("/api/generate", model="b", prompt="x", options={"num_predict": 1})
        engine.until(lambda stats: stats["queued"] == 1)
        busy.close()
        assert b'"done":true' in _read_all(third)
        assert engine.stats()["running"] == 1
        other.close()


def test_a_model_that_cannot_fit_is_refused_with_numbers() -> None:
    with sim_engine(vram_bytes=24 << 30) as engine:
        reply = engine.post("/api/generate", model="llama3.3:70b", prompt="x")
        assert reply.status_code == 500
        assert reply.json()["error"].startswith("model requires more system memory (4")
        assert reply.json()["error"].endswith("than is available (24.0 GiB)")


def test_another_num_ctx_reloads_the_model() -> None:
    with sim_engine() as engine:
        engine.post("/api/generate", model="qwen3:8b")
        small = engine.stats()["used_bytes"]
        engine.post("/api/generate", model="qwen3:8b", options={"num_ctx": 4096})
        assert engine.stats()["loads"] == 1
        engine.post("/api/generate", model="qwen3:8b", options={"num_ctx": 8192})
        assert engine.stats()["loads"] == 2 and engine.stats()["used_bytes"] > small
        (entry,) = engine.http.get("/api/ps").json()["models"]
        assert entry["context_length"] == 8192


def test_loading_takes_its_time_with_progress_and_others_join_it() -> None:
    with sim_engine(load_bytes_s=1e9, slots=2, models=["llama3.2:3b"]) as engine:
        with ThreadPoolExecutor(2) as pool:
            began = time.monotonic()
            asks = [pool.submit(lambda: engine.post("/api/chat", **CHAT)) for _ in range(2)]
            stats = engine.until(lambda stats: stats["loading"] != [])
            (loading,) = stats["loading"]
            assert loading["name"] == "llama3.2:3b" and 0 <= loading["progress"] < 1
            assert began <= loading["started_mono"] <= time.monotonic()
            engine.until(lambda stats: stats["loading"] and stats["loading"][0]["progress"] > 0.3)
            assert engine.http.get("/api/ps").json() == {"models": []}
            finals = [lines(ask.result())[-1] for ask in asks]
        assert all(final["load_duration"] > 0.3e9 for final in finals)
        assert engine.stats()["loads"] == 1


def test_requests_beyond_the_slots_wait_in_order() -> None:
    with sim_engine(slots=2, decode_tps=50, reply_tokens=9000, models=["llama3.2:3b"]) as engine:
        body = {**CHAT, "options": {"num_ctx": 10_000}}
        callers = []
        for number in range(4):
            callers.append(engine.raw("/api/chat", **body))
            engine.until(lambda stats, n=number: stats["requests"] == n + 1)  # type: ignore[misc]
        stats = engine.until(lambda stats: stats["tokens"] > 4)
        assert (stats["running"], stats["queued"]) == (2, 2)
        assert stats["util_percent"] > 0
        callers[0].close()
        assert callers[2].recv(1) == b"H"  # its turn: the reply begins
        callers[3].settimeout(0.2)
        with pytest.raises(TimeoutError):
            callers[3].recv(1)
        callers[1].close()
        callers[3].settimeout(20)
        assert callers[3].recv(1) == b"H"
        for caller in callers[2:]:
            caller.close()


def test_decoding_takes_the_configured_time_and_slows_down_in_company() -> None:
    with sim_engine(slots=4, decode_tps=40, slowdown=0.5, models=["llama3.2:3b"]) as engine:
        body = {**CHAT, "options": {"num_predict": 20}, "stream": False}
        alone = engine.post("/api/chat", **body).json()
        assert alone["eval_duration"] > 0.48e9  # 20 tokens at 40/s
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: engine.post("/api/chat", **body).json(), range(4)))
        assert min(reply["eval_duration"] for reply in replies) > 1.4 * 0.48e9


def test_too_many_that_wait_for_a_load_are_turned_away() -> None:
    with sim_engine(load_bytes_s=1e8, max_queue=1, models=["llama3.2:3b"]) as engine:
        waiting = engine.raw("/api/chat", **CHAT)
        engine.until(lambda stats: stats["loading"] != [])
        reply = engine.post("/api/chat", **CHAT)
        assert reply.status_code == 503
        assert reply.json() == {
            "error": "server busy, please try again.  maximum pending requests exceeded"
        }
        waiting.close()


# -- clients that leave -----------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(stream: bool) -> None:
    with sim_engine(decode_tps=20, reply_tokens=2000, models=["llama3.2:3b"]) as engine:
        connection = engine.raw("/api/chat", **CHAT, stream=stream)
        engine.until(lambda stats: stats["tokens"] >= 3)
        left = time.monotonic()
        connection.close()
        stats = engine.until(lambda stats: stats["cancelled"] == 1)
        assert stats["running"] == 0
        assert 0 <= stats["last_cancel_mono"] - left < 1.0
        tokens = engine.stats()["tokens"]
        reply = engine.post("/api/chat", **CHAT, options={"num_predict": 2}, stream=False).json()
        assert reply["eval_count"] == 2
        assert engine.stats()["tokens"] == tokens + 2


def test_a_client_that_leaves_while_waiting_for_a_slot_or_a_load_is_forgotten() -> None:
    with sim_engine(decode_tps=20, reply_tokens=2000, models=["llama3.2:3b"]) as engine:
        running = engine.raw("/api/chat", **CHAT)
        engine.until(lambda stats: stats["running"] == 1)
        waiting = engine.raw("/api/chat", **CHAT)
        engine.until(lambda stats: stats["queued"] == 1)
        waiting.close()
        stats = engine.until(lambda stats: stats["cancelled"] == 1)
        assert (stats["queued"], stats["running"]) == (0, 1)
        running.close()
    with sim_engine(load_bytes_s=1e8, models=["llama3.2:3b"]) as engine:
        loading = engine.raw("/api/chat", **CHAT)
        engine.until(lambda stats: stats["loading"] != [])
        loading.close()
        stats = engine.until(lambda stats: stats["cancelled"] == 1)
        assert stats["loading"] == [] and stats["used_bytes"] == 0  # Ollama aborts the load too


async def test_nothing_leaks_when_many_come_change_models_and_leave() -> None:
    """Every request ends exactly once, whatever the others do; then all is free again."""
    with sim_engine(
        vram_bytes=9 * GB, slots=2, load_bytes_s=4e10, decode_tps=800, reply_tokens=[5, 60],
        models=[{"name": name, "size_bytes": 2 * GB} for name in "abcde"],
    ) as engine:  # fmt: skip
        dice = random.Random(5)

        async def client(patience_s: float, **body: Any) -> str:
            async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as http:
                try:
                    reply = await http.post("/api/generate", json=body, timeout=patience_s)
                except httpx.TimeoutException:
                    return "left"
                return "done" if b'"done":true' in reply.content else reply.text

        clients = []
        for _ in range(150):
            patient = dice.random() < 0.6
            clients.append(
                client(
                    60 if patient else dice.random() * 0.5,
                    model=dice.choice("abcde"),
                    prompt="x",
                    keep_alive=dice.choice([0, 1, -1]),
                    options={"num_ctx": dice.choice([2048, 4096])},
                )
            )
        results = await asyncio.gather(*clients)
        assert set(results) == {"done", "left"}
        stats = engine.until(lambda s: s["running"] == s["queued"] == 0 and not s["loading"])
        assert stats["completed"] >= results.count("done")
        assert stats["requests"] == stats["completed"] + stats["cancelled"]
        assert stats["evictions"] > 0
        for name in "abcde":
            engine.post("/api/generate", model=name, keep_alive=0)
        assert engine.stats()["used_bytes"] == 0


# -- faults -----------------------------------------------------------------------------


def test_faults_strike_as_often_as_asked_and_spare_the_polling(engine: SimProcess) -> None:
    body = {**CHAT, "stream": False}
    engine.fault("503", count=2)
    assert engine.http.get("/api/ps").status_code == 200
    assert [engine.post("/api/chat", **body).status_code for _ in range(3)] == [503, 503, 200]
    engine.fault("500", count=1)
    assert engine.post("/api/chat", **body).status_code == 500
    engine.fault("refuse", count=None)
    for _ in range(2):
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            engine.post("/api/chat", **body)
    engine.fault("none")
    assert engine.post("/api/chat", **body).status_code == 200
    assert engine.post("/sim/faults", fault="sulk").status_code == 400


def test_a_cut_stream_has_its_tokens_and_no_end(engine: SimProcess) -> None:
    engine.fault("cut", after_tokens=3, count=2)
    raw = _read_all(engine.raw("/api/chat", **CHAT))
    assert raw.count(b'"done":false') == 3 and b'"done":true' not in raw
    assert not raw.endswith(b"0\r\n\r\n")
    with pytest.raises(httpx.RemoteProtocolError):
        engine.post("/api/chat", **CHAT, stream=False)


def test_an_engine_that_fails_in_mid_stream_says_so_in_the_last_line(engine: SimProcess) -> None:
    engine.fault("500", after_tokens=2, count=1)
    *tokens, last = lines(engine.post("/api/chat", **CHAT))
    assert len(tokens) == 2 and "unexpectedly stopped" in last["error"]


def test_a_hanging_engine_is_silent_until_the_client_leaves(engine: SimProcess) -> None:
    engine.fault("hang", count=1)
    before = engine.stats()["cancelled"]
    connection = engine.raw("/api/chat", **CHAT)
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.close()
    engine.until(lambda stats: stats["cancelled"] == before + 1)


def test_a_slow_engine_takes_the_asked_factor_longer(engine: SimProcess) -> None:
    body = {**CHAT, "stream": False, "options": {"num_predict": 20}}
    engine.fault("slow", factor=8, count=1)
    assert engine.post("/api/chat", **body).json()["eval_duration"] > 0.36e9  # 20 at 400/s, x8


# -- the official clients -----------------------------------------------------------------


def test_the_official_ollama_client_is_content(engine: SimProcess) -> None:
    client = ollama.Client(host=engine.url, trust_env=False)
    reply = client.chat(model="llama3.2:3b", messages=CHAT["messages"])  # type: ignore[arg-type]
    assert "simulated" in (reply.message.content or "") and reply.eval_count
    parts = list(client.generate(model="llama3.2:3b", prompt="Hi", stream=True))
    assert parts[-1].done and len(parts) > 5
    assert any(model.model == "qwen3:8b" for model in client.list().models)
    assert client.ps().models[0].expires_at is not None
    assert client.show("qwen3:8b").capabilities == ["completion", "tools", "thinking"]
    assert len(client.embed(model="nomic-embed-text", input=["a", "b"]).embeddings) == 2
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.generate(model="nope", prompt="Hi")
    client._client.close()


def test_the_official_openai_client_is_content(engine: SimProcess) -> None:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="x", max_retries=0) as client:
        asked: Any = CHAT["messages"]
        whole = client.chat.completions.create(model="llama3.2:3b", messages=asked, seed=1)
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None and whole.usage.completion_tokens > 10
        stream = client.chat.completions.create(
            model="llama3.2:3b", messages=asked, seed=1, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None and chunks[-1].usage == whole.usage
        done = client.completions.create(model="llama3.2:3b", prompt="Once", max_tokens=3)
        assert done.choices[0].finish_reason == "length" and done.choices[0].text
        ids = [model.id for model in client.models.list()]
        assert "llama3.2:3b" in ids
        assert client.models.retrieve("llama3.2:3b").owned_by == "library"
        packed = client.embeddings.create(model="nomic-embed-text", input="a word")
        plain = client.embeddings.create(
            model="nomic-embed-text", input="a word", encoding_format="float"
        )
        assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nope", messages=asked)


# -- HTTP itself --------------------------------------------------------------------------


def test_requests_may_come_in_pieces_in_chunks_and_several_at_once(engine: SimProcess) -> None:
    body = json.dumps({**CHAT, "stream": False, "options": {"num_predict": 1}}).encode()
    head = b"POST /api/chat HTTP/1.1\r\nHost: x\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", engine.port), timeout=20) as connection:
        for at in range(0, len(whole), 7):
            connection.sendall(whole[at : at + 7])
        assert _read_until(connection, b'"done":true').startswith(b"HTTP/1.1 200 OK")
        chunked = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:10], body[10:]))
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n")
        assert b'"done":true' in _read_until(connection, b'"done":true')
        connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert _read_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert b"model is required" in _read_until(connection, b"}")
        get = b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(get + whole + get.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost"))
        replies = _read_all(connection)
        assert replies.count(b"HTTP/1.1 200 OK") == 3 and replies.count(b'simulated"') == 2


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nbroken\r\n\r\n", b"400"),
        (b"POST /api/chat HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /api/chat HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST /api/chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, b"431"),
    ],
)
def test_what_is_no_http_gets_an_answer_and_the_door(
    engine: SimProcess, raw: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", engine.port), timeout=20) as connection:
        connection.sendall(raw)
        assert _read_all(connection).startswith(b"HTTP/1.1 " + status)


# -- the process ----------------------------------------------------------------------------


def test_sigterm_ends_it_with_status_0() -> None:
    with sim_engine() as engine:
        engine.process.terminate()
        assert engine.process.wait(20) == 0


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('{"slots":0}', "slots: expected at least 1"),
        ('{"decode_tps":"fast"}', "decode_tps: expected a number"),
        ('{"models":["nope"]}', "'nope' is not in the simulated catalogue"),
        ("{", "--config JSON"),
    ],
)
def test_a_wrong_configuration_is_status_2_and_a_sentence(config: str, complaint: str) -> None:
    done = _run("--port", "0", "--config", config)
    assert done.returncode == 2 and complaint in done.stderr


def test_a_port_that_is_taken_is_status_1(engine: SimProcess) -> None:
    done = _run("--port", str(engine.port))
    assert done.returncode == 1 and "cannot listen" in done.stderr


def interpreters() -> list[str]:
    """Every Python of this machine that the agent supports, beside the one that tests."""
    found = {}
    for minor in range(8, 20):
        for path in sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")):
            found[minor] = str(path)
        system = Path(f"/usr/bin/python3.{minor}")
        if minor not in found and system.exists():
            found[minor] = str(system)
    return [found[minor] for minor in sorted(found)]


@pytest.mark.parametrize("python", interpreters(), ids=lambda path: path.split("/")[-3])
def test_it_runs_on_every_supported_python(python: str) -> None:
    with sim_engine(python=python) as engine:
        text = engine.post("/api/chat", **CHAT, stream=False, options={"seed": 1}).json()
        assert text["message"]["content"].startswith("This is a simulated reply")
        assert engine.post("/v1/embeddings", model="nomic-embed-text", input="x").is_success
        engine.process.terminate()
        assert engine.process.wait(20) == 0


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "olol_tui.agent.simengine", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
    )


def _read_all(connection: socket.socket) -> bytes:
    """Everything until the end of the reply's connection, or of its chunks."""
    out = b""
    while True:
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            data = b""
        out += data
        if not data or out.endswith(b"\r\n0\r\n\r\n"):
            connection.close()
            return out


def _read_until(connection: socket.socket, mark: bytes) -> bytes:
    out = b""
    while mark not in out:
        data = connection.recv(65536)
        assert data, f"closed after {out!r}"
        out += data
    return out


def test_a_prompt_that_goes_on_is_prefilled_only_where_it_is_new() -> None:
    """As llama.cpp's slots: the count stays that of the whole prompt, the time does not."""
    with sim_engine(prefill_tps=4000, decode_tps=1000) as engine:
        begin, durations = "abc " * 800, []
        for prompt in (begin, begin + "and then", "xyz " * 800):
            options = {"num_predict": 1}
            reply = engine.post(
                "/api/generate", model="gemma3:4b", prompt=prompt, stream=False, options=options
            ).json()
            assert reply["prompt_eval_count"] >= 800
            durations.append(reply["prompt_eval_duration"])
        assert durations[1] < 0.5 * durations[0]
        assert durations[1] < 0.5 * durations[2]
