"""Commands and files on a node, over its control connection.

A server allows ten sessions at once (MaxSessions), some only one: they queue here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import asyncssh

from olol_tui.ssh.connection import Connection
from olol_tui.ssh.errors import (
    CommandFailed,
    CommandTimeout,
    LinkLost,
    SessionsForbidden,
    SftpMissing,
)
from olol_tui.ssh.text import clean

log = logging.getLogger("olol.ssh.sessions")

SHELL = "exec /bin/sh"
"""A POSIX shell, whatever the user's own is."""
SESSIONS = 8
"""Of the ten that sshd allows by default."""
OUTPUT_LIMIT_BYTES = 8 * 2**20
COMMAND_TIMEOUT_S = 30.0
_PART_BYTES = 64 * 1024
_FULL_S = 5.0
"""How long a server may refuse a session though none of ours is open."""
_ASK_AGAIN_S = 0.1

_END_S = 3.0
"""For a command that is told to end."""
_COMPLAINT_BYTES = 8192

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended. The texts are as the node sent them: `clean` before showing."""

    command: str
    status: int
    """Exit status; -1 when a signal ended it or the host did not say."""
    stdout: str
    stderr: str


class Sessions:
    """The session channels of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._limit = SESSIONS
        self._open = 0
        self._changed = asyncio.Condition()
        self._released = asyncio.Event()

    async def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = False,
    ) -> Completed:
        """Run a command through the user's shell; its stdin ends after `stdin`.

        When we are cancelled, it is sent SIGTERM. OpenSSH passes no signals on to commands of
        root and of forced commands: those go on until they read or write.

        Raises:
            CommandFailed: `check`, and the status was not 0; or it wrote more than 8 MiB.
            CommandTimeout: it took longer.
            LinkLost, SessionsForbidden: see `errors`.
        """
        name = self._connection.name
        try:
            async with asyncio.timeout(timeout_s), self._process(command) as process:
                out, err, _ = await asyncio.gather(
                    _read(process.stdout), _read(process.stderr), _feed(process.stdin, stdin)
                )
                await process.wait_closed()
        except TimeoutError as error:
            if self._connection.is_lost:  # The system's timeout of the line is one, too.
                raise LinkLost(f"{name}: {self._connection.reason}") from error
            raise CommandTimeout(
                f"{name}: no end after {timeout_s:g} s: {clean(command, 120)}"
            ) from error
        except _TooMuch as error:
            raise CommandFailed(
                f"{name}: it wrote more than {OUTPUT_LIMIT_BYTES // 2**20} MiB: "
                f"{clean(command, 120)}"
            ) from error
        status = process.exit_status
        if status is None and self._connection.is_lost:
            raise LinkLost(f"{name}: {self._connection.reason}")
        done = Completed(
            command,
            -1 if status is None else status,
            out.decode(errors="replace"),
            err.decode(errors="replace"),
        )
        if check and done.status != 0:
            said = clean(done.stderr or done.stdout) or "it said nothing"
            raise CommandFailed(f"{name}: status {done.status}: {clean(command, 120)}: {said}")
        return done

    @asynccontextmanager
    async def talk(self, command: str) -> AsyncIterator[Talk]:
        """Start a command through the user's shell and talk with it; on leaving it is ended.

        Raises:
            LinkLost, SessionsForbidden: see `errors`.
        """
        async with self._process(command) as process:
            talk = Talk(self._connection, process)
            try:
                yield talk
            finally:
                await talk.close()

    @asynccontextmanager
    async def sftp(self) -> AsyncIterator[asyncssh.SFTPClient]:
        """Files on the node. Its `SFTPError`s are the caller's to explain.

        Raises:
            SftpMissing: the server has no such subsystem.
            LinkLost, SessionsForbidden: see `errors`.
        """
        name = self._connection.name
        async with self._slot():
            self._first()
            try:
                client = await self._retried(self._connection.ssh.start_sftp_client)
            except asyncssh.ChannelOpenError as error:
                if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
                    raise _no_sftp(name) from error
                raise self._refused(error) from error
            except (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost, EOFError) as error:
                if self._connection.is_lost:
                    raise LinkLost(f"{name}: {self._connection.reason}") from error
                raise _no_sftp(name) from error
            except (asyncssh.Error, OSError) as error:
                raise LinkLost(f"{name}: {clean(str(error))}") from error
            async with client:
                yield client

    @asynccontextmanager
    async def _process(self, command: str) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        async with self._slot():
            try:
                process = self._first(command)
                if process is None:
                    process = await self._retried(partial(self._start, command))
            except asyncssh.ChannelOpenError as error:
                raise self._refused(error) from error
            except (asyncssh.Error, OSError) as error:
                raise LinkLost(f"{self._connection.name}: {clean(str(error))}") from error
            try:
                yield process
            except (asyncssh.DisconnectError, ConnectionResetError) as error:
                raise LinkLost(f"{self._connection.name}: {clean(str(error))}") from error
            finally:
                if process.exit_status is None:
                    # A request that is sent without waiting; the channel may be gone.
                    with contextlib.suppress(OSError):
                        process.terminate()
                process.close()

    async def _start(self, command: str) -> asyncssh.SSHClientProcess[bytes]:
        return await self._connection.ssh.create_process(command, encoding=None, request_pty=False)

    def _first(self, command: str = "") -> asyncssh.SSHClientProcess[bytes] | None:
        """The command of the connection's first session, if it is this one; else it is ended."""
        first, self._connection.first = self._connection.first, None
        if first is None or first.command == command:
            return first
        first.close()
        return None

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._connection.is_lost:
            raise LinkLost(f"{self._connection.name}: {self._connection.reason}")
        async with self._changed:
            await self._changed.wait_for(lambda: self._open < self._limit)
            self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._released.set()
            async with self._changed:
                self._changed.notify_all()

    async def _retried(self, open_session: Callable[[], Awaitable[_T]]) -> _T:
        """Open a session; a server that is full is asked again when one of ours has ended.

        It may count a session a little longer than we do (a command that does not end with its
        channel), so the end of ours is not the only moment to ask.
        """
        deadline_s = time.monotonic() + _FULL_S
        while True:
            self._released.clear()
            try:
                return await open_session()
            except asyncssh.ChannelOpenError as error:
                hopeless = error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED
                if hopeless or self._connection.is_lost:
                    raise
                if self._open <= 1 and time.monotonic() > deadline_s:
                    raise
                if self._limit >= self._open > 1:
                    self._limit = self._open - 1
                    log.info("%s: %d sessions at once", self._connection.name, self._limit)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ASK_AGAIN_S):
                        await self._released.wait()

    def _refused(self, error: asyncssh.ChannelOpenError) -> LinkLost | SessionsForbidden:
        connection = self._connection
        if connection.is_lost:
            return LinkLost(f"{connection.name}: {connection.reason}")
        return SessionsForbidden(
            f"{connection.name}: the host opens no session: {clean(error.reason)}",
            hint="sshd_config of the node: MaxSessions, ForceCommand, PermitTTY.",
        )


