"""A lab as a whole: bringing it up, joining one, taking it down."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import disk, interpreter, network, preflight, processes, state
from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.processes import Recorded
from tests.lab.state import HostRecord, LabRecord

POOL = "10.213.0.0/16"
"""Where a lab takes a free /24 by default, so that labs side by side do not clash."""
BOOT_TIMEOUT_S = 20.0
INSIDE = Path(__file__).with_name("inside.py")
PROJECT = Path(__file__).resolve().parents[2]


class Lab:
    """A cluster of hosts h1, h2, …

    Life: `with Lab(...) as lab:` or `up()` and `down()`. When the process that made it ends
    without `down()`, even by SIGKILL, a reaper process removes the lab; should that be gone
    too, the next lab sweeps what is left. With `keep` it stays until somebody's `down()`.

    Args:
        hosts: how many.
        disk: size of each host's disk, as tmpfs takes it (`128m`).
        shared_home: one /home for all, as with NFS; it is outside the hosts' disks.
        subnet: a private IPv4 network; the lab takes the first free /24 of it.
        share: directories or files of this machine shown read-only, {path in the host: path}.
        keep: outlive this process.
    """

    def __init__(
        self,
        hosts: int = 3,
        *,
        disk: str = "128m",
        shared_home: bool = False,
        subnet: str = POOL,
        share: Mapping[str, str | Path] | None = None,
        keep: bool = False,
    ) -> None:
        if not 1 <= hosts <= network.MAX_HOSTS:
            raise LabError(f"1 to {network.MAX_HOSTS} hosts")
        self._count, self._disk, self._subnet, self._keep = hosts, disk, subnet, keep
        self._shared_home = shared_home
        self._share = {target: str(Path(path).resolve()) for target, path in (share or {}).items()}
        self._record: LabRecord | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self.hosts: dict[str, Host] = {}

    @staticmethod
    def available() -> str:
        """Why this machine cannot host a lab; empty when it can."""
        return preflight.obstacle()

    @classmethod
    def attach(cls, tag: str) -> Self:
        """A lab that another process brought up. `down()` is for whoever wants it gone."""
        record = LabRecord.load(tag)
        lab = cls(len(record.hosts), keep=True)
        lab._adopt(record)
        return lab

    def _adopt(self, record: LabRecord) -> None:
        self._record = record
        self.hosts = {name: Host(self, name) for name in record.hosts}

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def record(self) -> LabRecord:
        if self._record is None:
            raise LabError("the lab is not up")
        return self._record

    @property
    def tag(self) -> str:
        return self.record.tag

    @property
    def gateway(self) -> str:
        """This machine's address in the lab's subnet."""
        return self.record.gateway

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F` and asyncssh's `config=`: every host by name, with key and known host."""
        return self.record.directory / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.record.directory / "known_hosts"

    @property
    def identity(self) -> Path:
        """The private key that the user of every host accepts."""
        return self.record.directory / "id_ed25519"

    def up(self) -> None:
        """Brings the hosts up; returns when every sshd answers.

        Raises:
            LabError: it could not be done; nothing of it is left then.
        """
        if self._record is not None:
            raise LabError("the lab is up")
        if reason := self.available():
            raise LabError(reason)
        try:
            with state.lock():
                state.sweep()
                self._found()
            self._watch()
            self._make_disks()
            self._write_client_files()
            self.power_on(self.record.hosts)
        except BaseException:
            if self._record is not None:
                self.down()
            raise

    def down(self) -> None:
        """Removes every trace of the lab. Does nothing when it is down."""
        if self._record is None:
            return
        for host in self._record.hosts.values():
            if host.frozen and not host.cgroup:
                self.hosts[host.name].thaw()
        with state.lock():
            state.remove(self._record.tag)
        processes.reap()
        if self._reaper is not None:
            with self._reaper:
                pass  # closes its stdin, at which it ends
        self._record, self._reaper, self.hosts = None, None, {}

    def mend(self) -> None:
        """Undoes every fault: all hosts up, reachable, with room on the disk and the lab's sshd_config."""
        for host in self.hosts.values():
            host.unfill()
            if not host.is_up:
                host.boot()
            if host.record.frozen:
                host.thaw()
            if host.record.cut or host.record.netem:
                host.heal()
            if host.record.sshd_overrides:
                host.sshd_config()

    def power_off(self, name: str) -> None:
        """See `Host.kill`."""
        host = self.record.hosts[name]
        if host.init is None:
            raise LabError(f"{name} is powered off")
        network.blackhole(host)
        if host.cgroup:
            # What came from outside to run a command waits in the same cgroup for its end.
            (Path(host.cgroup) / "cgroup.freeze").write_text("0")
        if not host.init.kill() or not (host.keeper is None or host.keeper.wait(5)):
            raise LabError(f"{name} cannot be killed")
        network.unplug(host)
        host.init, host.keeper, host.frozen = None, None, False
        self.record.save()

    def power_on(self, names: Iterable[str]) -> None:
        """Boots hosts, all at once; returns when their sshd answers."""
        names = list(names)
        started = {name: self._start(self.record.hosts[name]) for name in names}
        try:
            inits = {}
            for name, process in started.items():
                inits[name] = int(self._hear(name, process))
                host = self.record.hosts[name]
                host.init, host.keeper = Recorded.of(inits[name]), Recorded.of(process.pid)
            network.plug(self.record, inits)
            self.record.save()
            for process in started.values():
                assert process.stdin is not None
                process.stdin.write(b"+")
                process.stdin.flush()
            for name, process in started.items():
                self._hear(name, process)
                network.forward(self.record.hosts[name])
        finally:
            for process in started.values():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.close()
                process.stdout.close()
        self.wait_for_sshd(names)

    def wait_for_sshd(self, names: Iterable[str]) -> None:
        """Returns when each host's sshd has greeted."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        for name in names:
            address = (self.record.hosts[name].address, 22)
            while not _greets(address, deadline - time.monotonic()):
                if time.monotonic() > deadline:
                    raise LabError(f"{name}: sshd does not answer\n{self._console(name)}")
                time.sleep(0.01)  # a listener that is not there yet sends no event

    def _found(self) -> None:
        """Takes a tag and a subnet, under the lock, and writes both down."""
        taken = set(state.tags())
        tag = next(tag for tag in iter(lambda: secrets.token_hex(2), "") if tag not in taken)
        subnet = network.free_subnet(self._subnet)
        record = LabRecord(
            tag=tag,
            owner=None if self._keep else Recorded.of(os.getpid()),
            bridge=f"ol{tag}",
            subnet=str(subnet),
            gateway=str(subnet[1]),
            mac=network.mac(tag, 0, 1),
            uid=disk.UID,
            shared_home=self._shared_home,
            share={**interpreter.share(), **self._share},
        )
        for number in range(1, self._count + 1):
            name = f"h{number}"
            record.hosts[name] = HostRecord(
                name=name,
                number=number,
                address=str(subnet[network.FIRST_HOST + number - 1]),
                mac=network.mac(tag, 1, number),
                port=f"ol{tag}h{number}",
            )
        record.directory.mkdir(mode=0o755)
        record.save()
        self._adopt(record)
        network.make_bridge(record)

    def _watch(self) -> None:
        """Starts the reaper, which removes the lab when its stdin ends, that is: with us."""
        if not self._keep:
            argv = [sys.executable, "-m", "tests.lab", "reap", self.tag]
            self._reaper = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                cwd=PROJECT,
                start_new_session=True,
            )

    def _make_disks(self) -> None:
        record = self.record
        disk.make_keys({self.identity: "olol-lab"})
        if record.shared_home:
            disk.make_home(record, record.directory / "home")
        for host in record.hosts.values():
            disk.make(record, host, self._disk)
        disk.make_keys({disk.host_key(record, host): host.name for host in record.hosts.values()})

    def _write_client_files(self) -> None:
        known, config = [], []
        for host in self.record.hosts.values():
            key = disk.host_key(self.record, host).with_suffix(".pub").read_text().split()[:2]
            known.append(f"{host.name},{host.address} {' '.join(key)}\n")
            config.append(f"Host {host.name}\n  HostName {host.address}\n")
        config.append(
            f"Host {' '.join(self.hosts)}\n"
            f"  User {disk.USER}\n"
            f"  IdentityFile {self.identity}\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.known_hosts}\n"
            "  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )
        self.known_hosts.write_text("".join(known))
        self.ssh_config.write_text("".join(config))

    def _start(self, host: HostRecord) -> subprocess.Popen[bytes]:
        """Starts what becomes the host; it waits for its link."""
        record = self.record
        place = record.directory / host.name
        (place / "root").mkdir(exist_ok=True)
        host.cgroup = state.make_cgroup(record.tag, host.name)
        config = {
            "name": host.name,
            "root": str(place / "root"),
            "disk": str(disk.directory(record, host)),
            "home": str(record.directory / "home") if record.shared_home else "",
            "share": record.share,
            "cgroup": host.cgroup,
            "uid": record.uid,
            "network": "\n".join(network.lines_inside(record, host)) + "\n",
        }
        (place / "boot.json").write_text(json.dumps(config, indent=1))
        argv = [sys.executable, "-I", "-S", str(INSIDE), str(place / "boot.json")]
        with open(place / "console.log", "ab") as log:
            return processes.start(argv, log)

    def _hear(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """The next line from a host that boots."""
        assert process.stdout is not None
        if processes.readable(process.stdout.fileno(), BOOT_TIMEOUT_S):
            text = process.stdout.readline().strip()
            if text:
                return text.decode()
        raise LabError(f"{name} did not start\n{self._console(name)}")

    def _console(self, name: str) -> str:
        return (self.record.directory / name / "console.log").read_text()[-2000:].strip()


def _greets(address: tuple[str, int], timeout_s: float) -> bool:
    try:
        with socket.create_connection(address, max(0.01, timeout_s)) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
