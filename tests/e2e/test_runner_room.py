"""Engines that serve one model a process, on a device that has room for one model: who goes,
who stays, and what the client is told; with real llama.cpp and real small models."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from olol_tui.fleet.commands import SetPin
from olol_tui.fleet.snapshot import Engine, Fleet
from tests.at_hand import LLAMA_SERVER, gemma, needs_embedded, needs_llama_server, needs_models
from tests.contract.serve_rig import Instance
from tests.e2e.cluster import BOUND_S, Operator, instance, operator

SMALL, BIG = "smollm2:135m", "gemma:latest"
LIMIT = "400MiB"
"""Each of the two fits, with some thousand tokens of context; both do not."""

pytestmark = [pytest.mark.timeout(300), needs_models]
KINDS = [
    pytest.param("embedded", marks=[pytest.mark.embedded, needs_embedded]),
    pytest.param("llama-server", marks=[pytest.mark.llama_server, needs_llama_server]),
]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, big: Path) -> Iterator[Instance]:
    config = f"""
[nodes.local]
local = true
engine = "{request.param}"
num_ctx = 512
vram_limit = "{LIMIT}"
{f"binary = {json.dumps(LLAMA_SERVER)}" if request.param == "llama-server" else ""}

[models."{BIG}"]
path = {json.dumps(str(big))}
"""
    # Not pytest's own directory: a UNIX socket's path must stay under 108 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="olol-room-") as place,
        instance(Path(place) / "s", config) as one,
    ):
        one.serve()
        yield one


@dataclass
class Client:
    ops: Operator
    http: httpx.AsyncClient

    async def generate(
        self, model: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        options = {"temperature": 0, "num_predict": 4, **more.pop("options", {})}
        body = {"model": model, "prompt": "The sea", "raw": True, "stream": False, **more}
        asked = {"X-Olol-Why": "1", **(headers or {})}
        reply = await self.http.post(
            "/api/generate", json={**body, "options": options}, headers=asked
        )
        if not headers:
            assert reply.status_code == 200, reply.text
            assert reply.json()["eval_count"] > 0, reply.text
        return reply

    @asynccontextmanager
    async def stream(self, model: str, tokens: int) -> AsyncIterator[list[dict[str, Any]]]:
        """A stream under way; its lines are whole when this is left."""
        lines: list[dict[str, Any]] = []
        began = asyncio.Event()
        body = {"model": model, "prompt": "The sea", "raw": True}
        options = {"temperature": 0, "num_predict": tokens, "ignore_eos": True}

        async def read() -> None:
            async with self.http.stream(
                "POST", "/api/generate", json={**body, "options": options}
            ) as reply:
                async for line in reply.aiter_lines():
                    lines.append(json.loads(line))
                    began.set()

        task = asyncio.create_task(read())
        try:
            async with asyncio.timeout(BOUND_S):
                await began.wait()
            yield lines
            await task
        finally:
            task.cancel()

    def runner(self, model: str) -> Engine | None:
        return next((e for e in self.ops.node("local").engines if e.model == model), None)

    def pid(self, model: str) -> int | None:
        engine = self.runner(model)
        return None if engine is None or engine.state != "ready" else engine.pid


@pytest.fixture
async def client(served: Instance) -> AsyncIterator[Client]:
    url = served.fleet()["gateway"]["address"]
    async with (
        operator(served.state_dir) as ops,
        httpx.AsyncClient(base_url=url, timeout=2 * BOUND_S, trust_env=False) as http,
    ):
        await ops.until(lambda f: f.nodes[0].state == "ready" and len(f.nodes[0].library) == 2)
        yield Client(ops, http)


def resident(fleet: Fleet) -> list[str]:
    return sorted(one.name for e in fleet.nodes[0].engines for one in e.loaded)


async def test_an_idle_model_makes_room_for_one_that_is_asked_for(client: Client) -> None:
    first = await client.generate(SMALL)
    assert f"loading {SMALL} on local/cpu" in first.headers["X-Olol-Why"]
    await client.ops.until(lambda f: resident(f) == [SMALL])
    second = await client.generate(BIG)
    why = second.headers["X-Olol-Why"]
    print(f"\n  {why}")
    assert f"loading {BIG} on local/cpu: nobody has it warm; {SMALL} is wanted least there" in why
    fleet = await client.ops.until(lambda f: resident(f) == [BIG])
    assert [engine.model for engine in fleet.nodes[0].engines] == [BIG]
    # Both dialects wait for room alike.
    chat = {"model": SMALL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    reply = await client.http.post("/v1/chat/completions", json=chat)
    assert reply.status_code == 200, reply.text
    await client.ops.until(lambda f: resident(f) == [SMALL])


async def test_a_busy_model_ends_its_work_first(client: Client) -> None:
    await client.generate(BIG)
    pid = client.pid(BIG)
    async with client.stream(BIG, 100) as lines:
        small = asyncio.create_task(client.generate(SMALL))
        fleet = await client.ops.until(lambda f: small.done() or waiting(f))
        (one,) = waiting(fleet)
        assert one.model == SMALL
        assert one.why.startswith("waiting "), one
        assert client.pid(BIG) == pid
    assert lines[-1]["done"] and len(lines) > 50, "the stream that ran was left alone"
    assert f"{BIG} is wanted least there" in (await small).headers["X-Olol-Why"]


def waiting(fleet: Fleet) -> list[Any]:
    return [request for request in fleet.requests if request.state == "queued"]


async def test_a_pinned_model_stays_and_whoever_waits_is_told(client: Client) -> None:
    await client.ops.do(SetPin(SMALL, "local", "cpu"))
    pid = client.pid(SMALL)
    reply = await client.generate(BIG, headers={"X-Olol-Deadline-S": "3"})
    assert reply.status_code == 504, reply.text
    assert "what is loaded there is busy or pinned" in reply.json()["error"]
    assert client.pid(SMALL) == pid is not None
    await client.ops.do(SetPin(SMALL, "local", "cpu", pinned=False))
    await client.generate(BIG)
    await client.ops.until(lambda f: resident(f) == [BIG])


async def test_more_context_is_one_relaunch_and_stays(client: Client) -> None:
    """Who asks for more gets it once; who asks for less, or cannot ask, changes nothing."""
    await client.generate(SMALL)
    before = client.pid(SMALL)
    reply = await client.generate(SMALL, options={"num_ctx": 2048})
    assert "asked for 2,048 tokens of context" in reply.headers["X-Olol-Why"]
    await client.ops.until(lambda f: client.pid(SMALL) not in (None, before))
    grown = client.pid(SMALL)
    asks = [client.generate(SMALL, options={"num_ctx": size}) for size in (512, 2048, 1024)]
    chat = {"model": SMALL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    for ask in (*asks, client.generate(SMALL)):
        await ask
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert (await client.http.post(path, json=chat)).status_code == 200
    seq = client.ops.fleet.seq
    await client.ops.until(lambda f: f.seq > seq + 4)
    assert client.pid(SMALL) == grown
    engine = client.runner(SMALL)
    assert engine is not None
    assert [one.context_length for one in engine.loaded] == [2048]
