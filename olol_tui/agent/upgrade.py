"""The agent replaces itself: another image, the same pid, children, socket, lock and streams.

    check      `NEW --selfcheck` with this very Python, while we go on serving
    guard      a process of the old image that watches, and brings the old one back if need be
    hand over  open connections are left idle or at a frame's end, the listener stays open
    execve     the new image takes all of it over; callers see a pause and no error

The guard holds the listener and the lock as well: if the new image does not answer within
`ANSWER_S`, it is killed and the guard itself becomes the old agent (or leaves that to
systemd). Engines never notice: a new parent adopts them by their records.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable

from . import proc
from .errors import AgentError, BadRequest, Conflict

log = logging.getLogger(__name__)

HANDOVER_ENV = "OLOL_AGENT_HANDOVER"
UNIT_ENV = "OLOL_AGENT_UNIT"
"""Set in our systemd unit: then systemd starts the agent again, not the guard."""

SELFCHECK_S = 60.0
GUARD_READY_S = 20.0
LEAVE_S = 20.0
"""From the guard's start to the execve: calls in progress are finished in it."""
ANSWER_S = 5.0
"""From the execve to the new image's first answer."""
_POLL_S = 0.05
_ASK_S = 1.0


class UpgradeError(AgentError):
    """The new image was not taken; the agent goes on as it is."""

    status = 409
    title = "The agent was not upgraded"


@dataclass(frozen=True)
class Handover:
    """What an image gets from the one before it: open descriptors, all of them its own now."""

    listener: int
    lock: int
    connections: list[tuple[int, str]] = field(default_factory=list)
    """Open connections; with the target of the stream that was being sent, or ""."""
    rolled_back: str = ""
    """Why the image after us was given up."""

    @property
    def descriptors(self) -> list[int]:
        return [self.listener, self.lock, *(fd for fd, _ in self.connections)]


@dataclass(frozen=True)
class Replacement:
    """A checked image, with a guard that waits for us to become it."""

    path: Path
    sha256: str
    version: str
    listener: int
    """Ours of the listening socket, kept open over the execve."""


def taken_over() -> Handover | None:
    """What the image before us left; None at an ordinary start."""
    text = os.environ.pop(HANDOVER_ENV, "")
    if not text:
        return None
    data = json.loads(text)
    data["connections"] = [(int(fd), str(target)) for fd, target in data["connections"]]
    handover = Handover(**data)
    for descriptor in handover.descriptors:
        os.set_inheritable(descriptor, False)
    return handover


def check(path: Path, sha256: str, image: Path | None) -> tuple[str, str]:
    """Whether this file may become us; its (sha256, version). Blocking.

    Raises:
        BadRequest: there is no such file, or it is another one than meant.
        Conflict: we do not run from a file.
        UpgradeError: it does not run here.
    """
    if image is None:
        raise Conflict("this agent runs from a source tree", "start it from its zipapp")
    try:
        facts = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from error
    if facts.st_uid not in (os.getuid(), 0) or facts.st_mode & 0o022:
        raise BadRequest(f"{path} can be changed by others", f"chmod 500 {path}")
    if sha256 and digest != sha256:
        raise BadRequest(f"{path} is not what was meant: its sha256 is {digest}")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(path), "--selfcheck"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SELFCHECK_S,
            check=False,
        )
        report = json.loads(done.stdout or b"{}")
        if done.returncode or report.get("ok") is not True:
            raise ValueError(f"status {done.returncode}: {_last_line(done.stderr)}")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UpgradeError(f"{path.name} failed its check: {error}") from error
    return digest, str(report.get("version", ""))


def _last_line(raw: bytes) -> str:
    lines = raw.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it said nothing"


