"""The link to one node: a control and a data connection, kept up by one task.

Control carries commands, files, agent calls and logs; data carries requests, so that a log
or an upload never stands in front of a token. A connection that breaks fails everything on
it at once and is opened again, with a jittered back-off; what a human must decide (an
unknown host key, a refused login) stops the task until `retry`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import asyncssh
import httpx

from olol_tui.ssh.channels import DataPath, Factory, open_channel
from olol_tui.ssh.connection import Connection, Connector
from olol_tui.ssh.errors import ForwardingForbidden, LinkDown, LinkLost, SSHError
from olol_tui.ssh.http import DialTransport
from olol_tui.ssh.sessions import COMMAND_TIMEOUT_S, SHELL, Completed, Sessions, Talk
from olol_tui.ssh.streams import Streams
from olol_tui.ssh.target import Target

log = logging.getLogger("olol.ssh.link")

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 10.0
"""A link that held for so long starts again with the shortest back-off."""
MAX_DATA_CONNECTIONS = 4

Phase = Literal["connecting", "up", "lost", "refused", "closed"]


@dataclass(frozen=True, slots=True)
class LinkState:
    """What there is to know about a link at one moment."""

    phase: Phase = "connecting"
    """`lost`: trying again by itself. `refused`: waiting for `retry`."""
    error: SSHError | None = None
    """Why it is not up."""
    since_s: float = 0.0
    """Loop time of the last change of phase."""
    retry_in_s: float | None = None
    road: Literal["", "channels", "stdio"] = ""
    """How streams travel, once known; "" with an error on a link that is up: they cannot."""
    fingerprint: str = ""
    """Of the host's key."""
    server_version: str = ""
    banner: str = ""
    place: str = ""
    """`ops@10.0.4.13 via ops@bastion.lan`: what was dialled."""
    key_files: tuple[str, ...] = ()
    """The known_hosts files with the host's key; none when it was accepted just now."""

    @property
    def reason(self) -> str:
        return "" if self.error is None else str(self.error)


