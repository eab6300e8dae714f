"""Who holds a TCP port: «taken» is only half an answer."""

from __future__ import annotations

import pwd
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from olol_tui.errors import PortTaken

_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port; pid 0 when it is hidden from this user."""

    pid: int
    command: str
    uid: int

    def __str__(self) -> str:
        if self.pid:
            return f"pid {self.pid} ({self.command})" if self.command else f"pid {self.pid}"
        try:
            owner = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            owner = str(self.uid)
        return f"a process of user {owner}"


def port_taken(host: str, port: int) -> PortTaken:
    """The error for an address that could not be bound, naming who has it."""
    holder = listener_on(host, port)
    by = f"by {holder}" if holder else "by a process that cannot be seen from here"
    return PortTaken(
        f"{host}:{port} is in use {by}",
        hint="Stop it, or choose another port: --port N (0 for any free one)",
    )


def listener_on(host: str, port: int) -> Holder | None:
    """The listener that keeps `host:port` from being bound, as far as /proc tells."""
    wanted = _addresses(host)
    rows = [row for row in _listeners() if row[1] == port]
    clashing = [row for row in rows if not wanted or _is_any(row[0]) or row[0] in wanted]
    if not clashing and any(_is_any(address) for address in wanted):
        clashing = rows
    if not clashing:
        return None
    _, _, inode, uid = clashing[0]
    pid = _pid_of(inode)
    return Holder(pid, command_of(pid) if pid else "", uid)


def command_of(pid: int) -> str:
    """Its command line, shortened; empty when it is gone or hidden."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    text = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    return text if len(text) <= 100 else text[:99] + "…"


def _addresses(host: str) -> set[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in found}


def _is_any(address: str) -> bool:
    return address in ("0.0.0.0", "::")


def _listeners() -> list[tuple[str, int, int, int]]:
    """(address, port, inode, uid) of every listening TCP socket."""
    rows = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            lines = Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                address, port = fields[1].split(":")
                shown = _address(address, family)
                rows.append((shown, int(port, 16), int(fields[9]), int(fields[7])))
    return rows


def _address(text: str, family: socket.AddressFamily) -> str:
    """The kernel writes addresses as native 32-bit words in hexadecimal."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))


def _pid_of(inode: int) -> int:
    target = f"socket:[{inode}]"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            links = list((process / "fd").iterdir())
        except OSError:
            continue  # of another user, or gone
        for link in links:
            try:
                if str(link.readlink()) == target:
                    return int(process.name)
            except OSError:
                continue  # closed meanwhile
    return 0
