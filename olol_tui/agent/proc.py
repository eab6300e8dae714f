"""Processes as /proc shows them: identity that survives pid reuse, exit events, sockets.

A pid alone names nobody: pids are reused. `(boot id, pid, start time)` does, so that is
what records hold and what every signal is checked against.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from pathlib import Path
from typing import NamedTuple

_SYS_PIDFD_OPEN = 434
"""The same number on every architecture; `os.pidfd_open` only exists from Python 3.9."""

_LISTEN = "0A"
_CONNECTED = {"01": "open", "08": "left"}


class Stat(NamedTuple):
    """Fields of /proc/PID/stat that identify a process and its family."""

    comm: str
    state: str
    pgrp: int
    session: int
    starttime: int
    """Clock ticks after boot."""


def boot_id() -> str:
    """Names this boot of the kernel: a record of another boot describes nothing alive."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def machine_id() -> str:
    """Names this machine among those that share a home directory over NFS."""
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text:
            return text
    return "host-" + os.uname().nodename


def stat(pid: int) -> Stat | None:
    """None when there is no such process."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name may hold spaces and parentheses: the last ")" ends it.
    head, _, tail = raw.rpartition(b")")
    fields = tail.split()
    if len(fields) < 20:
        return None
    return Stat(
        comm=head.partition(b"(")[2].decode("utf-8", "replace"),
        state=fields[0].decode("ascii", "replace"),
        pgrp=int(fields[2]),
        session=int(fields[3]),
        starttime=int(fields[19]),
    )


def is_running(pid: int, starttime: int) -> bool:
    """True while this very process (not a later one with its pid) runs; a zombie does not."""
    found = stat(pid)
    return found is not None and found.starttime == starttime and found.state not in ("Z", "X")


def pidfd_open(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends.

    Returns:
        None where the kernel is older than 5.3: the caller polls instead.

    Raises:
        ProcessLookupError: no such process.
    """
    native = getattr(os, "pidfd_open", None)
    try:
        if native is not None:
            return int(native(pid))
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = int(libc.syscall(_SYS_PIDFD_OPEN, pid, 0))
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "pidfd_open")
        os.set_inheritable(descriptor, False)
        return descriptor
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from error
        return None


def pids() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def session_members(session: int) -> list[int]:
    """Processes of a session: an engine leads its own, and its helpers stay in it."""
    members = []
    for pid in pids():
        found = stat(pid)
        if found is not None and found.session == session and found.state not in ("Z", "X"):
            members.append(pid)
    return members


def signal_session(session: int, number: int) -> int:
    """Send a signal to every process of a session; returns how many took it."""
    count = 0
    for pid in session_members(session):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        count += 1
    return count


def marked(key: str, value: str) -> dict[int, int]:
    """Own processes whose environment holds `key=value`: {pid: session}."""
    wanted = f"{key}={value}".encode()
    found: dict[int, int] = {}
    for pid in pids():
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environ.split(b"\0"):
            status = stat(pid)
            if status is not None and status.state not in ("Z", "X"):
                found[pid] = status.session
    return found


def listening() -> dict[int, tuple[str, int]]:
    """Listening TCP sockets of this network namespace: {inode: (address in hex, port)}."""
    sockets: dict[int, tuple[str, int]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                address, _, port = fields[1].partition(":")
                sockets[int(fields[9])] = (address, int(port, 16))
    return sockets


def connections(port: int) -> set[str]:
    """States of the connections that a listener on that port has accepted, or is about to.

    `open`: a client is there. `left`: a client closed its end and ours has not noticed, which
    takes a living process no time at all.
    """
    states: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            # The same connection, seen from a client on this machine, has the port as its peer.
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] in _CONNECTED:
                states.add(_CONNECTED[fields[3]])
    return states


def resident_bytes(session: int) -> int:
    """Memory that the processes of a session hold."""
    pages = 0
    for pid in session_members(session):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def socket_inodes(pid: int) -> set[int]:
    """Inodes of the sockets a process holds; empty for processes of other users."""
    inodes: set[int] = set()
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return inodes
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(int(target[8:-1]))
    return inodes


def session_listens(session: int, port: int) -> bool | None:
    """Whether a process of this session holds the listener on `port`.

    Returns:
        None when nobody of ours can be seen holding it and nobody else's either
        (not listening yet); False when somebody else holds it.
    """
    inodes = {inode for inode, (_, found) in listening().items() if found == port}
    if not inodes:
        return None
    return any(inodes & socket_inodes(pid) for pid in session_members(session))


def describe_exit(returncode: int | None) -> str:
    """`exited with status 1`, `was killed by SIGKILL`; None for adopted processes."""
    if returncode is None:
        return "ended (exit status unknown: it was adopted)"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return f"was killed by {name}"
    return f"exited with status {returncode}"
