"""The only engine that has a model, when it stumbles: whoever waits for it gets it again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from olol_tui.fleet.snapshot import Fleet
from olol_tui.gateway.pulse import Pulse
from olol_tui.gateway.upstream import Call, UpstreamPool, head
from olol_tui.routing.roster import Roster
from tests.contract.fault_rig import Script, is_silent, resets, says, scripted_engine
from tests.contract.gateway_rig import engine_node, eventually, gateway_over

MODEL = "llama3.2:3b"
BODY = {"model": MODEL, "prompt": "hi"}
DONE = b'{"model":"llama3.2:3b","response":"hello","done":true}\n'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s" % (
    len(DONE), DONE,
)  # fmt: skip
SOON_S = 15.0
"""Half of the time after which a request hears that nobody can take it."""


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(WHOLE)
    await writer.drain()


def one_by_one(*scripts: Script) -> Script:
    """A script for each request in turn."""
    turns = iter(scripts)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next(turns)(reader, writer)

    return script


STUMBLES: dict[str, Script] = {
    "it resets the connection": resets,
    "it breaks off in its head": says(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "it says nothing": is_silent,
}


@pytest.mark.parametrize("stumble", STUMBLES)
async def test_a_request_goes_again_to_the_only_engine_that_lives(stumble: str) -> None:
    """It failed the request, it answers what it is, and nobody else has the model."""
    async with scripted_engine(one_by_one(STUMBLES[stumble], answers)) as engine:
        node = engine_node("n1", engine.address, MODEL)
        async with gateway_over(node, load_timeout_s=1.0) as (gateway, _, client):
            async with asyncio.timeout(SOON_S):
                reply = await client.post("/api/generate", json=BODY)
            assert (reply.status_code, reply.content) == (200, DONE)
            (record,) = gateway.ledger.finished
            assert (record.state, record.retries, len(record.tried)) == ("done", 1, 1)
            assert gateway.queue.running == gateway.queue.queued == 0


async def test_an_engine_that_breaks_every_request_is_not_asked_for_ever() -> None:
    async with (
        scripted_engine(resets) as engine,
        gateway_over(engine_node("n1", engine.address, MODEL)) as (gateway, _, client),
    ):
        async with asyncio.timeout(SOON_S):
            reply = await client.post("/api/generate", json=BODY)
        assert reply.status_code == 500
        assert "n1/gpu0" in reply.json()["error"]
        assert gateway.ledger.finished[-1].retries == 2
        assert engine.requests <= 5, "on a connection that was idle a try may take two"


async def test_an_endpoint_that_is_restarted_is_waited_for() -> None:
    """Nobody knows its process: that it is another one shows only in that it answers again."""

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine.stop_listening()
        writer.transport.abort()

    async with scripted_engine(one_by_one(dies, answers)) as engine:
        node = engine_node("n1", engine.address, MODEL)
        node = replace(node, engines=(replace(node.engines[0], kind="endpoint", pid=None),))
        async with gateway_over(node) as (gateway, _, client):
            asked = asyncio.create_task(client.post("/api/generate", json=BODY))
            await eventually(lambda: gateway.queue.queued == 1)
            await engine.listen()
            async with asyncio.timeout(SOON_S):
                assert (await asked).content == DONE


async def test_who_waits_too_long_for_another_engine_gets_its_own_again() -> None:
    """The other one is at work on something endless; ours failed once, and is idle."""
    async with (
        scripted_engine(one_by_one(resets, answers)) as ours,
        scripted_engine(is_silent) as other,
    ):
        busy = engine_node("other", other.address, MODEL)
        async with gateway_over(busy) as (gateway, fleet, client):
            endless = asyncio.create_task(client.post("/api/generate", json=BODY))
            await eventually(lambda: gateway.queue.running == 1)
            fleet.publish(nodes=(busy, engine_node("ours", ours.address, MODEL)))
            async with asyncio.timeout(SOON_S):
                reply = await client.post("/api/generate", json=BODY)
            assert reply.content == DONE
            assert reply.headers["x-olol-engine"].startswith("ours/")
            endless.cancel()
            await asyncio.gather(endless, return_exceptions=True)


async def test_a_request_with_a_deadline_is_tried_again_like_any_other() -> None:
    """It waited in the queue before its first try: it has been in the heap of deadlines."""
    go_on = asyncio.Event()

    async def answers_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await answers(reader, writer)

    # The first reset might be that of an idle connection, which is no failure.
    scripts = one_by_one(answers_late, resets, resets, answers)
    async with (
        scripted_engine(scripts) as engine,
        gateway_over(engine_node("n1", engine.address, MODEL)) as (gateway, _, client),
    ):
        first = asyncio.create_task(client.post("/api/generate", json=BODY))
        await eventually(lambda: engine.requests == 1)
        second = asyncio.create_task(
            client.post("/api/generate", json=BODY, headers={"X-Olol-Deadline-S": "100"})
        )
        await eventually(lambda: gateway.queue.queued == 1)
        go_on.set()
        async with asyncio.timeout(SOON_S):
            replies = await asyncio.gather(first, second)
        assert [reply.content for reply in replies] == [DONE, DONE]
        assert gateway.ledger.finished[-1].retries == 1


async def test_an_engine_is_not_blamed_for_the_time_in_which_we_stood_still() -> None:
    """What it sent meanwhile lies unread: ours was the silence."""

    async def soon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().call_soon(time.sleep, 2.5)
        await asyncio.sleep(0.1)
        await answers(reader, writer)

    async with scripted_engine(soon) as engine:
        node = engine_node("n1", engine.address, MODEL)
        async with gateway_over(node, load_timeout_s=1.0) as (gateway, _, client):
            assert (await client.post("/api/generate", json=BODY)).content == DONE
            (record,) = gateway.ledger.finished
            assert (record.retries, record.tried) == (0, ())
            assert gateway.metrics.counted().failures == {}


async def test_an_engine_that_thawed_is_judged_anew() -> None:
    """It was dead a moment ago: the next request may be silent for as long as any other."""
    loop = asyncio.get_running_loop()
    async with scripted_engine(answers) as engine:
        pool = UpstreamPool()
        pulse = Pulse(pool)
        engine.frozen = True
        fleet = Fleet(nodes=(engine_node("n1", engine.address, MODEL),))
        (seat,) = Roster(fleet, {}).seats(MODEL)
        try:
            began_s = loop.time()
            await eventually(lambda: pulse.is_dead(seat, began_s, loop.time(), 0.3))
            engine.frozen = False
            thawed_s = loop.time()
            assert not pulse.is_dead(seat, thawed_s, loop.time(), 0.3)
            await eventually(lambda: not pulse.is_dead(seat, began_s, loop.time(), 0.3))
            assert not pulse.is_dead(seat, thawed_s, loop.time(), 0.3)
        finally:
            await pulse.close()
            await pool.close()


class _Hears:
    """A receiver that does something in the moment in which its reply is whole."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self._then = then
        self.ended = asyncio.Event()
        self.said = b""

    def up_head(self, status: int, content_type: bytes) -> None:
        pass

    def up_data(self, data: bytes, final: bool) -> None:
        self.said += data

    def up_end(self) -> None:
        self._then()
        self.ended.set()

    def up_lost(self, reason: str) -> None:
        self.ended.set()


async def test_who_has_its_answer_does_not_touch_the_connection_of_the_next() -> None:
    """A question whether an engine lives is answered, its connection goes to a request, and only
    then the one who asked awakes, and is done with it. The request would hear nothing for ever."""
    async with scripted_engine(answers) as engine:
        pool = UpstreamPool()
        payload = head("POST", engine.address, "/api/generate", 2, "application/json") + b"{}"
        second = _Hears()
        calls: list[Call] = []
        first = _Hears(lambda: calls.append(pool.call(engine.address, payload, second)))
        try:
            done = pool.call(engine.address, payload, first)
            await asyncio.wait_for(first.ended.wait(), 10)
            done.pause()
            done.cancel()
            assert calls[0].reused
            await asyncio.wait_for(second.ended.wait(), 10)
            assert second.said == DONE
        finally:
            await pool.close()
