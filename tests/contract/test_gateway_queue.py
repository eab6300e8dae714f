"""The queue as clients and operators meet it, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from olol_tui.fleet.commands import PauseModel
from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import sim_engine
from tests.contract.test_gateway_keys import door

MODEL = "llama3.2:3b"
PACED = {"load_bytes_s": 1e12, "decode_tps": 100.0, "prefill_tps": 1e6}
DIALECTS = {
    "/api/generate": {"model": MODEL, "prompt": "hi"},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages": {
        "model": MODEL,
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "hi"}],
    },
}


def ask(tokens: int = 3) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": "hi",
        "stream": False,
        "options": {"num_predict": tokens, "ignore_eos": True},
    }


def sentence(body: Any) -> str:
    """The message of an error in any dialect."""
    error = body["error"]
    return str(error if isinstance(error, str) else error["message"])


@contextlib.asynccontextmanager
async def held(client: httpx.AsyncClient) -> Any:
    """A request that keeps the one slot until the end of the block."""
    async with client.stream(
        "POST", "/api/generate", json={**ask(10_000), "stream": True}
    ) as reply:
        lines = reply.aiter_lines()
        await anext(lines)
        yield reply


async def test_a_flood_of_one_key_delays_another_by_at_most_one_slot(tmp_path: Path) -> None:
    async with sim_engine(**PACED) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address, max_queue=200) as here:
            flood = await here.client("flood", weight=5.0, priority="batch")
            person = await here.client("person")
            # What the key may not have cannot be asked for.
            batch = [
                asyncio.create_task(
                    flood.post(
                        "/api/generate", json=ask(10), headers={"X-Olol-Class": "interactive"}
                    )
                )
                for _ in range(40)
            ]
            await eventually(lambda: here.gateway.queue.queued >= 39)
            for _ in range(5):
                reply = await person.post("/api/generate", json=ask())
                assert reply.status_code == 200
                assert float(reply.headers["x-olol-queue-wait"]) >= 0
            assert {reply.status_code for reply in await asyncio.gather(*batch)} == {200}
            ended = here.gateway.ledger.finished
            mine = [record for record in ended if record.client == "person"]
            sent = [record.sent_s for record in ended if record.client == "flood"]
            for record in mine:
                assert record.sent_s is not None
                between = [s for s in sent if s and record.arrived_s < s < record.sent_s]
                assert len(between) <= 1, "who waits is served with the next slot"
            assert sum(1 for s in sent if s and s > (mine[-1].ended_s or 0)) > 10


async def test_a_deadline_that_passes_in_the_queue_is_told_in_every_dialect() -> None:
    async with sim_engine(**PACED) as engine:
        await engine.load(MODEL)
        node = engine_node("n1", engine.address, MODEL)
        async with gateway_over(node) as (gateway, _, client), held(client):
            for path, body in DIALECTS.items():
                late = await client.post(path, json=body, headers={"X-Olol-Deadline-S": "0.2"})
                assert late.status_code == 504, path
                assert "its deadline passed after 0." in sentence(late.json())
                assert "waiting for a slot on n1/gpu0" in sentence(late.json())
                assert float(late.headers["x-olol-queue-wait"]) >= 0.2
            assert gateway.ledger.finished[-1].cause == "deadline"
            wrong = await client.post(
                "/api/generate", json=ask(), headers={"X-Olol-Deadline-S": "soon"}
            )
            assert (wrong.status_code, gateway.queue.queued) == (400, 0)
            wrong = await client.post("/api/generate", json=ask(), headers={"X-Olol-Class": "vip"})
            assert wrong.status_code == 400
            # One that is sure to be missed is refused at once: each takes a minute, two wait.
            for _ in range(20):
                gateway.queue.speeds.served("n1/simulated-gpu0", MODEL, service_s=60.0)
            waiting = [asyncio.create_task(client.post("/api/generate", json=ask()))]
            hurried = {"X-Olol-Deadline-S": "9"}
            waiting += [
                asyncio.create_task(client.post("/api/generate", json=ask(), headers=hurried))
            ]
            await eventually(lambda: gateway.queue.queued == 2)
            sure = await client.post("/api/generate", json=ask(), headers=hurried)
            assert sure.status_code == 504
            assert "cannot be met" in sure.json()["error"]
            for task in waiting:
                task.cancel()


async def test_a_key_that_fills_its_part_of_the_queue_is_told_when_to_come_back(
    tmp_path: Path,
) -> None:
    async with sim_engine(**PACED) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address, max_queue=8, max_queue_per_key=2) as here:
            ann, bob = await here.client("ann"), await here.client("bob")
            async with held(ann):
                waiting = [
                    asyncio.create_task(ann.post("/api/generate", json=ask())) for _ in range(2)
                ]
                await eventually(lambda: here.gateway.queue.queued == 2)
                for path, body in DIALECTS.items():
                    busy = await ann.post(path, json=body)
                    assert busy.status_code == 429, path
                    assert int(busy.headers["retry-after"]) >= 1
                    assert "2 requests in the queue, which is its limit" in sentence(busy.json())
                other = asyncio.create_task(bob.post("/api/generate", json=ask()))
                await eventually(lambda: here.gateway.queue.queued == 3)
                for task in (*waiting, other):
                    task.cancel()
            await eventually(lambda: here.gateway.queue.queued == 0)


async def test_operators_pause_and_resume_a_model_and_see_who_waits() -> None:
    async with sim_engine(**PACED) as engine:
        await engine.load(MODEL)
        node = engine_node("n1", engine.address, MODEL, slots=1)
        async with gateway_over(node) as (gateway, fleet, client):
            done = await client.post(f"/olol/v1/models/{MODEL}/pause")
            assert done.json() == {"model": MODEL, "paused": True}
            assert fleet.submitted == [PauseModel(MODEL)]
            waits = [asyncio.create_task(client.post("/api/generate", json=ask()))]
            await eventually(lambda: gateway.queue.queued == 1)
            waits += [
                asyncio.create_task(
                    client.post(
                        "/api/generate",
                        json=ask(),
                        headers={"X-Olol-Class": "batch", "X-Olol-Deadline-S": "60"},
                    )
                )
            ]
            await eventually(lambda: gateway.queue.queued == 2)
            fleet.publish()
            listed = (await client.get("/olol/v1/requests")).json()["requests"]
            assert [one["position"] for one in listed] == [1, 2]
            assert [one["priority"] for one in listed] == ["interactive", "batch"]
            assert "paused by the operator" in listed[0]["why"]
            assert listed[0]["expected_s"] is None
            assert 50 < listed[1]["deadline_s"] <= 60
            (load,) = (one for one in fleet.fleet.gateway.models if one.model == MODEL)
            assert (load.paused, load.queued) == (True, 2)
            done = await client.post(f"/olol/v1/models/{MODEL}/resume")
            assert done.json() == {"model": MODEL, "paused": False}
            assert [reply.status_code for reply in await asyncio.gather(*waits)] == [200, 200]
            assert (await client.post("/olol/v1/models/x")).status_code == 404
            assert (await client.get(f"/olol/v1/models/{MODEL}/pause")).status_code == 405


async def test_a_waiting_request_is_sent_elsewhere() -> None:
    async with sim_engine(**PACED) as one, sim_engine(**PACED) as other:
        await one.load(MODEL)
        await other.load(MODEL)
        nodes = [
            engine_node(name, engine.address, MODEL, slots=1)
            for name, engine in (("a", one), ("b", other))
        ]
        async with (
            gateway_over(*nodes) as (gateway, _, client),
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(2):
                await stack.enter_async_context(held(client))
            waits = asyncio.create_task(client.post("/api/generate", json=ask()))
            await eventually(lambda: gateway.queue.queued == 1)
            listed = (await client.get("/olol/v1/requests")).json()["requests"]
            running = {r["where"]: r["id"] for r in listed if r["state"] == "decode"}
            (queued,) = (r["id"] for r in listed if r["state"] == "queued")
            at = f"/olol/v1/requests/{queued}/reroute"
            for body, status in (
                ({"node": "c"}, 409),
                ({"node": "a", "away": "b"}, 400),
                ({"nodes": "a"}, 400),
            ):
                assert (await client.post(at, json=body)).status_code == status, body
            done = await client.post(at, json={"away": "a"})
            assert done.json() == {"id": queued, "to": "", "away": "a"}
            refused = await client.post(
                f"/olol/v1/requests/{running['a/gpu0']}/reroute", json={"node": "b"}
            )
            assert refused.status_code == 409
            await client.delete(f"/olol/v1/requests/{running['a/gpu0']}")
            await eventually(lambda: gateway.queue.running == 1)
            assert not waits.done(), "a has a free slot, but it was sent away from there"
            await client.post(at, json={"engine": "b/simulated-gpu0"})
            await client.delete(f"/olol/v1/requests/{running['b/gpu0']}")
            reply = await waits
            assert reply.headers["x-olol-engine"] == "b/simulated-gpu0"


async def test_only_an_admins_key_steers_the_queue(tmp_path: Path) -> None:
    async with sim_engine(**PACED) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            ann, boss = await here.client("ann"), await here.client("boss", scopes=("admin",))
            async with held(ann) as reply:
                at = f"/olol/v1/requests/{reply.headers['x-olol-request']}/reroute"
                assert (await ann.post(at, json={"node": "n1"})).status_code == 403
                assert (await boss.post(at, json={"node": "n1"})).status_code == 409
            for verb in ("pause", "resume"):
                path = f"/olol/v1/models/{MODEL}/{verb}"
                assert (await ann.post(path)).status_code == 403
                assert (await boss.post(path)).status_code == 200


@pytest.mark.parametrize("count", [300])
async def test_a_full_queue_refuses_at_once_and_goes_on_afterwards(count: int) -> None:
    async with sim_engine(**PACED) as engine:
        await engine.load(MODEL)
        node = engine_node("n1", engine.address, MODEL, slots=8)
        async with gateway_over(node, max_queue=count) as (gateway, _, client):
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(
                base_url=gateway.address, timeout=60, trust_env=False, limits=limits
            ) as many:
                replies = await asyncio.gather(
                    *(many.post("/api/generate", json=ask(1)) for _ in range(count + 100))
                )
            counted = {s: sum(r.status_code == s for r in replies) for s in (200, 503)}
            assert counted[200] + counted[503] == count + 100
            assert counted[200] >= count * 7 // 8
            assert all("retry-after" in r.headers for r in replies if r.status_code == 503)
            assert (gateway.queue.queued, gateway.queue.running) == (0, 0)
            assert (await client.post("/api/generate", json=ask(1))).status_code == 200
