"""Streams where sshd forbids forwarding: the same promises over one session's stdio."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from olol_tui.ssh.errors import ChannelRefused, ForwardingForbidden, LinkLost
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

pytestmark = needs_sshd


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd", "DisableForwarding yes") as running:
        yield running


@asynccontextmanager
async def stdio_link(
    server: Sshd, directory: Path, python: str = sys.executable
) -> AsyncIterator[NodeLink]:
    node = NodeLink("n1", server.target(), connector(directory), python=python)
    async with node:
        await node.wait_up(TIMEOUT_S)
        yield node


@pytest.mark.parametrize(
    "config",
    ["DisableForwarding yes", "AllowTcpForwarding no", "AllowTcpForwarding no\nMaxSessions 1"],
)
async def test_the_same_streams(tmp_path: Path, config: str) -> None:
    with sshd(tmp_path / "sshd", config) as server:
        async with service(tmp_path / "s") as node, stdio_link(server, tmp_path) as up:
            assert up.state.road == "stdio"
            for address in (node.tcp, node.unix):
                peer = await up.dial(address, Peer)
                assert isinstance(peer, Peer)
                peer.transport.write(b"hello")
                assert await peer.until(5) == b"hello"
                peer.transport.write_eof()
                assert await peer.end() is None
                assert peer.eof
            assert (await up.run("echo hi")).stdout == "hi\n"
            await until(lambda: up.channels == 0)


async def test_only_sockets_are_forbidden(tmp_path: Path) -> None:
    """sshd says the same as for a missing socket: the node's own attempt tells them apart."""
    with sshd(tmp_path / "sshd", "AllowStreamLocalForwarding no") as server:
        async with service(tmp_path / "s") as node, stdio_link(server, tmp_path) as up:
            assert up.state.road == "channels"
            with pytest.raises(ChannelRefused):
                await up.dial("unix:/nowhere", Peer)
            peer = await up.dial(node.unix, Peer)
            assert isinstance(peer, Peer)
            peer.transport.write(b"hello")
            assert await peer.until(5) == b"hello"
            peer.transport.abort()


async def test_nothing_listens(server: Sshd, tmp_path: Path) -> None:
    async with stdio_link(server, tmp_path) as up:
        for address in ("127.0.0.1:1", "unix:/nowhere", "unix:/" + 200 * "x", "name.invalid:80"):
            with pytest.raises(ChannelRefused):
                await up.dial(address, Peer)


async def test_many_streams_and_much_data(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, stdio_link(server, tmp_path) as up:

        async def talk(number: int) -> None:
            peer = await up.dial(node.tcp if number % 2 else node.unix, Peer)
            assert isinstance(peer, Peer)
            told = b"%08d" % number * 50_000
            peer.transport.write(told)
            peer.transport.write_eof()
            assert await peer.end() is None
            assert bytes(peer.received) == told

        await asyncio.gather(*(talk(number) for number in range(50)))
        await until(lambda: up.channels == 0 and node.connections == 0)


async def test_a_stalled_reader_holds_up_nobody(server: Sshd, tmp_path: Path) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(200):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with (
        service(tmp_path / "s", pour) as poured,
        service(tmp_path / "e") as echoed,
        stdio_link(server, tmp_path) as up,
    ):
        slow = await up.dial(poured.tcp, Peer)
        assert isinstance(slow, Peer)
        slow.transport.pause_reading()
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 200 * 65536
        peer = await up.dial(echoed.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.write(b"not in the way")
        await peer.until(14)
        peer.transport.abort()
        slow.transport.resume_reading()
        await slow.until(200 * 65536)
        assert await slow.end() is None
        assert slow.eof


async def test_a_lost_session_is_an_error_and_never_an_end(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, stdio_link(server, tmp_path) as up:
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        server.signal_sessions(signal.SIGKILL)
        assert isinstance(await peer.end(), LinkLost)
        assert not peer.eof
        await in_phase(up, "lost")
        await in_phase(up, "up")
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.write(b"again")
        await peer.until(5)


async def test_a_reset_by_the_engine_is_told(server: Sshd, tmp_path: Path) -> None:
    """Better than a channel, which turns it into an end of file."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with service(tmp_path / "s", reset) as node, stdio_link(server, tmp_path) as up:
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.write(b"zz")
        assert isinstance(await peer.end(), LinkLost)
        assert not peer.eof


async def test_no_python_either(server: Sshd, tmp_path: Path) -> None:
    """Commands still work, so that somebody can find out why; streams say what is missing."""
    async with stdio_link(server, tmp_path, python="python-is-not-here") as up:
        assert up.state.phase == "up"
        assert isinstance(up.state.error, ForwardingForbidden)
        assert (await up.run("echo hi")).stdout == "hi\n"
        with pytest.raises(PermissionError, match="python-is-not-here"):
            await up.dial("127.0.0.1:1", Peer)


async def test_nothing_is_left_on_the_node(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, stdio_link(server, tmp_path) as up:
        for _ in range(200):
            peer = await up.dial(node.tcp, Peer)
            assert isinstance(peer, Peer)
            peer.transport.write(b"x")
            await peer.until(1)
            peer.transport.abort()
        await until(lambda: up.channels == 0 and node.connections == 0)
        assert server.sessions()
    await until(lambda: not server.sessions())


async def test_a_killed_helper_is_started_again(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, stdio_link(server, tmp_path) as up:
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        helpers = [pid for pid in server.sessions() if "python" in command(pid)]
        assert helpers
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
        assert isinstance(await peer.end(), LinkLost)
        assert not peer.eof
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.write(b"again")
        assert await peer.until(5) == b"again"
        assert up.state.phase == "up"


async def test_an_impatient_dialler_does_not_stop_the_helper(server: Sshd, tmp_path: Path) -> None:
    """Gateways give up after two seconds; a slow node's python may take longer to start."""
    slow = tmp_path / "slow-python"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    async with service(tmp_path / "s") as node, stdio_link(server, tmp_path, str(slow)) as up:
        for pid in server.sessions():
            if "python" in command(pid):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await up.dial(node.tcp, Peer)
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.write(b"at last")
        assert await peer.until(7) == b"at last"
        assert len([pid for pid in server.sessions() if "python" in command(pid)]) == 1


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()
