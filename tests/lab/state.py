"""What a lab has made, on disk: so that it can be removed after any crash, and joined by the CLI.

A lab is a directory `/run/olol-lab/TAG` with `lab.json` in it. The hosts have a `/run` of
their own and cannot see it. Everything else that a lab makes carries the tag: links by
their alias, cgroups by their name, processes by their arguments, mounts by their place.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import processes, shell
from tests.lab.errors import LabError
from tests.lab.processes import Recorded

BASE = Path("/run/olol-lab")
ALIAS = "olol-lab"
SCRIPTS = ("inside.py", "wire.py")
MNT_DETACH = 2


@dataclass(slots=True)
class HostRecord:
    """One host, as the outside must know it."""

    name: str
    number: int
    address: str
    mac: str
    port: str
    """Its link's end outside."""
    cgroup: str = ""
    """Its cgroup v2 directory, empty where this machine has none to give."""
    init: Recorded | None = None
    """Its PID 1; None when powered off."""
    keeper: Recorded | None = None
    """The process outside that waits for PID 1."""
    frozen: bool = False
    cut: str = ""
    netem: tuple[float, float, float] | None = None
    """Delay and jitter in ms, loss in percent."""
    netem_by_kernel: bool = False
    wire: Recorded | None = None
    wire_spec: str = ""
    sshd_overrides: list[str] = field(default_factory=list)

    @property
    def wire_port(self) -> str:
        """The bridge's end of the pair that a wire needs."""
        return self.port.replace("h", "w")

    @property
    def wire_end(self) -> str:
        """The wire's end of that pair."""
        return self.port.replace("h", "x")


@dataclass(slots=True)
class LabRecord:
    """One lab."""

    tag: str
    owner: Recorded | None
    """The process whose end is the lab's end; None when it stays until `down`."""
    bridge: str
    subnet: str
    gateway: str
    mac: str
    uid: int
    shared_home: bool
    share: dict[str, str]
    hosts: dict[str, HostRecord] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return BASE / self.tag

    def save(self) -> None:
        new = self.directory / "lab.json.new"
        new.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        new.replace(self.directory / "lab.json")

    @classmethod
    def load(cls, tag: str) -> LabRecord:
        """The record of a lab.

        Raises:
            LabError: there is no such lab, or it is still being made.
        """
        try:
            raw = json.loads((BASE / tag / "lab.json").read_text())
        except (OSError, ValueError) as error:
            raise LabError(f"no lab {tag}: {error}") from error
        hosts = {name: _host(value) for name, value in raw.pop("hosts").items()}
        owner = _recorded(raw.pop("owner"))
        return cls(owner=owner, hosts=hosts, **raw)


def _recorded(raw: dict[str, int] | None) -> Recorded | None:
    return Recorded(**raw) if raw else None


def _host(raw: dict[str, Any]) -> HostRecord:
    for name in ("init", "keeper", "wire"):
        raw[name] = _recorded(raw[name])
    raw["netem"] = tuple(raw["netem"]) if raw["netem"] else None
    return HostRecord(**raw)


