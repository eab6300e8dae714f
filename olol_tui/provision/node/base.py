"""What every errand on the node needs: names, identities, the agent's socket."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

HELLO_TIMEOUT_S = 5.0
AGENT_ENV = "OLOL_AGENT_STATE"
"""In the environment of every engine: the agent's state directory."""
BUILD_ENV = "OLOL_NODE_BUILD"
"""The same in that of every compiler: the agent is not to take them for engines."""

MAX_SOCKET_PATH_BYTES = 100
_MORE_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/opt/ollama/bin", "/snap/bin")


class Trouble(Exception):
    """A failure with a name: becomes the step's message and hint."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


def ready(ask: dict[str, Any]) -> dict[str, Any]:
    """For whoever has data to send: it may follow from now on."""
    return {}


class Layout:
    """Where things are on this machine. Homes may be shared: what is of one machine says so."""

    def __init__(self, directory: str) -> None:
        home = Path(os.environ.get("HOME") or "/")
        if directory.startswith("~/"):
            self.base = home / directory[2:]
        else:
            self.base = Path(directory) if directory else home / ".local/share/olol-agent"
        self.bin = self.base / "bin"
        self.engines = self.base / "engines"
        self.states = self.base / "state"
        self.made = self.base / "made.json"
        """Directories above ours, and of systemd, that were not there before us."""
        self.machine_id = machine_id()
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.machine_id) or "unknown"
        self.state = self.states / name
        self.record = self.state / "launch.json"
        self.run = self.state / "run"
        self.current = self.state / "current.pyz"
        self.ollama = self.state / "ollama"
        self.llama = self.state / "llama"
        self.lock = self.state / "agent.lock"
        self.start_log = self.state / "start.log"

    @property
    def socket_tag(self) -> str:
        """Two installations of one user never share a socket."""
        return hashlib.sha256(os.fsencode(self.base)).hexdigest()[:8]

    def read_record(self) -> dict[str, Any]:
        """How the agent was last started here; {} when it never was."""
        try:
            found = json.loads(self.record.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def machine_id() -> str:
    """Names this machine among those that share a home directory."""
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            return text
    return "host-" + os.uname().nodename


def make_base(layout: Layout) -> None:
    """Our directory, and a note of what had to be made for it."""
    missing = missing_above(layout.base)
    make_private(layout.base)
    remember_made(layout, missing)


def missing_above(path: Path) -> list[Path]:
    """Directories that would have to be made first, the highest first."""
    return [parent for parent in reversed(path.parents) if not parent.exists()]


def made_directories(layout: Layout) -> list[str]:
    try:
        found = json.loads(layout.made.read_bytes())
    except (OSError, ValueError):
        return []
    return [str(path) for path in found] if isinstance(found, list) else []


def remember_made(layout: Layout, paths: list[Path]) -> None:
    """An uninstall takes them away again, if nobody else uses them by then."""
    known = made_directories(layout)
    new = [str(path) for path in paths if str(path) not in known]
    if new:
        write_atomic(layout.made, json.dumps(known + new).encode(), 0o600)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            piece = file.read(1 << 20)
            if not piece:
                return digest.hexdigest()
            digest.update(piece)


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    part = _beside(path)
    descriptor = os.open(str(part), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
        part.replace(path)
    except BaseException:
        part.unlink()
        raise


def _beside(path: Path) -> Path:
    """A name that no other writer has: of a home that machines share, pids say nothing."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")


def point(link: Path, target: str) -> None:
    """Make or repoint a symbolic link; there is no moment without one."""
    try:
        if os.readlink(link) == target:  # noqa: PTH115 (3.9 has Path.readlink)
            return
    except OSError:
        pass
    part = _beside(link)
    part.symlink_to(target)
    part.replace(link)


