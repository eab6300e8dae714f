"""A python3 that the host's user can run.

The overlay shows this machine's files, but an interpreter under /root or in another
private place is nothing for `ops`. Then the hosts get a read-only view of it elsewhere.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

MINIMUM = (3, 8)
USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/games"
"""What sshd gives a session."""
VIEW = "/opt/olol-lab-python"
HIDDEN = tuple(
    Path(place) for place in ("/root", "/home", "/tmp", "/run", "/srv", "/mnt", "/var/tmp")
)
"""Where a host has something else than this machine."""


@functools.cache
def find() -> tuple[str, str]:
    """An interpreter that everybody may run.

    Returns:
        Its path in the host, and the installation that must be shown at `VIEW` for it
        (empty when the overlay shows it anyhow).
    """
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    usual = shutil.which("python3", path=USER_PATH)
    for candidate in (usual, str(base), *_others()):
        if candidate and open_to_all(Path(candidate)) and version(candidate) >= MINIMUM:
            return candidate, ""
    return f"{VIEW}/{base.relative_to(sys.base_prefix)}", str(Path(sys.base_prefix).resolve())


def provide(upper: Path) -> None:
    """Makes `python3` on the user's PATH that interpreter, in the upper layer of a host."""
    path, _ = find()
    if path != shutil.which("python3", path=USER_PATH):
        link = upper / "usr/local/bin/python3"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)


def share() -> dict[str, str]:
    """What the hosts must be shown besides the overlay."""
    _, prefix = find()
    return {VIEW: prefix} if prefix else {}


def open_to_all(path: Path) -> bool:
    """Whether any user of a host can reach and run this file of this machine."""
    try:
        real = path.resolve(strict=True)
    except OSError:
        return False
    for step in (path, real):
        if any(place in step.parents for place in HIDDEN):
            return False
    for parent in real.parents:
        mounted = parent != Path("/") and os.path.ismount(parent)
        if mounted or not parent.stat().st_mode & stat.S_IXOTH:
            return False  # the overlay shows one file system, not what is mounted on it
    return bool(real.stat().st_mode & stat.S_IXOTH and real.stat().st_mode & stat.S_IROTH)


def version(path: str) -> tuple[int, int]:
    """Its version, (0, 0) when it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run(
        [path, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (0, 0)
    major, minor = done.stdout.split()
    return int(major), int(minor)


def _others() -> list[str]:
    found = []
    for place in ("/usr/bin", "/usr/local/bin"):
        found += [str(path) for path in Path(place).glob("python3.*[0-9]")]
    return sorted(found, reverse=True)
