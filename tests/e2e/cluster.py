"""`olol-tui --serve` over a lab's hosts, as an operator and as clients meet it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from olol_tui.fleet.commands import AnyCommand, Place, Provision
from olol_tui.fleet.snapshot import Fleet, Node, Operation
from olol_tui.paths import Paths
from olol_tui.remote import RemoteLink
from tests.contract.serve_rig import Instance
from tests.lab import Lab

BOUND_S = 90.0
"""What takes longer is broken."""
MODEL = "qwen3:8b"


def cluster_toml(lab: Lab, *, simulated: str = "gpus = 2, load_bytes_s = 2e10") -> str:
    """Every host of the lab as a node with simulated GPUs."""
    return "\n".join(
        f'[nodes.{name}]\nhost = "{host.address}"\nuser = "ops"\nidentity = "{lab.identity}"\n'
        f'known_hosts = "{lab.known_hosts}"\nsimulated = {{ {simulated} }}\n'
        for name, host in lab.hosts.items()
    )


@contextmanager
def instance(state_dir: Path, config: str) -> Iterator[Instance]:
    one = Instance(state_dir, config)
    try:
        yield one
    finally:
        if one.served and one.process.poll() is None:
            # Orderly: a console that is killed keeps its hosts for a while.
            one.end()
        one.close()


class Operator:
    """A console's view of a running core."""

    def __init__(self, link: RemoteLink) -> None:
        self.link = link

    @property
    def fleet(self) -> Fleet:
        return self.link.fleet

    def node(self, name: str) -> Node:
        found = self.fleet.node(name)
        assert found is not None, name
        return found

    async def until(self, condition: Callable[[Fleet], object], bound_s: float = BOUND_S) -> Fleet:
        try:
            async with asyncio.timeout(bound_s):
                async for fleet in self.link.changes():
                    if condition(fleet):
                        return fleet
        except TimeoutError:
            seen = [(n.name, n.state, n.error, [e.state for e in n.engines]) for n in fleet.nodes]
            raise AssertionError(f"not within {bound_s} s: {seen} {fleet.operations}") from None
        raise AssertionError("the stream of snapshots ended")

    async def do(self, command: AnyCommand) -> Operation:
        """Submit and wait for the end."""
        operation_id = (await self.link.submit(command)).operation
        fleet = await self.until(
            lambda f: any(o.id == operation_id and o.state != "running" for o in f.operations)
        )
        operation = next(o for o in fleet.operations if o.id == operation_id)
        assert operation.state == "done", operation
        return operation

    async def all_up(self, bound_s: float = BOUND_S) -> Fleet:
        return await self.until(lambda f: all(is_up(node) for node in f.nodes), bound_s)

    async def provision_all(self) -> None:
        await asyncio.gather(*(self.do(Provision(node.name)) for node in self.fleet.nodes))
        await self.all_up()

    async def warm(self) -> None:
        """The model on every GPU, so that no request waits for a load."""
        places = [Place(MODEL, n.name, d.label) for n in self.fleet.nodes for d in n.devices]
        await asyncio.gather(*(self.do(place) for place in places))


def is_up(node: Node) -> bool:
    ready = all(engine.state == "ready" for engine in node.engines)
    return node.state == "ready" and bool(node.engines) and ready


@asynccontextmanager
async def operator(state_dir: Path) -> AsyncIterator[Operator]:
    async with RemoteLink(Paths.resolve(state_dir).control_socket) as link:
        yield Operator(link)


@dataclass
class Chat:
    """One streamed chat and how it went."""

    lines: list[dict[str, object]] = field(default_factory=list)
    broken: str = ""
    """How the connection ended, when it did so before the reply."""

    @property
    def is_whole(self) -> bool:
        return bool(self.lines) and self.lines[-1].get("done") is True and not self.error

    @property
    def error(self) -> str:
        return str(self.lines[-1].get("error", "")) if self.lines else ""


async def chat(http: httpx.AsyncClient, tokens: int) -> Chat:
    seen = Chat()
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "options": {"num_predict": tokens},
    }
    try:
        async with http.stream("POST", "/api/chat", json=body) as reply:
            async for line in reply.aiter_lines():
                seen.lines.append(json.loads(line))
    except httpx.HTTPError as error:
        seen.broken = repr(error)
    return seen
