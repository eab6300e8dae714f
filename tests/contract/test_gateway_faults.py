"""What a client sees when engines break: the fault table.

Before the first byte it sees only success; afterwards one error in its own dialect, and an end
that no client can take for a whole reply.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from olol_tui.gateway.gateway import Gateway
from olol_tui.gateway.upstream import MAX_HEAD_BYTES, Call, UpstreamPool, head
from tests.contract.fault_rig import (
    Script,
    every_byte,
    is_silent,
    post,
    resets,
    says,
    scripted_engine,
    trickles,
)
from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import SimEngine, sim_engine

MODEL = "llama3.2:3b"
FAST = {"load_bytes_s": 1e12, "decode_tps": 300.0, "prefill_tps": 1e5}
QUICK = {"load_timeout_s": 3.0, "probe_after_s": 1.0, "token_timeout_s": 3.0}
BEGUN = {"token_timeout_s": 3.0}
"""Until its first byte a reply may take as long as the machine likes."""
MESSAGES = [{"role": "user", "content": "hello"}]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
BEFORE: dict[str, tuple[Script | None, str]] = {
    "connection refused": (None, "cannot connect"),
    "reset": (resets, "closed the connection"),
    "garbage": (says(b"\x16\x03\x01 this is not HTTP\r\n\r\n"), "malformed reply"),
    "half a head": (says(b"HTTP/1.1 200 OK\r\nContent-Ty"), "closed the connection"),
    "two lengths": (says(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), "malformed"),
    "body too short": (says(OK + b"Content-Length: 500\r\n\r\n"), "closed the connection"),
    "no end of chunks": (says(OK + b"Transfer-Encoding: chunked\r\n\r\n"), "closed the connection"),
    "bad chunk": (says(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "malformed reply"),
    "oversized head": (
        says(b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 2 * MAX_HEAD_BYTES), "head of its reply is larger",
    ),
    "empty reply": (says(OK + b"Content-Length: 0\r\n\r\n"), "before it was complete"),
    "instant 500": (says(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"), "answered 500"),
    "silence": (is_silent, "no byte from the engine"),
    "slow trickle of a head": (trickles, "no byte from the engine"),
}  # fmt: skip
CAUSES = {
    "connection refused": "connect_failed",
    "instant 500": "engine_error",
    "silence": "first_byte_timeout",
    "slow trickle of a head": "first_byte_timeout",
}


@pytest.fixture
async def good() -> AsyncIterator[SimEngine]:
    async with sim_engine(**FAST, slots=8) as engine:
        await engine.load(MODEL)
        yield engine


def ask(tokens: int = 5, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", "options": {"num_predict": tokens}, **more}


async def test_before_the_first_byte_the_client_sees_only_success(good: SimEngine) -> None:
    for fault, (script, reason) in BEFORE.items():
        async with scripted_engine(script or resets) as bad:
            address = "127.0.0.1:9" if script is None else bad.address
            nodes = (engine_node("bad", address, MODEL), engine_node("good", good.address, MODEL))
            # Only who waits for a silence to end must hurry: the good one is judged by it too.
            limits = QUICK if script in (is_silent, trickles) else {}
            async with gateway_over(*nodes, **limits) as (gateway, _, client):
                reply = await client.post("/api/generate", json=ask(), headers={"x-olol-why": "1"})
                assert reply.status_code == 200, fault
                assert json.loads(reply.text.splitlines()[-1])["done"] is True, fault
                assert reply.headers["x-olol-engine"].startswith("good/"), fault
                assert reason in reply.headers["x-olol-why"], fault
                (record,) = gateway.ledger.finished
                assert (record.state, record.retries, len(record.tried)) == ("done", 1, 1), fault
                assert reason in record.tried[0], fault
                shown = (await client.get(f"/olol/v1/requests/{record.id}")).json()
                assert shown["tried"] == list(record.tried)
                cause = CAUSES.get(fault, "engine_lost")
                assert gateway.metrics.counted().failures == {("bad/simulated-gpu0", cause): 1}, (
                    fault
                )
                assert gateway.queue.running == 0, fault


STREAMS: dict[str, tuple[str, dict[str, Any], bytes, bytes]] = {
    "native generate": ("/api/generate", ask(2000), b'\n{"error":"', b'"done":true'),
    "native chat": (
        "/api/chat",
        {"model": MODEL, "messages": MESSAGES, "options": {"num_predict": 2000}},
        b'\n{"error":"', b'"done":true',
    ),
    "openai chat": (
        "/v1/chat/completions",
        {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 2000},
        b'data: {"error":{', b"[DONE]",
    ),
    "openai completions": (
        "/v1/completions",
        {"model": MODEL, "prompt": "hi", "stream": True, "max_tokens": 2000},
        b'data: {"error":{', b"[DONE]",
    ),
    "openai responses": (
        "/v1/responses",
        {"model": MODEL, "input": "hi", "stream": True, "max_output_tokens": 2000},
        b'"error"', b'"type":"response.completed"',
    ),
    "anthropic": (
        "/v1/messages",
        {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 2000},
        b'event: error\ndata: {"type":"error","error":{', b'"type":"message_stop"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("dialect", STREAMS)
async def test_after_the_first_byte_an_error_frame_and_never_a_clean_end(
    good: SimEngine, dialect: str
) -> None:
    path, body, frame, end = STREAMS[dialect]
    async with (
        sim_engine(**FAST) as bad,
        gateway_over(engine_node("bad", bad.address, MODEL), **BEGUN) as (gateway, _, _client),
    ):
        await bad.load(MODEL)
        for fault in ("cut", "500", "hang"):
            await bad.fault(fault=fault, after_tokens=3, count=1)
            got, whole = await every_byte(gateway, path, body)
            assert b"Transfer-Encoding: chunked" in got, (fault, got)
            assert not whole, (fault, got)
            assert end not in got, (fault, got)
            assert frame in got, (fault, got)
            record = gateway.ledger.finished[-1]
            assert (record.state, record.retries, record.status) == ("failed", 0, 200), fault
        # It was the last engine that has the model: it still gets what comes.
        got, whole = await every_byte(gateway, path, body | short(path))
        assert whole, got
        assert gateway.queue.running == 0


def short(path: str) -> dict[str, Any]:
    """The same request, with a reply of a few tokens."""
    if path.startswith("/api/"):
        return {"options": {"num_predict": 3}}
    return {"max_output_tokens" if path == "/v1/responses" else "max_tokens": 3}


async def test_an_engine_that_dies_ends_its_streams_at_once_and_others_go_on(
    good: SimEngine,
) -> None:
    async with sim_engine(**FAST | {"decode_tps": 30.0}, slots=8) as bad:
        await bad.load(MODEL)
        nodes = [engine_node("bad", bad.address, MODEL, slots=8)]
        async with gateway_over(*nodes) as (gateway, fleet, _client):
            streams = [
                asyncio.create_task(every_byte(gateway, "/api/generate", ask(3000)))
                for _ in range(8)
            ]
            # Each has its first byte: before that it would be tried again.
            await eventually(
                lambda: sum(one.first_s is not None for one in gateway.ledger.live.values()) == 8
            )
            waiting = [
                asyncio.create_task(every_byte(gateway, "/api/generate", ask(3))) for _ in range(12)
            ]
            await eventually(lambda: gateway.queue.queued == 12)
            fleet.publish(nodes=(*nodes, engine_node("good", good.address, MODEL, slots=8)))
            bad.process.kill()
            for got, whole in await asyncio.gather(*streams):
                assert b"upstream lost: bad/gpu0" in got
                assert not whole
            for got, whole in await asyncio.gather(*waiting):
                assert whole
                assert b'"done":true' in got


async def test_a_frozen_engine_is_found_out_and_left_alone(good: SimEngine) -> None:
    """It accepts connections and never answers: neither before the first byte nor in mid-stream,
    nor while it works on a reply that comes in one piece."""
    async with sim_engine(**FAST | {"decode_tps": 30.0}, slots=8) as bad:
        await bad.load(MODEL)
        nodes = (
            engine_node("bad", bad.address, MODEL, slots=8),
            engine_node("good", good.address, MODEL, slots=1),
        )
        patient = {"probe_after_s": 1.0, "load_timeout_s": 300, "token_timeout_s": 300}
        async with gateway_over(*nodes, **patient) as (gateway, _, client):
            begun = asyncio.create_task(every_byte(gateway, "/api/generate", ask(3000)))
            await bad.until(running=1)
            await asyncio.sleep(0.2)
            bad.process.send_signal(signal.SIGSTOP)
            try:
                asked = [client.post("/api/generate", json=ask(3, stream=s)) for s in (True, False)]
                async with asyncio.timeout(30):
                    replies = await asyncio.gather(*asked, *asked_again(client))
                    got, whole = await begun
                assert b"does not answer at all" in got
                assert not whole
                assert {reply.status_code for reply in replies} == {200}
                assert gateway.queue.ejection.is_out("bad/simulated-gpu0", gateway.now())
                causes = {cause for _, cause in gateway.metrics.counted().failures}
                assert causes == {"engine_frozen"}
            finally:
                bad.process.send_signal(signal.SIGCONT)


def asked_again(client: httpx.AsyncClient) -> list[Awaitable[httpx.Response]]:
    return [client.post("/api/generate", json=ask(3)) for _ in range(4)]


async def test_a_slow_engine_that_lives_is_waited_for() -> None:
    """Silence alone is no fault where the reply comes in one piece."""
    async with sim_engine(**FAST | {"decode_tps": 10.0}) as engine:
        await engine.load(MODEL)
        node = engine_node("n1", engine.address, MODEL)
        async with gateway_over(node, probe_after_s=0.3) as (gateway, _, client):
            reply = await client.post("/api/generate", json=ask(30, stream=False))
            assert reply.json()["eval_count"] == 30
            assert gateway.metrics.counted().failures == {}


async def test_an_engine_of_instant_errors_gets_next_to_nothing(good: SimEngine) -> None:
    """Being the emptiest, it would attract everything."""
    async with sim_engine(**FAST, slots=8) as bad:
        await bad.load(MODEL)
        await bad.fault(fault="500", count=None)
        nodes = (
            engine_node("bad", bad.address, MODEL, slots=8),
            engine_node("good", good.address, MODEL, slots=8),
        )
        count, before = 400, (await bad.stats())["requests"]
        async with gateway_over(*nodes, max_queue=1000) as (gateway, _, client):
            for _ in range(count // 8):
                replies = await asyncio.gather(
                    *(client.post("/api/generate", json=ask(1)) for _ in range(8))
                )
                assert {reply.status_code for reply in replies} == {200}
            ejections = gateway.metrics.counted().ejections
            assert ejections.keys() == {"bad/simulated-gpu0"}
            # Eight were under way when the third failure came back; on a slow machine its time
            # out ends within the test, and each return is one more request.
            returns = ejections["bad/simulated-gpu0"] - 1
            assert (await bad.stats())["requests"] - before <= 8 + count // 100 + returns


async def test_a_request_that_no_engine_can_answer_is_blamed_on_none() -> None:
    async with sim_engine(**FAST) as one, sim_engine(**FAST) as other:
        nodes = []
        for name, engine in (("a", one), ("b", other)):
            await engine.load(MODEL)
            await engine.fault(fault="500", count=None)
            nodes.append(engine_node(name, engine.address, MODEL))
        async with gateway_over(*nodes) as (gateway, _, client):
            for _ in range(6):
                reply = await client.post("/api/generate", json=ask())
                assert reply.status_code == 500
                assert "simulated fault" in reply.json()["error"]
            assert gateway.metrics.counted().ejections == {}


async def test_a_busy_engine_is_neither_blamed_nor_asked_in_vain(good: SimEngine) -> None:
    await good.fault(fault="503", count=2)
    node = engine_node("n1", good.address, MODEL, slots=8)
    async with gateway_over(node) as (gateway, _, client):
        reply = await client.post("/api/generate", json=ask())
        assert reply.status_code == 200
        (record,) = gateway.ledger.finished
        assert (record.state, record.retries) == ("done", 0)
        assert record.tried == ("n1/gpu0 is busy", "n1/gpu0 is busy")
        counted = gateway.metrics.counted()
        assert counted.failures == {}
        assert counted.retries == {"busy": 2}


async def test_retries_stop_where_the_budget_ends() -> None:
    """A fleet in which everything fails is not buried under retries of retries."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with scripted_engine(refuses) as a, scripted_engine(refuses) as b:
        nodes = [
            engine_node(name, engine.address, MODEL, slots=100)
            for name, engine in (("a", a), ("b", b))
        ]
        async with gateway_over(*nodes) as (gateway, _, client):
            replies = await asyncio.gather(
                *(client.post("/api/generate", json=ask()) for _ in range(60))
            )
            assert {reply.status_code for reply in replies} <= {500, 503}
            assert gateway.metrics.counted().retries["denied"] >= 30
            assert a.requests + b.requests <= 60 + 16 + 60 // 5


