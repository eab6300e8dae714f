"""Can this machine host a lab? Asked of the kernel, not guessed from its name."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab import shell
from tests.lab.errors import LabError

TOOLS = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
}
PROBE_TIMEOUT_S = 20.0


@functools.cache
def obstacle() -> str:
    """One sentence why there can be no lab here, empty when there can."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return "the lab needs root: it makes network namespaces and mounts"
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        return f"the lab needs the packages {', '.join(missing)}"
    probe = [sys.executable, "-I", "-S", str(Path(__file__).with_name("inside.py")), "probe"]
    try:
        done = subprocess.run(
            probe, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_TIMEOUT_S:.0f} s when asked for namespaces"
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        return f"this machine does not allow a host's namespaces and mounts: {said[0]}"
    link = f"olp{os.getpid()}"
    try:
        shell.ip([f"link add {link} type bridge", f"link del {link}"])
    except LabError as error:
        return f"this machine does not allow a bridge: {error}"
    return ""
