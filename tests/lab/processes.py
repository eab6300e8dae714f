"""Processes seen from outside a host: records that survive pid reuse, listings by namespace."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Recorded:
    """A process by pid and start time, so that a reused pid is never mistaken for it."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Recorded:
        """The process that has this pid now.

        Raises:
            ProcessLookupError: there is none.
        """
        start = _start_ticks(pid)
        if start is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, start)

    @property
    def alive(self) -> bool:
        return _start_ticks(self.pid) == self.start_ticks

    def kill(self, timeout_s: float = 5.0) -> bool:
        """Kills it and waits for its end; False when it still lives after that."""
        return self._signal(signal.SIGKILL, timeout_s)

    def end(self, timeout_s: float = 2.0) -> bool:
        """Asks it to end, and kills it when it does not."""
        return self._signal(signal.SIGTERM, timeout_s) or self.kill()

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end; False when it still lives after that."""
        return self._signal(None, timeout_s)

    def _signal(self, number: signal.Signals | None, timeout_s: float) -> bool:
        ended = True
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self.pid)
            try:
                if self.alive:
                    if number is not None:
                        signal.pidfd_send_signal(fd, number)
                    ended = readable(fd, timeout_s)
            finally:
                os.close(fd)
        if ended and self.pid in _children:
            _children.pop(self.pid).wait()
        return ended


def readable(fd: int, timeout_s: float) -> bool:
    """Waits until there is something to read; `select` would stop at descriptor 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes of labs that this process started, to be reaped when they end."""


def start(argv: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """Starts a process of a lab, in a session of its own and with pipes to talk to it."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd="/",
        start_new_session=True,
    )
    _children[process.pid] = process
    return process


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on, empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _start_ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def reap() -> None:
    """Collects the processes of labs that have ended."""
    for pid in [pid for pid, process in _children.items() if process.poll() is not None]:
        del _children[pid]


def is_stopped(pid: int) -> bool:
    return _stat(pid)[:1] == ["T"]


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a host."""

    pid: int
    """As the host sees it."""
    outer_pid: int
    """As this machine sees it."""
    uid: int
    command: str


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket in state LISTEN."""

    address: str
    port: int
    pid: int
    """As the host sees it; 0 when no process of the host holds the socket."""
    command: str


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_of(pid: int) -> list[str]:
    """The arguments of a process, empty when it is gone or a kernel thread."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0") if part]


def _status(pid: int) -> dict[str, str]:
    """/proc/PID/status, empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def inner_pids(pid: int) -> list[int]:
    """The pids that it has in namespaces below ours."""
    return [int(word) for word in _status(pid).get("NSpid", "").split()[1:]]


def in_namespace_of(init: int) -> list[Process]:
    """All processes of the host whose PID 1 is `init` outside, zombies left out."""
    wanted = os.stat(f"/proc/{init}/ns/pid").st_ino
    found = []
    for pid in pids():
        try:
            if os.stat(f"/proc/{pid}/ns/pid").st_ino != wanted:
                continue
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or not even root's to look at, hence none of ours
        status = _status(pid)
        inner = status.get("NSpid", "").split()
        if len(inner) < 2 or status["State"][0] in "ZX":
            continue
        command = " ".join(command_of(pid)) or f"[{status['Name']}]"
        found.append(Process(int(inner[-1]), pid, int(status["Uid"].split()[1]), command))
    return sorted(found, key=lambda process: process.pid)


def listeners(init: int) -> list[Listener]:
    """Every listening TCP socket of the host whose PID 1 is `init`, with who holds it."""
    sockets: dict[int, tuple[str, int]] = {}
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{init}/net/{name}").read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN
                sockets[int(fields[9])] = _address(fields[1])
    held: dict[int, Process] = {}
    for process in in_namespace_of(init):
        for inode in _socket_inodes(process.outer_pid):
            held.setdefault(inode, process)
    found = []
    for inode, (address, port) in sockets.items():
        holder = held.get(inode)
        command = holder.command if holder else ""
        found.append(Listener(address, port, holder.pid if holder else 0, command))
    return sorted(found, key=lambda listener: (listener.port, listener.address))


def _socket_inodes(pid: int) -> list[int]:
    inodes = []
    try:
        for fd in os.scandir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(fd.path)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.append(int(target[8:-1]))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return inodes


def _address(field: str) -> tuple[str, int]:
    """`0100007F:1F90` of /proc/net/tcp → ("127.0.0.1", 8080); words are in host byte order."""
    text, port = field.split(":")
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw), int(port, 16)
