"""`X-Olol-Replay: deterministic`: a stream that lost its engine goes on elsewhere."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from olol_tui.gateway.gateway import Gateway
from tests.contract.fault_rig import every_byte, scripted_engine
from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import sim_engine

MODEL = "llama3.2:3b"
FAST = {"load_bytes_s": 1e12, "decode_tps": 300.0, "prefill_tps": 1e5}
HEADER = "X-Olol-Replay: deterministic"
MESSAGES = [{"role": "user", "content": "Tell me about queues."}]
SAMPLING: dict[str, Any] = {"stream": True, "temperature": 0, "seed": 7}
STREAMS: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "hi", "options": {"seed": 7, "num_predict": 40}},
    "/api/chat": {"messages": MESSAGES, "options": {"temperature": 0, "num_predict": 40}},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 40, **SAMPLING},
    "/v1/completions": {"prompt": "hi", "max_tokens": 40, **SAMPLING},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 40, "stream": True, "temperature": 0},
    "/v1/responses": {"input": "hi", "max_output_tokens": 40, **SAMPLING},
}


def said(got: bytes) -> tuple[str, list[str]]:
    """(all its text, the kinds of its events in order without repeats)."""
    body = got.split(b"\r\n\r\n", 1)[1]
    data, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        data, rest = data + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    text, kinds = "", [""]
    for line in data.splitlines():
        if not line.startswith((b"data: {", b"{")):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        for choice in event.get("choices", [event]):
            delta = choice.get("delta", {})
            if isinstance(delta, str):
                text += delta
            else:
                text += delta.get("content") or delta.get("text") or ""
            text += choice["message"]["content"] if "done" in choice and "message" in choice else ""
            if isinstance(choice.get("response"), str):
                text += choice["response"]
            text += choice.get("text", "") if "choices" in event else ""
        kind = str(event.get("type", event.get("done")))
        if kind != kinds[-1] and kind != "message":
            kinds.append(kind)
    return text, kinds


async def twice(gateway: Gateway, path: str, *headers: str) -> tuple[bytes, bool]:
    return await every_byte(gateway, path, {"model": MODEL, **STREAMS[path]}, *headers)


async def test_a_lost_stream_goes_on_elsewhere_in_every_dialect() -> None:
    async with sim_engine(**FAST) as a, sim_engine(**FAST) as b, sim_engine(**FAST) as c:
        nodes = []
        for name, engine in (("a", a), ("b", b), ("c", c)):
            await engine.load(MODEL)
            nodes.append(engine_node(name, engine.address, MODEL))
        for path in STREAMS:
            async with gateway_over(*nodes) as (gateway, _, client):
                undisturbed, whole = await twice(gateway, path)
                assert whole
                for lost in ((a,), (b, c), (c, a)):
                    for fault, engine in zip(("cut", "500"), lost, strict=False):
                        await engine.fault(fault=fault, after_tokens=7, count=1)
                    for _ in range(3):
                        # Which engine comes first is the policy's business.
                        got, whole = await twice(gateway, path, HEADER)
                        assert whole, (path, got)
                        assert said(got) == said(undisturbed), path
                    for engine in lost:
                        await engine.fault(fault="none")
                records = list(gateway.ledger.finished)
                assert {record.state for record in records} == {"done"}
                replays = sum(record.replays for record in records)
                assert replays >= 3, path
                counted = gateway.metrics.counted()
                assert counted.replays == {"done": sum(r.replays > 0 for r in records)}
                replayed = next(record for record in records if record.replays)
                shown = (await client.get(f"/olol/v1/requests/{replayed.id}")).json()
                assert shown["replays"] == replayed.replays
                assert shown["tried"]
                text = (await client.get("/metrics")).text
                assert 'olol_replays_total{outcome="done"}' in text
                assert gateway.queue.running == 0


async def test_a_killed_engine_is_replayed_where_the_client_is_in_the_middle() -> None:
    async with sim_engine(**FAST | {"decode_tps": 40.0}) as a, sim_engine(**FAST) as b:
        await a.load(MODEL)
        await b.load(MODEL)
        nodes = [engine_node("a", a.address, MODEL)]
        async with gateway_over(*nodes) as (gateway, fleet, _client):
            undisturbed, _ = await twice(gateway, "/api/chat")
            task = asyncio.create_task(twice(gateway, "/api/chat", HEADER))
            await eventually(lambda: any(r.tokens > 5 for r in gateway.ledger.live.values()))
            a.process.kill()
            # Nobody else has it yet: the stream waits for one who has.
            await eventually(lambda: gateway.queue.queued == 1)
            fleet.publish(nodes=(engine_node("b", b.address, MODEL),))
            got, whole = await task
            assert whole
            assert said(got) == said(undisturbed)
            record = gateway.ledger.finished[-1]
            assert (record.where, record.replays, record.retries) == ("b/gpu0", 1, 1)
            assert "a/gpu0" in record.tried[0]


async def test_another_text_ends_in_the_error_line() -> None:
    other = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    line = b'{"model":"llama3.2:3b","created_at":"now","response":"Something else","done":false}\n'

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(other + b"%x\r\n%s\r\n" % (len(line), line))
        await writer.drain()
        await reader.read()
        writer.transport.abort()

    async with sim_engine(**FAST) as engine, scripted_engine(script) as liar:
        await engine.load(MODEL)
        await engine.fault(fault="cut", after_tokens=5, count=1)
        nodes = (
            engine_node("a", engine.address, MODEL),
            engine_node("z", liar.address, MODEL),
        )
        async with gateway_over(*nodes) as (gateway, _, _client):
            got, whole = await twice(gateway, "/api/generate", HEADER)
            assert not whole
            assert b"Something else" not in got
            assert b"z/gpu0 was asked again, but it says something else" in got
            record = gateway.ledger.finished[-1]
            assert (record.state, record.cause) == ("failed", "replay_differed")
            assert gateway.metrics.counted().replays == {"differed": 1}
            failures = gateway.metrics.counted().failures
            assert set(failures) == {("a/simulated-gpu0", "engine_lost")}, "the other only differs"


@pytest.mark.parametrize(
    ("header", "body", "sentence"),
    [
        ("deterministic", {"prompt": "a"}, "needs `temperature` 0 or a `seed`"),
        ("yes", {"prompt": "a", "options": {"seed": 1}}, "expected `deterministic`"),
    ],
)
async def test_what_is_not_reproducible_is_refused(
    header: str, body: dict[str, Any], sentence: str
) -> None:
    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (gateway, _, client):
        reply = await client.post(
            "/api/generate", json={"model": MODEL, **body}, headers={"X-Olol-Replay": header}
        )
        assert reply.status_code == 400
        assert sentence in reply.json()["error"]
        assert gateway.ledger.total == 0