# -- clients that leave, and drains


async def test_clients_that_leave_say_nothing_about_the_engine(good: SimEngine) -> None:
    """Before the first byte, in mid-stream, by reset, and cancelled by an operator."""
    node = engine_node("n1", good.address, MODEL, slots=8)
    async with gateway_over(node) as (gateway, fleet, client):
        host, port = gateway.address.removeprefix("http://").split(":")
        for abort in (True, False):
            for wait_for_bytes in (True, False):
                for _ in range(8):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    body = json.dumps(ask(100_000)).encode()
                    writer.write(
                        b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"
                        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
                    )
                    if wait_for_bytes:
                        await reader.readuntil(b'"done":false')
                    if abort:
                        writer.transport.abort()
                    else:
                        writer.close()
        await eventually(lambda: not gateway.ledger.live)
        task = asyncio.create_task(client.post("/api/generate", json=ask(100_000)))
        await good.until(running=1)
        fleet.cancel(next(iter(gateway.ledger.live)))
        with pytest.raises(httpx.RemoteProtocolError):
            await task
        await good.until(running=0)
        assert gateway.queue.running == 0
        assert not gateway.queue.ejection.watches
        assert gateway.metrics.counted().failures == {}
        replies = await asyncio.gather(
            *(client.post("/api/generate", json=ask(3)) for _ in range(16))
        )
        assert {reply.status_code for reply in replies} == {200}