def guard(
    image: Path | None, sha256: str, argv: list[str], address: Path, listener: int, lock: int
) -> None:
    """Start the guard; returns when it watches. Blocking.

    Raises:
        UpgradeError: it does not start, and nothing is risked without it.
    """
    found = proc.stat(os.getpid())
    task = {
        "pid": os.getpid(),
        "starttime": found.starttime if found else 0,
        "socket": str(address),
        "sha256": sha256,
        "image": str(image),
        "argv": argv,
        "listener": listener,
        "lock": lock,
    }
    try:
        # It forks and leaves: its end is the sign that the rest of it watches.
        status = subprocess.run(
            [sys.executable, "-I", str(image), "guard", json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=GUARD_READY_S,
            pass_fds=(listener, lock),
            start_new_session=True,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UpgradeError(f"the guard does not start: {error}") from error
    if status:
        raise UpgradeError(f"the guard ended with status {status}")


def become(path: Path, argv: list[str], handover: Handover) -> OSError:
    """Replace this process. Returns only if that failed, with the reason."""
    for descriptor in handover.descriptors:
        os.set_inheritable(descriptor, True)
    environ = {**os.environ, HANDOVER_ENV: json.dumps(asdict(handover))}
    log.info("becoming %s", path)
    logging.shutdown()
    try:
        os.execve(sys.executable, [sys.executable, "-I", str(path), "serve", *argv], environ)
    except OSError as error:
        for descriptor in handover.descriptors:
            os.set_inheritable(descriptor, False)
        return error


class Changing:
    """Prepares the change to another image while this one goes on serving."""

    def __init__(
        self,
        image: Path | None,
        argv: list[str],
        address: Path,
        lock: int,
        listener: Callable[[], int],
        stop: Callable[[Replacement], None],
    ) -> None:
        self._image = image
        self._argv = argv
        self._address = address
        self._lock = lock
        self._listener = listener
        self._stop = stop
        self._busy = False

    async def to(self, path: Path, sha256: str) -> dict[str, Any]:
        """Check the image, have a guard, and leave for it once this answer is out.

        Raises:
            AgentError: nothing has changed, and why.
        """
        if self._busy:
            raise Conflict("an upgrade is under way")
        self._busy = True
        loop = asyncio.get_running_loop()
        listener = None
        try:
            digest, version = await loop.run_in_executor(None, check, path, sha256, self._image)
            listener = self._listener()
            await loop.run_in_executor(
                None,
                guard,
                self._image,
                digest,
                self._argv,
                self._address,
                listener,
                self._lock,
            )
        except BaseException:
            self._busy = False
            if listener is not None:
                os.close(listener)
            raise
        log.info("leaving for version %s (%s)", version, digest[:12])
        self._stop(Replacement(path, digest, version, listener))
        return {"pid": os.getpid(), "version": version, "sha256": digest}


# -- the guard


def watch(argv: list[str]) -> int:
    """`guard TASK`: see the new image answer, or bring the old one back."""
    task = json.loads(argv[0])
    if os.fork():
        return 0
    os.setsid()
    fate = _fate(task)
    if not fate:
        return 0
    print(f"olol-agent guard: {fate}: back to {task['image']}", file=sys.stderr, flush=True)
    _kill(task["pid"], task["starttime"])
    if os.environ.get(UNIT_ENV):
        return 0
    handover = Handover(task["listener"], task["lock"], [], fate)
    error = become(Path(task["image"]), task["argv"], handover)
    print(f"olol-agent guard: {error}", file=sys.stderr)
    return 1


def _fate(task: dict[str, Any]) -> str:
    """Empty when all is well (also when we stayed what we were), else what went wrong."""
    started = time.monotonic()
    became: float | None = None
    while True:
        now = time.monotonic()
        if not proc.is_running(task["pid"], task["starttime"]):
            return "the new agent ended at once"
        if became is None and _is_serving_other(task["pid"], task["image"]):
            became = now
        if became is not None:
            if _answering_image(task["socket"]) == task["sha256"]:
                return ""
            if now - became > ANSWER_S:
                return f"the new agent did not answer within {ANSWER_S:g} s"
        elif now - started > LEAVE_S:
            return "" if _answering_image(task["socket"]) else "the agent does not answer"
        time.sleep(_POLL_S)


def _is_serving_other(pid: int, image: str) -> bool:
    """Whether the process has been through its execve: another file in its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return len(words) > 2 and os.path.realpath(words[2]) != os.fsencode(os.path.realpath(image))


def _answering_image(address: str) -> str:
    """The sha256 in the agent's hello; "" when it does not answer."""
    raw = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(_ASK_S)
            peer.connect(address)
            peer.sendall(b"GET /v1/hello HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
            while True:
                piece = peer.recv(65536)
                if not piece:
                    break
                raw += piece
        return str(json.loads(bytes(raw).partition(b"\r\n\r\n")[2])["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _kill(pid: int, starttime: int) -> None:
    """End the very process that we watch, and wait until it is gone."""
    while proc.is_running(pid, starttime):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(_POLL_S)
