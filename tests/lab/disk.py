"""The disk of a host: what differs from this machine's own root file system.

A tmpfs of limited size holds the upper layer of an overlay over `/`. It lives as long as
the lab, hence survives a power cut, as a disk does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from tests.lab import inside, interpreter
from tests.lab.errors import LabError
from tests.lab.state import HostRecord, LabRecord

USER = "ops"
UID = 1500
OPAQUE = ("home", "root", "srv", "mnt", "var/tmp", "var/log", "etc/ssh")
"""Directories of this machine that a host does not see: data, logs, and keys above all."""

SSHD_CONFIG = f"""\
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
PrintMotd no
SetEnv XDG_RUNTIME_DIR=/run/user/{UID}
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""
"""What is not named here is OpenSSH's default. XDG_RUNTIME_DIR is what pam_systemd would set."""


def directory(lab: LabRecord, host: HostRecord) -> Path:
    return lab.directory / host.name / "disk"


def make(lab: LabRecord, host: HostRecord, size: str) -> None:
    """Makes and fills the disk, all but the host key."""
    disk = directory(lab, host)
    disk.mkdir(parents=True)
    options = f"mode=755,size={size}"
    inside.mount(f"olol-lab-{lab.tag}", str(disk), "tmpfs", inside.MS_NODEV, options)
    upper = disk / "upper"
    upper.mkdir()
    (disk / "work").mkdir()
    for name in OPAQUE:
        (upper / name).mkdir(parents=True)
        os.setxattr(upper / name, "trusted.overlay.opaque", b"y")
    (upper / "root").chmod(0o700)
    (upper / "var/tmp").chmod(0o1777)
    if not lab.shared_home:
        make_home(lab, upper / "home")
    etc = upper / "etc"
    (etc / "hostname").write_text(f"{host.name}\n")
    (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    names = [f"{other.address} {other.name}" for other in lab.hosts.values()]
    (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    _with_entry(etc, "passwd", f"{USER}:x:{UID}:{UID}::/home/{USER}:{shell}", 0o644)
    _with_entry(etc, "group", f"{USER}:x:{UID}:", 0o644)
    _with_entry(etc, "shadow", f"{USER}:*:19000:0:99999:7:::", 0o640)
    (etc / "ssh/sshd_config").write_text(sshd_config(host))
    interpreter.provide(upper)


def sshd_config(host: HostRecord) -> str:
    """The whole sshd_config; sshd takes the first value it meets, so overrides come first."""
    return "\n".join([*host.sshd_overrides, f"ListenAddress {host.address}", SSHD_CONFIG])


def make_home(lab: LabRecord, homes: Path) -> None:
    """The user's home with the lab's client key, in the directory that becomes /home."""
    home = homes / USER
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    keys = home / ".ssh/authorized_keys"
    shutil.copyfile(lab.directory / "id_ed25519.pub", keys)
    keys.chmod(0o600)
    for path in (home, home / ".ssh", keys):
        os.chown(path, UID, UID)


def host_key(lab: LabRecord, host: HostRecord) -> Path:
    return directory(lab, host) / "upper/etc/ssh/ssh_host_ed25519_key"


def make_keys(paths: dict[Path, str]) -> None:
    """Makes ed25519 keys without passphrase, all at once; the values are the comments."""
    started = []
    for path, comment in paths.items():
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
        started.append(
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    failed = [said for process in started if (said := process.communicate()[1])]
    if failed or any(process.returncode for process in started):
        raise LabError(f"ssh-keygen: {' '.join(failed).strip()}")


def _with_entry(etc: Path, name: str, entry: str, mode: int) -> None:
    """A copy of this machine's account file with one entry more."""
    user, uid = entry.split(":")[0], entry.split(":")[2]
    lines = (Path("/etc") / name).read_text().splitlines() if (Path("/etc") / name).exists() else []
    kept = []
    for line in lines:
        fields = line.split(":")
        same_id = name != "shadow" and len(fields) > 2 and fields[2] == uid
        if fields[0] != user and not same_id:
            kept.append(line)
    (etc / name).write_text("\n".join([*kept, entry]) + "\n")
    (etc / name).chmod(mode)
