"""Clients that are slow, greedy or hostile, on raw sockets; and what others feel of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from dataclasses import replace
from typing import Any

import pytest

from olol_tui.gateway import failover
from olol_tui.gateway.gateway import Gateway
from olol_tui.gateway.message import Limits
from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import sim_engine

MODEL = "llama3.2:3b"
NODE = engine_node("n1", "127.0.0.1:9", MODEL)
FAST = {"load_bytes_s": 1e12, "decode_tps": 200.0, "prefill_tps": 1e5}
HEAD = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\n"


def limited(gateway: Gateway, **limits: Any) -> None:
    gateway.settings.limits = replace(gateway.limits, **limits)


async def connect(gateway: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = gateway.address.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def closed_after(reader: asyncio.StreamReader) -> tuple[float, bytes]:
    """(seconds, everything it said) until the gateway closes."""
    began = time.monotonic()
    said = b""
    with contextlib.suppress(ConnectionError):
        said = await asyncio.wait_for(reader.read(), 30)
    return time.monotonic() - began, said


def test_the_limits_are_what_the_manual_says() -> None:
    assert Limits() == Limits(
        body_bytes=128 * 2**20, header_bytes=32 * 1024, header_s=10.0, body_s=60.0,
        body_grace_s=15.0, body_floor_bytes=1024, idle_s=120.0, connections=2000,
    )  # fmt: skip


async def test_a_head_that_drips_is_closed_in_time() -> None:
    async with gateway_over(NODE) as (gateway, _, _client):
        limited(gateway, header_s=1.0)
        reader, writer = await connect(gateway)
        writer.write(b"POST /api/chat HT")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"X")
                    await writer.drain()
                    await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        took_s, said = await closed_after(reader)
        dripping.cancel()
        assert took_s < 5
        assert b"200" not in said
        writer.close()


async def test_a_body_that_drips_is_closed_although_it_never_pauses() -> None:
    async with gateway_over(NODE) as (gateway, _, _client):
        limited(gateway, body_grace_s=1.0)
        reader, writer = await connect(gateway)
        writer.write(HEAD + b"Content-Length: 100000\r\n\r\n")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        took_s, _ = await closed_after(reader)
        dripping.cancel()
        assert 0.5 < took_s < 6
        assert not gateway.ledger.live
        writer.close()


async def test_a_slow_but_honest_body_is_read_to_its_end() -> None:
    async with gateway_over(NODE) as (gateway, _, _client):
        limited(gateway, body_grace_s=0.5, body_floor_bytes=1000)
        reader, writer = await connect(gateway)
        body = json.dumps({"model": "none", "prompt": "x" * 9000}).encode()
        writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 600):
            writer.write(body[start : start + 600])
            await asyncio.sleep(0.2)
        _, said = await closed_after(reader)
        assert said.startswith(b"HTTP/1.1 404")
        writer.close()


async def test_500_slow_clients_cost_the_others_nothing() -> None:
    """Slow-loris: half-open heads by the hundred."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    async with sim_engine(**FAST) as engine:
        await engine.load(MODEL)
        async with gateway_over(engine_node("n1", engine.address, MODEL, slots=4)) as (
            gateway, _, client,
        ):  # fmt: skip
            limited(gateway, header_s=2.0)
            slow = [await connect(gateway) for _ in range(500)]
            for _, writer in slow:
                writer.write(HEAD)
            body = {"model": MODEL, "prompt": "a", "options": {"num_predict": 2}}
            for _ in range(10):
                assert (await client.post("/api/generate", json=body)).status_code == 200
            await eventually(lambda: gateway.connections <= 1, 20)
            for _, writer in slow:
                writer.close()


