"""What this machine is and has. Reads only: a dry run may call it."""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import base

if TYPE_CHECKING:
    import subprocess

NVIDIA_SMI_TIMEOUT_S = 4.0
VERSION_TIMEOUT_S = 4.0
_NAME = "olol-agent"
_TOOLS = ("tar", "zstd", "sha256sum", "systemctl", "loginctl", "nvidia-smi", "setsid")


def survey(ask: dict[str, Any]) -> dict[str, Any]:
    """Everything in one go; slow programs run while the rest is read.

    Args:
        ask: `directory` as configured.
    """
    layout = base.Layout(str(ask.get("directory", "")))
    tools = {name: found for name in _TOOLS for found in [base.which(name)] if found}
    record = layout.read_record()
    ollama = base.which("ollama", str(layout.ollama / "bin"))
    smi = _start([tools["nvidia-smi"], "-L"]) if "nvidia-smi" in tools else None
    version = _start([ollama, "--version"]) if ollama else None
    linger = has_linger()
    facts = {
        "os": _os_name(),
        "kernel": f"{os.uname().sysname} {os.uname().release}",
        "arch": os.uname().machine,
        "hostname": socket.gethostname(),
        "user": base.user_name(),
        "uid": os.getuid(),
        "home": os.environ.get("HOME", ""),
        "executable": sys.executable,
        "machine_id": layout.machine_id,
        "boot_id": base.boot_id(),
        "wall_s": time.time(),
        "tools": sorted(tools),
        "linger": linger,
        "user_units": has_user_units(),
        "kill_user_processes": _kills_user_processes(),
        "disk": _disk(layout.base),
        "runtime": str(runtime_dir(layout, record, linger)),
        "base": str(layout.base),
        "state": str(layout.state),
        "builds": _builds(layout),
        "record": record,
        "agent": _agent(layout, record),
        "listens": _ollama_on_default_port(),
        "gpus": _gpus(),
    }
    facts["driver"] = _driver(smi)
    facts["ollama"] = None
    if ollama:
        release = _our_release(layout, ollama)
        facts["ollama"] = {"path": ollama, "version": _ollama_version(version), "release": release}
    return facts


def _start(argv: list[str]) -> subprocess.Popen[bytes] | None:
    import subprocess  # Not every machine has a program to be asked.

    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError:
        return None


def _finish(process: subprocess.Popen[bytes] | None, timeout_s: float) -> tuple[int | None, str]:
    """(exit status or None when it hung or never ran, what it said)."""
    if process is None:
        return None, ""
    import subprocess

    try:
        out, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, ""
    return process.returncode, out.decode("utf-8", "replace")


# -- the system


def _os_name() -> str:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return os.uname().sysname
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return match.group(1) if match else os.uname().sysname


def has_linger() -> bool:
    """Whether this user's services run without anybody logged in."""
    return Path("/var/lib/systemd/linger", base.user_name()).exists()


def has_user_units() -> bool:
    """Whether there could be a systemd of this user. It need not run yet: linger starts it."""
    return (
        Path("/run/systemd/system").is_dir()
        and base.which("systemctl") is not None
        and Path("/etc/machine-id").is_file()
    )


def _kills_user_processes() -> bool:
    """Whether logind ends what a session leaves behind."""
    answer = False
    for file in _logind_files():
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for match in re.finditer(r"^\s*KillUserProcesses\s*=\s*(\w+)", text, re.MULTILINE):
            answer = match.group(1).lower() in ("yes", "true", "on", "1")
    return answer


def _logind_files() -> Iterator[Path]:
    """In the order in which they override each other."""
    yield Path("/usr/lib/systemd/logind.conf")
    yield Path("/etc/systemd/logind.conf")
    for folder in ("/usr/lib/systemd", "/etc/systemd", "/run/systemd"):
        drop_in = Path(folder, "logind.conf.d")
        if drop_in.is_dir():
            yield from sorted(drop_in.glob("*.conf"))


def _disk(directory: Path) -> dict[str, Any]:
    """The place for our files, or the nearest directory above that exists."""
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    found: dict[str, Any] = {"path": str(place), "exists": place == directory}
    try:
        status, numbers = place.stat(), os.statvfs(str(place))
    except OSError as error:
        found["error"] = f"{place}: {error.strerror}"
        return found
    found["is_directory"] = stat.S_ISDIR(status.st_mode)
    found["ours"] = status.st_uid == os.getuid()
    found["writable"] = os.access(str(place), os.W_OK | os.X_OK)
    found["read_only"] = bool(numbers.f_flag & os.ST_RDONLY)
    found["noexec"] = bool(numbers.f_flag & os.ST_NOEXEC)
    found["free_bytes"] = numbers.f_bavail * numbers.f_frsize
    # Some file systems (btrfs, many network ones) count no inodes.
    found["free_files"] = numbers.f_favail if numbers.f_files else None
    return found


