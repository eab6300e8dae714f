"""One host of a lab: commands on it, and what can befall it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from tests.lab import disk, interpreter, network, processes, state
from tests.lab.errors import LabError
from tests.lab.processes import Listener, Process
from tests.lab.state import HostRecord

if TYPE_CHECKING:
    from tests.lab.lab import Lab

Cut = Literal["drop", "rst", "link", "in", "out"]
Command = str | Sequence[str]
Stream = int | IO[bytes] | None

EXEC_TIMEOUT_S = 30.0
FREEZE_TIMEOUT_S = 5.0
ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Host:
    """A host by name. All state is in the lab's record, so two of these never disagree."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} {'up' if self.is_up else 'off'}>"

    @property
    def record(self) -> HostRecord:
        return self._lab.record.hosts[self.name]

    @property
    def address(self) -> str:
        return self.record.address

    @property
    def is_up(self) -> bool:
        return self.record.init is not None and self.record.init.alive

    @property
    def init(self) -> int:
        """The pid outside of the host's PID 1.

        Raises:
            LabError: the host is powered off.
        """
        if self.record.init is None or not self.record.init.alive:
            raise LabError(f"{self.name} is powered off")
        return self.record.init.pid

    @property
    def root(self) -> Path:
        """The host's file system, as this machine sees it."""
        return Path(f"/proc/{self.init}/root")

    # Commands -----------------------------------------------------------------------

    def command(self, cmd: Command, user: str = disk.USER) -> list[str]:
        """The argument list that runs `cmd` on the host, for a subprocess of any kind.

        The command dies with the process that this list starts. It gets the environment
        that an SSH session has, not the caller's.
        """
        init = str(self.init)
        if self.record.frozen:
            raise LabError(f"{self.name} is frozen: a command would never start")
        home = {"root": "/root", disk.USER: f"/home/{disk.USER}"}.get(user, "/")
        path = ROOT_PATH if user == "root" else interpreter.USER_PATH
        env = [f"PATH={path}", f"HOME={home}", f"USER={user}", f"LOGNAME={user}", "LANG=C.UTF-8"]
        if user == disk.USER:
            env.append(f"XDG_RUNTIME_DIR=/run/user/{disk.UID}")
        drop = [] if user == "root" else [f"--reuid={user}", f"--regid={user}", "--init-groups"]
        argv = ["sh", "-c", cmd] if isinstance(cmd, str) else list(cmd)
        enter = ["nsenter", "-t", init, "-m", "-u", "-i", "-n", "-p", "--"]
        inner = ["setpriv", *drop, "--pdeathsig=KILL", "env", "-i", "-C", home, *env, *argv]
        if not self.record.cgroup:
            return [*enter, *inner]
        enter.insert(1, "-C")
        join = 'echo $$ >"$0" && exec "$@"'
        return ["sh", "-c", join, f"{self.record.cgroup}/cgroup.procs", *enter, *inner]

    def exec(
        self,
        cmd: Command,
        user: str = disk.USER,
        *,
        stdin: str = "",
        check: bool = True,
        timeout_s: float = EXEC_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; a string goes to the shell.

        Raises:
            LabError: it failed and `check` is set, or it took longer than `timeout_s` (a
                background process that keeps the output open counts: use `spawn` for one).
        """
        argv = self.command(cmd, user)
        try:
            done = subprocess.run(
                argv, input=stdin, text=True, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name}: {cmd!r} took longer than {timeout_s} s") from error
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise LabError(f"{self.name}: {cmd!r} ended with {done.returncode}: {said}")
        return done

    def spawn(
        self,
        cmd: Command,
        user: str = disk.USER,
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.DEVNULL,
        stderr: Stream = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Starts a command. Killing the process that is returned kills the command."""
        argv = self.command(cmd, user)
        return subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr)

    def processes(self) -> list[Process]:
        """Every process on the host."""
        return processes.in_namespace_of(self.init)

    def listening(self) -> list[Listener]:
        """Every TCP socket on the host that listens, and who holds it."""
        return processes.listeners(self.init)

    # Power --------------------------------------------------------------------------

    def kill(self) -> None:
        """Cuts the power: no FIN, no RST, /run and /tmp are lost, the disk survives."""
        self._lab.power_off(self.name)

    def boot(self) -> None:
        """Powers the host on again, with its disk, keys and address; returns when sshd answers."""
        if self.is_up:
            raise LabError(f"{self.name} is up")
        self._lab.power_on([self.name])

    # Network ------------------------------------------------------------------------

    def cut(self, how: Cut = "drop") -> None:
        """Cuts the host off until `heal`.

        drop: nothing gets through, silently. link: its carrier is gone. in: it hears
        nothing. out: nobody hears it. rst: every TCP segment resets its connection at both ends.
        """
        if how not in network.CUTS:
            raise LabError(f"cut {how!r}: one of {', '.join(network.CUTS)}")
        self._set_faults(cut=how)

    def netem(self, delay_ms: float, jitter_ms: float = 0, loss_pct: float = 0) -> None:
        """Delays and loses packets in each direction until `heal`; a round trip takes twice the delay."""
        if not (0 <= jitter_ms <= delay_ms and 0 <= loss_pct <= 100):
            raise LabError("netem: 0 ≤ jitter ≤ delay, and loss in percent")
        self._set_faults(netem=(delay_ms, jitter_ms, loss_pct))

    def heal(self) -> None:
        """Undoes `cut` and `netem`."""
        self._set_faults(cut="", netem=None)

    def _set_faults(self, **faults: object) -> None:
        self.init  # noqa: B018 - raises when the host is powered off
        for name, value in faults.items():
            setattr(self.record, name, value)
        network.apply(self._lab.record, self.record)
        self._lab.record.save()

    # Everything else ----------------------------------------------------------------

    def freeze(self) -> None:
        """Stops every process of the host; its kernel still acknowledges what arrives."""
        init = self.init
        self.record.frozen = True
        self._lab.record.save()
        deadline = time.monotonic() + FREEZE_TIMEOUT_S
        while not self._stop_all(init):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} did not freeze")
            time.sleep(0.005)

    def _stop_all(self, init: int) -> bool:
        """Whether everything has come to a stop, after asking for it."""
        if not self.record.cgroup:
            # Without cgroups: until nothing runs that was started meanwhile.
            return not _signal_all(init, signal.SIGSTOP)
        group = Path(self.record.cgroup)
        (group / "cgroup.freeze").write_text("1")
        return "frozen 1" in (group / "cgroup.events").read_text()

    def thaw(self) -> None:
        """Lets the host run on."""
        if self.record.cgroup:
            state.thaw(Path(self.record.cgroup))
        elif self.is_up:
            _signal_all(self.init, signal.SIGCONT)
        self.record.frozen = False
        self._lab.record.save()

    def fill(self, leave_mb: float = 0) -> None:
        """Fills the disk but for `leave_mb`; a shared /home is not on it."""
        self.unfill()
        space = os.statvfs(self._fill_file.parent)
        wanted = space.f_bavail * space.f_frsize - int(leave_mb * (1 << 20))
        if wanted > 0:
            fd = os.open(self._fill_file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, wanted)
            finally:
                os.close(fd)

    def unfill(self) -> None:
        self._fill_file.unlink(missing_ok=True)

    @property
    def _fill_file(self) -> Path:
        return disk.directory(self._lab.record, self.record) / "fill"

    def sshd_config(self, *lines: str) -> None:
        """Puts lines before the lab's own sshd_config (the first value counts) and restarts sshd.

        They replace the lines of the call before; none at all restores the lab's own.

        Raises:
            LabError: sshd does not accept them; the old ones stay.
        """
        before = self.record.sshd_overrides
        self.record.sshd_overrides = list(lines)
        self._write_sshd_config()
        try:
            self.exec(["/usr/sbin/sshd", "-t"], "root")
        except LabError:
            self.record.sshd_overrides = before
            self._write_sshd_config()
            raise
        self._lab.record.save()
        self.restart_sshd()

    def _write_sshd_config(self) -> None:
        text = disk.sshd_config(self.record)
        self.exec("cat >/etc/ssh/sshd_config", "root", stdin=text)

    def restart_sshd(self) -> None:
        """Ends sshd, which the host's init starts again; sessions live on, as under systemd."""
        if not processes.Recorded.of(self.sshd.outer_pid).end():
            raise LabError(f"{self.name}: sshd did not end")
        self._lab.wait_for_sshd([self.name])

    @property
    def sshd(self) -> Process:
        """The sshd that listens."""
        for process in self.processes():
            if "sshd" in process.command and "[listener]" in process.command:
                return process
        raise LabError(f"{self.name}: sshd does not run")


def _signal_all(init: int, number: signal.Signals) -> int:
    """Signals every process of a host that is not in the wanted state yet; how many there were."""
    count = 0
    for process in processes.in_namespace_of(init):
        if processes.is_stopped(process.outer_pid) != (number == signal.SIGSTOP):
            os.kill(process.outer_pid, number)
            count += 1
    return count