async def test_connections_are_bounded_and_say_so() -> None:
    async with gateway_over(NODE) as (gateway, _, client):
        limited(gateway, connections=3)
        kept = [await connect(gateway) for _ in range(3)]
        await eventually(lambda: gateway.connections == 3)
        reader, writer = await connect(gateway)
        _, said = await closed_after(reader)
        assert said.startswith(b"HTTP/1.1 503")
        writer.close()
        for _, one in kept:
            one.close()
        await eventually(lambda: gateway.connections == 0)
        assert (await client.get("/api/version")).status_code == 200


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that never stops talking, as fast as it is read."""
    line = b'{"model":"%s","response":"%s","done":false}\n' % (MODEL.encode(), b"x" * 4000)
    with contextlib.suppress(ConnectionError):
        await reader.readuntil(b"}")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        while True:
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
            await writer.drain()
    writer.close()


async def test_a_client_that_reads_nothing_gives_its_slot_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its engine was held back by us, so the engine is not to blame and not ejected."""
    monkeypatch.setattr(failover, "STALLED_S", 1.0)
    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with gateway_over(engine_node("n1", f"127.0.0.1:{port}", MODEL)) as (gateway, _, _client):
        reader, writer = await connect(gateway)
        # Nothing is read into the client's own buffer either.
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        body = json.dumps({"model": MODEL, "prompt": "a"}).encode()
        head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        await eventually(lambda: gateway.queue.running == 1)
        await eventually(lambda: not gateway.ledger.live, 30)
        (record,) = gateway.ledger.finished
        assert (record.state, record.cause) == ("cancelled", "client_stalled")
        assert gateway.queue.running == 0
        assert gateway.metrics.counted().failures == {}
        writer.transport.abort()
        reader.feed_eof()
    server.close()
    await server.wait_closed()


DEEP = 100_000
BOMBS = {
    "unknown field": b'{"model":"m","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "messages": b'{"model":"m","messages":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "options": b'{"model":"m","options":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "prompt": b'{"model":"m","prompt":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "the whole": b"[" * DEEP,
    "tools": b'{"model":"m","messages":[],"tools":' + b"[" * DEEP + b"]" * DEEP + b"}",
}


@pytest.mark.parametrize(
    "path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/api/show"]
)
@pytest.mark.parametrize("where", BOMBS)
async def test_nested_json_is_a_bad_request_at_once(path: str, where: str) -> None:
    async with gateway_over(engine_node("n1", "127.0.0.1:9", "m:latest")) as (_, _, client):
        began = time.monotonic()
        reply = await client.post(path, content=BOMBS[where])
        assert reply.status_code == 400, reply.text[:300]
        assert time.monotonic() - began < 2
        assert (await client.get("/api/version")).status_code == 200


async def test_a_chunked_body_beyond_the_limit_is_cut_in_constant_memory() -> None:
    async with gateway_over(NODE, max_body_bytes=2**20) as (gateway, _, _client):
        reader, writer = await connect(gateway)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent = 0
        answer = asyncio.create_task(reader.readline())
        with contextlib.suppress(ConnectionError):
            while not answer.done() and sent < 200:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
                sent += 1
        assert b"413" in await asyncio.wait_for(answer, 10)
        assert sent < 100, "it was told long before it had sent everything"
        writer.close()


async def test_headers_beyond_the_limit_are_431() -> None:
    async with gateway_over(NODE) as (_, _, client):
        reply = await client.get("/api/tags", headers={"x": "y" * 40_000})
        assert reply.status_code == 431


async def test_a_key_in_a_url_or_header_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """What a client sent as a secret must not come out anywhere."""
    canary = "olol_canary00_" + "s" * 32
    async with gateway_over(NODE) as (_, _, client):
        headers = {"authorization": f"Bearer {canary}", "cookie": canary}
        reply = await client.get(f"/api/tags?key={canary}", headers=headers)
        assert reply.status_code == 200
        missing = await client.post("/api/chat", json={"model": "m"}, headers=headers)
        assert canary not in missing.text
        assert canary not in (await client.get("/metrics")).text
    assert canary not in caplog.text
