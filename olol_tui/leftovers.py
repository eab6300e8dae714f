"""`olol-tui stop`: ends the agents and engines that an ended core has left running here.

They are left on purpose, so that the next core finds its models loaded. This is for when
there shall be no next one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from olol_tui.errors import NodeError
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.local import LocalRoad
from olol_tui.fleet.wire import Engines
from olol_tui.paths import Paths

GONE_WITHIN_S = 30.0


async def stop_all(paths: Paths, out: TextIO) -> int:
    """Stop every agent of this state directory with its engines; returns the exit code."""
    stopped = 0
    for home in _agent_homes(paths):
        node = home.name
        road = LocalRoad(node, paths, _simulated(home))
        client = AgentClient(road.agent_transport(), node)
        async with client:
            try:
                hello = await client.hello()
            except AgentUnreachable:
                if not _left_engines(home):
                    continue
                # Only an agent knows which processes are its engines: a new one adopts them.
                await road.ensure_agent()
                hello = await client.hello()
            engines = await client.engines()
            await client.shutdown(stop_engines=True)
            if not await road.gone(GONE_WITHIN_S):
                raise NodeError(
                    f"the agent of {node} (pid {hello.pid}) does not end",
                    hint=f"End it: kill {hello.pid}",
                )
        out.write(f"● {node}: agent {hello.pid} stopped{_with(engines)}\n")
        stopped += 1
    if not stopped:
        out.write(f"nothing runs for {paths.state_dir}\n")
    return 0


def _agent_homes(paths: Paths) -> list[Path]:
    """The state directories of agents that ever ran on this machine."""
    parent = paths.agent_state("any").parent
    return sorted(path for path in parent.iterdir()) if parent.is_dir() else []


def _simulated(home: Path) -> dict[str, str | int | float] | None:
    """What the agent was told to simulate: another one must know the same devices."""
    try:
        found = json.loads((home / "started-with.json").read_bytes()).get("simulated")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _left_engines(home: Path) -> bool:
    """Whether an agent that was killed has left records of engines."""
    return any(home.glob("*/engines/*.json"))


def _with(engines: Engines) -> str:
    count = len(engines.engines)
    return f" with {count} engine{'s' if count != 1 else ''}" if count else ""
