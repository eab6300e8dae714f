"""The list of requests, one with its reasons, its cancel; and what a key sees of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import sim_engine
from tests.contract.test_gateway_keys import door

MODEL = "llama3.2:3b"
SLOW = {"load_bytes_s": 1e12, "decode_tps": 20.0, "prefill_tps": 1e5}


def ask(tokens: int = 3) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", "options": {"num_predict": tokens}}


async def test_a_request_tells_where_it_stands_and_why_and_can_be_cancelled() -> None:
    async with sim_engine(**SLOW) as engine:
        await engine.load(MODEL)
        node = engine_node("n1", engine.address, MODEL, slots=1)
        async with gateway_over(node) as (gateway, _, client):
            async with client.stream("POST", "/api/generate", json=ask(300)) as first:
                lines = first.aiter_lines()
                await anext(lines)
                running = first.headers["x-olol-request"]
                waits = asyncio.create_task(client.post("/api/generate", json=ask()))
                await eventually(lambda: gateway.queue.queued == 1)
                listed = (await client.get("/olol/v1/requests")).json()["requests"]
                assert [one["state"] for one in listed] == ["decode", "queued"]
                queued = listed[1]["id"]
                shown = (await client.get(f"/olol/v1/requests/{queued}")).json()
                assert (shown["position"], shown["state"]) == (1, "queued")
                shown = (await client.get(f"/olol/v1/requests/{running}")).json()
                assert shown["decision"]["chosen"] == "n1/gpu0"
                assert shown["position"] is None
                (candidate,) = shown["decision"]["candidates"]
                assert candidate["where"] == "n1/gpu0"
                assert candidate["ttft_s"] >= candidate["prefill_s"] >= 0
                gone = await client.delete(f"/olol/v1/requests/{queued}")
                assert gone.json() == {"id": queued, "state": "cancelled"}
                assert (await waits).status_code == 499
                again = await client.delete(f"/olol/v1/requests/{queued}")
                assert again.status_code == 409
            assert (await client.get("/olol/v1/requests/r999")).status_code == 404
            assert (await client.post(f"/olol/v1/requests/{queued}")).status_code == 405


async def test_the_reason_comes_in_a_header_for_who_asks() -> None:
    async with sim_engine(**SLOW) as engine:
        await engine.load(MODEL)
        node = engine_node("nöde-1", engine.address, MODEL)
        async with gateway_over(node) as (_, _, client):
            silent = await client.post("/api/generate", json=ask())
            assert "x-olol-why" not in silent.headers
            for path, body in (
                ("/api/generate", ask()),
                ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 2}),
            ):
                told = await client.post(path, json=body, headers={"X-Olol-Why": "1"})
                assert told.headers["x-olol-why"].startswith("n?de-1/gpu0 has llama3.2:3b loaded")


async def test_a_key_sees_and_cancels_its_own_requests_only(tmp_path: Path) -> None:
    async with sim_engine(**SLOW) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            ann, bob = await here.client("ann"), await here.client("bob")
            boss = await here.client("boss", scopes=("admin",))
            async with ann.stream("POST", "/api/generate", json=ask(300)) as reply:
                lines = reply.aiter_lines()
                await anext(lines)
                mine = reply.headers["x-olol-request"]
                at = f"/olol/v1/requests/{mine}"
                listed = {
                    name: [
                        one["client"]
                        for one in (await who.get("/olol/v1/requests")).json()["requests"]
                    ]
                    for name, who in (("ann", ann), ("bob", bob), ("boss", boss))
                }
                assert listed == {"ann": ["ann"], "bob": [], "boss": ["ann"]}
                for method in ("GET", "DELETE"):
                    refused = await bob.request(method, at)
                    unknown = await bob.request(method, "/olol/v1/requests/r999")
                    assert refused.status_code == unknown.status_code == 404
                    assert refused.json()["error"].replace(mine, "r999") == unknown.json()["error"]
                assert (await boss.get(at)).status_code == 200
                assert (await ann.get(at)).json()["client"] == "ann"
                assert (await ann.delete(at)).status_code == 200
