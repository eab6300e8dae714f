"""One engine process: started in its own session, or adopted from an earlier agent.

Both kinds end with the same event (a pidfd turning readable) and are stopped the same
way. Only a child's exit status is known; an adopted process was somebody else's child.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Callable, Mapping, Sequence

from . import proc
from .errors import EngineError

_POLL_S = 0.25
"""Between looks at a process where the kernel has no pidfd (before 5.3)."""


class Process:
    """Alive until `exited`; `on_exit` is called once, on the loop, when it ends."""

    def __init__(
        self,
        pid: int,
        starttime: int,
        child: subprocess.Popen[bytes] | None,
        on_exit: Callable[[], None],
    ) -> None:
        self.pid = pid
        self.starttime = starttime
        self.exited = False
        self.returncode: int | None = None
        self._child = child
        self._on_exit = on_exit
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd: int | None = None
        try:
            self._pidfd = proc.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(self._ended)
            return
        if self._pidfd is None:
            self._look()
        else:
            self._loop.add_reader(self._pidfd, self._ended)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        cwd: Path,
        on_exit: Callable[[], None],
        ignores_sigpipe: bool = False,
    ) -> Process:
        """Start it detached from this agent: own session, no stdin, output to the log file.

        A file and not a pipe, so that the death of the agent cannot reach it.

        Raises:
            EngineError: the kernel refused (not executable, no memory).
        """
        descriptor = os.open(str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=str(cwd),
                start_new_session=True,
                # Python itself ignores SIGPIPE; what is not restored is inherited.
                restore_signals=not ignores_sigpipe,
            )
        except OSError as error:
            raise EngineError(f"{argv[0]}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)
        found = proc.stat(child.pid)
        return cls(child.pid, found.starttime if found else 0, child, on_exit)

    @classmethod
    def adopt(cls, pid: int, starttime: int, on_exit: Callable[[], None]) -> Process | None:
        """The running process of a record; None when it is gone or another has its pid."""
        if not proc.is_running(pid, starttime):
            return None
        return cls(pid, starttime, None, on_exit)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the whole session, after `grace_s` SIGKILL; returns when all is gone."""
        if not self.exited:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._gone.wait(), grace_s)
            except asyncio.TimeoutError:
                self._signal(signal.SIGKILL)
                await self._gone.wait()
        self.sweep()

    def kill(self) -> None:
        """SIGKILL to the whole session; `on_exit` tells when it is gone."""
        self._signal(signal.SIGKILL)

    def sweep(self) -> None:
        """Kill what the leader left behind: a runner without its Ollama still holds VRAM."""
        proc.signal_session(self.pid, signal.SIGKILL)

    def release(self) -> None:
        """Let go of it without touching it: the next agent adopts it."""
        self._unwatch()

    def _signal(self, number: int) -> None:
        if proc.is_running(self.pid, self.starttime):
            proc.signal_session(self.pid, number)

    def _look(self) -> None:
        if proc.is_running(self.pid, self.starttime):
            self._timer = self._loop.call_later(_POLL_S, self._look)
        else:
            self._ended()

    def _ended(self) -> None:
        if self.exited:
            return
        self._unwatch()
        self.exited = True
        if self._child is not None:
            self.returncode = self._child.wait()
        else:
            self.returncode = _reaped(self.pid)
        self._gone.set()
        self._on_exit()

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


def _reaped(pid: int) -> int | None:
    """The exit status of an adopted process that is our child: we have replaced ourselves."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if not found:
        return None
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
