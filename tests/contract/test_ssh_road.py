"""The whole way: an agent put on a «node», called, followed and ended through a real sshd."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from olol_tui import agent_zip
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.engine_client import EngineClient
from olol_tui.fleet.wire import Spec
from olol_tui.gateway.upstream import UpstreamPool, head
from olol_tui.ssh.errors import LinkDown
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.road import AgentPlace, SshRoad
from tests.contract.ssh_rig import TIMEOUT_S, Sshd, connector, in_phase, needs_sshd, sshd, until

pytestmark = needs_sshd


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(params=["", "DisableForwarding yes"], ids=["channels", "stdio"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd", request.param) as running:
        yield running


class Carrier:
    """A provisioner that only knows how to carry and to start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._archive = agent_zip.cached(directory / "cache")
        self.started = 0

    async def ensure_agent(self, link: NodeLink) -> AgentPlace:
        there = self._directory / "node"
        socket = there / "a.sock"
        await link.run(f"mkdir -p -m 700 {shlex.quote(str(there))}", check=True)
        async with link.sftp() as files:
            await files.put(str(self._archive), str(there / "agent.pyz"))
        running = await link.run(f"kill -0 $(cat {there}/pid)")
        if running.status != 0:
            self.started += 1
            await link.run(
                f"cd {there} && (setsid {sys.executable} -I agent.pyz serve --socket {socket} "
                f"--state-dir {there}/state --simulated '{{\"gpus\": 1}}' "
                "</dev/null >log 2>&1 & echo $! >pid)",
                check=True,
            )
            wait = f"for i in $(seq 300); do test -S {socket} && exit; sleep 0.1; done; cat {there}/log; exit 1"
            await link.run(wait, check=True, timeout_s=TIMEOUT_S)
        return AgentPlace(str(socket), int((there / "pid").read_text()))


class Reply:
    """What the gateway's pool tells about one call."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.lost = ""
        self.ended = asyncio.Event()
        self.begun = asyncio.Event()

    def up_head(self, status: int, content_type: bytes) -> None:
        self.status = status

    def up_data(self, data: bytes, final: bool) -> None:
        self.body += data
        self.begun.set()

    def up_end(self) -> None:
        self.ended.set()

    def up_lost(self, reason: str) -> None:
        self.lost = reason
        self.ended.set()


async def test_an_agent_over_ssh(server: Sshd, tmp_path: Path) -> None:
    link = NodeLink("n1", server.target(), connector(tmp_path), python=sys.executable)
    road = SshRoad(link, Carrier(tmp_path))
    try:
        with pytest.raises(AgentUnreachable, match="not known yet"):
            async with AgentClient(road.agent_transport(), "n1") as client:
                await client.hello()
        await road.ensure_agent()
        async with AgentClient(road.agent_transport(), "n1") as client:
            await client.hello()
            uuid = (await client.inventory()).devices[0].uuid
            await client.put_engines(1, [Spec(id="n1/sim", kind="simulated", devices=(uuid,))])
            address = ""
            async with asyncio.timeout(TIMEOUT_S):
                async for frame in client.telemetry():
                    ready = [engine for engine in frame.engines if engine.state == "ready"]
                    if ready:
                        address = ready[0].address
                        break
            transport = road.engine_transport()
            async with EngineClient(transport, f"http://{address}", "engine") as engine:
                assert await engine.ps() == ()
            await _through_the_gateways_pool(road, server, address)
            await in_phase(link, "up")
            await road.ensure_agent()
            assert not await road.gone(0.5)
            await client.shutdown(stop_engines=True)
            assert await road.gone(TIMEOUT_S)
    finally:
        await road.aclose()
    await until(lambda: not server.sessions())


async def _through_the_gateways_pool(road: SshRoad, server: Sshd, address: str) -> None:
    pool = UpstreamPool(road.dial, connect_s=TIMEOUT_S)
    try:
        for _ in range(3):
            reply = Reply()
            pool.call(address, head("GET", address, "/api/version", 0), reply)
            await asyncio.wait_for(reply.ended.wait(), TIMEOUT_S)
            assert (reply.status, reply.lost) == (200, "")
        body = b'{"model": "llama3.2:1b", "prompt": "tell me a story", "options": {"num_predict": 100000}}'
        reply = Reply()
        request = head("POST", address, "/api/generate", len(body), "application/json") + body
        pool.call(address, request, reply)
        await asyncio.wait_for(reply.begun.wait(), TIMEOUT_S)
        server.signal_ssh(signal.SIGKILL)
        await asyncio.wait_for(reply.ended.wait(), TIMEOUT_S)
        assert reply.lost
        refused = Reply()
        pool.call("127.0.0.1:1", request, refused)
        await asyncio.wait_for(refused.ended.wait(), TIMEOUT_S)
        assert "127.0.0.1:1" in refused.lost
    finally:
        await pool.close()


async def test_a_road_to_nowhere(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd") as server:
        target = server.target()
    link = NodeLink("n1", target, connector(tmp_path))
    road = SshRoad(link, Carrier(tmp_path))
    try:
        with pytest.raises(Exception, match="refused") as failed:
            await road.ensure_agent()
        assert type(failed.value).__name__ == "Unreachable"
        with pytest.raises(LinkDown, match="refused"):
            await road.dial("127.0.0.1:1", asyncio.Protocol)
    finally:
        await road.aclose()
