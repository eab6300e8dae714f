"""A gateway on a real socket over a fleet that the test writes by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx

from olol_tui.config import GatewayConfig
from olol_tui.fleet.commands import Accepted, AnyCommand, PauseModel, RerouteRequest
from olol_tui.fleet.snapshot import Device, Engine, Fleet, GatewayState, Loaded, Model, Node
from olol_tui.gateway.gateway import Gateway
from olol_tui.models.names import canonical


class HandFleet:
    """A FleetPort whose snapshots come from the test."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.submitted: list[AnyCommand] = []
        self.launched: list[tuple[str, str, str]] = []
        self.touched: list[tuple[str, str, float | None]] = []
        self.surveyed: list[str] = []
        self._callbacks: list[Callable[[Fleet], None]] = []
        self._view: Callable[[], tuple[Any, GatewayState]] | None = None
        self.cancel: Callable[[str], bool] = lambda _: False
        self.reroute: Callable[[str, str, str], None] = lambda *_: None

    def on_change(self, callback: Callable[[Fleet], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def attach_gateway(self, view: Any, cancel: Any, reroute: Any) -> None:
        self._view = view
        self.cancel = cancel
        self.reroute = reroute

    def publish(self, **changes: Any) -> None:
        requests, state = self._view() if self._view else ((), GatewayState())
        self.fleet = replace(
            self.fleet, seq=self.fleet.seq + 1, requests=requests, gateway=state, **changes
        )
        for callback in list(self._callbacks):
            callback(self.fleet)

    def launch(self, model: str, node: str, device_uuid: str, **_: Any) -> str:
        self.launched.append((model, node, device_uuid))
        return f"{node}/embedded-{device_uuid}-{model}"

    def touch(self, engine_id: str, model: str, keep_alive_s: float | None) -> None:
        self.touched.append((engine_id, model, keep_alive_s))

    def poke(self) -> None:
        self.publish()

    async def refresh(self, engine_id: str) -> None: ...

    def kick(self, engine_id: str) -> None:
        pass

    async def survey(self, node: str) -> None:
        """As the controller: what the store says it holds becomes the node's library."""
        self.surveyed.append(node)
        found = self.fleet.node(node)
        assert found is not None
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.get(f"http://{found.engines[0].address}/api/tags")
        library = tuple(
            Model(
                m["name"],
                digest=f"sha256:{m['digest']}",
                size_bytes=m["size"],
                capabilities=tuple(m["capabilities"]),
            )
            for m in reply.json()["models"]
        )
        nodes = [replace(one, library=library) if one is found else one for one in self.fleet.nodes]
        self.publish(nodes=tuple(nodes))

    async def submit(self, command: AnyCommand) -> Accepted:
        """As the controller: what changes requests is done at once."""
        self.submitted.append(command)
        match command:
            case PauseModel():
                others = [name for name in self.fleet.paused if name != canonical(command.model)]
                paused = [canonical(command.model)] if command.paused else []
                self.publish(paused=(*others, *paused))
            case RerouteRequest():
                self.reroute(command.request, command.to, command.away)
        return Accepted("op1")

    async def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        yield f"log of {engine}"


def engine_node(
    name: str,
    address: str,
    *models: str,
    slots: int = 1,
    warm: bool = True,
    size_bytes: int = 2 * 10**9,
    vram_bytes: int = 24 * 2**30,
) -> Node:
    """A node with one GPU and one simulated engine."""
    used = size_bytes * len(models) if warm else 0
    return Node(
        name=name,
        state="ready",
        devices=(
            Device(f"GPU-{name}", 0, "SIM", "simulated", vram_bytes=vram_bytes, used_bytes=used),
        ),
        engines=(
            Engine(
                id=f"{name}/simulated-gpu0",
                node=name,
                kind="simulated",
                state="ready",
                devices=(f"GPU-{name}",),
                address=address,
                pid=1,
                slots=slots,
                loaded=tuple(Loaded(m, size_bytes=size_bytes) for m in models) if warm else (),
            ),
        ),
        library=tuple(Model(m, size_bytes=size_bytes, digest="sha256:" + "0" * 64) for m in models),
    )


@contextlib.asynccontextmanager
async def gateway_over(
    *nodes: Node, **config: Any
) -> AsyncIterator[tuple[Gateway, HandFleet, httpx.AsyncClient]]:
    """A listening gateway, its fleet, and a client of it."""
    fleet = HandFleet(Fleet(nodes=nodes))
    gateway = Gateway(GatewayConfig(port=0, **config), fleet)
    await gateway.start()
    try:
        async with httpx.AsyncClient(
            base_url=gateway.address, timeout=30, trust_env=False
        ) as client:
            yield gateway, fleet, client
    finally:
        await gateway.close()


async def eventually(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Wait until a condition on the loop's state holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
