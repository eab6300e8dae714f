"""The same road on uvloop, where the gateway lives."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from olol_tui.ssh.errors import ChannelRefused, LinkLost
from olol_tui.ssh.link import NodeLink
from tests.contract.ssh_rig import (
    TIMEOUT_S,
    Peer,
    Sshd,
    connector,
    in_phase,
    needs_sshd,
    service,
    sshd,
    until,
)

uvloop = pytest.importorskip("uvloop")
pytestmark = needs_sshd


@pytest.mark.parametrize("config", ["", "DisableForwarding yes"], ids=["channels", "stdio"])
def test_the_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with (
        sshd(tmp_path / "sshd", config) as server,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_travel(server, tmp_path))


async def _travel(server: Sshd, tmp_path: Path) -> None:
    up = NodeLink("n1", server.target(), connector(tmp_path), python=sys.executable)
    async with service(tmp_path / "s") as node, up:
        await up.wait_up(TIMEOUT_S)
        carrier = up._control
        assert carrier is not None
        sock = carrier.ssh.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4000

        async def talk(number: int) -> None:
            peer = await up.dial(node.tcp if number % 2 else node.unix, Peer)
            assert isinstance(peer, Peer)
            told = b"%08d" % number * 20_000
            peer.transport.write(told)
            peer.transport.write_eof()
            assert await peer.end() is None
            assert bytes(peer.received) == told

        await asyncio.gather(*(talk(number) for number in range(40)))
        await until(lambda: up.channels == 0)
        assert (await up.run("cat", stdin=b"in")).stdout == "in"
        async with up.sftp() as files:
            assert await files.exists("/")
        with pytest.raises(ChannelRefused):
            await up.dial("127.0.0.1:1", Peer)
        transport = up.http_transport_agent(str(tmp_path / "nobody"))
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("http://agent/")
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        server.signal_ssh(signal.SIGKILL)
        assert isinstance(await peer.end(), LinkLost)
        assert not peer.eof
        await in_phase(up, "lost")
        await in_phase(up, "up")
