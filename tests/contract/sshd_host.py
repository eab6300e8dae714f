"""A host with a real sshd on loopback: this machine, seen as a user with a home of their own.

The processes are this machine's and so are python and /proc; home, runtime directory and
PATH are the test's, set by sshd.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from olol_tui.ssh.connection import Connector
from olol_tui.ssh.hostkeys import HostKeys
from olol_tui.ssh.keys import KeyRing
from olol_tui.ssh.sessions import Sessions
from olol_tui.ssh.target import Target

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
needs_sshd = pytest.mark.skipif(
    not Path(SSHD).exists() or shutil.which("ssh-keygen") is None, reason="needs sshd"
)

PATH = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
"""The Python of these tests is the first one that a host finds."""

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home} PATH={path} XDG_RUNTIME_DIR={runtime} {env}
{extra}
"""


class SshdHost:
    """One such host; `settings` are more lines of sshd_config."""

    def __init__(self, folder: Path, *, settings: str, env: str, path: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port = _free_port()
        self.home.mkdir(parents=True)
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        for name in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
            )
        if "Subsystem" not in settings:
            settings += "\nSubsystem sftp internal-sftp"
        config = _CONFIG.format(
            port=self.port,
            folder=folder,
            home=self.home,
            runtime=runtime,
            path=path,
            env=env,
            extra=settings.replace("Subsystem none", ""),
        )
        (folder / "sshd_config").write_text(config)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (folder / "sshd.log").open("wb") as log:
            self._sshd = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log
            )
        self._await_port()

    def _await_port(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._sshd.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "sshd.log").read_text()) from None
                time.sleep(0.02)

    @property
    def target(self) -> Target:
        return Target(
            "127.0.0.1",
            port=self.port,
            user=getpass.getuser(),
            identities=(self.folder / "user_key",),
        )

    @asynccontextmanager
    async def shell(self) -> AsyncIterator[Sessions]:
        """A connection's sessions, as provisioning gets them."""
        hostkeys = HostKeys(
            self.folder / "known_hosts", user_files=(), system_files=(), policy="accept-new"
        )
        connector = Connector(hostkeys, KeyRing(), config=self.folder / "ssh_config")
        (self.folder / "ssh_config").touch()
        connection = await connector.connect("h1", self.target)
        try:
            yield Sessions(connection)
        finally:
            await connection.close()

    def cut(self) -> None:
        """End every connection, as when the line breaks; new ones are welcome."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self._sshd.pid:
                os.kill(int(entry.name), signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """Command lines of what was started from this host's home."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(self.home) in command and int(entry.name) != os.getpid():
                found[int(entry.name)] = command
        return found

    def close(self) -> None:
        self._sshd.terminate()
        self._sshd.wait(20)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 20
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        for record in self.home.rglob("launch.json"):
            if sock := json.loads(record.read_bytes()).get("socket"):
                shutil.rmtree(Path(sock).parent, ignore_errors=True)


@contextmanager
def sshd_host(
    folder: Path, *, settings: str = "", env: str = "", path: str | None = None
) -> Iterator[SshdHost]:
    folder.mkdir(parents=True, exist_ok=True)
    host = SshdHost(folder, settings=settings, env=env, path=path or PATH)
    try:
        yield host
    finally:
        host.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