def runtime_dir(layout: base.Layout, record: dict[str, Any], linger: bool) -> Path:
    """Where the agent's socket belongs.

    logind clears the user's runtime directory at the last logout unless linger is on, and with
    it would go the only way to an agent that lives on. /tmp belongs to all: where somebody has
    taken our name there, the state directory has to do.
    """
    choices = []
    if linger:
        given = os.environ.get("XDG_RUNTIME_DIR", "")
        user = Path(given if given.startswith("/") else f"/run/user/{os.getuid()}")
        if _is_private(user):
            choices.append(user / _NAME)
    choices.append(Path(f"/tmp/olol-{os.getuid()}"))
    for choice in choices:
        place = choice / layout.socket_tag
        fits = len(os.fsencode(place / "agent.sock")) <= base.MAX_SOCKET_PATH_BYTES
        if fits and (not os.path.lexists(str(choice)) or _is_private(choice)):
            return place
    return layout.state / "sock"


def _is_private(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return ours and not stat.S_IMODE(found.st_mode) & 0o022


# -- what is there


def _builds(layout: base.Layout) -> list[str]:
    try:
        return sorted(p.name for p in layout.bin.iterdir() if p.name.endswith(".pyz"))
    except OSError:
        return []


def _agent(layout: base.Layout, record: dict[str, Any]) -> dict[str, Any] | None:
    """The agent's hello, or what keeps it from us; None when none runs."""
    pid = base.agent_pid(layout)
    try:
        answer = base.hello(str(record.get("socket", "")))
    except OSError as error:
        return {"pid": pid, "error": f"it holds its socket and does not answer: {error}"}
    if answer is None:
        if pid is None:
            return None
        return {"pid": pid, "error": "it runs without its socket"}
    unit = record.get("unit")
    if unit:
        answer["unit_enabled"] = is_enabled(str(unit))
    return answer


def is_enabled(unit: str) -> bool:
    home = Path(os.environ.get("HOME", "/"))
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return (config / "systemd/user/default.target.wants" / unit).is_symlink()


def _ollama_on_default_port() -> str:
    """The version of an Ollama that somebody runs here already; empty when there is none."""
    try:
        with socket.create_connection(("127.0.0.1", 11434), 0.5) as peer:
            peer.sendall(b"GET /api/version HTTP/1.0\r\nHost: 127.0.0.1:11434\r\n\r\n")
            answer = peer.recv(4096) + peer.recv(4096)
    except OSError:
        return ""
    match = re.search(rb'"version"\s*:\s*"([^"]{1,40})"', answer)
    return match.group(1).decode("utf-8", "replace") if match else ""


def _our_release(layout: base.Layout, program: str) -> str:
    """Which release of ours a program is; empty when it is not ours."""
    if Path(program).parent != layout.ollama / "bin":
        return ""
    try:
        return Path(os.readlink(layout.ollama)).name.rpartition("-")[2]  # noqa: PTH115
    except OSError:
        return ""


def _ollama_version(process: subprocess.Popen[bytes] | None) -> str:
    _, said = _finish(process, VERSION_TIMEOUT_S)
    return base.ollama_version(said)


# -- GPUs: enough to show a plan; the agent's inventory is the authority


def _gpus() -> list[str]:
    """Names of NVIDIA and AMD GPUs, from files alone."""
    found = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            text = info.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        match = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
        found.append(match.group(1).strip() if match else "NVIDIA GPU")
    for total in sorted(Path("/sys/class/drm").glob("card*/device/mem_info_vram_total")):
        try:
            name = (total.parent / "product_name").read_text(encoding="utf-8").strip()
        except OSError:
            name = ""
        found.append(name or "AMD GPU")
    return found


def _driver(smi: subprocess.Popen[bytes] | None) -> dict[str, str]:
    """The NVIDIA driver's version, and what is wrong with it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"(?:Kernel Module|x86_64|aarch64)\s+([0-9]+(?:\.[0-9]+)+)", text)
    driver = {"version": match.group(1) if match else "", "error": ""}
    if smi is None:
        return driver
    status, said = _finish(smi, NVIDIA_SMI_TIMEOUT_S)
    if status is None:
        driver["error"] = "nvidia-smi does not answer"
    elif status != 0:
        driver["error"] = " ".join(said.split())[:200] or "nvidia-smi failed"
    return driver