class Talk:
    """A command that runs on. Made and ended by `Sessions.talk`."""

    def __init__(self, connection: Connection, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._connection = connection
        self._process = process
        self._is_abandoned = False
        self._said = bytearray()
        self._complaints = asyncio.ensure_future(self._listen())

    async def write(self, data: bytes) -> None:
        """Give it input; what it does not want any more is dropped.

        Raises:
            LinkLost: the connection failed.
        """
        # A command that has ended is found out by reading.
        with contextlib.suppress(BrokenPipeError):
            try:
                self._process.stdin.write(data)
                await self._process.stdin.drain()
            except (asyncssh.Error, ConnectionResetError) as error:
                raise self._lost(error) from error

    async def read(self) -> bytes:
        """What it printed next; empty at its end.

        Raises:
            LinkLost: the connection failed.
        """
        try:
            data = await self._process.stdout.read(_PART_BYTES)
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from error
        if not data and self._connection.is_lost:
            raise self._lost()
        return data

    async def end(self) -> Completed:
        """Close its input and wait for its end, some seconds; by force if it was abandoned."""
        process = self._process
        if not self._is_abandoned:
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(_END_S):
                    process.stdin.write_eof()
                    # What is not taken off the channel keeps the end of it back.
                    while await process.stdout.read(_PART_BYTES):
                        pass
                    await process.wait_closed()
        status = process.exit_status
        said = self._said.decode(errors="replace")
        return Completed(process.command or "", -1 if status is None else status, "", said)

    def abandon(self) -> None:
        """It is in the middle of something that nobody waits for: end it by force."""
        self._is_abandoned = True

    async def close(self) -> None:
        try:
            await self.end()
        finally:
            self._complaints.cancel()
            await asyncio.gather(self._complaints, return_exceptions=True)

    async def _listen(self) -> None:
        """Keep the last of what it complains about."""
        with contextlib.suppress(asyncssh.Error, OSError):
            while part := await self._process.stderr.read(_PART_BYTES):
                self._said += part
                del self._said[:-_COMPLAINT_BYTES]

    def _lost(self, error: Exception | None = None) -> LinkLost:
        reason = self._connection.reason or (clean(str(error)) if error is not None else "")
        return LinkLost(f"{self._connection.name}: {reason}")


class _TooMuch(Exception):
    """A command wrote without end."""


async def _read(stream: asyncssh.SSHReader[bytes]) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(_PART_BYTES):
        parts.append(part)
        size += len(part)
        if size > OUTPUT_LIMIT_BYTES:
            raise _TooMuch
    return b"".join(parts)


async def _feed(stream: asyncssh.SSHWriter[bytes], data: bytes) -> None:
    # A command that does not want all of its input is no failure: its status tells.
    with contextlib.suppress(BrokenPipeError):
        for at in range(0, len(data), _PART_BYTES):
            stream.write(data[at : at + _PART_BYTES])
            await stream.drain()
        stream.write_eof()


def _no_sftp(name: str) -> SftpMissing:
    return SftpMissing(
        f"{name}: the host has no SFTP subsystem",
        hint="sshd_config of the node: Subsystem sftp internal-sftp.",
    )
