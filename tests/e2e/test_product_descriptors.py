"""The promise for an sshd that runs out of file descriptors: a cap, no crash, another connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Operator
from tests.e2e.product import (
    Client,
    Product,
    agent_pids,
    config,
    counted,
    engine_pids,
    pids,
    product,
)
from tests.lab import Host, Lab

HOST = "h1"
NOFILE = 64
"""In place of the usual 1024: as many streams as that would be too many for this machine."""
STREAMS = 120
CONNECTIONS = 5
"""One for control, four for requests."""
SIMULATED = (
    'gpus = 1, vram = "200GiB", load_bytes_s = 1e11, decode_tps = 2, slots = 160, '
    "reply_tokens = 4000"
)
FLOWS_S = 3.0

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def served(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with Lab(1) as lab:
        text = config(lab.hosts, SIMULATED)
        with product(lab, tmp_path_factory.mktemp("descriptors"), text) as one:
            yield one


def limit_sshd(host: Host) -> None:
    """The one that listens; those that serve now end, so that their successors inherit it."""
    host.exec(
        f"prlimit --nofile={NOFILE}:{NOFILE} --pid $(pgrep -o -x sshd) && "
        "kill -9 $(pgrep -x sshd | grep -v -x $(pgrep -o -x sshd))",
        "root",
    )


def connections(host: Host) -> int:
    """SSH connections that are established, as the host counts them."""
    return len(host.exec(["ss", "-Htn", "state", "established", "sport = :22"]).stdout.splitlines())


async def test_f20_streams_beyond_what_one_sshd_can_hold_go_over_another(served: Product) -> None:
    host = served.lab.hosts[HOST]
    async with served.opened() as (ops, client):
        before = pids(ops)
        limit_sshd(host)
        await ops.until(lambda fleet: fleet.nodes[0].state != "ready")
        await ops.all_up()
        await _more_streams_than_descriptors(ops, client, host)
        assert pids(ops) == before
        assert len(agent_pids(host)) == len(engine_pids(host)) == 1
        # With them gone there is room again, on the connections that are there.
        assert (await client.chat()).is_whole


async def _more_streams_than_descriptors(ops: Operator, client: Client, host: Host) -> None:
    async with client.streams(STREAMS) as streams:
        seen = [len(stream.lines) for stream in streams]
        async with asyncio.timeout(60):
            while any(len(s.lines) <= n for s, n in zip(streams, seen, strict=True)):
                assert all(stream.is_unhurt for stream in streams), [str(s) for s in streams]
                await asyncio.sleep(FLOWS_S / 10)
        count = connections(host)
        assert 3 <= count <= CONNECTIONS, "one of 64 descriptors cannot hold them"
        node = ops.fleet.nodes[0]
        assert node.state == "ready" and not node.stale, node
    assert not counted((await client.http.get("/metrics")).text, "olol_ejections_total")
