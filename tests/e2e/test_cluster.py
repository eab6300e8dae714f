"""A cluster by a console's commands: from three bare machines to chats, and back to bare."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from olol_tui.fleet.commands import Uninstall
from tests.e2e.cluster import BOUND_S, chat, cluster_toml, instance, operator
from tests.lab import Lab


def open_programs(lab: Lab) -> set[str]:
    """What listens where others can reach it."""
    return {
        listener.command.partition(":")[0]
        for host in lab.hosts.values()
        for listener in host.listening()
        if not listener.address.startswith("127.")
    }


async def test_three_bare_hosts_serve_and_are_bare_again(lab: Lab, tmp_path: Path) -> None:
    before = {
        name: {process.pid for process in host.processes()} for name, host in lab.hosts.items()
    }
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
        waits_until_s = time.monotonic() + BOUND_S
        while left := [each for each in host.processes() if each.pid not in before[name]]:
            assert time.monotonic() < waits_until_s, f"{name} still runs {left}"
            await asyncio.sleep(0.1)
