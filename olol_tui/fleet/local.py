"""The road to this machine: a UNIX socket, and an agent process that we start if need be.

The agent outlives us: it is started in its own session, logs to a file, and is found again
through its socket. What it was started with is written beside its state, so that a newer
console replaces an older agent (engines keep running: the new one adopts them).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import httpx
import msgspec

from olol_tui import agent_zip
from olol_tui.config import NodeConfig
from olol_tui.errors import NodeError, OlolError
from olol_tui.files import write_atomic
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.road import Factory, RoadFacts
from olol_tui.fleet.tcp_transport import tcp_transport
from olol_tui.fleet.wire import Hello
from olol_tui.paths import Paths
from olol_tui.unixhttp import UnixTransport

log = logging.getLogger("olol.fleet.local")

START_TIMEOUT_S = 30.0
HELLO_TIMEOUT_S = 5.0
EXIT_TIMEOUT_S = 20.0
_POLL_S = 0.05
"""Between looks at a socket that is about to appear: no event tells of a foreign process."""
_LOG_LINES = 5


class AgentHung(NodeError):
    title = "The agent hangs"


class _Launch(msgspec.Struct, frozen=True):
    """What an agent was started with."""

    sha256: str
    python: str
    simulated: dict[str, str | int | float] | None = None


class LocalRoad:
    """Road to an agent on this machine."""

    def __init__(
        self,
        node: str,
        paths: Paths,
        simulated: dict[str, str | int | float] | None = None,
        python: str = sys.executable,
    ) -> None:
        self._node = node
        self._cache_dir = paths.cache_dir
        self._socket = paths.agent_socket(node)
        self._state_dir = paths.agent_state(node)
        self._simulated = simulated
        self._python = python
        self._zip: Path | None = None
        self._sha256 = ""
        self._pid: int | None = None
        """Of the agent, once known."""
        self._is_child = False
        """Whether we started that pid: then it is ours to reap."""

    @property
    def kind(self) -> Literal["local", "ssh"]:
        return "local"

    @property
    def facts(self) -> RoadFacts:
        return RoadFacts()

    @property
    def problem(self) -> OlolError | None:
        return None

    def watch(self, changed: Callable[[], None]) -> None:
        """Nothing of this road ever changes."""

    def reconfigure(self, config: NodeConfig) -> None:
        """The devices are the same, and all else is the agent's to be told."""

    async def lost(self) -> OlolError:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody ends this wait but by cancelling it")

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(factory, host.strip("[]"), int(port)))[1]

    async def aclose(self) -> None:
        """Nothing is open."""

    def agent_transport(self) -> httpx.AsyncBaseTransport:
        return UnixTransport(self._socket)

    def engine_transport(self) -> httpx.AsyncBaseTransport:
        return tcp_transport("http://127.0.0.1")

    async def ensure_agent(self) -> None:
        wanted = await asyncio.to_thread(self._wanted)
        hello = await self._hello()
        if hello is not None:
            self._is_child = self._is_child and self._pid == hello.pid
            self._pid = hello.pid
            started_with = await asyncio.to_thread(self._read_launch)
            if started_with is None or started_with == wanted:
                # An agent without a record was started by hand: it is taken as it is.
                return
            await self._dismiss(hello, started_with, wanted)
        with self._starter_lock() as mine:
            if mine and not self._is_booting():
                await asyncio.to_thread(self._write_launch, wanted)
                # On the loop: cancelled in a thread, it would leave an agent nobody knows of.
                self._start()
            await self._await_answer()

    async def gone(self, timeout_s: float = EXIT_TIMEOUT_S) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while not self._has_exited():  # noqa: ASYNC110 (not our event to set)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        return True

    def _wanted(self) -> _Launch:
        """Builds the zipapp once; again only if somebody cleaned the cache."""
        if self._zip is None or not self._zip.exists():
            self._zip = agent_zip.cached(self._cache_dir)
            self._sha256 = hashlib.sha256(self._zip.read_bytes()).hexdigest()
        return _Launch(sha256=self._sha256, python=self._python, simulated=self._simulated)

    @property
    def _launch_file(self) -> Path:
        return self._state_dir / "started-with.json"

    @property
    def _log_file(self) -> Path:
        return self._state_dir / "agent.log"

    def _read_launch(self) -> _Launch | None:
        try:
            return msgspec.json.decode(self._launch_file.read_bytes(), type=_Launch)
        except (OSError, msgspec.MsgspecError):
            return None

    async def _hello(self) -> Hello | None:
        """What the agent says; None when nobody listens on its socket.

        Raises:
            AgentHung: somebody listens and does not answer. A second agent would fight it.
        """
        async with AgentClient(self.agent_transport(), self._node) as client:
            try:
                return await client.hello(HELLO_TIMEOUT_S)
            except AgentUnreachable as error:
                if isinstance(error.__cause__, httpx.TimeoutException):
                    raise AgentHung(
                        f"the agent of {self._node} holds {self._socket} and does not answer",
                        hint=f"Look at {self._log_file}; ending the agent leaves engines running.",
                    ) from error
                return None

    async def _dismiss(self, hello: Hello, had: _Launch, wanted: _Launch) -> None:
        """End an agent that is not the one we would start."""
        stop_engines = had.simulated != wanted.simulated
        log.info(
            "replacing the agent of %s (pid %d, version %s): %s",
            self._node,
            hello.pid,
            hello.version,
            "other simulated devices" if stop_engines else "other program",
        )
        async with AgentClient(self.agent_transport(), self._node) as client:
            await client.shutdown(stop_engines=stop_engines)
        if not await self.gone(EXIT_TIMEOUT_S):
            raise AgentHung(f"the agent of {self._node} (pid {hello.pid}) does not end")

    @contextlib.contextmanager
    def _starter_lock(self) -> Iterator[bool]:
        """True if we are the one to start the agent; False while another console does."""
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._state_dir / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def _write_launch(self, wanted: _Launch) -> None:
        write_atomic(self._launch_file, msgspec.json.encode(wanted))

    def _is_booting(self) -> bool:
        """True if our last start lives, though it does not answer yet."""
        code = self._reap()
        if code is not None:
            log.warning("the agent of %s ended: %s", self._node, _ending(code))
        return self._is_child and self._pid is not None

    def _start(self) -> None:
        """Spawn the agent, detached. posix_spawn: no object that warns about a running child."""
        if self._zip is None:
            raise AssertionError("the zipapp is built before the agent is started")
        argv = [self._python, "-I", str(self._zip), "serve"]
        argv += ["--socket", str(self._socket), "--state-dir", str(self._state_dir)]
        if self._simulated is not None:
            argv += ["--simulated", msgspec.json.encode(self._simulated).decode()]
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            self._pid = os.posix_spawn(
                self._python,
                argv,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self._log_file), append, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
            )
        except OSError as error:
            raise NodeError(
                f"the agent of {self._node} cannot be started: {error.strerror}: {self._python}"
            ) from error
        self._is_child = True
        log.info("started the agent of %s, pid %d", self._node, self._pid)

    async def _await_answer(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while await self._hello() is None:
                    if self._pid is not None and (status := self._reap()) is not None:
                        raise NodeError(
                            f"the agent of {self._node} ended at once ({_ending(status)}): "
                            f"{await asyncio.to_thread(self._last_log_lines)}",
                            hint=f"Its log: {self._log_file}",
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise NodeError(
                f"the agent of {self._node} did not answer within {START_TIMEOUT_S:.0f} s",
                hint=f"Its log: {self._log_file}",
            ) from None

    def _last_log_lines(self) -> str:
        try:
            text = self._log_file.read_text(errors="replace")
        except OSError:
            return "no log"
        return " | ".join(text.strip().splitlines()[-_LOG_LINES:])[-600:] or "its log is empty"

    def _has_exited(self) -> bool:
        if self._pid is None:
            return not self._socket.exists()  # It removes its socket when it ends.
        if self._reap() is not None:
            return True
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _reap(self) -> int | None:
        """Collect our child if it ended; its exit code (negative: signal), None if it lives."""
        if self._pid is None:
            return None
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            return None  # Not our child: an earlier console started it.
        if pid == 0:
            return None
        self._pid = None
        return os.waitstatus_to_exitcode(status)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
