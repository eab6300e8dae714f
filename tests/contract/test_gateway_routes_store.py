"""What changes stores, through the gateway: every store, one progress, and who failed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from olol_tui.fleet.snapshot import Node
from olol_tui.gateway.archive import Archive, read
from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import SimEngine, sim_engine

MODEL = "llama3.2:3b"
NEW = "tinyllama:1.1b"
"""Only in the pretended registry: in no store before a pull."""
CONFIG: dict[str, Any] = {"pull_bytes_s": 2e9, "load_bytes_s": 1e12, "models": [MODEL]}


@pytest.fixture
async def one() -> AsyncIterator[SimEngine]:
    async with sim_engine(**CONFIG) as engine:
        yield engine


@pytest.fixture
async def two() -> AsyncIterator[SimEngine]:
    async with sim_engine(**CONFIG) as engine:
        yield engine


def node(name: str, engine: SimEngine, *models: str) -> Node:
    return engine_node(name, engine.address, *(models or (MODEL,)), warm=False)


async def names(engine: SimEngine) -> set[str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.get(f"http://{engine.address}/api/tags")
    return {model["name"] for model in reply.json()["models"]}


def lines(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in reply.text.splitlines()]


def blob(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# -- pull


async def test_a_pull_reaches_every_store_and_is_told_as_one(
    one: SimEngine, two: SimEngine
) -> None:
    async with gateway_over(node("n1", one), node("n2", two)) as (_, fleet, client):
        reply = await client.post("/api/pull", json={"model": "tinyllama:1.1b"})
        assert reply.headers["content-type"] == "application/x-ndjson"
        said = lines(reply)
        assert [line["status"] for line in said if "digest" not in line] == [
            "pulling manifest",
            "verifying sha256 digest",
            "writing manifest",
            "success",
        ]
        totals: dict[str, set[int]] = {}
        for line in said:
            if "digest" in line:
                totals.setdefault(line["digest"], set()).add(line["total"])
        assert len(totals) == 4 and all(len(each) == 1 for each in totals.values())
        big = max(totals, key=lambda digest: max(totals[digest]))
        completed = [line.get("completed", 0) for line in said if line.get("digest") == big]
        assert completed == sorted(set(completed)) and completed[-1] == max(totals[big])
        assert NEW in await names(one) and NEW in await names(two)
        # Whoever heard the success may ask at once.
        assert fleet.surveyed.count("n1") == fleet.surveyed.count("n2") == 1
        assert NEW in {m["name"] for m in (await client.get("/api/tags")).json()["models"]}


async def test_a_pull_without_stream_answers_with_the_last_object(
    one: SimEngine, two: SimEngine
) -> None:
    async with gateway_over(node("n1", one), node("n2", two)) as (_, _, client):
        reply = await client.post("/api/pull", json={"name": NEW, "stream": False})
        assert reply.headers["content-type"].startswith("application/json")
        assert (reply.status_code, reply.json()) == (200, {"status": "success"})
        failed = await client.post("/api/pull", json={"model": "no-such", "stream": False})
        assert failed.status_code == 500
        assert failed.json() == {"error": "pull model manifest: file does not exist"}


async def test_engines_of_one_node_share_a_store_and_pull_once(one: SimEngine) -> None:
    async with sim_engine(**CONFIG) as twin:
        shared = node("n1", one)
        second = replace(shared.engines[0], id="n1/simulated-gpu1", address=twin.address)
        both = replace(shared, engines=(*shared.engines, second))
        async with gateway_over(both) as (_, _, client):
            reply = await client.post("/api/pull", json={"model": NEW})
            assert lines(reply)[-1] == {"status": "success"}
        assert NEW in await names(one)
        assert NEW not in await names(twin)


async def test_a_store_that_fails_is_named_and_the_other_goes_on(
    one: SimEngine, two: SimEngine
) -> None:
    await two.fault(fault="500", scope="store", after_tokens=2)
    async with gateway_over(node("n1", one), node("n2", two)) as (_, _, client):
        said = lines(await client.post("/api/pull", json={"model": NEW}))
        assert said[-1] == {
            "error": "pull failed on n2: simulated fault (it succeeded on n1)",
        }
        assert {"status": "success"} not in said
        assert NEW in await names(one)
        whole = await client.post("/api/pull", json={"model": NEW, "stream": False})
        assert whole.status_code == 500 and "n2" in whole.json()["error"]


async def test_a_store_that_dies_is_named(one: SimEngine) -> None:
    async with (
        sim_engine(**CONFIG | {"pull_bytes_s": 1e8}) as slow,
        gateway_over(node("n1", one), node("n2", slow)) as (_, _, client),
    ):
        said: list[dict[str, Any]] = []
        async with client.stream("POST", "/api/pull", json={"model": NEW}) as reply:
            async for line in reply.aiter_lines():
                said.append(json.loads(line))
                if len(said) == 5:
                    slow.process.kill()
        assert "n2: upstream lost" in said[-1]["error"]
        assert "succeeded on n1" in said[-1]["error"]


async def test_a_client_that_leaves_ends_the_pull_everywhere() -> None:
    slow = CONFIG | {"pull_bytes_s": 1e7}
    async with (
        sim_engine(**slow) as one,
        sim_engine(**slow) as two,
        gateway_over(node("n1", one), node("n2", two)) as (_, fleet, client),
    ):
        async with client.stream("POST", "/api/pull", json={"model": NEW}) as reply:
            async for line in reply.aiter_lines():
                if json.loads(line).get("completed"):
                    break
        await one.until(cancelled=1)
        await two.until(cancelled=1)
        waiting = asyncio.create_task(
            client.post("/api/pull", json={"model": NEW, "stream": False})
        )
        await asyncio.sleep(0.2)
        waiting.cancel()
        await one.until(cancelled=2)
        await two.until(cancelled=2)
        assert not fleet.surveyed


async def test_stores_that_cannot_be_asked_or_want_nothing_are_left_out(
    one: SimEngine, two: SimEngine
) -> None:
    lost = replace(node("n2", two), state="lost")
    async with gateway_over(node("n1", one), lost) as (_, _, client):
        said = lines(await client.post("/api/pull", json={"model": NEW}))
        assert {"status": "skipping n2: the node is lost"} in said
        assert said[-1] == {"status": "success"}
    cordoned = replace(node("n1", one), cordoned=True)
    async with gateway_over(cordoned) as (_, _, client):
        assert (await client.post("/api/pull", json={"model": NEW})).status_code == 503
    async with gateway_over(lost) as (_, _, client):
        reply = await client.post("/api/pull", json={"model": NEW})
        assert (reply.status_code, "n2: the node is lost" in reply.text) == (503, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"[]", 400), (b"{}", 400), (b'{"model":5}', 400), (b'{"model":"a b"}', 400),
     (b'{"model":"gpt-oss:120b-cloud"}', 403)],
)  # fmt: skip
async def test_pulls_that_make_no_sense(one: SimEngine, body: bytes, status: int) -> None:
    async with gateway_over(node("n1", one)) as (_, _, client):
        reply = await client.post("/api/pull", content=body)
        assert (reply.status_code, list(reply.json())) == (status, ["error"])


ELSEWHERE = [
    ("evil.example/library/llama3", 403),
    ("127.0.0.1:11434/library/llama3", 403),
    ("169.254.169.254/latest/meta-data", 403),
    ("localhost:8080/a/b:c", 403),
    ("http://registry.ollama.ai/library/llama3", 400),
    ("file:///etc/passwd", 400),
    ("../../etc/passwd", 400),
    ("a/b/c/d/e", 400),
    ("registry.ollama.ai/library/../../x", 400),
    ("llama3:../../x", 400),
    ("llama3\nHost: x", 400),
    ("llama3 --flag", 400),
    ("l\u0131ama3", 400),
    ("x" * 400, 400),
]


async def test_no_name_leads_an_engine_elsewhere(one: SimEngine) -> None:
    asked_before = (await one.stats())["requests"]
    async with gateway_over(node("n1", one)) as (_, _, client):
        for name, status in ELSEWHERE:
            pulled = await client.post("/api/pull", json={"model": name})
            assert (pulled.status_code, list(pulled.json())) == (status, ["error"]), name
            made = await client.post("/api/create", json={"model": "own", "from": name})
            assert made.status_code == status, name
        insecure = await client.post("/api/pull", json={"model": "tinyllama", "insecure": True})
        assert insecure.status_code == 403 and "insecure" in insecure.json()["error"]
    assert (await one.stats())["requests"] == asked_before
    lan = {"registries": ["http://registry.lan:5000"]}
    async with gateway_over(node("n1", one), **lan) as (_, _, client):
        body = {"model": "registry.lan:5000/a/b", "insecure": True, "stream": False}
        assert (await client.post("/api/pull", json=body)).status_code != 403
        assert (await client.post("/api/pull", json={"model": "tinyllama"})).status_code == 403


async def test_what_changed_a_store_is_on_record(one: SimEngine, tmp_path: Path) -> None:
    archive = Archive(
        tmp_path / "requests.db", max_rows=100, max_age_s=1e6, access_log=str(tmp_path / "log")
    )
    archive.start()
    data = b"GGUF" + bytes(2000)
    async with gateway_over(node("n1", one)) as (gateway, _, client):
        gateway.archive = archive
        await client.post("/api/pull", json={"model": NEW})
        await client.post("/api/pull", json={"model": "absent-in-the-registry"})
        await client.post(f"/api/blobs/{blob(data)}", content=data)
        await client.post(f"/api/blobs/{blob(b'other')}", content=data)
        body = {"model": "own", "files": {"m.gguf": blob(data)}, "stream": False}
        await client.post("/api/create", json=body)
        await client.post("/api/push", json={"model": "own"})
        await client.post("/api/copy", json={"source": "own", "destination": "own2"})
        await client.request("DELETE", "/api/delete", json={"model": "own"})
        await client.request("DELETE", "/api/delete", json={"model": "none"})
        await client.post("/api/generate", json={"model": MODEL, "prompt": "a"})
    await asyncio.to_thread(archive.close)
    rows = read(tmp_path / "requests.db")
    assert [(row["path"], row["model"], row["state"], row["status"]) for row in rows] == [
        ("/api/pull", NEW, "done", 200),
        ("/api/pull", "absent-in-the-registry", "failed", 500),
        (f"/api/blobs/{blob(data)}", blob(data), "done", 201),
        (f"/api/blobs/{blob(b'other')}", blob(b"other"), "failed", 400),
        ("/api/create", "own", "done", 200),
        ("/api/push", "own", "done", 200),
        ("/api/copy", "own", "done", 200),
        ("/api/delete", "own", "done", 200),
        ("/api/delete", "none", "failed", 404),
        ("/api/generate", MODEL, "done", 200),
    ]
    assert all(row["total_s"] is not None and row["client"] == "127.0.0.1" for row in rows)
    assert rows[0]["place"] == "n1" and "digest mismatch" in str(rows[3]["error"])
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [one["method"] for one in logged].count("DELETE") == 2


# -- delete, copy, push


async def test_delete_is_everywhere_and_404_only_when_nobody_had_it(
    one: SimEngine, two: SimEngine
) -> None:
    async with gateway_over(node("n1", one), node("n2", two)) as (_, _, client):
        for engine in (one, two):
            async with httpx.AsyncClient(trust_env=False) as direct:
                copy = {"source": MODEL, "destination": "extra"}
                await direct.post(f"http://{engine.address}/api/copy", json=copy)
        for _ in range(2):
            reply = await client.request("DELETE", "/api/delete", json={"model": "extra"})
            assert await names(one) == await names(two) == {MODEL}
        assert reply.status_code == 404
        assert reply.json() == {"error": "model 'extra' not found"}
        only = {"source": MODEL, "destination": "single"}
        async with httpx.AsyncClient(trust_env=False) as direct:
            await direct.post(f"http://{two.address}/api/copy", json=only)
        reply = await client.request("DELETE", "/api/delete", json={"name": "single"})
        assert (reply.status_code, reply.content) == (200, b"")


async def test_a_delete_that_left_a_copy_says_where(one: SimEngine, two: SimEngine) -> None:
    async with gateway_over(node("n1", one), node("n2", two)) as (_, fleet, client):
        await two.fault(fault="500", scope="store", count=1)
        reply = await client.request("DELETE", "/api/delete", json={"model": MODEL})
        assert reply.status_code == 500
        assert reply.json()["error"] == (
            "delete failed on n2: simulated fault (it succeeded on n1)"
        )
        nodes = (fleet.fleet.nodes[0], replace(fleet.fleet.nodes[1], state="lost"))
        fleet.publish(nodes=nodes)
        reply = await client.request("DELETE", "/api/delete", json={"model": MODEL})
        assert "n2: the node is lost" in reply.json()["error"]


async def test_copy_goes_where_the_source_is(one: SimEngine, two: SimEngine) -> None:
    async with gateway_over(node("n1", one), node("n2", two, "other:1b")) as (_, _, client):
        reply = await client.post("/api/copy", json={"source": MODEL, "destination": "mine"})
        assert (reply.status_code, reply.content) == (200, b"")
        assert "mine:latest" in await names(one)
        assert "mine:latest" not in await names(two)
        missing = await client.post("/api/copy", json={"source": "none", "destination": "x"})
        assert (missing.status_code, missing.json()) == (404, {"error": 'model "none" not found'})
        wrong = await client.post("/api/copy", json={"source": MODEL, "destination": "a b"})
        assert wrong.status_code == 400


async def test_push_comes_from_one_store(one: SimEngine, two: SimEngine) -> None:
    async with gateway_over(node("n1", two, "x:1b"), node("n2", one)) as (_, _, client):
        said = lines(await client.post("/api/push", json={"model": MODEL}))
        assert said[0] == {"status": "retrieving manifest"}
        assert said[-1] == {"status": "success"}
        assert (await client.post("/api/push", json={"model": "none"})).status_code == 404


# -- blobs and create


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_blob_lands_in_one_store_and_the_model_beside_it(
    one: SimEngine, two: SimEngine, chunked: bool
) -> None:
    weights, adapter = b"GGUF" + bytes(5_000_000), b"GGLA" + bytes(70_000)

    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), 65_537):
            yield data[at : at + 65_537]

    async with gateway_over(node("n1", one), node("n2", two)) as (_, _, client):
        for data in (weights, adapter):
            path = f"/api/blobs/{blob(data)}"
            assert (await client.head(path)).status_code == 404
            sent = await client.post(path, content=pieces(data) if chunked else data)
            assert (sent.status_code, sent.content) == (201, b"")
            assert (await client.head(path)).status_code == 200
            # It is there: the answer does not wait for the body, and is not lost with it.
            again = await client.post(path, content=pieces(data) if chunked else data)
            assert again.status_code == 200
        assert (await one.stats())["blob_bytes"] == len(weights) + len(adapter)
        assert (await two.stats())["blob_bytes"] == 0
        made = await client.post(
            "/api/create",
            json={"model": "own", "files": {"m.gguf": blob(weights)},
                  "adapters": {"a.gguf": blob(adapter)}, "system": "Be brief."},
        )  # fmt: skip
        assert lines(made)[-1] == {"status": "success"}
        asked = {"model": "own", "prompt": "Hi", "options": {"num_predict": 2}, "stream": False}
        assert (await client.post("/api/generate", json=asked)).json()["done"] is True


async def test_blobs_are_found_again_by_a_gateway_that_forgot(
    one: SimEngine, two: SimEngine
) -> None:
    data = b"GGUF" + bytes(1000)
    async with httpx.AsyncClient(trust_env=False) as direct:
        await direct.post(f"http://{two.address}/api/blobs/{blob(data)}", content=data)
    async with gateway_over(node("n1", one), node("n2", two)) as (_, _, client):
        made = {"model": "own", "files": {"m.gguf": blob(data)}, "stream": False}
        assert (await client.post("/api/create", json=made)).json() == {"status": "success"}
    assert "own:latest" in await names(two)
    async with gateway_over(node("n1", one), node("n2", two)) as (_, _, client):
        assert (await client.head(f"/api/blobs/{blob(data)}")).status_code == 200
        other = data + b"x"
        await client.post(f"/api/blobs/{blob(other)}", content=other)
    assert (await one.stats())["blob_bytes"] == 0, "this client's blobs lie on n2"


async def test_a_blob_that_is_another_never_reaches_its_end(one: SimEngine) -> None:
    async with gateway_over(node("n1", one)) as (_, _, client):
        path = f"/api/blobs/{blob(b'a')}"
        wrong = await client.post(path, content=bytes(300_000))
        assert wrong.status_code == 400
        assert wrong.json()["error"].startswith(f'digest mismatch, expected "{blob(b"a")}"')
        assert (await client.head(path)).status_code == 404
        assert (await one.stats())["blob_bytes"] < 300_000
        for bad in ("sha256:12", "md5:" + "0" * 64, "..%2f..%2fetc"):
            refused = await client.post(f"/api/blobs/{bad}", content=b"x")
            assert (refused.status_code, refused.json()) == (
                400,
                {"error": "invalid digest format"},
            )
        empty = await client.post(f"/api/blobs/{blob(b'')}", content=b"")
        assert empty.status_code == 201


async def test_expect_100_continue_is_answered_at_once(one: SimEngine) -> None:
    data = bytes(100_000)
    async with gateway_over(node("n1", one)) as (gateway, _, _client):
        host, port = gateway.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/blobs/{blob(data)} HTTP/1.1\r\nHost: x.local\r\n"
        head += f"Content-Length: {len(data)}\r\nExpect: 100-continue\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(data)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 Created")
            # The connection goes on: nothing of the body was left in it.
            writer.write(b"GET /api/version HTTP/1.1\r\nHost: x.local\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_slow_store_slows_the_client_and_memory_stays(one: SimEngine) -> None:
    """Back-pressure: what the gateway holds of a blob does not grow with the blob."""
    async with (
        sim_engine(**CONFIG | {"blob_bytes_s": 4e6}) as slow,
        gateway_over(node("n1", slow)) as (gateway, _, _client),
    ):
        host, port = gateway.address.removeprefix("http://").split(":")
        _reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/blobs/{blob(b'?')} HTTP/1.1\r\nHost: x.local\r\n"
        writer.write((head + "Content-Length: 40000000000\r\n\r\n").encode())
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                while True:
                    writer.write(bytes(262_144))
                    await writer.drain()
                    sent += 262_144
        taken = (await slow.stats())["blob_bytes"]
        # All that lies between the two: the kernel's socket buffers and a few pieces.
        assert taken > 1_000_000
        assert sent - taken < 32_000_000, f"{sent} sent, {taken} taken"
        writer.transport.abort()
        await slow.until(cancelled=1)


async def test_a_store_that_fails_in_mid_blob_is_told(one: SimEngine) -> None:
    async with gateway_over(node("n1", one)) as (_, _, client):
        data = bytes(4_000_000)
        await one.fault(fault="500", scope="store", count=1)
        reply = await client.post(f"/api/blobs/{blob(data)}", content=data)
        assert (reply.status_code, reply.json()) == (500, {"error": "simulated fault"})
        await one.fault(fault="cut", scope="store", count=1)
        reply = await client.post(f"/api/blobs/{blob(data)}", content=data)
        assert (reply.status_code, "upstream lost: n1" in reply.text) == (500, True)
        assert (await client.post(f"/api/blobs/{blob(data)}", content=data)).status_code == 201


async def test_a_client_that_leaves_in_mid_blob_is_noticed(one: SimEngine) -> None:
    async with gateway_over(node("n1", one)) as (gateway, _, _client):
        host, port = gateway.address.removeprefix("http://").split(":")
        _reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/blobs/{blob(b'?')} HTTP/1.1\r\nHost: x.local\r\n"
        writer.write((head + "Content-Length: 1000000\r\n\r\n").encode() + bytes(500_000))
        await eventually(lambda: gateway.connections >= 1)
        async with asyncio.timeout(10):
            while not (await one.stats())["blob_bytes"]:
                await asyncio.sleep(0.02)
        writer.close()
        await one.until(cancelled=1)


async def test_create_from_a_model_goes_where_that_is(one: SimEngine, two: SimEngine) -> None:
    async with gateway_over(node("n1", two, "x:1b"), node("n2", one)) as (_, _, client):
        made = {"model": "mine", "from": MODEL, "system": "Be brief.", "stream": False}
        assert (await client.post("/api/create", json=made)).json() == {"status": "success"}
        assert "mine:latest" in await names(one)
        bad = await client.post("/api/create", json={"model": "mine", "files": {"a": "b"}})
        assert (bad.status_code, bad.json()) == (400, {"error": "invalid digest format"})
        nothing = await client.post("/api/create", json={"model": "mine"})
        assert nothing.status_code == 400 and "neither 'from'" in nothing.json()["error"]
        cloud = await client.post("/api/create", json={"model": "m", "from": "gpt-oss:120b-cloud"})
        assert cloud.status_code == 403


# -- what has no store, and what is not ours to answer


async def test_a_fleet_of_files_says_that_it_has_no_store(one: SimEngine) -> None:
    bare = node("n1", one)
    library = tuple(replace(model, path="/models/m.gguf") for model in bare.library)
    files = replace(bare, engines=(), library=library, runner="embedded")
    digest = blob(b"a")
    async with gateway_over(files) as (_, _, client):
        for method, path, body in (
            ("POST", "/api/pull", {"model": NEW}),
            ("POST", "/api/create", {"model": NEW, "from": MODEL}),
            ("DELETE", "/api/delete", {"model": MODEL}),
            ("POST", f"/api/blobs/{digest}", {}),
        ):
            reply = await client.request(method, path, json=body)
            assert (reply.status_code, "GGUF" in reply.json()["error"]) == (501, True)
        assert (await client.head(f"/api/blobs/{digest}")).status_code == 501
    async with gateway_over(files, node("n2", one, "x:1b")) as (_, _, client):
        reply = await client.request("DELETE", "/api/delete", json={"model": MODEL})
        assert reply.status_code == 501
        assert "/models/m.gguf on n1" in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/me"),
        ("POST", "/api/signout"),
        ("DELETE", "/api/user/keys/abc"),
        ("POST", "/api/experimental/web_search"),
        ("GET", "/api/experimental/model-recommendations"),
    ],
)
async def test_cloud_and_account_routes_are_refused_with_a_reason(method: str, path: str) -> None:
    async with gateway_over() as (_, _, client):
        reply = await client.request(method, path, json={})
        assert reply.status_code == 403
        assert "disabled" in reply.json()["error"]
        assert (await client.get("/api/metadata")).status_code == 404


# -- the official client


async def test_the_ollama_client_manages_models(one: SimEngine, two: SimEngine) -> None:
    async with gateway_over(node("n1", one), node("n2", two)) as (gateway, _, _client):
        client = ollama.AsyncClient(host=gateway.address)
        async with client._client:
            statuses = [part.status async for part in await client.pull(NEW, stream=True)]
            assert statuses[0] == "pulling manifest" and statuses[-1] == "success"
            with pytest.raises(ollama.ResponseError, match="file does not exist"):
                await client.pull("no-such-model")
            await client.copy(NEW, "mine")
            assert {"mine:latest", NEW} <= {m.model for m in (await client.list()).models}
            made = await client.create("brief", from_="mine", system="Be brief.")
            assert made.status == "success"
            pushed = [part.status async for part in await client.push("mine", stream=True)]
            assert pushed[-1] == "success"
            assert (await client.delete("mine")).status == "success"
            with pytest.raises(ollama.ResponseError) as missing:
                await client.delete("mine")
            assert missing.value.status_code == 404
