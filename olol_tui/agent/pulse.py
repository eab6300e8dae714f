"""Whether a process moves, as the kernel sees it.

A worker that is stopped, frozen by its container, or waits for itself, answers nothing and
breaks no connection: its head waits for it without end. How long a head may take over a
prompt says little; what the worker's own threads do says it at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from . import proc
from .spec import Policy

_FROZEN = ("refrigerator", "freezer_trap")
"""Where the kernel holds the processes of a frozen cgroup, as parts of its functions' names."""
_LISTENS = ("wait_woken", "sk_wait_data", "inet_csk_accept", "tcp_recvmsg", "sk_stream_wait")
"""Where a process waits for the other end of a TCP connection."""

_LEAST_S, _LEAST_BYTES = 0.5, 4 << 20
"""Shorter, or with fewer bytes a second, a while says nothing of a road's speed."""


@dataclass(frozen=True)
class Pulse:
    """One look at a process."""

    state: str
    """`R`, `S`, `D`, `T` …, of its first thread."""
    ticks: int
    """CPU time of all its threads so far."""
    waits_in: str
    """The kernel's function in which its first thread waits; empty where that is hidden."""
    written_bytes: int | None = None
    """To files, pipes and sockets so far; None where nobody asked, or the kernel does not say."""


def take(pid: int, *, counts: bool = False) -> Pulse | None:
    """None when there is no such process. Blocks, hardly.

    Args:
        counts: what it has written, too.
    """
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
        waits_in = Path(f"/proc/{pid}/wchan").read_text(encoding="ascii").strip("\0\n ")
    except OSError:
        return None
    fields = raw.rpartition(b")")[2].split()
    if len(fields) < 13:
        return None
    ticks = int(fields[11]) + int(fields[12])
    written = _written_bytes(pid) if counts else None
    return Pulse(fields[0].decode("ascii"), ticks, "" if waits_in == "0" else waits_in, written)


def _written_bytes(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(one.split()[1]) for one in lines if one.startswith("wchar:")), None)


class Meter:
    """How fast a process writes when it has much to write: the best of the whiles in which it
    wrote all the time, which are those between two others in which it wrote.

    For a road that carries weights from time to time: its speed is what it does then.
    """

    def __init__(self) -> None:
        self.peak_bytes_s: float | None = None
        self._last: tuple[int, float] | None = None
        self._speeds: list[float] = []
        """Of the latest whiles without a pause."""

    def seen(self, written_bytes: int | None, now_s: float) -> None:
        if written_bytes is None:
            return
        if self._last is not None:
            before, at_s = self._last
            count, took_s = written_bytes - before, now_s - at_s
            if took_s < _LEAST_S:
                return
            if count >= _LEAST_BYTES * took_s:
                self._speeds = [*self._speeds[-2:], count / took_s]
            else:
                self._speeds = []
            if len(self._speeds) == 3:
                self.peak_bytes_s = max(self.peak_bytes_s or 0.0, self._speeds[1])
        self._last = written_bytes, now_s


class Watch:
    """Looks in turn at one process.

    Args:
        computes: it computes on the CPU: without CPU time, it does not.
    """

    def __init__(self, policy: Policy, *, computes: bool) -> None:
        self._policy = policy
        self._computes = computes
        self._what = ""
        self._ticks = -1
        self._since_s = 0.0

    def seen(self, pulse: Pulse | None, now_s: float) -> str:
        """Why it should be ended; empty while nothing speaks for that."""
        what, limit_s = self._found(pulse)
        ticks = -1 if pulse is None else pulse.ticks
        if what != self._what or ticks != self._ticks:
            self._what, self._ticks, self._since_s = what, ticks, now_s
        if what and now_s - self._since_s >= limit_s:
            return f"{what} for {limit_s:g} s"
        return ""

    def _found(self, pulse: Pulse | None) -> tuple[str, float]:
        if pulse is None:
            return "", 0.0
        if pulse.state == "T":
            return "it is stopped", self._policy.stopped_s
        if any(name in pulse.waits_in for name in _FROZEN):
            return "it is frozen", self._policy.stopped_s
        # A disk that does not answer (`D`) is slow, not dead; a GPU computes without our CPU.
        idles = pulse.state == "S" and pulse.waits_in and self._computes
        if idles and not any(name in pulse.waits_in for name in _LISTENS):
            return f"it waits in {pulse.waits_in} and computes nothing", self._policy.stuck_s
        return "", 0.0


def holds_open(pid: int) -> set[str] | None:
    """Paths of what the process has open; None when it is gone, or going."""
    found: set[str] = set()
    directory = Path(f"/proc/{pid}/fd")
    try:
        for link in directory.iterdir():
            try:
                found.add(os.readlink(str(link)))
            except FileNotFoundError:
                continue  # closed meanwhile
        # Of one that is about to end nothing is listed any more.
        if not any(True for _ in directory.iterdir()) or not proc.stat(pid):
            return None
    except OSError:
        return None
    return found
