"""Starting, finding and losing the agent of this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from olol_tui.errors import NodeError
from olol_tui.fleet import local
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.local import AgentHung, LocalRoad
from olol_tui.paths import Paths
from tests.contract.fleet_rig import lives

SIMULATED: dict[str, str | int | float] = {"gpus": 1, "vram_bytes": 1 << 30, "name": "SIM"}


async def pid_of(road: LocalRoad) -> int:
    async with AgentClient(road.agent_transport(), "n1") as client:
        return (await client.hello()).pid


async def end(road: LocalRoad) -> None:
    async with AgentClient(road.agent_transport(), "n1") as client:
        await client.shutdown(stop_engines=True)
    assert await road.gone(20)


async def test_two_consoles_at_once_start_one_agent(tmp_path: Path) -> None:
    paths = Paths.resolve(tmp_path)
    roads = [LocalRoad("n1", paths, SIMULATED) for _ in range(3)]
    await asyncio.gather(*(road.ensure_agent() for road in roads))
    pids = {await pid_of(road) for road in roads}
    assert len(pids) == 1
    assert os.getsid(next(iter(pids))) == next(iter(pids)), "in a session of its own"
    await end(roads[0])
    assert not lives(pids.pop())


async def test_an_agent_of_another_interpreter_is_replaced(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = Paths.resolve(tmp_path)
    other = tmp_path_factory.mktemp("bin") / "python"
    other.symlink_to(sys.executable)
    before = LocalRoad("n1", paths, SIMULATED, python=str(other))
    await before.ensure_agent()
    pid = await pid_of(before)
    after = LocalRoad("n1", paths, SIMULATED)
    await after.ensure_agent()
    assert await pid_of(after) != pid and not lives(pid)
    await after.ensure_agent()
    await end(after)


async def test_an_agent_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    road = LocalRoad("n1", Paths.resolve(tmp_path), {"gpus": -5, "vram_bytes": 1, "name": "x"})
    with pytest.raises(NodeError, match="ended at once") as failed:
        await road.ensure_agent()
    assert "agent.log" in failed.value.hint


async def test_an_interpreter_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    road = LocalRoad("n1", Paths.resolve(tmp_path), python="/nonexistent/python")
    with pytest.raises(NodeError, match="cannot be started"):
        await road.ensure_agent()


async def test_a_hung_agent_is_not_fought_by_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "HELLO_TIMEOUT_S", 0.5)
    road = LocalRoad("n1", Paths.resolve(tmp_path), SIMULATED)
    await road.ensure_agent()
    pid = await pid_of(road)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(AgentHung):
            await road.ensure_agent()
    finally:
        os.kill(pid, signal.SIGCONT)
    await road.ensure_agent()
    assert await pid_of(road) == pid
    await end(road)


async def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    road = LocalRoad("n1", Paths.resolve(tmp_path))
    async with AgentClient(road.agent_transport(), "n1") as client:
        with pytest.raises(AgentUnreachable, match="does not answer"):
            await client.hello()
