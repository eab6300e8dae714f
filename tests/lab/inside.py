"""PID 1 of a lab host: makes the host's root, then keeps sshd running and reaps orphans.

A script of its own, started by path with `python -I -S`. It may import only the standard
library, and after `pivot_root` nothing at all: the interpreter's library can lie in a
directory (/root/.pyenv) that the host does not see.

Argument: a JSON file, see `main`. It prints the pid that the host's PID 1 has outside,
waits for a byte on stdin while the outside moves `eth0` in, boots, and prints `up` when its
network is there and sshd was started.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import uuid
from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
KERNEL_FS = MS_NOSUID | MS_NODEV | MS_NOEXEC

NOFILE = (1024, 524288)
"""systemd's default limits of a service, so that sshd runs out of descriptors where a real one does."""
RESTART_S = 0.1
"""systemd's default RestartSec."""
SSHD_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}

libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    args = (source.encode(), target.encode(), kind.encode() or None)
    _check(libc.mount(*args, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def bind(source: str, target: str, *, readonly: bool = False) -> None:
    """Shows a file or directory at a second place; the place is made."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, flags=MS_BIND | (MS_REC if os.path.isdir(source) else 0))
    if readonly:
        mount("", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def pivot(root: str) -> None:
    """Makes `root` the only file system there is."""
    os.chdir(root)
    _check(libc.pivot_root(b".", b"."), "pivot_root")
    _check(libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def _devices(root: str) -> None:
    mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, "mode=755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        bind(f"/dev/{name}", f"{root}/dev/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"{root}/dev/{name}")
    options = "newinstance,ptmxmode=0666,mode=620"
    mount("devpts", f"{root}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    os.symlink("pts/ptmx", f"{root}/dev/ptmx")
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")


def make_root(config: dict[str, Any]) -> None:
    """The host's file systems, in a mount namespace of its own."""
    root = config["root"]
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    layers = f"lowerdir=/,upperdir={config['disk']}/upper,workdir={config['disk']}/work"
    mount("overlay", root, "overlay", 0, layers)
    if config["home"]:
        bind(config["home"], f"{root}/home")
    for target, source in config["share"].items():
        bind(source, root + target, readonly=True)
    mount("proc", f"{root}/proc", "proc", KERNEL_FS)
    mount("sysfs", f"{root}/sys", "sysfs", KERNEL_FS | MS_RDONLY)
    if config["cgroup"]:
        mount("cgroup2", f"{root}/sys/fs/cgroup", "cgroup2", KERNEL_FS)
    _devices(root)
    mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64m")
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=256m")
    os.makedirs(f"{root}/run/sshd", 0o755)
    runtime = f"{root}/run/user/{config['uid']}"
    os.makedirs(runtime, 0o700)
    os.chown(runtime, config["uid"], config["uid"])
    # The kernel has one boot id for all namespaces; a host that was off must have a new one.
    with open(f"{root}/run/boot_id", "w") as file:
        file.write(f"{uuid.uuid4()}\n")
    bind(f"{root}/run/boot_id", f"{root}/proc/sys/kernel/random/boot_id", readonly=True)


def make_network(batch: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)


def keep_sshd() -> None:
    """Runs sshd, starts it again when it ends, and reaps whatever was orphaned. Never returns."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGALRM})
    log = os.open("/var/log/sshd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open("/dev/null", os.O_RDWR)
    sshd = 0
    due = time.monotonic()
    told = False
    while True:
        wait = 3600.0
        if not sshd:
            wait = due - time.monotonic()
            if wait <= 0:
                sshd = _start_sshd(null, log)
                if not told:
                    os.write(1, b"up\n")
                    for fd in (0, 1):
                        os.dup2(null, fd)
                    told = True
                continue
        signal.sigtimedwait({signal.SIGCHLD}, wait)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if not pid:
                break
            if pid == sshd:
                sshd, due = 0, time.monotonic() + RESTART_S


def _start_sshd(null: int, log: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = NOFILE[1] if hard == resource.RLIM_INFINITY else min(NOFILE[1], hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(NOFILE[0], limit), limit))
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        os.execve("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-e"], SSHD_ENV)
    finally:
        os._exit(127)


def boot(config: dict[str, Any]) -> None:
    """PID 1, from the moment eth0 is there. Never returns."""
    make_network(config["network"])
    make_root(config)
    socket.sethostname(config["name"])
    pivot(config["root"])
    keep_sshd()


def main(config: dict[str, Any]) -> int:
    """Enters the host's cgroup and namespaces, forks PID 1 and waits for its end.

    Args:
        config: name, root (mount point), disk (directory with upper and work), home (shared
            /home or ""), share ({path in the host: path outside}), cgroup (directory or ""),
            uid (of the host's user), network (lines for `ip -batch`).
    """
    os.umask(0o022)
    if config["cgroup"]:
        with open(f"{config['cgroup']}/cgroup.procs", "w") as file:
            file.write("0")
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    unshare(flags | (CLONE_NEWCGROUP if config["cgroup"] else 0))
    pid = os.fork()
    if pid == 0:
        if not os.read(0, 1):  # whoever wanted this host is gone
            return 1
        boot(config)
    os.close(0)
    os.write(1, f"{pid}\n".encode())
    os.close(1)
    os.waitpid(pid, 0)
    return 0


def probe() -> int:
    """Tries what a host needs, in namespaces that end with this process."""
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", "/mnt", "tmpfs")
    for name in ("upper", "work", "root"):
        os.mkdir(f"/mnt/{name}")
    os.setxattr("/mnt/upper", "trusted.overlay.opaque", b"y")
    mount("overlay", "/mnt/root", "overlay", 0, "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work")
    mount("proc", "/proc", "proc", KERNEL_FS)
    mount("sysfs", "/sys", "sysfs", KERNEL_FS | MS_RDONLY)
    make_network("link add t0 type veth peer name t1\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        sys.exit(probe())
    with open(sys.argv[1]) as config_file:
        wanted = json.load(config_file)
    sys.exit(main(wanted))
