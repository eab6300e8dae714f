"""A real OpenSSH server for one test: its own port, host key, configuration and user keys."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import asyncssh
import pytest

from olol_tui.ssh.connection import Connector
from olol_tui.ssh.hostkeys import HostKeys, Policy
from olol_tui.ssh.keys import AskPassphrase, KeyRing
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.target import ProfileName, Target

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or ""
TIMEOUT_S = 30.0
USER = getpass.getuser()

needs_sshd = pytest.mark.skipif(not SSHD, reason="no sshd here: install openssh-server")


class Sshd:
    """One server process and what tests do to it."""

    def __init__(self, directory: Path, config: str, *, sftp: bool) -> None:
        self.directory = directory
        self.sftp = sftp
        self.config = config
        self.port = free_port()
        self.host_key = directory / "host_key"
        self.authorized = directory / "authorized_keys"
        self.identity = directory / "id_test"
        self._process: subprocess.Popen[bytes] | None = None
        new_key(self.host_key)
        self.authorized.write_text(new_key(self.identity))

    def start(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        (self.directory / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\n"
            f"AuthorizedKeysFile {self.authorized}\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            # A shell of level 2 skips ~/.bashrc: what the user of the tests has there may be slow.
            f"LogLevel VERBOSE\nSetEnv SHLVL=1\n{self.config}\n"
            + ("Subsystem sftp internal-sftp\n" if self.sftp else "")
        )
        with (self.directory / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.directory / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, self.log
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError(f"sshd does not listen: {self.log}")

    def stop(self) -> None:
        """The listener and every session."""
        if self._process is None:
            return
        sessions = self.sessions()
        self._process.kill()
        self._process.wait()
        self._process = None
        for pid in sessions:
            _kill(pid, signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop_listening(self) -> None:
        """Sessions go on, as when sshd is restarted."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def sessions(self) -> list[int]:
        """Processes that serve connections, and what they run."""
        return [] if self._process is None else descendants(self._process.pid)

    def signal_ssh(self, sig: signal.Signals) -> None:
        """Only sshd's own processes, not what users run."""
        for pid in self.sessions():
            if "sshd" in Path(f"/proc/{pid}/comm").read_text():
                _kill(pid, sig)

    def signal_sessions(self, sig: signal.Signals) -> None:
        for pid in self.sessions():
            _kill(pid, sig)

    @property
    def log(self) -> str:
        return (self.directory / "sshd.log").read_text(errors="replace")

    def target(self, *, profile: ProfileName = "lan", user: str | None = USER) -> Target:
        return Target("127.0.0.1", self.port, user, identities=(self.identity,), profile=profile)


@contextmanager
def sshd(directory: Path, config: str = "", *, sftp: bool = True) -> Iterator[Sshd]:
    directory.mkdir(parents=True, exist_ok=True)
    server = Sshd(directory, config, sftp=sftp)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connector(
    directory: Path,
    *,
    policy: Policy = "accept-new",
    ask: AskPassphrase | None = None,
    config: Path | None = None,
) -> Connector:
    hostkeys = HostKeys(directory / "state" / "known_hosts", system_files=(), policy=policy)
    return Connector(hostkeys, KeyRing(ask), config)


@asynccontextmanager
async def link(
    server: Sshd, directory: Path, *, profile: ProfileName = "lan", limit: int = 4
) -> AsyncIterator[NodeLink]:
    node = NodeLink(
        "n1", server.target(profile=profile), connector(directory), data_connections=limit
    )
    async with node:
        await node.wait_up(TIMEOUT_S)
        yield node


async def until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def in_phase(node: NodeLink, phase: str, timeout_s: float = TIMEOUT_S) -> None:
    await until(lambda: node.state.phase == phase, timeout_s)


class Peer(asyncio.Protocol):
    """Records one stream's life."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.eof = False
        self.ended = asyncio.Event()
        self.error: Exception | None = None
        self.got_data = asyncio.Event()
        self.paused = False
        self.keep_open = False
        self.resumed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.got_data.set()

    def eof_received(self) -> bool:
        self.eof = True
        return self.keep_open

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.ended.set()

    async def until(self, size: int) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.received) < size:
                assert not self.ended.is_set(), self.error
                self.got_data.clear()
                await self.got_data.wait()
        return bytes(self.received)

    async def end(self, timeout_s: float = TIMEOUT_S) -> Exception | None:
        async with asyncio.timeout(timeout_s):
            await self.ended.wait()
        return self.error


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Service:
    """A server beside the node, on TCP and a UNIX socket."""

    def __init__(self, port: int, path: Path) -> None:
        self.tcp = f"127.0.0.1:{port}"
        self.unix = f"unix:{path}"
        self.port = port
        self.path = path
        self.connections = 0


@asynccontextmanager
async def service(path: Path, handler: Handler = echo) -> AsyncIterator[Service]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        serving.connections += 1
        try:
            await handler(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            serving.connections -= 1
            tasks.discard(task)
            writer.transport.abort()

    tcp = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
    unix = await asyncio.start_unix_server(handle, path, backlog=1024)
    serving = Service(tcp.sockets[0].getsockname()[1], path)
    try:
        yield serving
    finally:
        tcp.close()
        unix.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def new_key(path: Path, passphrase: str | None = None, *, kind: str = "ssh-ed25519") -> str:
    """A key pair in files; returns the public line."""
    key = asyncssh.generate_private_key(kind)
    path.write_bytes(key.export_private_key("openssh", passphrase))
    path.chmod(0o600)
    public = key.export_public_key("openssh").decode()
    path.with_name(path.name + ".pub").write_text(public)
    return public


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    found = [int(child) for child in children]
    return found + [grandchild for child in found for grandchild in descendants(child)]


def _kill(pid: int, sig: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sig)
