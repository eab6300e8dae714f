"""A controller and a real sshd on this machine: provisioned, served, cut, shared, uninstalled.

The node's agent and engines are real processes; only its GPUs are simulated.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from olol_tui import agent_zip
from olol_tui.config import ClusterConfig, NodeConfig, SimulatedConfig
from olol_tui.errors import PlacementError, ReadOnly
from olol_tui.fleet.commands import (
    AdoptEndpoint,
    CancelProvision,
    Drain,
    Place,
    Provision,
    Reconnect,
    SetRole,
    TrustHostKey,
    Uninstall,
)
from olol_tui.fleet.engine_client import EngineClient
from olol_tui.fleet.snapshot import Fleet, Node
from olol_tui.routing.roster import ROAD_MARK, way_to
from olol_tui.ssh.http import DialTransport
from tests.contract.agent_rig import FAKE_OLLAMA
from tests.contract.fleet_rig import Rig, rig
from tests.contract.serve_rig import processes_with
from tests.contract.ssh_rig import USER, Peer, Sshd, free_port, needs_sshd, sshd

pytestmark = needs_sshd

STATE = "state"


@contextmanager
def sshd_with_a_node(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as running:
        try:
            yield running
        finally:
            # A test that fails has not uninstalled what it put there.
            for pid in processes_with(str(tmp_path / "node")):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd_with_a_node(tmp_path) as running:
        yield running


def node_config(server: Sshd, tmp_path: Path, **fields: Any) -> NodeConfig:
    return NodeConfig(
        host="127.0.0.1",
        port=server.port,
        user=USER,
        identity=str(server.identity),
        known_hosts=str(tmp_path / "known_hosts"),
        directory=str(tmp_path / "node"),
        engine="simulated",
        simulated=SimulatedConfig(gpus=2, load_bytes_s=2e10, decode_tps=200.0),
        **fields,
    )


@asynccontextmanager
async def fleet_of(
    server: Sshd, tmp_path: Path, state: str = STATE, **fields: Any
) -> AsyncIterator[Rig]:
    config = ClusterConfig(nodes={"h1": node_config(server, tmp_path, **fields)})
    async with rig(tmp_path / state, config, keep=True) as running:
        yield running


async def provisioned(fleet: Rig) -> None:
    """From an unknown host to engines that answer."""
    asked = await fleet.until(lambda f: f.nodes[0].question)
    question = asked.nodes[0].question
    assert question is not None
    await fleet.do(TrustHostKey("h1", question.fingerprint))
    await fleet.do(Provision("h1"))
    await fleet.ready()


async def uninstalled(fleet: Rig) -> None:
    await fleet.do(Uninstall("h1"))


def is_up(node: Node | None) -> bool:
    return (
        node is not None
        and node.state == "ready"
        and bool(node.engines)
        and all(engine.state == "ready" for engine in node.engines)
    )


async def test_from_a_bare_host_to_an_answer_and_back(server: Sshd, tmp_path: Path) -> None:
    async with fleet_of(server, tmp_path) as fleet:
        asked = await fleet.until(lambda f: f.nodes[0].question)
        node = asked.nodes[0]
        assert node.question is not None and node.question.key_type == "ED25519"
        assert "SHA256" in node.question.randomart
        assert node.host == f"{USER}@127.0.0.1:{server.port}"
        assert f"-p {server.port}" in node.ssh_command
        assert any("host key is unknown" in alert.message for alert in asked.alerts)
        # A provisioning that is asked for now waits for the answer.
        operation = (await fleet.controller.submit(Provision("h1"))).operation
        await fleet.until(
            lambda f: [s.state for s in f.nodes[0].steps if s.name == "connect"] == ["running"]
        )
        await fleet.do(TrustHostKey("h1", node.question.fingerprint))
        done = await fleet.until(
            lambda f: any(o.id == operation and o.state != "running" for o in f.operations)
        )
        told = next(o for o in done.operations if o.id == operation)
        assert told.state == "done", told
        assert "changed: agent, service" in told.message
        steps = {step.name: step for step in done.nodes[0].steps}
        assert [*steps] == [
            "connect", "facts", "python", "agent", "engine", "service", "health",
            "engines", "traffic",
        ]  # fmt: skip
        assert steps["engines"].state == steps["traffic"].state == "done"
        assert all(step.took_s is not None for step in steps.values())
        await fleet.ready()
        node = fleet.node("h1")
        assert node.question is None and node.provisioned
        # The command to copy asks nothing: the key that was trusted here is known to it too.
        typed = [*shlex.split(node.ssh_command), "-o", "BatchMode=yes", "echo $PPID"]
        shell = await asyncio.create_subprocess_exec("ssh", *typed[1:], stdout=-1, stderr=-1)
        out, err = await asyncio.wait_for(shell.communicate(), 60)
        assert shell.returncode == 0, (typed, err)
        assert out.strip().isdigit()
        assert [device.role for device in node.devices] == ["ollama", "ollama"]
        assert node.last_contact_s is not None
        # A request takes the same road as the gateway's.
        engine = node.engines[0]
        address = way_to(node, engine)
        assert address.startswith(f"h1{ROAD_MARK}127.0.0.1:")
        transport = DialTransport(fleet.controller.dial, address)
        async with EngineClient(transport, "http://engine", engine.id) as client:
            assert await client.version()
        await fleet.do(Place("qwen3:8b", "h1", "gpu1"))
        again = await fleet.do(Provision("h1"))
        assert "nothing had to be changed" in again.message
        pids = [one.pid for one in fleet.node("h1").engines]
        assert all(pid is not None and Path(f"/proc/{pid}").exists() for pid in pids)
        gone = await fleet.do(Uninstall("h1"))
        assert "nothing of ours runs" in gone.message
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert not (tmp_path / "node").exists()
        last = await fleet.until(lambda f: "nothing of olol-tui" in f.nodes[0].error)
        assert last.nodes[0].provisioned is False and not last.nodes[0].engines
        assert last.nodes[0].state == "failed" and "P provisions it" in last.nodes[0].hint


async def test_a_broken_link_takes_the_engines_out_at_once_and_comes_back(
    server: Sshd, tmp_path: Path
) -> None:
    async with fleet_of(server, tmp_path) as fleet:
        await provisioned(fleet)
        node = fleet.node("h1")
        pids = [engine.pid for engine in node.engines]
        peer = Peer()
        await fleet.controller.dial(way_to(node, node.engines[0]), lambda: peer)
        loop = asyncio.get_running_loop()
        server.stop()
        began_s = loop.time()
        lost = await fleet.until(lambda f: f.nodes[0].state == "lost")
        assert loop.time() - began_s < 2, "long before three beats were missed"
        assert lost.nodes[0].error and lost.nodes[0].devices and lost.nodes[0].engines
        assert isinstance(await peer.end(), ConnectionError), "never a clean end"
        with pytest.raises(OSError, match="h1"):
            await fleet.controller.dial(way_to(node, node.engines[0]), Peer)
        server.start()
        await fleet.until(lambda f: is_up(f.nodes[0]))
        assert [engine.pid for engine in fleet.node("h1").engines] == pids
        await uninstalled(fleet)


async def test_an_agent_that_died_is_brought_back_and_engines_serve_meanwhile(
    server: Sshd, tmp_path: Path
) -> None:
    async with fleet_of(server, tmp_path) as fleet:
        await provisioned(fleet)
        node = fleet.node("h1")
        pids = [engine.pid for engine in node.engines]
        (lock,) = (tmp_path / "node/state").glob("*/agent.lock")
        seen: set[str] = set()
        fleet.controller.on_change(lambda f: seen.add(f.nodes[0].state))
        os.kill(int(lock.read_text()), signal.SIGKILL)
        await fleet.until(lambda f: f.nodes[0].error)
        await fleet.until(lambda f: is_up(f.nodes[0]) and not f.nodes[0].error)
        assert seen == {"ready"}
        assert [engine.pid for engine in fleet.node("h1").engines] == pids
        await uninstalled(fleet)


async def test_a_newer_console_upgrades_the_agent_in_place(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet_of(server, tmp_path) as fleet:
        await provisioned(fleet)
        pids = [engine.pid for engine in fleet.node("h1").engines]
        (lock,) = (tmp_path / "node/state").glob("*/agent.lock")
        agent = int(lock.read_text())
    tree = agent_zip._tree

    def changed(root: Path, name: str) -> Iterator[tuple[str, bytes]]:
        yield from tree(root, name)
        if name == agent_zip.PACKAGE:
            yield f"{name}/news.txt", b"a newer build"

    monkeypatch.setattr(agent_zip, "_tree", changed)
    async with fleet_of(server, tmp_path) as fleet:
        await fleet.until(lambda f: is_up(f.nodes[0]))
        assert [engine.pid for engine in fleet.node("h1").engines] == pids
        builds = list((tmp_path / "node/bin").glob("*.pyz"))
        assert len(builds) == 2
        assert int(lock.read_text()) == agent, "it became the new one, with its engines"
        await uninstalled(fleet)


async def test_a_role_changes_one_gpu_and_no_other(server: Sshd, tmp_path: Path) -> None:
    async with fleet_of(server, tmp_path) as fleet:
        await provisioned(fleet)
        pid = fleet.engine("h1/simulated-gpu1").pid
        done = await fleet.do(SetRole("h1", "gpu0", "rpc"))
        assert "reserved for llama.cpp RPC" in done.message
        node = fleet.node("h1")
        assert [engine.id for engine in node.engines] == ["h1/simulated-gpu1"]
        assert [(d.role, d.note) for d in node.devices] == [
            ("rpc", "reserved for llama.cpp RPC"),
            ("ollama", ""),
        ]
        assert fleet.engine("h1/simulated-gpu1").pid == pid
    # It is kept over a restart of the console.
    async with fleet_of(server, tmp_path) as fleet:
        await fleet.until(lambda f: is_up(f.nodes[0]) and f.nodes[0].devices[0].role == "rpc")
        assert fleet.engine("h1/simulated-gpu1").pid == pid
        await fleet.do(SetRole("h1", "0", "ollama"))
        assert fleet.engine("h1/simulated-gpu1").pid == pid
        assert len(fleet.node("h1").engines) == 2
        await fleet.do(Drain("h1"))
        assert fleet.node("h1").cordoned and not fleet.node("h1").draining
        await uninstalled(fleet)


async def test_a_second_console_only_looks_until_the_first_has_gone(
    server: Sshd, tmp_path: Path
) -> None:
    async with fleet_of(server, tmp_path) as first:
        await provisioned(first)
        pids = {engine.pid for engine in first.node("h1").engines}
        async with fleet_of(server, tmp_path, "other", gpus="shared") as second:
            asked = await second.until(lambda f: f.nodes[0].question)
            assert asked.nodes[0].question is not None
            await second.do(TrustHostKey("h1", asked.nodes[0].question.fingerprint))
            seen = await second.until(lambda f: f.nodes[0].managed_by and f.nodes[0].engines)
            assert seen.nodes[0].managed_by.startswith(f"{USER}@")
            assert seen.nodes[0].state == "ready"
            assert {engine.pid for engine in seen.nodes[0].engines} == pids
            for command in (Provision("h1"), Uninstall("h1"), SetRole("h1", "0", "off")):
                with pytest.raises(ReadOnly, match="managed by"):
                    await second.controller.submit(command)
            assert {engine.pid for engine in first.node("h1").engines} == pids
            await first.controller.close()
            # It wants other engines: one over both GPUs.
            await second.until(lambda f: not f.nodes[0].managed_by)
            await second.until(
                lambda f: (
                    [e.id for e in f.nodes[0].engines if e.state == "ready"]
                    == ["h1/simulated-shared"]
                )
            )
            await uninstalled(second)


async def test_a_refused_login_waits_for_a_human(server: Sshd, tmp_path: Path) -> None:
    keys = server.authorized.read_text()
    server.authorized.write_text("")
    async with fleet_of(server, tmp_path) as fleet:
        asked = await fleet.until(lambda f: f.nodes[0].question)
        assert asked.nodes[0].question is not None
        await fleet.do(TrustHostKey("h1", asked.nodes[0].question.fingerprint))
        refused = await fleet.until(lambda f: "accepted no key" in f.nodes[0].error)
        assert refused.nodes[0].state == "failed" and "ssh-copy-id" in refused.nodes[0].hint
        failed = await fleet.do(Provision("h1"), expect="failed")
        assert "accepted no key" in failed.message
        server.authorized.write_text(keys)
        await fleet.do(Reconnect("h1"))
        await fleet.until(lambda f: f.nodes[0].provisioned is False)
        done = await fleet.do(Provision("h1"))
        assert "is ready" in done.message
        await uninstalled(fleet)


async def test_a_provisioning_that_waits_can_be_cancelled(server: Sshd, tmp_path: Path) -> None:
    async with fleet_of(server, tmp_path) as fleet:
        await fleet.until(lambda f: f.nodes[0].question)
        operation = (await fleet.controller.submit(Provision("h1"))).operation
        await fleet.until(lambda f: f.nodes[0].steps)
        await fleet.controller.submit(CancelProvision("h1"))

        def ended(f: Fleet) -> bool:
            return any(o.id == operation and o.state == "cancelled" for o in f.operations)

        done = await fleet.until(ended)
        assert [s.state for s in done.nodes[0].steps if s.name == "connect"] == ["cancelled"]
        assert not (tmp_path / "node").exists()


@contextmanager
def somebodys_ollama(tmp_path: Path) -> Iterator[int]:
    """A server called ollama that we did not start; its port."""
    script = tmp_path / "theirs" / "ollama"
    script.parent.mkdir()
    script.write_text(FAKE_OLLAMA.format(python=sys.executable))
    script.chmod(0o755)
    port = free_port()
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}"}
    with subprocess.Popen([script, "serve"], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"listening\n"
        try:
            yield port
        finally:
            process.kill()


async def test_an_ollama_of_somebody_else_is_used_over_the_road(
    server: Sshd, tmp_path: Path
) -> None:
    config = node_config(server, tmp_path).model_copy(
        update={"simulated": None, "engine": "ollama", "binary": "/nonexistent/ollama"}
    )
    cluster = ClusterConfig(nodes={"h1": config})
    with somebodys_ollama(tmp_path) as port:
        url, name = f"http://127.0.0.1:{port}", f"h1-{port}"
        async with rig(tmp_path / STATE, cluster, keep=True) as fleet:
            asked = await fleet.until(lambda f: f.nodes[0].question)
            assert asked.nodes[0].question is not None
            await fleet.do(TrustHostKey("h1", asked.nodes[0].question.fingerprint))
            await fleet.controller.submit(Provision("h1"))
            await fleet.until(lambda f: url in f.nodes[0].foreign)
            with pytest.raises(PlacementError, match="no Ollama of somebody else"):
                await fleet.controller.submit(AdoptEndpoint("h1", "http://127.0.0.1:1"))
            await fleet.do(AdoptEndpoint("h1", url))
            await fleet.until(lambda f: is_up(f.node(name)))
            node = fleet.node(name)
            assert node.kind == "endpoint" and node.host == fleet.node("h1").host
            assert node.engines[0].address == f"{name}{ROAD_MARK}127.0.0.1:{port}"
            assert url not in fleet.node("h1").foreign
            transport = DialTransport(fleet.controller.dial, way_to(node, node.engines[0]))
            async with EngineClient(transport, "http://engine", name) as client:
                assert await client.version() == "0.99.1"
            server.stop()
            await fleet.until(lambda f: f.nodes[0].state == "lost")
            await fleet.until(lambda f: f.nodes[1].state == "lost", timeout_s=10)
            server.start()
            await fleet.until(lambda f: f.nodes[0].state == "ready" and is_up(f.node(name)))
        # It is still used after a restart, and can be left again.
        async with rig(tmp_path / STATE, cluster, keep=True) as fleet:
            await fleet.until(lambda f: is_up(f.node(name)))
            await fleet.until(lambda f: f.nodes[0].state == "ready")
            await fleet.do(AdoptEndpoint("h1", url, adopted=False))
            assert [node.name for node in fleet.fleet.nodes] == ["h1"]
            await uninstalled(fleet)
        urlopen(f"{url}/api/version", timeout=10).close()


async def test_direct_transport_takes_requests_past_ssh(server: Sshd, tmp_path: Path) -> None:
    async with fleet_of(server, tmp_path, transport="direct") as fleet:
        await provisioned(fleet)
        node = fleet.node("h1")
        peer = Peer()
        protocol = await fleet.controller.dial(way_to(node, node.engines[0]), lambda: peer)
        assert protocol is peer
        assert peer.transport.get_extra_info("socket") is not None, "a socket of our own"
        peer.transport.abort()
        await uninstalled(fleet)