class _Pausing:
    """A receiver whose client stops reading with the last piece."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.ended = asyncio.Event()
        self.lost = ""

    def up_head(self, status: int, content_type: bytes) -> None:
        pass

    def up_data(self, data: bytes, final: bool) -> None:
        if self.call is not None:
            self.call.pause()

    def up_end(self) -> None:
        self.ended.set()

    def up_lost(self, reason: str) -> None:
        self.lost = reason
        self.ended.set()


async def test_a_connection_whose_client_was_slow_serves_the_next_one(good: SimEngine) -> None:
    """It goes back to the pool while nobody reads from it: the next request would hear nothing."""
    pool = UpstreamPool()
    body = json.dumps(ask(1, stream=False)).encode()
    payload = head("POST", good.address, "/api/generate", len(body), "application/json") + body
    for reused in (False, True, True):
        receiver = _Pausing()
        receiver.call = pool.call(good.address, payload, receiver)
        assert receiver.call.reused is reused
        await asyncio.wait_for(receiver.ended.wait(), 10)
        assert receiver.lost == ""
    await pool.close()


async def test_a_drain_loses_nothing(good: SimEngine) -> None:
    """Of an engine: what runs ends there, what waits goes elsewhere. Of the gateway: both end."""
    async with sim_engine(**FAST | {"decode_tps": 40.0}, slots=4) as leaving:
        await leaving.load(MODEL)
        one = engine_node("one", leaving.address, MODEL, slots=4)
        two = engine_node("two", good.address, MODEL, slots=1)
        async with gateway_over(one) as (gateway, fleet, client):
            tasks = asking(gateway, 10, 60)
            await leaving.until(running=4)
            await eventually(lambda: gateway.queue.queued == 6)
            drained = replace(one, engines=(replace(one.engines[0], cordoned=True),))
            fleet.publish(nodes=(drained, two))
            for got, whole in await asyncio.gather(*tasks):
                assert whole
                assert b'"done":true' in got
            where = [record.where for record in gateway.ledger.finished]
            assert (where.count("one/gpu0"), where.count("two/gpu0")) == (4, 6)

            tasks = asking(gateway, 6, 100)
            await eventually(lambda: gateway.queue.running == 1 and gateway.queue.queued == 5)
            draining = asyncio.create_task(gateway.drain())
            await eventually(lambda: gateway.draining)
            refused = await client.post("/api/generate", json=ask(3))
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            await draining
            for got, whole in await asyncio.gather(*tasks):
                assert whole
                assert b'"done":true' in got
            assert {record.state for record in gateway.ledger.finished} == {"done"}


def asking(gateway: Gateway, count: int, tokens: int) -> list[asyncio.Task[tuple[bytes, bool]]]:
    send: Callable[[], Any] = lambda: every_byte(gateway, "/api/generate", ask(tokens))  # noqa: E731
    return [asyncio.create_task(send()) for _ in range(count)]


async def test_a_reply_that_begins_on_a_full_connection_holds_its_engine_back() -> None:
    """Whoever pipelines and reads nothing must not fill memory with the second reply."""
    line = b'{"model":"m","response":"%s","done":false}\n' % (b"x" * 60_000)
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
            await writer.drain()
            sent += len(line)

    async with scripted_engine(script) as engine:
        node = engine_node("n1", engine.address, MODEL)
        async with gateway_over(node, token_timeout_s=300) as (gateway, _, _client):
            host, port = gateway.address.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            (connection,) = gateway._connections
            # As its transport would, had the reply before it not been read.
            connection.pause_writing()
            writer.write(post("/api/generate", ask()))
            await eventually(lambda: sent > 0)
            await asyncio.sleep(0.5)
            held = sent
            assert held < 30 * 2**20, "what fits in the buffers of two sockets"
            await asyncio.sleep(0.5)
            assert sent == held
            connection.resume_writing()
            await reader.readexactly(2 * held)
            writer.transport.abort()
            await eventually(lambda: not gateway.ledger.live)