def make_private(path: Path) -> None:
    """A directory that is ours alone.

    Raises:
        Trouble: it is somebody else's, or cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise disk_trouble(path, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Trouble(
            "squatted",
            f"{path} is not a directory of {user_name()}",
            f"Have its owner remove it: ls -ld {path}",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)


def disk_trouble(path: Path, error: OSError) -> Trouble:
    """Why a file could not be written, in words."""
    import errno

    where = str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return Trouble(
            "full",
            f"{where}: {what}",
            "Free some space there, or put `directory` of this node on another disk.",
        )
    if error.errno == errno.EROFS:
        return Trouble(
            "read-only",
            f"{where}: the file system is read-only",
            "Set `directory` of this node to one that can be written, such as /var/tmp/olol.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return Trouble(
            "denied",
            f"{where}: {user_name()} may not write there",
            "Set `directory` of this node to one that can be written.",
        )
    return Trouble("disk", f"{where}: {error.strerror or error}")


def which(name: str, *more: str) -> str | None:
    """A program, also where a session without a login shell has a short PATH."""
    for folder in long_path(*more).split(os.pathsep):
        path = os.path.join(folder, name)  # noqa: PTH118 (a hundred a survey)
        if folder and os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
            return path
    return None


def long_path(*more: str) -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), *_MORE_PATH, *more])


def ollama_version(said: str) -> str:
    """The version of a program out of its `--version`; empty when it says none.

    With a server running it tells that one's first, and its own in a warning if it is another.
    """
    own = re.search(r"client version is:? *v?([0-9][^\s,]*)", said)
    match = own or re.search(r"version is:? *v?([0-9][^\s,]*)", said)
    return match.group(1) if match else ""


def user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER") or f"uid {os.getuid()}"


# -- the agent


def ask_agent(
    path: str,
    target: str,
    body: dict[str, Any] | None = None,
    timeout_s: float = HELLO_TIMEOUT_S,
) -> tuple[int, dict[str, Any]]:
    """One request to the agent: (status, answer).

    Raises:
        OSError: nobody answers.
    """
    data = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(timeout_s)
        peer.connect(path)
        peer.sendall(head.encode() + data)
        raw = bytearray()
        while len(raw) < 1 << 22:
            piece = peer.recv(65536)
            if not piece:
                break
            raw += piece
    top, _, rest = bytes(raw).partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1\.[01] (\d{3})", top)
    try:
        answer = json.loads(rest or b"{}")
    except ValueError:
        answer = None
    if match is None or not isinstance(answer, dict):
        raise OSError(f"{path} answered with something else than HTTP")
    return int(match.group(1)), answer


def hello(path: str, timeout_s: float = HELLO_TIMEOUT_S) -> dict[str, Any] | None:
    """What the agent at this socket says of itself; None when nobody listens there.

    Raises:
        OSError: somebody listens and does not answer.
    """
    if not path:
        return None
    try:
        status, answer = ask_agent(path, "/v1/hello", None, timeout_s)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    return answer if status == 200 else None


# -- processes


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def starttime(pid: int) -> int | None:
    """Clock ticks after boot; with the pid it names one process. None when it does not run."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    rest = raw.rpartition(b")")[2].split()
    return None if len(rest) < 20 or rest[0] in (b"Z", b"X") else int(rest[19])


def agent_pid(layout: Layout) -> int | None:
    """The process that holds the state directory, answering or not."""
    try:
        pid = int(layout.lock.read_text(encoding="ascii"))
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    ours = os.fsencode(layout.states) in argv and b"serve" in argv
    return pid if ours and starttime(pid) is not None else None


def engine_sessions(layout: Layout) -> dict[int, int]:
    """Processes that this machine's agent has started: {pid: session}."""
    return _marked(layout, AGENT_ENV)


def build_sessions(layout: Layout) -> dict[int, int]:
    """Processes that build something for us on this machine: {pid: session}."""
    return _marked(layout, BUILD_ENV)


def _marked(layout: Layout, name: str) -> dict[int, int]:
    # The agent resolves links in its path before it marks its engines with it.
    mark = os.fsencode(f"{name}={os.path.realpath(str(layout.state))}")
    found: dict[int, int] = {}
    for pid in pids():
        try:
            if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                continue
            raw = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            continue
        rest = raw.rpartition(b")")[2].split()
        if rest and rest[0] not in (b"Z", b"X"):
            found[pid] = int(rest[3])
    return found


def end_all(left: Callable[[], Iterable[int]], grace_s: float) -> bool:
    """End processes, by force after a while; whether all are gone.

    Args:
        left: the pids of those that are still there; what they start meanwhile is among them.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_s
        told: set[int] = set()
        while time.monotonic() < deadline:
            pids = set(left())
            if not pids:
                return True
            for pid in pids - told:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= pids
            time.sleep(0.05)
    return not set(left())


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
