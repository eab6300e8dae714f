"""Two machines with one home, as with NFS: each has its own agent, socket and engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

from olol_tui.fleet.snapshot import Node
from tests.e2e.cluster import is_up
from tests.e2e.product import BOUND_S, agent_pids, engine_pids, kill_on, pids, product
from tests.e2e.traces import traces
from tests.lab import Lab

TOLD_S = 20.0
"""The core is told of a provisioned node; by itself it would look after half a minute."""


def is_bare(node: Node) -> bool:
    told = "nothing of olol-tui is installed" in node.error
    return told and not node.engines and node.survives_reboot is None


async def test_f23_two_machines_of_one_home_do_not_meddle(
    lab_machine: None, tmp_path: Path
) -> None:
    with Lab(2, disk="48m", shared_home=True) as lab:
        h1, h2 = lab.hosts.values()
        bare = {name: traces(lab, host) for name, host in lab.hosts.items()}
        with product(lab, tmp_path) as served:
            async with served.opened() as (ops, client):
                answers = await client.chats(6, 3)
                assert all(answer.is_whole for answer in answers), [str(one) for one in answers]
                assert {answer.host for answer in answers} == {"h1", "h2"}
                for host in (h1, h2):
                    assert len(agent_pids(host)) == len(engine_pids(host)) == 1

                # What happens to one agent is none of the other's business.
                before = pids(ops)
                untouched = agent_pids(h2)
                killed = agent_pids(h1)
                kill_on(h1, killed)
                async with asyncio.timeout(BOUND_S):
                    while not (found := agent_pids(h1)) or found == killed:
                        await asyncio.sleep(0.1)
                await ops.until(lambda f: is_up(f.nodes[0]) and not f.nodes[0].stale)
                assert pids(ops) == before
                assert agent_pids(h2) == untouched

                # Taken off one machine, the other one serves on.
                async with client.streams(4) as streams:
                    on_h2 = [stream for stream in streams if stream.host == "h2"]
                    done = await asyncio.to_thread(served.instance.run, "node", "uninstall", "h1")
                    assert done.returncode == 0, done.stdout + done.stderr
                    assert on_h2
                    assert all(stream.is_unhurt for stream in on_h2), [str(s) for s in on_h2]
                    again = await client.chats(3, 3)
                    assert all(one.is_whole and one.host == "h2" for one in again)
                assert agent_pids(h1) == engine_pids(h1) == []
                assert agent_pids(h2) == untouched
                # Both at once: the last to leave takes what they shared, and the core, which sees
                # their agents go and looks again, brings nothing back by itself.
                await asyncio.to_thread(served.provision, "h1")
                await ops.all_up(TOLD_S)
                done = await asyncio.to_thread(served.instance.run, "node", "uninstall", "--all")
                assert done.returncode == 0, done.stdout + done.stderr
                await ops.until(lambda f: all(is_bare(node) for node in f.nodes))
            served.instance.end()
        left = {name: traces(lab, host).left_since(bare[name]) for name, host in lab.hosts.items()}
        assert not any(left.values()), "\n".join(map(str, left.values()))
