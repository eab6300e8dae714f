"""What an operator changes under load: the policy of a model in `cluster.toml`, and a node that is
drained; nothing is dropped, and what comes next follows the new order."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from olol_tui.fleet.commands import Drain, Place, SetCordon
from tests.contract.serve_rig import Instance
from tests.e2e.cluster import BOUND_S, Operator, instance, operator

MODEL, OTHER = "llama3.2:1b", "llama3.2:3b"
NODES = "".join(
    f"""
[nodes.{name}]
local = true
engine = "simulated"
slots = 2
simulated = {{ gpus = 1, vram = "16GiB", load_bytes_s = 1e11, decode_tps = 20, name = "{name}" }}
"""
    for name in "ab"
)


def config(policy: str = "") -> str:
    chosen = f'[models."{MODEL}"]\npolicy = "{policy}"\n' if policy else ""
    return f"[gateway]\nport = 0\n{NODES}{chosen}"


@dataclass
class Chat:
    """One streamed chat."""

    engine: str = ""
    why: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def node(self) -> str:
        return self.engine.partition("/")[0]

    @property
    def is_whole(self) -> bool:
        last = self.lines[-1]
        return last.get("done") is True and last["eval_count"] == len(self.lines) - 1


@dataclass
class Client:
    served: Instance
    ops: Operator
    http: httpx.AsyncClient

    async def run(self, chat: Chat, model: str, tokens: int) -> Chat:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Count."}],
            "options": {"num_predict": tokens, "ignore_eos": True},
        }
        async with self.http.stream("POST", "/api/chat", json=body) as reply:
            chat.engine, chat.why = reply.headers["X-Olol-Engine"], reply.headers["X-Olol-Why"]
            async for line in reply.aiter_lines():
                chat.lines.append(json.loads(line))
                chat.began.set()
        return chat

    async def ask(self, model: str = MODEL, tokens: int = 2) -> Chat:
        return await self.run(Chat(), model, tokens)

    def start(self, count: int, tokens: int) -> list[asyncio.Task[Chat]]:
        return [asyncio.create_task(self.ask(tokens=tokens)) for _ in range(count)]

    def rewrite(self, text: str) -> None:
        """Write the file and have it read at once."""
        (self.served.state_dir / "cluster.toml").write_text(text)
        self.served.process.send_signal(signal.SIGHUP)

    async def busy(self, running: int, queued: int = 0) -> None:
        await self.ops.until(lambda f: (f.gateway.running, f.gateway.queued) == (running, queued))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    # Not pytest's own directory: a UNIX socket's path must stay under 108 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="olol-policy-") as place,
        instance(Path(place) / "s", config()) as served,
    ):
        url = await asyncio.to_thread(served.serve)
        why = {"X-Olol-Why": "1"}
        async with (
            operator(served.state_dir) as ops,
            httpx.AsyncClient(
                base_url=url, timeout=2 * BOUND_S, trust_env=False, headers=why
            ) as http,
        ):
            await ops.all_up()
            for node in "ab":
                await ops.do(Place(MODEL, node, "gpu0"))
                await ops.do(Place(OTHER, node, "gpu0"))
            yield Client(served, ops, http)


async def test_another_policy_for_one_model_holds_from_the_next_decision(client: Client) -> None:
    before = await client.ask()
    assert f"has {MODEL} loaded and a free slot" in before.why
    chats = client.start(7, tokens=120)
    await client.busy(running=4, queued=3)
    client.rewrite(config("round-robin"))
    ended = await asyncio.gather(*chats)
    assert all(chat.is_whole for chat in ended), "what ran and what waited came to its end"
    by = Counter("turn" if "is next by turn" in chat.why else "expected" for chat in ended)
    assert by == {"expected": 4, "turn": 3}, "those that waited were decided anew"
    after = [await client.ask() for _ in range(4)]
    assert all("is next by turn" in chat.why for chat in after)
    assert [chat.node for chat in after] in (["a", "b"] * 2, ["b", "a"] * 2)
    assert f"has {OTHER} loaded and a free slot" in (await client.ask(OTHER)).why
    # A policy that there is not changes nothing, and is said.
    client.rewrite(config("square-robin"))
    await client.ops.until(lambda f: any("square-robin" in alert.message for alert in f.alerts))
    assert "is next by turn" in (await client.ask()).why


async def test_a_drained_node_ends_its_streams_and_gets_no_more(client: Client) -> None:
    chats = client.start(4, tokens=120)
    await client.busy(running=4)
    draining = asyncio.create_task(client.ops.do(Drain("a")))
    await client.ops.until(lambda f: client.ops.node("a").draining)
    more = client.start(3, tokens=4)
    done = await draining
    assert client.ops.node("a").cordoned and not client.ops.node("a").draining
    print(f"\n  {done.message}")
    ended = await asyncio.gather(*chats, *more)
    assert all(chat.is_whole for chat in ended)
    assert Counter(chat.node for chat in ended[:4]) == {"a": 2, "b": 2}
    assert {chat.node for chat in ended[4:]} == {"b"}
    assert [(await client.ask()).node for _ in range(3)] == ["b"] * 3
    await client.ops.do(SetCordon("a", cordoned=False))
    both = await asyncio.gather(*client.start(4, tokens=20))
    assert Counter(chat.node for chat in both) == {"a": 2, "b": 2}