def tags() -> list[str]:
    """The labs that have a directory."""
    return sorted(path.name for path in BASE.iterdir()) if BASE.is_dir() else []


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Held while a lab takes its tag and subnet, and while one is removed.

    The lock is on the directory itself, which goes with the last lab: hence the look whether
    the locked one is still the one in place.
    """
    while True:
        BASE.mkdir(mode=0o755, exist_ok=True)
        try:
            fd = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if BASE.is_dir() and BASE.stat().st_ino == os.fstat(fd).st_ino:
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):  # a lab is in it
                        BASE.rmdir()
                return
        finally:
            os.close(fd)


def sweep() -> list[str]:
    """Removes what labs left whose owner is gone. The lock must be held.

    Returns:
        The tags of the labs that were removed.
    """
    removed = []
    known = tags()
    for tag in known:
        try:
            owner = LabRecord.load(tag).owner
        except LabError:
            pass  # made halfway: its maker died while it held the lock
        else:
            if owner is None or owner.alive:
                continue
        remove(tag)
        removed.append(tag)
    for tag in sorted(_tags_in_use() - set(known)):
        remove(tag)
        removed.append(tag)
    return removed


def remove(tag: str) -> None:
    """Removes everything of one lab, whatever state it is in. The lock must be held.

    Raises:
        LabError: a process of it could not be killed.
    """
    cgroups = [path for path in _cgroups() if _tag_of_cgroup(path) == tag]
    for group in cgroups:
        thaw(group)
    for pid in _scripts(tag):
        try:
            process = Recorded.of(pid)
        except ProcessLookupError:
            continue
        if not process.kill():
            raise LabError(f"process {pid} of lab {tag} cannot be killed")
    shell.ip([f"link del {name}" for name in _links(tag)], force=True)
    for group in cgroups:
        _remove_cgroup(group)
    _unmount(BASE / tag)
    shutil.rmtree(BASE / tag, ignore_errors=True)


def cgroup_root() -> Path | None:
    """Where cgroup v2 is mounted, if it is."""
    for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (path / "cgroup.controllers").exists():
            return path
    return None


def make_cgroup(tag: str, host: str) -> str:
    """A cgroup for a host; empty where this machine does not let us make one."""
    root = cgroup_root()
    if root is None:
        return ""
    path = root / f"{ALIAS}-{tag}-{host}"
    try:
        path.mkdir(exist_ok=True)
    except OSError:
        return ""
    return str(path)


def thaw(group: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (group / "cgroup.freeze").write_text("0")


def _remove_cgroup(group: Path) -> None:
    """A cgroup can be removed once its last process is reaped, which the kernel does not announce."""
    deadline = time.monotonic() + 5
    inner = [Path(name) for name, _, _ in os.walk(group, topdown=False)]
    for path in inner:
        while True:
            try:
                path.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(f"cannot remove {path}: {error}") from error
                time.sleep(0.005)
            else:
                break


def _cgroups() -> list[Path]:
    root = cgroup_root()
    return sorted(root.glob(f"{ALIAS}-*-*")) if root else []


def _tag_of_cgroup(path: Path) -> str:
    return path.name[len(ALIAS) + 1 :].split("-")[0]


def _links(tag: str = "") -> list[str]:
    """Links of a lab, or of all labs. A veth's end inside a host goes with its end here."""
    found = []
    for path in Path("/sys/class/net").iterdir():
        with contextlib.suppress(OSError):
            alias = (path / "ifalias").read_text().split()
            if alias and alias[0] == ALIAS and tag in ("", alias[1]):
                found.append(path.name)
    return found


def _scripts(tag: str = "") -> list[int]:
    """Processes of a lab outside its hosts, and the PID 1 of each host."""
    place = str(BASE / tag) + "/"
    return [
        pid
        for pid in processes.pids()
        if (command := processes.command_of(pid))
        and any(Path(word).name in SCRIPTS for word in command[1:5])
        and any(place in word for word in command)
        # Not of a lab within a host, and not the host that we ourselves may be on.
        and processes.inner_pids(pid) in ([], [1])
        and pid != 1
    ]


def _tags_in_use() -> set[str]:
    """Tags on anything that exists, also where the directory is lost."""
    found = {_tag_of_cgroup(path) for path in _cgroups()}
    for name in _links():
        with contextlib.suppress(OSError):
            found.add((Path("/sys/class/net") / name / "ifalias").read_text().split()[1])
    place = str(BASE) + "/"
    for pid in _scripts():
        for word in processes.command_of(pid):
            if place in word:
                found.add(word.split(place, 1)[1].split("/")[0])
    for target in _mounts(BASE):
        found.add(target.relative_to(BASE).parts[0])
    return found


def _mounts(under: Path) -> list[Path]:
    with open("/proc/self/mounts") as file:
        targets = [Path(line.split()[1]) for line in file]
    return [target for target in targets if under in target.parents]


def _unmount(under: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for target in sorted(_mounts(under), reverse=True):
        path = str(target).encode()
        if libc.umount2(path, 0) and libc.umount2(path, MNT_DETACH):
            raise LabError(f"cannot unmount {target}: {os.strerror(ctypes.get_errno())}")
