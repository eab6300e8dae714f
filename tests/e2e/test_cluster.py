"""A cluster on real hosts: from three bare machines to chats, through faults, and back to bare."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx

from olol_tui.fleet.commands import Uninstall
from tests.e2e.cluster import BOUND_S, Chat, chat, cluster_toml, instance, is_up, operator
from tests.lab import Lab

SILENT_S = 7.0
"""A cut line is found out after six seconds."""
SLACK_S = 3.0
"""For a slow machine."""
REJOIN_S = 20.0
STREAMS = 20
ADOPTED_S = 3.0


def open_programs(lab: Lab) -> set[str]:
    """What listens where others can reach it."""
    return {
        listener.command.partition(":")[0]
        for host in lab.hosts.values()
        for listener in host.listening()
        if not listener.address.startswith("127.")
    }


async def test_three_bare_hosts_serve_and_are_bare_again(lab: Lab, tmp_path: Path) -> None:
    before = {name: len(host.processes()) for name, host in lab.hosts.items()}
    with instance(tmp_path / "state", cluster_toml(lab)) as served:
        url = await asyncio.to_thread(served.serve)
        async with operator(served.state_dir) as ops, httpx.AsyncClient(base_url=url) as http:
            await ops.provision_all()
            await ops.warm()
            answers = await asyncio.gather(*(chat(http, 5) for _ in range(12)))
            assert all(answer.is_whole for answer in answers), answers
            told = await ops.until(lambda f: sum(r.state == "done" for r in f.requests) >= 12)
            served_by = {request.engine.partition("/")[0] for request in told.requests}
            assert served_by == set(lab.hosts), "each host took its share"
            assert open_programs(lab) == {"sshd"}
            gone = await asyncio.gather(*(ops.do(Uninstall(name)) for name in lab.hosts))
            assert all("nothing of ours runs" in operation.message for operation in gone)
    for name, host in lab.hosts.items():
        assert host.exec("ls -A ~/.local/share 2>/dev/null || true").stdout.split() == []
        # sshd's processes end a moment after the connections that they served.
        async with asyncio.timeout(BOUND_S):
            while len(host.processes()) != before[name]:
                await asyncio.sleep(0.1)


async def test_a_cut_host_costs_its_streams_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    config = cluster_toml(
        lab, simulated="gpus = 4, load_bytes_s = 2e10, decode_tps = 10, slots = 4"
    )
    with instance(tmp_path / "state", config) as served:
        url = await asyncio.to_thread(served.serve)
        timeout = httpx.Timeout(60.0)
        limits = httpx.Limits(max_connections=100)
        async with (
            operator(served.state_dir) as ops,
            httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits) as http,
        ):
            await ops.provision_all()
            await ops.warm()
            chats = [Chat() for _ in range(STREAMS)]
            tasks = [asyncio.create_task(chat(http, 200, one)) for one in chats]
            await asyncio.gather(*(one.began.wait() for one in chats))
            running = await ops.until(
                lambda f: sum(r.state == "decode" for r in f.requests) == STREAMS
            )
            on_h1 = sum(r.engine.startswith("h1/") for r in running.requests)
            assert 0 < on_h1 < STREAMS
            await asyncio.to_thread(lab.hosts["h1"].cut, "drop")
            cut_s = time.monotonic()
            await ops.until(lambda f: f.nodes[0].state == "lost")
            assert time.monotonic() - cut_s < SILENT_S + SLACK_S
            elsewhere = await asyncio.gather(*(chat(http, 2) for _ in range(6)))
            assert all(answer.is_whole for answer in elsewhere), "new requests go elsewhere at once"
            await asyncio.to_thread(lab.hosts["h1"].heal)
            healed_s = time.monotonic()
            await ops.until(lambda f: is_up(f.nodes[0]))
            assert time.monotonic() - healed_s < REJOIN_S
            await asyncio.gather(*tasks)
            broken = [one for one in chats if not one.is_whole]
            assert len(broken) == on_h1
            assert all(one.error for one in broken), "each ends with an error line"
            assert all(one.broken for one in broken), "and never as if it were complete"
            assert all(one.ended_s - cut_s < SILENT_S + SLACK_S for one in broken)
            again = await asyncio.gather(*(chat(http, 2) for _ in range(12)))
            assert all(answer.is_whole for answer in again)


async def test_a_host_that_lost_power_comes_back_by_itself(lab: Lab, tmp_path: Path) -> None:
    with instance(tmp_path / "state", cluster_toml(lab)) as served:
        url = await asyncio.to_thread(served.serve)
        async with operator(served.state_dir) as ops, httpx.AsyncClient(base_url=url) as http:
            await ops.provision_all()
            await asyncio.to_thread(lab.hosts["h1"].kill)
            await ops.until(lambda f: f.nodes[0].state == "lost")
            assert all(is_up(node) for node in ops.fleet.nodes[1:])
            await asyncio.to_thread(lab.hosts["h1"].boot)
            await ops.until(lambda f: is_up(f.nodes[0]) and not f.nodes[0].stale)
            assert (await chat(http, 3)).is_whole


async def test_a_killed_console_is_followed_by_one_that_adopts(lab: Lab, tmp_path: Path) -> None:
    with instance(tmp_path / "state", cluster_toml(lab)) as served:
        await asyncio.to_thread(served.serve)
        async with operator(served.state_dir) as ops:
            await ops.provision_all()
            pids = {e.id: e.pid for node in ops.fleet.nodes for e in node.engines}
        await asyncio.to_thread(served.end, signal.SIGKILL)
        began_s = time.monotonic()
        await asyncio.to_thread(served.serve)
        async with operator(served.state_dir) as ops:
            await ops.all_up()
            took_s = time.monotonic() - began_s
            assert {e.id: e.pid for node in ops.fleet.nodes for e in node.engines} == pids
        assert took_s < ADOPTED_S + SLACK_S
