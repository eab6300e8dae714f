"""Requests through the gateway to real engine processes: answers, errors, cancels, losses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from olol_tui.fleet.snapshot import Loaded
from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import SimEngine, sim_engine

MODEL = "llama3.2:3b"
FAST = {"load_bytes_s": 1e12, "decode_tps": 200.0, "prefill_tps": 1e5}


@pytest.fixture
async def engine() -> AsyncIterator[SimEngine]:
    async with sim_engine(**FAST) as running:
        await running.load(MODEL)
        yield running


def lines(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in reply.text.splitlines()]


def ask(tokens: int = 5, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", "options": {"num_predict": tokens}, **more}


async def test_a_stream_arrives_whole_and_is_recorded(engine: SimEngine) -> None:
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (gateway, fleet, client):
        reply = await client.post("/api/generate", json=ask())
        assert reply.headers["content-type"] == "application/x-ndjson"
        parts = lines(reply)
        assert parts[-1]["done"] is True
        assert parts[-1]["eval_count"] == 5
        fleet.publish()
        (record,) = fleet.fleet.requests
        assert (record.state, record.tokens, record.where) == ("done", 5, "n1/gpu0")
        assert record.prompt_tokens == parts[-1]["prompt_eval_count"]
        assert record.wait_s is not None and record.ttft_s is not None
        assert "n1/gpu0 has llama3.2:3b loaded" in record.why
        assert gateway.queue.running == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", ask(stream=False)),
        ("/api/chat", {"model": MODEL, "stream": False, "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/chat/completions", {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"model": MODEL, "max_tokens": 4, "prompt": "a"}),
    ],
)  # fmt: skip
async def test_plain_replies_are_passed_on(
    engine: SimEngine, path: str, body: dict[str, Any]
) -> None:
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (_, _, client):
        reply = await client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == MODEL
        assert int(reply.headers["content-length"]) == len(reply.content)


async def test_openai_stream_ends_with_done(engine: SimEngine) -> None:
    body = {"model": MODEL, "stream": True, "max_tokens": 4,
            "messages": [{"role": "user", "content": "a"}]}  # fmt: skip
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (_, fleet, client):
        reply = await client.post("/v1/chat/completions", json=body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.text.rstrip().endswith("data: [DONE]")
        fleet.publish()
        assert fleet.fleet.requests[-1].state == "done"


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "sentence"),
    [
        ("POST", "/api/generate", b'{"model":"nobody","prompt":"x"}', 404, "model 'nobody' not found"),
        ("POST", "/api/chat", b"", 400, "missing request body"),
        ("POST", "/api/chat", b"{", 400, "invalid JSON"),
        ("POST", "/api/chat", b'{"messages":[]}', 400, "model is required"),
        ("POST", "/api/chat", b'{"model":7}', 400, "model"),
        ("POST", "/api/generate", b'{"model":"a","options":[]}', 400, "options"),
        ("POST", "/api/generate", b'{"model":"llama3.2:3b","prompt":"x","keep_alive":"5"}', 400, "missing unit"),
        ("GET", "/api/generate", b"", 405, "method not allowed"),
        ("POST", "/api/nothing", b"{}", 404, "no such path"),
    ],
)  # fmt: skip
async def test_bad_requests_get_ollamas_shape(
    method: str, path: str, content: bytes, status: int, sentence: str
) -> None:
    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (_, _, client):
        reply = await client.request(method, path, content=content)
        assert reply.status_code == status
        assert sentence in reply.json()["error"]
        # The connection is still good for the next request.
        assert (await client.get("/api/version")).status_code == 200


async def test_openai_errors_have_openais_shape() -> None:
    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (_, _, client):
        reply = await client.post(
            "/v1/chat/completions",
            json={"model": "nobody", "messages": [{"role": "user", "content": "a"}]},
        )
        assert reply.status_code == 404
        assert reply.json()["error"]["type"] == "not_found_error"


async def test_a_body_over_the_limit_is_refused() -> None:
    node = engine_node("n1", "127.0.0.1:9", MODEL)
    async with gateway_over(node, max_body_bytes=1000) as (gateway, _, client):
        reply = await client.post("/api/generate", content=b"x" * 2000)
        assert reply.status_code == 413
        assert "limit of 1000 bytes" in reply.json()["error"]

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"y" * 200

        chunked = await client.post("/api/generate", content=pieces())
        assert chunked.status_code == 413
        assert gateway.ledger.total == 0


async def test_a_client_that_leaves_mid_stream_stops_the_engine(engine: SimEngine) -> None:
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (gateway, _, client):
        async with client.stream("POST", "/api/generate", json=ask(10_000)) as reply:
            seen = 0
            async for _ in reply.aiter_lines():
                seen += 1
                if seen == 3:
                    break
        async with asyncio.timeout(1.0):
            await engine.until(cancelled=1, running=0)
        assert gateway.queue.running == 0


async def test_a_client_that_leaves_a_plain_request_stops_the_engine(engine: SimEngine) -> None:
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (gateway, _, client):
        waiting = asyncio.create_task(client.post("/api/generate", json=ask(10_000, stream=False)))
        await engine.until(running=1)
        waiting.cancel()
        async with asyncio.timeout(1.0):
            await engine.until(cancelled=1, running=0)
        assert gateway.queue.running == 0


async def test_a_client_that_leaves_the_queue_frees_its_place(engine: SimEngine) -> None:
    node = engine_node("n1", engine.address, MODEL)
    async with gateway_over(node) as (gateway, fleet, client):
        first = asyncio.create_task(client.post("/api/generate", json=ask(10_000)))
        await engine.until(running=1)
        second = asyncio.create_task(client.post("/api/generate", json=ask(5)))
        await eventually(lambda: gateway.queue.queued == 1)
        fleet.publish()
        assert "waiting for a slot on n1/gpu0" in fleet.fleet.requests[-1].why
        second.cancel()
        await eventually(lambda: gateway.queue.queued == 0)
        third = asyncio.create_task(client.post("/api/generate", json=ask(5)))
        await eventually(lambda: gateway.queue.queued == 1)
        first.cancel()
        reply = await third
        assert lines(reply)[-1]["done"] is True
        assert (await engine.stats())["requests"] == 3, "load, first and third"


async def test_an_engine_killed_mid_stream_ends_in_an_error_line() -> None:
    async with sim_engine(**FAST | {"decode_tps": 20.0}) as engine:
        await engine.load(MODEL)
        async with gateway_over(engine_node("n1", engine.address, MODEL)) as (_, fleet, client):
            got: list[dict[str, Any]] = []
            with pytest.raises(httpx.RemoteProtocolError):
                async with client.stream("POST", "/api/generate", json=ask(1000)) as reply:
                    async for line in reply.aiter_lines():
                        got.append(json.loads(line))
                        if len(got) == 3:
                            engine.process.kill()
            assert "upstream lost: n1/gpu0" in got[-1]["error"]
            assert not any(part.get("done") for part in got)
            fleet.publish()
            assert fleet.fleet.requests[-1].state == "failed"


async def test_a_cut_stream_is_never_a_clean_end(engine: SimEngine) -> None:
    await engine.fault(fault="cut", after_tokens=2, count=1)
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (_, _, client):
        got = b""
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream(
                "POST", "/v1/chat/completions",
                json={"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "a"}]},
            ) as reply:  # fmt: skip
                async for chunk in reply.aiter_bytes():
                    got += chunk
        assert b"[DONE]" not in got
        assert b'data: {"error"' in got


async def test_a_lost_engine_before_the_first_byte_is_retried_elsewhere() -> None:
    async with sim_engine(**FAST) as good, sim_engine(**FAST) as bad:
        await good.load(MODEL)
        await bad.load(MODEL)
        await bad.fault(fault="500", count=None)
        nodes = (engine_node("bad", bad.address, MODEL), engine_node("good", good.address, MODEL))
        async with gateway_over(*nodes) as (gateway, fleet, client):
            for _ in range(6):
                reply = await client.post("/api/generate", json=ask())
                assert reply.status_code == 200
                assert lines(reply)[-1]["done"] is True
            bad.process.kill()
            await bad.process.wait()
            for _ in range(3):
                assert (await client.post("/api/generate", json=ask())).status_code == 200
            fleet.publish()
            assert {r.where for r in fleet.fleet.requests} == {"good/gpu0"}
            # Three failures in a row eject it: the last requests were not even tried there.
            assert (await good.stats())["completed"] >= 9
            assert gateway.queue.running == 0


async def test_an_engines_own_error_is_passed_on_when_nobody_else_can(engine: SimEngine) -> None:
    await engine.fault(fault="500", count=1)
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (_, _, client):
        reply = await client.post("/api/generate", json=ask())
        assert reply.status_code == 500
        assert reply.json()["error"]


async def test_a_cold_model_is_loaded_once_for_all_who_wait() -> None:
    async with sim_engine(**FAST | {"load_bytes_s": 4e9}, slots=4) as engine:
        node = engine_node("n1", engine.address, MODEL, slots=4, warm=False)
        async with gateway_over(node) as (gateway, fleet, client):
            first = asyncio.create_task(client.post("/api/generate", json=ask()))
            others = [asyncio.create_task(client.post("/api/chat", json={
                "model": MODEL, "messages": [{"role": "user", "content": "a"}],
                "options": {"num_predict": 3}})) for _ in range(3)]  # fmt: skip
            await eventually(lambda: gateway.queue.loading(MODEL))
            # The client that caused the load leaves: the load goes on for the others.
            first.cancel()
            for reply in await asyncio.gather(*others):
                assert lines(reply)[-1]["done"] is True
            assert (await engine.stats())["loads"] == 1
            fleet.publish()


async def test_a_load_that_fails_tells_whoever_waited() -> None:
    async with sim_engine(vram_bytes=1 << 30) as engine:
        node = engine_node("n1", engine.address, MODEL, warm=False)
        async with gateway_over(node) as (_, _, client):
            reply = await client.post("/api/generate", json=ask())
            assert reply.status_code >= 400
            assert "memory" in reply.json()["error"]


async def test_the_queue_is_bounded(engine: SimEngine) -> None:
    node = engine_node("n1", engine.address, MODEL)
    async with gateway_over(node, max_queue=1) as (gateway, _, client):
        running = [asyncio.create_task(client.post("/api/generate", json=ask(10_000)))]
        await engine.until(running=1)
        running.append(asyncio.create_task(client.post("/api/generate", json=ask(1))))
        await eventually(lambda: gateway.queue.queued == 1)
        reply = await client.post("/api/generate", json=ask(1))
        assert reply.status_code == 503
        # One slot, and until something is measured a request is expected to take 5 s.
        assert reply.headers["retry-after"] == "5"
        assert "maximum pending requests exceeded" in reply.json()["error"]
        for task in running:
            task.cancel()


async def test_operator_cancels_by_id(engine: SimEngine) -> None:
    async with gateway_over(engine_node("n1", engine.address, MODEL)) as (_, fleet, client):
        task = asyncio.create_task(client.post("/api/generate", json=ask(10_000, stream=False)))
        await engine.until(running=1)
        fleet.publish()
        assert fleet.cancel(fleet.fleet.requests[-1].id)
        reply = await task
        assert reply.status_code == 499
        await engine.until(cancelled=1)
        assert not fleet.cancel("r999")


async def test_a_runner_is_launched_for_a_library_model_with_a_file(engine: SimEngine) -> None:
    """Single-model engines: a request asks the controller for one and waits until it is there."""
    node = engine_node("n1", engine.address, MODEL)
    library = tuple(replace(model, path="/m.gguf") for model in node.library)
    bare = replace(node, engines=(), library=library, runner="embedded")
    async with gateway_over(bare) as (_, fleet, client):
        task = asyncio.create_task(client.post("/v1/completions", json={
            "model": MODEL, "prompt": "a", "max_tokens": 2}))  # fmt: skip
        await eventually(lambda: fleet.launched)
        assert fleet.launched == [(MODEL, "n1", "GPU-n1")]
        runner = replace(
            node.engines[0], id=f"n1/embedded-GPU-n1-{MODEL}", kind="embedded", model=MODEL,
            state="starting", loaded=(), address="",
        )  # fmt: skip
        fleet.publish(nodes=(replace(bare, engines=(runner,)),))
        assert not task.done()
        ready = replace(runner, state="ready", address=engine.address, loaded=(Loaded(MODEL),))
        fleet.publish(nodes=(replace(bare, engines=(ready,)),))
        assert (await task).status_code == 200
        assert fleet.touched == [(ready.id, MODEL, None)]


async def test_a_runner_that_fails_tells_its_last_words() -> None:
    node = engine_node("n1", "", MODEL)
    library = tuple(replace(model, path="/m.gguf") for model in node.library)
    bare = replace(node, engines=(), library=library, runner="embedded")
    async with gateway_over(bare) as (_, fleet, client):
        task = asyncio.create_task(client.post("/api/generate", json=ask()))
        await eventually(lambda: fleet.launched)
        failed = replace(
            node.engines[0], id=f"n1/embedded-GPU-n1-{MODEL}", kind="embedded", model=MODEL,
            state="failed", error="exit 1: bad magic", loaded=(),
        )  # fmt: skip
        fleet.publish(nodes=(replace(bare, engines=(failed,)),))
        reply = await task
        assert reply.status_code == 500
        assert "bad magic" in reply.json()["error"]
