"""A node's link over a real sshd: streams, commands, faults."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from olol_tui.ssh.errors import (
    ChannelRefused,
    CommandFailed,
    CommandTimeout,
    LinkDown,
    LinkLost,
    NoCapacity,
    SessionsForbidden,
    SftpMissing,
)
from tests.contract.ssh_rig import (
    TIMEOUT_S,
    Peer,
    Sshd,
    in_phase,
    link,
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
    with sshd(tmp_path / "sshd") as running:
        yield running


async def test_streams_to_a_port_and_a_socket(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
        assert up.state.road == "channels"
        for address in (node.tcp, node.unix):
            peer = await up.dial(address, Peer)
            assert isinstance(peer, Peer)
            peer.transport.write(b"hello")
            assert await peer.until(5) == b"hello"
            peer.transport.write_eof()
            assert await peer.end() is None
            assert peer.eof
        await until(lambda: up.channels == 0)


async def test_many_streams_at_once(server: Sshd, tmp_path: Path) -> None:
    """A burst of requests is no reason to lose one: a forwarded listener lost 199 of 300."""
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:

        async def talk(number: int) -> None:
            peer = await up.dial(node.tcp if number % 2 else node.unix, Peer)
            assert isinstance(peer, Peer)
            told = f"stream {number}".encode()
            peer.transport.write(told)
            assert await peer.until(len(told)) == told
            peer.transport.close()
            assert await peer.end() is None

        await asyncio.gather(*(talk(number) for number in range(300)))
        await until(lambda: up.channels == 0 and node.connections == 0)


async def test_nothing_listens(server: Sshd, tmp_path: Path) -> None:
    async with link(server, tmp_path) as up:
        with pytest.raises(ConnectionRefusedError):
            await up.dial("127.0.0.1:1", Peer)
        with pytest.raises(ChannelRefused):
            await up.dial("unix:/nowhere/at/all", Peer)


async def test_a_killed_sshd_is_an_error_and_never_an_end(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
        peers = [await up.dial(node.tcp, Peer), await up.dial(node.unix, Peer)]
        for peer in peers:
            assert isinstance(peer, Peer)
            peer.transport.write(b"half an answ")
            await peer.until(12)
        server.signal_sessions(signal.SIGKILL)
        for peer in peers:
            assert isinstance(peer, Peer)
            assert isinstance(await peer.end(), LinkLost)
            assert not peer.eof


async def test_a_frozen_host_is_noticed(server: Sshd, tmp_path: Path) -> None:
    """Its kernel still acknowledges: only the SSH keepalive can tell. 2 s x (2 + 1) = 6 s."""
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        server.signal_sessions(signal.SIGSTOP)
        started_s = time.monotonic()
        try:
            assert isinstance(await peer.end(20), LinkLost)
            assert time.monotonic() - started_s < 9
            await in_phase(up, "lost")
        finally:
            server.signal_sessions(signal.SIGCONT)


async def test_it_comes_back_by_itself(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
        server.stop()
        await in_phase(up, "lost")
        with pytest.raises(LinkDown):
            await up.dial(node.tcp, Peer)
        with pytest.raises(LinkDown):
            await up.run("true")
        assert up.state.reason
        server.start()
        await in_phase(up, "up")
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.write(b"again")
        assert await peer.until(5) == b"again"


async def test_commands(server: Sshd, tmp_path: Path) -> None:
    async with link(server, tmp_path) as up:
        done = await up.run("cat; echo oops >&2; exit 3", stdin=b"in")
        assert (done.status, done.stdout, done.stderr) == (3, "in", "oops\n")
        async with up.sftp() as files:
            await files.put(str(server.identity), str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == server.identity.read_bytes()


async def test_http_calls(server: Sshd, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def tolerant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    async with service(tmp_path / "s", tolerant) as node, link(server, tmp_path) as up:
        for transport, base in (
            (up.http_transport_agent(str(node.path)), "http://agent"),
            (up.http_transport_tcp(node.port), "http://engine"),
            (up.http_transport_tcp(), f"http://{node.tcp}"),
        ):
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                assert (await client.get("/x")).text == "ok"
                assert (await client.get("/y")).text == "ok"
        transport = up.http_transport_tcp(1)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            with pytest.raises(httpx.ConnectError, match="refused"):
                await client.get("/")


async def test_a_slow_reader_bounds_memory(server: Sshd, tmp_path: Path) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(400):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with service(tmp_path / "s", pour) as node, link(server, tmp_path) as up:
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.pause_reading()
        last = -1
        while sent != last:  # Until the sender stands still.
            last = sent
            await asyncio.sleep(0.5)
        stalled, before = sent, len(peer.received)
        assert stalled < 400 * 65536
        await asyncio.sleep(0.2)
        assert len(peer.received) == before
        peer.transport.resume_reading()
        await peer.until(400 * 65536)
        assert await peer.end() is None
        assert peer.eof


async def test_a_slow_server_pauses_the_writer(server: Sshd, tmp_path: Path) -> None:
    go = asyncio.Event()
    total = 0

    async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal total
        await go.wait()
        while data := await reader.read(65536):
            total += len(data)
        writer.write(b"%d" % total)
        writer.close()

    async with service(tmp_path / "s", sip) as node, link(server, tmp_path) as up:
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        written = 0
        while not peer.paused:
            peer.transport.write(b"y" * 65536)
            written += 65536
            assert written < 64 * 2**20
            await asyncio.sleep(0)
        go.set()
        await asyncio.wait_for(peer.resumed.wait(), TIMEOUT_S)
        peer.transport.write_eof()
        assert await peer.end() is None
        assert int(peer.received) == written


async def test_a_cancelled_dial_leaves_no_channel(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
        for _ in range(20):
            dialling = asyncio.ensure_future(up.dial(node.tcp, Peer))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
        await until(lambda: up.channels == 0 and node.connections == 0)


async def test_where_one_connection_is_full_another_opens(server: Sshd, tmp_path: Path) -> None:
    """systemd gives sshd 1024 files: beyond, it fails to open streams, and is not dead."""
    async with service(tmp_path / "s") as node, link(server, tmp_path, limit=2) as up:
        for pid in server.sessions():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
        both = (node.tcp, node.unix)
        peers = [await up.dial(both[number % 2], Peer) for number in range(120)]
        assert up.data_connections == 2
        for pid in server.sessions():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
        with pytest.raises(NoCapacity):
            while len(peers) < 240:
                peers += [await up.dial(node.tcp, Peer)]
        for peer in peers:
            assert isinstance(peer, Peer)
            peer.transport.write(b"still here")
            await peer.until(10)
        assert up.state.phase == "up"


async def test_a_thousand_streams_leave_nothing(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:

        async def round_trips(count: int) -> None:
            for _ in range(count // 50):
                peers = await asyncio.gather(*(up.dial(node.tcp, Peer) for _ in range(50)))
                for peer in peers:
                    assert isinstance(peer, Peer)
                    peer.transport.write(b"x")
                for number, peer in enumerate(peers):
                    assert isinstance(peer, Peer)
                    await peer.until(1)
                    (peer.transport.abort if number % 2 else peer.transport.close)()
                    await peer.end()
            await until(lambda: up.channels == 0 and node.connections == 0)

        await round_trips(200)
        gc.collect()
        files, objects = _open_files(), _count_of_ours()
        await round_trips(1000)
        gc.collect()
        assert _open_files() <= files
        assert _count_of_ours() <= objects


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _count_of_ours() -> int:
    """Channels and what hangs on them."""
    kinds = ("Channel", "SSHTCPChannel", "Peer", "Task")
    return sum(type(thing).__name__ in kinds for thing in gc.get_objects())


async def test_a_protocol_that_fails_ends_its_own_stream_only(server: Sshd, tmp_path: Path) -> None:
    class Broken(Peer):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
        good, bad = await up.dial(node.tcp, Peer), await up.dial(node.tcp, Broken)
        assert isinstance(good, Peer) and isinstance(bad, Peer)
        bad.transport.write(b"x")
        assert isinstance(await bad.end(), ZeroDivisionError)
        good.transport.write(b"fine")
        await good.until(4)
    assert len(told) == 1


async def test_half_closed_streams(server: Sshd, tmp_path: Path) -> None:
    """The reply may follow the end of the request."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()
        writer.write(b"you said " + asked)

    async with service(tmp_path / "s", late) as node, link(server, tmp_path) as up:
        peer = await up.dial(node.tcp, Peer)
        assert isinstance(peer, Peer)
        peer.transport.pause_reading()
        peer.transport.write(b"hello")
        peer.transport.write_eof()
        await until(lambda: node.connections == 0)
        await asyncio.sleep(0.2)  # Data, end and close are all here now, unread.
        peer.transport.resume_reading()
        assert await peer.end() is None
        assert peer.received == b"you said hello"