class NodeLink:
    """The connections to one node. `start` it, and `close` it; or use it in `async with`.

    Args:
        name: the node, for errors and logs.
        target: where it is.
        connector: opens connections, shared by all links.
        on_state: called on every change, on the event loop.
        data_connections: at most so many, opened as streams need them; with 0 there is the
            control connection alone, for a short errand, and another one only where streams
            have to go over stdio.
        python: the node's interpreter for streams over stdio; may be set later.
        jitter: 0…1, for tests.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        connector: Connector,
        *,
        on_state: Callable[[LinkState], None] | None = None,
        data_connections: int = MAX_DATA_CONNECTIONS,
        python: str = "python3",
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.target = target
        self.state = LinkState()
        self._connector = connector
        self._on_state = on_state
        self._jitter = jitter
        self._control: Connection | None = None
        self._sessions: Sessions | None = None
        self._data: Connection | None = None
        self._path = DataPath(name, self._connect, data_connections)
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._retry = asyncio.Event()
        self._failed_attempts = 0
        self._is_brief = data_connections == 0
        self._opening_data = asyncio.Lock()
        self._streams = Streams(name, self._need_data, self._is_socket, python)

    async def __aenter__(self) -> NodeLink:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Life

    def start(self) -> None:
        """Keep the link up from now on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"ssh link {self.name}"
            )

    def retry(self) -> None:
        """Try now: somebody trusted a key, mended a configuration, or is impatient."""
        self._connector.keys.reset()
        self._retry.set()

    async def wait_up(self, timeout_s: float | None = None) -> None:
        """Return when the link is up.

        Raises:
            SSHError: it is refused, or the next attempt failed, or time is out, or nobody has
                called `start`; with the reason.
        """
        if self._task is None:
            raise self._down()
        failed = self._failed_attempts
        try:
            async with asyncio.timeout(timeout_s):
                while self.state.phase != "up":
                    if self.state.phase in ("refused", "closed") or self._failed_attempts > failed:
                        raise self._down()
                    await self._changed.wait()
        except TimeoutError:
            raise self._down() from None

    async def close(self) -> None:
        """End the connections; streams that are open fail."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._streams.close()
        control = [] if self._control is None else [self._control.close()]
        await asyncio.gather(self._path.close(), *control)
        self._control = self._data = self._sessions = None
        self._set(LinkState("closed", LinkDown(f"{self.name}: closed")))

    # Use

    async def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = False,
    ) -> Completed:
        """Run a command on the node; see `Sessions.run`.

        Raises:
            LinkDown: there is no connection now.
        """
        return await self._need_sessions().run(
            command, stdin=stdin, timeout_s=timeout_s, check=check
        )

    @asynccontextmanager
    async def talk(self, command: str) -> AsyncIterator[Talk]:
        """A command that runs on; see `Sessions.talk`."""
        async with self._need_sessions().talk(command) as talk:
            yield talk

    @asynccontextmanager
    async def sftp(self) -> AsyncIterator[asyncssh.SFTPClient]:
        """Files on the node; see `Sessions.sftp`."""
        async with self._need_sessions().sftp() as client:
            yield client

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """A stream for requests: `gateway.upstream.Dial`.

        Args:
            address: `127.0.0.1:port` or `unix:/path`, as the node sees it.
            factory: makes the protocol once the stream is open.

        Raises:
            OSError: one of `ChannelRefused`, `NoCapacity`, `ForwardingForbidden`, `LinkLost`
                and `LinkDown`. Once open, a stream that ends in any other way than by the
                peer's own end of file ends with an exception in `connection_lost`.
        """
        return await self._streams.dial(self._path.dial, address, factory)

    @asynccontextmanager
    async def listening(
        self, serve: Callable[[Any, Any], Awaitable[None]]
    ) -> AsyncIterator[tuple[int, asyncio.Event]]:
        """A port on the node's loopback whose connections come to `serve(reader, writer)`.

        Yields:
            The port, and an event that is set when the connection that carries it is lost.

        Raises:
            LinkDown: there is no connection now.
            ForwardingForbidden: sshd does not listen for others.
        """
        carrier = await self._need_data()
        try:
            listener = await carrier.ssh.start_server(lambda *_: serve, "127.0.0.1", 0)
        except (asyncssh.ChannelListenError, OSError) as error:
            raise ForwardingForbidden(f"{self.name}: sshd listens for nobody: {error}") from error
        try:
            yield listener.get_port(), carrier.lost
        finally:
            listener.close()

    async def dial_control(self, address: str, factory: Factory) -> asyncio.Protocol:
        """As `dial`, on the control connection: not in the way of requests."""
        return await self._streams.dial(self._control_dial, address, factory)

    def http_transport_agent(self, socket: str) -> httpx.AsyncBaseTransport:
        """To a UNIX socket on the node, whatever host the URLs name."""
        return DialTransport(self.dial_control, f"unix:{socket}")

    def http_transport_tcp(self, port: int | None = None) -> httpx.AsyncBaseTransport:
        """To a loopback port on the node, or without one to whatever the URLs name there."""
        return DialTransport(self.dial_control, None if port is None else f"127.0.0.1:{port}")

    @property
    def python(self) -> str:
        """The node's interpreter, for streams over stdio; settable once it is found."""
        return self._streams.python

    @python.setter
    def python(self, path: str) -> None:
        self._streams.python = path

    @property
    def host_key(self) -> str:
        """The host's verified public key, `ssh-ed25519 AAAA…`; empty while not connected."""
        if self._control is None or (key := self._control.ssh.get_server_host_key()) is None:
            return ""
        return " ".join(key.export_public_key().decode("ascii").split()[:2])

    @property
    def channels(self) -> int:
        """Streams on the data connections."""
        return self._path.channels + self._streams.count

    @property
    def data_connections(self) -> int:
        return self._path.connections

    # The task

    async def _run(self) -> None:
        failures = 0
        while True:
            self._retry.clear()
            self._set(replace(self.state, phase="connecting", retry_in_s=None))
            try:
                await self._establish()
            except SSHError as error:
                self._failed_attempts += 1
                if error.final:
                    log.warning("%s: %s", self.name, error)
                    self._path.why_down = str(error)
                    self._set(LinkState("refused", error))
                    await self._retry.wait()
                    failures = 0
                    continue
                failures = await self._pause(failures, error)
            except Exception as error:
                log.exception("%s: unexpected failure", self.name)
                self._failed_attempts += 1
                failures = await self._pause(failures, SSHError(f"{self.name}: {error!r}"))
            else:
                loop = asyncio.get_running_loop()
                since_s = loop.time()
                reason = await self._broken()
                if loop.time() - since_s > STEADY_S:
                    failures = 0
                await self._clear_broken()
                failures = await self._pause(failures, LinkLost(f"{self.name}: {reason}"))

    async def _pause(self, failures: int, error: SSHError) -> int:
        """Wait before the next attempt, not longer than 30 s; `retry` ends it."""
        at_most_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**failures)
        pause_s = self._jitter() * at_most_s
        log.info(
            "%s: %s; again in %.1f s",
            self.name,
            error,
            pause_s,
            extra={"node": self.name, "pause_s": round(pause_s, 2), "at_most_s": at_most_s},
        )
        self._path.why_down = str(error)
        self._set(replace(self.state, phase="lost", error=error, retry_in_s=pause_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._retry.wait()
        return min(failures + 1, 10)

    async def _establish(self) -> None:
        await self._clear_broken()
        if self._control is None:
            # An errand wants a shell; one that is there already saves it three round trips.
            self._control = await self._connect(SHELL if self._is_brief else "")
            self._sessions = Sessions(self._control)
        if self._data is None and not self._is_brief:
            await self._open_data()
        error: SSHError | None = None
        try:
            await self._streams.probe(self._data or self._control)
        except ForwardingForbidden as problem:
            # Commands still work, so that somebody can find out and help.
            error = problem
        key = self._control.host_key
        self._set(
            LinkState(
                "up",
                error,
                road="" if error else "stdio" if self._streams.tcp_forbidden else "channels",
                fingerprint="" if key is None else key.fingerprint,
                server_version=self._control.server_version,
                banner=self._control.banner,
                place=self._control.place,
                key_files=self._control.key_files,
            )
        )

    async def _open_data(self) -> None:
        self._data = await self._connect()
        self._path.add(self._data)

    async def _connect(self, first: str = "") -> Connection:
        return await self._connector.connect(self.name, self.target, first)

    async def _broken(self) -> str:
        """Wait until one of the two connections is lost, and say why."""
        both = [one for one in (self._control, self._data) if one is not None]
        waits = [asyncio.ensure_future(connection.lost.wait()) for connection in both]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return next(connection.reason for connection in both if connection.is_lost)

    async def _clear_broken(self) -> None:
        """Forget what is dead; what lives goes on serving."""
        if self._control is not None and self._control.is_lost:
            await self._control.close()
            self._control = self._sessions = None
        if self._data is not None and self._data.is_lost:
            await self._streams.close()
            self._path.discard(self._data)
            await self._data.close()
            self._data = None

    def _set(self, state: LinkState) -> None:
        now_s = asyncio.get_running_loop().time()
        since_s = self.state.since_s if state.phase == self.state.phase else now_s
        self.state = replace(state, since_s=since_s or now_s)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._on_state is not None:
            try:
                self._on_state(self.state)
            except Exception:
                log.exception("%s: somebody failed to take note of the link's state", self.name)

    def _down(self) -> SSHError:
        return self.state.error or LinkDown(f"{self.name}: not connected yet")

    def _need_sessions(self) -> Sessions:
        if self._sessions is None or self._control is None or self._control.is_lost:
            raise LinkDown(f"{self.name}: {self.state.reason or 'not connected yet'}")
        return self._sessions

    async def _need_data(self) -> Connection:
        async with self._opening_data:
            if self._data is None and self._is_brief:
                await self._open_data()
        if self._data is None or self._data.is_lost:
            raise LinkDown(f"{self.name}: {self.state.reason or 'not connected yet'}")
        return self._data

    async def _control_dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        if self._control is None or self._control.is_lost:
            raise LinkDown(f"{self.name}: {self.state.reason or 'not connected yet'}")
        return await open_channel(self._control, address, factory)

    async def _is_socket(self, path: str) -> bool:
        try:
            return (await self.run(f"test -S {shlex.quote(path)}")).status == 0
        except SSHError as error:
            log.info("%s: cannot look for %s: %s", self.name, path, error)
            return False
