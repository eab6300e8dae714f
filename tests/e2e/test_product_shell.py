"""Three bare hosts, as typed: added, provisioned, served by each, taken off without a trace."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.product import (
    BOUND_S,
    Product,
    agent_pids,
    console,
    engine_pids,
    reachable_listeners,
)
from tests.e2e.test_provision_systemd import SYSTEMD, Machine
from tests.e2e.traces import Traces, traces
from tests.lab import Host, Lab

SIMULATED = "gpus=1,vram=24GiB,load_bytes_s=100000000000"
UNIT_HOST = "h3"
"""Its agent is kept by the user's systemd, where this machine can run one."""
STORE = "~/.ollama/models/blobs"


@contextmanager
def systemd_of(host: Host) -> Iterator[bool]:
    """The host's user gets a systemd; False where that cannot be."""
    if not (SYSTEMD.exists() and shutil.which("curl")):
        yield False
        return
    try:
        machine = Machine(host)
    except pytest.skip.Exception:
        yield False
        return
    try:
        yield True
    finally:
        machine.stop()


def all_traces(lab: Lab) -> dict[str, Traces]:
    return {name: traces(lab, host) for name, host in lab.hosts.items()}


def typed(one: Product, *words: str) -> str:
    done = one.instance.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def served_by_each(one: Product) -> None:
    """Chats are answered by every host, and nobody but sshd can be reached there."""
    async with one.opened() as (_, client):
        answers = await client.chats(9, 5)
        assert all(answer.is_whole for answer in answers), [str(answer) for answer in answers]
        assert {answer.host for answer in answers} == set(one.lab.hosts)
        for name, host in one.lab.hosts.items():
            assert reachable_listeners(host) == {"sshd"}, name
            assert len(agent_pids(host)) == len(engine_pids(host)) == 1, name


async def test_from_bare_hosts_to_chats_and_back_without_a_trace(
    lab_machine: None, tmp_path: Path
) -> None:
    with Lab(3, disk="48m") as lab, systemd_of(lab.hosts[UNIT_HOST]) as has_units:
        for host in lab.hosts.values():
            host.exec(f"mkdir -p {STORE} && echo theirs > {STORE}/sha256-of-theirs")
        before = all_traces(lab)
        with console(lab, tmp_path, "# No node yet.\n") as one:
            typed(one, "node", "add", *lab.hosts, "--simulated", SIMULATED)
            typed(one, "node", "provision", "--all", "--accept-new")
            await asyncio.to_thread(one.start)
            await served_by_each(one)
            installed = all_traces(lab)
            for name, seen in installed.items():
                assert seen.processes != before[name].processes
                assert seen.files > before[name].files, "what they had is as it was"
                new_units = seen.units - before[name].units
                assert bool(new_units) == (has_units and name == UNIT_HOST), new_units

            # Taken off while a core still serves: it must not bring anything back.
            said = typed(one, "node", "uninstall", "--all")
            assert "3 nodes: 3 uninstalled" in said
            async with one.opened(warm=False) as (ops, client):
                await ops.until(lambda f: not any(node.engines for node in f.nodes))
                assert (await client.chat()).status in (404, 503)
            one.instance.end()
            async with asyncio.timeout(BOUND_S):
                # sshd's processes end a moment after the connections that they served.
                while any(
                    "sshd: ops" in p.command for h in lab.hosts.values() for p in h.processes()
                ):
                    await asyncio.sleep(0.1)
            left = {n: seen.left_since(before[n]) for n, seen in all_traces(lab).items()}
            assert not any(left.values()), left

            # And nothing stands in the way of the next time.
            typed(one, "node", "provision", "--all")
            await asyncio.to_thread(one.start)
            await served_by_each(one)
            one.instance.end()