async def test_closing_the_link_fails_its_streams(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node:
        async with link(server, tmp_path) as up:
            peer = await up.dial(node.tcp, Peer)
            assert isinstance(peer, Peer)
        assert isinstance(await peer.end(), LinkLost)
        assert not peer.eof
        assert up.state.phase == "closed"
        with pytest.raises(LinkDown):
            await up.dial(node.tcp, Peer)
    await until(lambda: not server.sessions())


async def test_commands_that_go_wrong(server: Sshd, tmp_path: Path) -> None:
    async with link(server, tmp_path) as up:
        with pytest.raises(CommandFailed, match=r"status 4: .*: no such") as failed:
            await up.run("printf 'no \\033[31msuch\\033[2J thing' >&2; exit 4", check=True)
        assert str(failed.value).isprintable()
        with pytest.raises(CommandTimeout):
            await up.run("sleep 60", timeout_s=0.3)
        with pytest.raises(CommandFailed, match="8 MiB"):
            await up.run("yes")
        assert (await up.run("kill -9 $$")).status == -1
        assert (await up.run("true", stdin=b"x" * 2**20)).status == 0
        running = asyncio.ensure_future(up.run("sleep 60"))
        await asyncio.sleep(0.2)
        server.signal_sessions(signal.SIGKILL)
        with pytest.raises(LinkLost):
            await running


@pytest.mark.skipif(os.getuid() == 0, reason="sshd passes no signals on to root's commands")
async def test_a_cancelled_command_ends(server: Sshd, tmp_path: Path) -> None:
    async with link(server, tmp_path) as up:
        running = asyncio.ensure_future(up.run(f"echo $$ > {tmp_path}/pid; exec sleep 60"))
        await until((tmp_path / "pid").exists)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        pid = int((tmp_path / "pid").read_text())
        await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_server_with_one_session(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd", "MaxSessions 1") as server:
        async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
            async with up.sftp() as files:
                waiting = [asyncio.ensure_future(up.run(f"echo {n}")) for n in range(5)]
                assert await files.exists("/")
            assert [(await one).stdout for one in waiting] == [f"{n}\n" for n in range(5)]
            peer = await up.dial(node.tcp, Peer)
            assert isinstance(peer, Peer)
            peer.transport.abort()


async def test_an_errand_has_its_shell_from_the_start(tmp_path: Path) -> None:
    """Of the one session that this server allows, whatever is wanted first."""
    with sshd(tmp_path / "sshd", "MaxSessions 1") as server:
        for wants_shell in (True, False):
            async with asyncio.timeout(TIMEOUT_S), link(server, tmp_path, limit=0) as up:
                if wants_shell:
                    async with up.talk("exec /bin/sh") as talk:
                        await talk.write(b"echo $0; exit 3\n")
                        assert await talk.read() == b"/bin/sh\n"
                        assert (await talk.end()).status == 3
                assert (await up.run("echo more")).stdout == "more\n"
                async with up.sftp() as files:
                    assert await files.exists("/")


async def test_many_commands_at_once(server: Sshd, tmp_path: Path) -> None:
    """sshd allows ten sessions: the others wait."""
    async with link(server, tmp_path) as up:
        done = await asyncio.gather(*(up.run(f"sleep 0.1; echo {n}") for n in range(30)))
        assert [one.stdout for one in done] == [f"{n}\n" for n in range(30)]


async def test_no_sftp(tmp_path: Path) -> None:
    for config in ("Subsystem none /bin/false", "ForceCommand cat"):
        with sshd(tmp_path / config[:3], f"{config}", sftp=False) as server:
            async with link(server, tmp_path) as up:
                with pytest.raises(SftpMissing):
                    async with asyncio.timeout(TIMEOUT_S), up.sftp():
                        pass


async def test_no_sessions_at_all(tmp_path: Path) -> None:
    with (
        sshd(tmp_path / "sshd", "MaxSessions 0") as server,
        pytest.raises(SessionsForbidden, match="runs no command"),
    ):
        async with link(server, tmp_path):
            pass


async def test_a_line_that_flaps(server: Sshd, tmp_path: Path) -> None:
    async with service(tmp_path / "s") as node, link(server, tmp_path) as up:
        for _ in range(3):
            peer = await up.dial(node.tcp, Peer)
            assert isinstance(peer, Peer)
            server.signal_sessions(signal.SIGKILL)
            assert await peer.end() is not None
            await in_phase(up, "lost")
            await in_phase(up, "up")
        assert server.log.count("Accepted publickey") <= 8 + 4  # Two a visit, some half-open.
