"""A controller over a real agent process and simulated engines."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from olol_tui.config import ClusterConfig, EndpointConfig, NodeConfig, SimulatedConfig
from olol_tui.fleet.agent_client import AgentClient
from olol_tui.fleet.commands import AnyCommand
from olol_tui.fleet.controller import Controller
from olol_tui.fleet.snapshot import Engine, Fleet, Node, Operation
from olol_tui.paths import Paths

TIMEOUT_S = 60.0
TICK_S = 0.25
"""Faster than in life, so that stale marks and pins are seen soon."""


def simulated_cluster(
    *, nodes: int = 1, gpus: int = 2, endpoints: dict[str, str] | None = None, **simulated: Any
) -> ClusterConfig:
    rates = {"load_bytes_s": 2e10, "decode_tps": 200.0, "prefill_tps": 1e5, **simulated}
    node = NodeConfig(local=True, engine="simulated", simulated=SimulatedConfig(gpus=gpus, **rates))
    return ClusterConfig(
        nodes={f"n{number}": node for number in range(1, nodes + 1)},
        endpoints={name: EndpointConfig(url=url) for name, url in (endpoints or {}).items()},
    )


class Rig:
    """One controller and what tests ask of it."""

    def __init__(self, controller: Controller, paths: Paths) -> None:
        self.controller = controller
        self.paths = paths

    @property
    def fleet(self) -> Fleet:
        return self.controller.fleet

    def node(self, name: str = "n1") -> Node:
        node = self.fleet.node(name)
        assert node is not None
        return node

    def engine(self, engine_id: str) -> Engine:
        engine = self.fleet.engine(engine_id)
        assert engine is not None, engine_id
        return engine

    async def until(
        self, condition: Callable[[Fleet], object], timeout_s: float = TIMEOUT_S
    ) -> Fleet:
        """The first snapshot that meets the condition."""
        last = self.fleet
        try:
            async with asyncio.timeout(timeout_s):
                async for last in self.controller.changes():
                    if condition(last):
                        return last
        except TimeoutError:
            shown = [(n.name, n.state, n.error, n.engines) for n in last.nodes]
            raise AssertionError(
                f"never happened; last: {shown} {last.operations} {last.alerts}"
            ) from None
        raise AssertionError("the controller closed")

    async def ready(self) -> None:
        """All nodes connected and all engines up."""
        await self.until(
            lambda fleet: all(
                node.state == "ready"
                and node.engines
                and all(e.state == "ready" and e.address for e in node.engines)
                for node in fleet.nodes
            )
        )

    async def do(self, command: AnyCommand, expect: str = "done") -> Operation:
        """Submit and wait for the end of the operation."""
        operation_id = (await self.controller.submit(command)).operation

        def ended(fleet: Fleet) -> bool:
            return any(o.id == operation_id and o.state != "running" for o in fleet.operations)

        fleet = await self.until(ended)
        operation = next(o for o in fleet.operations if o.id == operation_id)
        assert operation.state == expect, operation
        return operation

    def used_bytes(self, label: str, node: str = "n1") -> int:
        """What the device's telemetry says."""
        device = self.fleet.device(node, label)
        assert device is not None
        return device.used_bytes or 0

    def loaded(self, engine_id: str) -> list[str]:
        return [one.name for one in self.engine(engine_id).loaded]


@asynccontextmanager
async def rig(state_dir: Path, config: ClusterConfig, *, keep: bool = False) -> AsyncIterator[Rig]:
    """A running controller. `keep` leaves agent and engines for the next one."""
    paths = Paths.resolve(state_dir)
    async with Controller(config, paths, tick_s=TICK_S) as controller:
        try:
            yield Rig(controller, paths)
        except BaseException:
            keep = False
            raise
        finally:
            await controller.close(stop_engines=not keep)


async def agent_pid(rig: Rig, node: str = "n1") -> int:
    """The process that answers on the node's agent socket."""
    transport = httpx.AsyncHTTPTransport(uds=str(rig.paths.agent_socket(node)))
    async with AgentClient(transport, node) as client:
        return (await client.hello()).pid


def kill(pid: int, sig: int = signal.SIGKILL) -> None:
    os.kill(pid, sig)


def lives(pid: int) -> bool:
    """False also for a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
