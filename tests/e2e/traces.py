"""What is on a host: for comparing it with what was there before."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Host, Lab, disk

_OURS = frozenset({"var/log/sshd.log"})
"""Of the lab itself; grows with every connection."""
_UNIT_PLACES = ("etc/systemd", "run/systemd", "var/lib/systemd", "home/ops/.config")
_NUMBERS = re.compile(r"pid=\d+,fd=\d+")


@dataclass(frozen=True)
class Traces:
    """One host at one moment. Two of these are equal when nothing was left behind."""

    processes: tuple[str, ...]
    """User and command line of each, sessions of sshd left aside."""
    listeners: frozenset[str]
    """TCP, UDP and UNIX sockets as `ss` says."""
    files: frozenset[str]
    """Path, mode, owner and content of all that differs from the machine's own disk, and of
    all in /run, /tmp and /dev/shm."""
    units: frozenset[str]
    """Those of `files` that systemd looks at."""

    def left_since(self, before: Traces) -> list[str]:
        """What is there now and was not, or not so; and what is missing."""
        said = []
        for name in ("processes", "listeners", "files", "units"):
            now, then = set(getattr(self, name)), set(getattr(before, name))
            said += [f"{name}: + {one}" for one in sorted(now - then)]
            said += [f"{name}: - {one}" for one in sorted(then - now)]
        if sorted(self.processes) != sorted(before.processes):
            said.append(f"processes: {self.processes} instead of {before.processes}")
        return said


def traces(lab: Lab, host: Host) -> Traces:
    upper = disk.directory(lab.record, host.record) / "upper"
    files = set(_files(upper, ""))
    for place in ("run", "tmp", "dev/shm"):
        files |= set(_files(host.root / place, place))
    return Traces(
        processes=tuple(
            sorted(
                f"{process.uid} {process.command}"
                for process in host.processes()
                if not _is_session(process.command)
            )
        ),
        listeners=frozenset(_listeners(host)),
        files=frozenset(files),
        units=frozenset(one for one in files if one.startswith(_UNIT_PLACES)),
    )


def _is_session(command: str) -> bool:
    return command.startswith("sshd") and "[listener]" not in command


def _listeners(host: Host) -> list[str]:
    said = host.exec(["ss", "-Hltunp"], "root").stdout + host.exec(["ss", "-Hlxp"], "root").stdout
    found = []
    for line in said.splitlines():
        kind, state, _, _, address, *_ = line.split()
        programs = _NUMBERS.sub("", line.partition("users:")[2])
        found.append(f"{kind} {state} {address} {programs}")
    return found


def _files(root: Path, shown: str) -> list[str]:
    """Everything below a directory, as paths of the host with what tells them apart."""
    found = []
    for folder, directories, names in os.walk(root):
        for name in (*directories, *names):
            path = Path(folder, name)
            place = str(Path(shown, path.relative_to(root)))
            if place not in _OURS:
                found.append(_described(path, place))
    return found


def _described(path: Path, place: str) -> str:
    facts = path.lstat()
    told = f"{place} {stat.filemode(facts.st_mode)} {facts.st_uid}"
    if stat.S_ISREG(facts.st_mode):
        told += f" {facts.st_size} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    elif stat.S_ISLNK(facts.st_mode):
        told += f" → {path.readlink()}"
    return told
