"""What the gateway answers itself: lists, status, health, the live fleet, and who may ask."""

from __future__ import annotations

import asyncio
import json

import pytest

from olol_tui.fleet.snapshot import decode
from tests.contract.gateway_rig import engine_node, gateway_over
from tests.contract.sim_process import sim_engine

MODEL = "llama3.2:3b"
NODE = engine_node("n1", "127.0.0.1:9", MODEL)


async def test_the_root_says_what_ollamas_clients_look_for() -> None:
    async with gateway_over(NODE) as (_, _, client):
        assert (await client.get("/")).text == "Ollama is running"
        head = await client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.head("/api/tags")).status_code == 200
        assert (await client.head("/api/version")).status_code == 200


async def test_lists_speak_for_the_fleet() -> None:
    other = engine_node("n2", "127.0.0.1:9", MODEL, "qwen3:8b", warm=False)
    async with gateway_over(NODE, other) as (_, _, client):
        tags = (await client.get("/api/tags")).json()["models"]
        assert sorted(m["name"] for m in tags) == [MODEL, "qwen3:8b"]
        ps = (await client.get("/api/ps")).json()["models"]
        assert [(m["name"], m["node"]) for m in ps] == [(MODEL, "n1")]
        ids = [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
        assert ids == [MODEL, "qwen3:8b"]
        assert (await client.get("/v1/models/qwen3%3A8b")).json()["id"] == "qwen3:8b"
        assert (await client.get("/v1/models/none")).status_code == 404
        status = (await client.get("/api/status")).json()
        assert status["server_count"] == 2
        assert status["cloud"] == {"disabled": True, "source": status["cloud"]["source"]}
        assert (await client.get("/health")).json()["status"] == "ok"


async def test_health_is_503_without_an_engine() -> None:
    async with gateway_over() as (_, _, client):
        assert (await client.get("/health")).status_code == 503


async def test_show_comes_from_an_engine_that_has_it() -> None:
    async with (
        sim_engine() as engine,
        gateway_over(engine_node("n1", engine.address, MODEL)) as (_, _, client),
    ):
        shown = (await client.post("/api/show", json={"model": MODEL})).json()
        assert shown["details"]["family"]
        missing = await client.post("/api/show", json={"model": "none"})
        assert missing.status_code == 404


async def test_the_fleet_can_be_read_and_watched() -> None:
    async with gateway_over(NODE) as (_, fleet, client):
        once = decode((await client.get("/olol/v1/fleet")).content)
        assert once.nodes[0].name == "n1"
        async with client.stream("GET", "/olol/v1/fleet?watch=1") as reply:
            lines = reply.aiter_lines()
            first = decode((await anext(lines)).encode())
            fleet.publish(name="renamed")
            async with asyncio.timeout(5):
                second = decode((await anext(lines)).encode())
            assert (first.name, second.name) == ("local", "renamed")
            assert second.seq > first.seq


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example.com"}, 403),
        ({"origin": "https://evil.example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
    ],
)
async def test_a_tricked_browser_is_refused(headers: dict[str, str], status: int) -> None:
    async with gateway_over(NODE) as (_, _, client):
        assert (await client.get("/api/tags", headers=headers)).status_code == status


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_refused_and_closed(raw: bytes) -> None:
    async with gateway_over(NODE) as (gateway, _, _client):
        host, port = gateway.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        writer.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with gateway_over(NODE) as (gateway, _, _client):
        host, port = gateway.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        one = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
        two = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(one + two)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.index(b"version") < answer.index(b"Ollama is running")
        writer.close()


async def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    async with sim_engine(load_bytes_s=1e12) as engine:
        await engine.load(MODEL)
        async with gateway_over(engine_node("n1", engine.address, MODEL)) as (gateway, _, _client):
            host, port = gateway.address.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps({"model": MODEL, "prompt": "a", "options": {"num_predict": 2}})
            writer.write(
                f"POST /api/generate HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            answer = await asyncio.wait_for(reader.read(), 10)
            assert b"chunked" not in answer
            assert answer.rstrip().endswith(b"}")
            assert b'"done":true' in answer
            writer.close()
