"""Keys at the gateway's door: who may do what, how much of it, and in whose words a no comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from olol_tui.config import GatewayConfig
from olol_tui.fleet.snapshot import Fleet
from olol_tui.gateway.gateway import Gateway
from olol_tui.gateway.keys import Key, KeyStore
from olol_tui.gateway.routes import INFERENCE
from olol_tui.gateway.scopes import SCOPE_OF, UNDER, need_of
from olol_tui.unixhttp import UnixTransport
from tests.contract.gateway_rig import HandFleet, engine_node, eventually
from tests.contract.sim_process import sim_engine

MODEL = "llama3.2:3b"
FAST = {"load_bytes_s": 1e12, "decode_tps": 200.0, "prefill_tps": 1e5}


def ask(tokens: int = 3) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", "options": {"num_predict": tokens}}


class Door:
    """A gateway with keys, and clients that hold them."""

    def __init__(self, gateway: Gateway, store: KeyStore, stack: contextlib.AsyncExitStack) -> None:
        self.gateway = gateway
        self.store = store
        self._stack = stack

    async def client(self, name: str = "", **key: Any) -> httpx.AsyncClient:
        """A client with a new key of that name; without a name, with none."""
        headers = {}
        if name:
            token = self.store.create(Key(id="", name=name, digest="", **key))
            headers["authorization"] = f"Bearer {token}"
            self.gateway.gate.refresh()
            self.gateway.gate.required = True
        return await self._stack.enter_async_context(
            httpx.AsyncClient(
                base_url=self.gateway.address, timeout=30, trust_env=False, headers=headers
            )
        )


@contextlib.asynccontextmanager
async def door(tmp_path: Path, address: str = "127.0.0.1:9", **config: Any) -> AsyncIterator[Door]:
    store = KeyStore(tmp_path / "keys.json")
    fleet = HandFleet(Fleet(nodes=(engine_node("n1", address, MODEL, "qwen3:8b"),)))
    async with contextlib.AsyncExitStack() as stack:
        gateway = Gateway(GatewayConfig(port=0, **config), fleet, keys=store)
        stack.push_async_callback(gateway.close)
        await gateway.start()
        yield Door(gateway, store, stack)


async def test_the_door_is_open_until_the_first_key_and_closes_without_a_restart(
    tmp_path: Path,
) -> None:
    async with door(tmp_path) as here:
        nobody = await here.client()
        assert (await nobody.get("/api/tags")).status_code == 200
        other_process = KeyStore(tmp_path / "keys.json")
        other_process.create(Key(id="", name="a", digest=""))
        await eventually(lambda: here.gateway.gate.required)
        refused = await nobody.get("/api/tags")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert "API key is required" in refused.json()["error"]
        # What a load balancer and the `ollama` command ask first.
        assert (await nobody.get("/")).text == "Ollama is running"
        assert (await nobody.get("/health")).status_code == 200
        # Revoking the last key must not open it again.
        other_process.revoke("a")
        await asyncio.sleep(1.2)
        assert (await nobody.get("/api/tags")).status_code == 401


@pytest.mark.parametrize(
    ("header", "value"),
    [("authorization", "Bearer {}"), ("authorization", "bearer {}"), ("x-api-key", "{}")],
)
async def test_a_key_comes_as_openais_or_as_anthropics_clients_send_it(
    tmp_path: Path, header: str, value: str
) -> None:
    async with door(tmp_path) as here:
        client = await here.client("a")
        token = client.headers.pop("authorization").removeprefix("Bearer ")
        headers = {header: value.format(token)}
        assert (await client.get("/api/tags", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "Bearer olol_zzzzzzzz_" + "A" * 32,
        "Bearer x",
        "Basic dTpw",
        "Bearer olol_",
        "Bearer olol_\xff\xfe_x",
    ],
)
async def test_what_is_not_a_key_is_no_key(tmp_path: Path, value: str) -> None:
    async with door(tmp_path) as here:
        client = await here.client("a")
        reply = await client.get("/api/tags", headers={"authorization": value.encode("latin-1")})
        assert reply.status_code == 401


async def test_each_dialect_hears_no_in_its_own_words(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        await here.client("a")
        nobody = await here.client()
        ollama = await nobody.post("/api/chat", json={})
        assert (ollama.status_code, list(ollama.json())) == (401, ["error"])
        openai = await nobody.post("/v1/chat/completions", json={})
        assert openai.status_code == 401
        assert openai.json()["error"]["type"] == "authentication_error"
        anthropic = await nobody.post("/v1/messages", json={})
        assert anthropic.json()["type"] == "error"
        assert anthropic.json()["error"]["type"] == "authentication_error"
        head = await nobody.head("/api/tags")
        assert (head.status_code, head.content) == (401, b"")


PATHS = [
    *SCOPE_OF,
    "/v1/models/llama3.2:3b",
    "/api/blobs/sha256:" + "0" * 64,
    "/olol/v1/requests/r1",
    "/olol/v1/requests/r1/reroute",
    "/olol/v1/models/llama3.2:3b/pause",
    "/olol/v1/models/llama3.2:3b/resume",
    "/api/unheard-of",
    "/v1/unheard-of",
    "/olol/v1/unheard-of",
    "/api/me",
    "/admin",
    "/api/%64elete",
    "/api/tags/../delete",
]  # fmt: skip
READABLE = sorted(
    path for path, need in SCOPE_OF.items() if need in ("open", "read") and path != "/api/show"
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")
ALLOWED = {
    "user": {"open", "infer", "read", "own"},
    "infer": {"open", "infer", "own"},
    "read": {"open", "read", "own"},
    "admin": {"open", "infer", "read", "own", "admin"},
}


async def test_the_full_matrix_of_paths_methods_and_scopes(tmp_path: Path) -> None:
    """A user key cannot pull, delete, see the fleet or reach a path that nobody thought of."""
    async with door(tmp_path) as here:
        clients = {
            "user": await here.client("user"),
            "infer": await here.client("infer", scopes=("infer",)),
            "read": await here.client("read", scopes=("read",)),
            "admin": await here.client("admin", scopes=("admin",)),
        }
        nobody = await here.client()
        for path in PATHS:
            for method in METHODS:
                need = need_of(httpx.URL(path).path if "%" in path else path)
                reply = await nobody.request(method, path)
                assert (reply.status_code == 401) == (need != "open"), (method, path)
                for holder, client in clients.items():
                    reply = await client.request(method, path)
                    if need not in ALLOWED[holder]:
                        assert reply.status_code == 403, (method, path, holder)
                    else:
                        # Some paths are refused to everybody, in other words.
                        assert reply.status_code != 401, (method, path, holder)
                        assert "lacks the scope" not in reply.text, (method, path, holder)


async def test_every_route_of_the_gateway_is_in_the_table(tmp_path: Path) -> None:
    """A new route that nobody gave a scope must be noticed here, not by a stranger."""
    async with door(tmp_path) as here:
        routes = {*INFERENCE, *here.gateway.api.paths}
        assert {path for path in routes if path not in SCOPE_OF} == set()
        assert {path for path in INFERENCE if need_of(path) != "infer"} == set()
        # What the matrix asks is every path there is, also those that begin in some way.
        assert {path for path in routes if path not in PATHS} == set()
        for start, _need in UNDER:
            assert any(path.startswith(start) for path in PATHS), start


async def test_a_key_without_its_model_is_refused_before_anybody_says_what_exists(
    tmp_path: Path,
) -> None:
    async with sim_engine(**FAST) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            client = await here.client("a", models=("llama3*",))
            assert (await client.post("/api/generate", json=ask())).status_code == 200
            for model in ("qwen3:8b", "not-there"):
                reply = await client.post("/api/generate", json={**ask(), "model": model})
                assert reply.status_code == 403
                assert "may not use the model" in reply.json()["error"]


async def test_a_key_for_some_models_sees_no_others(tmp_path: Path) -> None:
    async with sim_engine(**FAST) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            some = await here.client("some", models=("llama3*",))
            every = await here.client("every")
            for path in READABLE:
                seen, all_of_it = await some.get(path), await every.get(path)
                assert all_of_it.status_code == 200, path
                if path == "/metrics":
                    assert seen.status_code == 403
                    continue
                assert seen.status_code == 200, path
                assert "qwen3" not in seen.text, path
            for path in ("/api/tags", "/api/ps", "/v1/models", "/api/models", "/api/servers"):
                assert MODEL in (await some.get(path)).text, path
                assert "qwen3:8b" in (await every.get(path)).text, path
            hidden = await some.get("/v1/models/qwen3:8b")
            absent = await some.get("/v1/models/absent")
            assert (hidden.status_code, absent.status_code) == (404, 404)
            assert (await some.get(f"/v1/models/{MODEL}")).status_code == 200
            for model, status in ((MODEL, 200), ("qwen3:8b", 404), ("absent", 404)):
                shown = await some.post("/api/show", json={"model": model})
                assert shown.status_code == status, model
            hidden = await some.post("/api/show", json={"model": "qwen3:8b"})
            absent = await some.post("/api/show", json={"model": "absent"})
            assert hidden.text.replace("qwen3:8b", "absent") == absent.text, "not even a hint"


async def test_requests_a_minute(tmp_path: Path) -> None:
    async with sim_engine(**FAST) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            client = await here.client("a", requests_per_min=3)
            other = await here.client("b")
            codes = [(await client.post("/api/generate", json=ask())).status_code for _ in range(4)]
            assert codes == [200, 200, 200, 429]
            body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
            refused = await client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 20
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert (await client.get("/api/tags")).status_code == 200, "only work is rated"
            assert (await other.post("/api/generate", json=ask())).status_code == 200


async def test_tokens_a_minute_are_paid_afterwards(tmp_path: Path) -> None:
    async with sim_engine(**FAST) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            client = await here.client("a", tokens_per_min=30)
            assert (await client.post("/api/generate", json=ask(60))).status_code == 200
            refused = await client.post("/api/generate", json=ask())
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 30, "a reply beyond the limit is a debt"


async def test_requests_at_once_and_what_a_bad_body_costs(tmp_path: Path) -> None:
    async with sim_engine(**{**FAST, "decode_tps": 20.0}) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            client = await here.client("a", concurrency=1)
            for bad in (b"{", b'{"model":"llama3.2:3b","options":{"num_ctx":"x"}}'):
                assert (await client.post("/api/generate", content=bad)).status_code == 400
            assert not here.gateway.ledger.live
            async with client.stream("POST", "/api/generate", json=ask(200)) as reply:
                lines = reply.aiter_lines()
                await anext(lines)
                assert (await client.post("/api/generate", json=ask())).status_code == 429
            await eventually(lambda: not here.gateway.ledger.live)
            assert (await client.post("/api/generate", json=ask())).status_code == 200


async def test_connections_of_one_key_are_bounded(tmp_path: Path) -> None:
    async with door(tmp_path, max_connections_per_key=2) as here:
        client = await here.client("a")
        other = await here.client("b")
        host, port = here.gateway.address.removeprefix("http://").split(":")
        line = f"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nAuthorization: {client.headers['authorization']}\r\n\r\n"
        kept = []
        for wanted in (b"200", b"200", b"429"):
            reader, writer = await asyncio.open_connection(host, int(port))
            kept.append(writer)
            writer.write(line.encode())
            assert (await reader.readline()).split()[1] == wanted
        assert (await other.get("/api/tags")).status_code == 200
        for writer in kept:
            writer.close()
        async with asyncio.timeout(10):
            while (await client.get("/api/tags")).status_code != 200:
                await asyncio.sleep(0.02)


async def test_a_revoked_key_ends_its_requests(tmp_path: Path) -> None:
    async with sim_engine(**{**FAST, "decode_tps": 20.0}) as engine:
        await engine.load(MODEL)
        async with door(tmp_path, engine.address) as here:
            client = await here.client("a")
            with pytest.raises(httpx.RemoteProtocolError):
                async with client.stream("POST", "/api/generate", json=ask(500)) as reply:
                    lines = reply.aiter_lines()
                    await anext(lines)
                    assert here.gateway.view()[0][-1].client == "a"
                    here.store.revoke("a")
                    last = ""
                    async for line in lines:
                        last = line
                        assert "done_reason" not in line
            assert "not valid any more" in json.loads(last)["error"]
            assert (await client.get("/api/tags")).status_code == 401


async def test_a_user_key_does_not_unload_the_model_of_others(tmp_path: Path) -> None:
    async with sim_engine(**FAST) as engine, door(tmp_path, engine.address) as here:
        user, admin = await here.client("a"), await here.client("b", scopes=("admin",))
        body = {"model": MODEL, "keep_alive": 0}
        refused = await user.post("/api/generate", json=body)
        assert refused.status_code == 403
        assert (await admin.post("/api/generate", json=body)).status_code == 200
        assert not here.gateway.ledger.live


async def test_a_body_without_a_key_is_not_read(tmp_path: Path) -> None:
    """Whoever has no key must not make the gateway hold 100 MB for them."""
    async with door(tmp_path) as here:
        await here.client("a")
        host, port = here.gateway.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"Connection: close" in answer
        writer.close()


async def test_the_control_socket_needs_no_key(tmp_path: Path) -> None:

    async with door(tmp_path) as here:
        await here.client("a")
        path = tmp_path / "control.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.setblocking(False)
        await here.gateway.serve_control(listener)
        async with httpx.AsyncClient(
            transport=UnixTransport(path), base_url="http://localhost", trust_env=False
        ) as operator:
            assert (await operator.get("/olol/v1/fleet")).status_code == 200
            assert (await operator.get("/api/tags")).status_code == 200
