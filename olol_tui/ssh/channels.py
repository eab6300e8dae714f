"""The data path: streams to the node's ports and sockets, each its own SSH channel.

Never a forwarded listener: when the link breaks, what hangs on one sees a clean end of file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import cast

import asyncssh

from olol_tui.ssh.connection import Connection
from olol_tui.ssh.errors import (
    ChannelRefused,
    ForwardingForbidden,
    LinkDown,
    LinkLost,
    NoCapacity,
    SSHError,
)
from olol_tui.ssh.text import clean
from olol_tui.ssh.transport import RemoteTransport

log = logging.getLogger("olol.ssh.channels")

WINDOW_BYTES = 256 * 1024
"""What a stalled reader makes us keep: with asyncssh's 2 MiB, 1000 of them are 2 GiB."""
CHANNELS_PER_CONNECTION = 800
"""sshd with systemd's usual limit of 1024 files failed after 1018."""

PROBE = "127.0.0.1:1"
"""Nobody listens there: «refused» means that forwarding works and has room."""
_FULL_S = 60.0
"""How long a number of streams that was too many is remembered."""
_MANY = 32
"""Streams on a connection from where on «open failed» may be for lack of room."""

Factory = Callable[[], asyncio.Protocol]
Dial = Callable[[str, Factory], Awaitable[asyncio.Protocol]]
"""As `gateway.upstream.Dial`: (address, protocol factory) → connected protocol."""


class Channel(RemoteTransport, asyncssh.SSHTCPSession[bytes]):
    """One SSH channel as an asyncio transport: asyncssh's session on one side."""

    def __init__(self, connection: Connection, address: str, factory: Factory) -> None:
        super().__init__({"peername": address, "node": connection.name})
        self._connection = connection
        self._address = address
        self._factory: Factory | None = factory
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self.protocol: asyncio.Protocol | None = None

    def give_up(self) -> None:
        """Nobody waits for it any more: if it opens yet, close it again."""
        self._factory = None

    # asyncssh's side

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan
        factory, self._factory = self._factory, None
        if factory is None:
            self._closing = True
            chan.abort()
            return
        self.protocol = self.begin(factory)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.deliver(data)

    def eof_received(self) -> bool:
        self.deliver_eof()
        return True  # Not asyncssh's to answer: `deliver_eof` has closed us, or we stay.

    def pause_writing(self) -> None:
        self.pause_protocol()

    def resume_writing(self) -> None:
        self.resume_protocol()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.channels -= 1
        self._channel = None
        if exc is not None:
            self.finish(self._lost(clean(str(exc))))
        elif self._eof_seen or self._closing:
            self.finish(None)
        else:
            # The peer's close, or the connection's? It is marked as lost within this tick.
            self._closing = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        if self._connection.is_lost:
            self.finish(self._lost(self._connection.reason))
        elif self._eof_sent:
            # Both ends at once: asyncssh swallows the end of file while reading is paused.
            self.finish(None)
        else:
            self.finish(self._lost("the host closed the stream without an end"))

    def _lost(self, reason: str) -> LinkLost:
        return LinkLost(f"{self._connection.name}: {self._address}: {reason}")

    # asyncio's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof_sent:
            raise RuntimeError("write after write_eof")
        if self._channel is None or self._closing or not data:
            return
        try:
            self._channel.write(bytes(data))
        except BrokenPipeError:
            # The peer has closed; `connection_lost` follows once what it sent is read.
            log.debug("%s: %s is closed: %d bytes dropped", self._connection.name, self._address,
                      len(data))  # fmt: skip

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self._channel is not None and not self._closing and not self._eof_sent:
            self._eof_sent = True
            self._channel.write_eof()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._channel is None:
            self.finish_soon()
            return
        pending = self._channel.get_write_buffer_size()
        self._channel.close()
        if not pending:
            self.finish_soon()

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.abort()

    def pause_reading(self) -> None:
        if self._channel is not None and not self._closing:
            self._reading = False
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        if self._channel is not None and not self._closing and not self._reading:
            self._reading = True
            self._channel.resume_reading()

    def get_write_buffer_size(self) -> int:
        return 0 if self._channel is None else self._channel.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._channel is not None:
            self._channel.set_write_buffer_limits(high, low)


def split_address(address: str) -> str | tuple[str, int]:
    """`unix:/path` or `/path` → path; `host:port` → host and port, brackets removed."""
    if address.startswith(("unix:", "/")):
        return address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"expected host:port or a path, got {address!r}")
    return host.strip("[]"), int(port)


async def open_channel(
    connection: Connection, address: str, factory: Factory, window: int = WINDOW_BYTES
) -> asyncio.Protocol:
    """One stream over one connection.

    Cancelled in the middle, it leaves nothing behind: asyncssh would keep a channel that is
    confirmed after its opener has gone.

    Raises:
        ChannelRefused, NoCapacity, ForwardingForbidden, LinkLost: see `errors`.
    """
    where = split_address(address)
    if connection.is_lost:
        raise LinkLost(f"{connection.name}: {connection.reason}")
    channel = Channel(connection, address, factory)
    ssh = connection.ssh
    opening: asyncio.Task[object]
    if isinstance(where, str):
        unix = cast("Callable[[], asyncssh.SSHUNIXSession[bytes]]", lambda: channel)
        opening = asyncio.ensure_future(ssh.create_unix_connection(unix, where, window=window))
    else:
        opening = asyncio.ensure_future(
            ssh.create_connection(lambda: channel, *where, window=window)
        )
    connection.channels += 1
    opening.add_done_callback(partial(_opened, connection, channel))
    _opening.add(opening)
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        channel.give_up()
        raise
    except asyncssh.ChannelOpenError as error:
        raise _explained(connection, address, error) from error
    except (asyncssh.Error, OSError) as error:
        raise LinkLost(f"{connection.name}: {address}: {clean(str(error))}") from error
    assert channel.protocol is not None
    return channel.protocol


_opening: set[asyncio.Task[object]] = set()
"""Kept until they are done: the loop holds tasks weakly."""


def _opened(connection: Connection, channel: Channel, opening: asyncio.Task[object]) -> None:
    _opening.discard(opening)
    failed = opening.cancelled() or opening.exception() is not None
    if failed and channel._channel is None:
        connection.channels -= 1
    elif failed:
        channel.abort()


def _explained(connection: Connection, address: str, error: asyncssh.ChannelOpenError) -> SSHError:
    where = f"{connection.name}: {address}"
    reason = clean(error.reason)
    if connection.is_lost or "SSH connection closed" in error.reason:
        return LinkLost(f"{where}: {connection.reason or 'the connection is lost'}")
    if error.code in (
        asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED,
        asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE,
    ):
        return ForwardingForbidden(
            f"{where}: {reason}",
            hint="sshd_config of the node: AllowTcpForwarding, AllowStreamLocalForwarding.",
        )
    if error.code == asyncssh.OPEN_CONNECT_FAILED:
        if "refused" in reason.lower() or address.startswith(("/", "unix:")):
            # For a socket sshd gives no reason: missing, deaf and forbidden look the same.
            return ChannelRefused(f"{where}: {reason}")
        if "timed out" in reason.lower() or "unreachable" in reason.lower():
            return ChannelRefused(f"{where}: {reason}")
    return NoCapacity(
        f"{where}: no room for another stream beside {connection.channels} ({reason})",
        hint="sshd on the node may be short of file descriptors (LimitNOFILE).",
    )


class DataPath:
    """The data connections of one node: streams go where there is room.

    The first connection is the link's, which replaces it when it breaks; more are opened
    when all are full, up to `limit`, and stay.
    """

    def __init__(self, name: str, connect: Callable[[], Awaitable[Connection]], limit: int) -> None:
        self._name = name
        self._connect = connect
        self._limit = limit
        self._connections: list[Connection] = []
        self._extending: asyncio.Task[Connection] | None = None
        self.why_down = "not connected yet"

    @property
    def channels(self) -> int:
        return sum(connection.channels for connection in self._connections)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        self._connections.append(connection)

    def discard(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """See `open_channel`; tries the next connection where one is full.

        Raises:
            LinkDown: there is no connection.
        """
        while True:
            connection = self._roomiest() or await self._extended()
            try:
                return await open_channel(connection, address, factory)
            except NoCapacity:
                if not connection.channels:
                    raise  # Not for lack of room, then.
            except ChannelRefused:
                # For a socket, full sounds like missing.
                few = connection.channels < _MANY
                if few or not address.startswith(("/", "unix:")) or await _has_room(connection):
                    raise
            connection.full_at = connection.channels
            connection.full_until_s = asyncio.get_running_loop().time() + _FULL_S

    def _roomiest(self) -> Connection | None:
        with_room = [c for c in self._alive() if c.channels < _room(c)]
        return min(with_room, key=lambda c: c.channels, default=None)

    def _alive(self) -> list[Connection]:
        self._connections = [c for c in self._connections if not c.is_lost]
        return self._connections

    async def _extended(self) -> Connection:
        """One more connection; all who wait for it share it."""
        alive = self._alive()
        if not alive:
            raise LinkDown(f"{self._name}: {self.why_down}")
        if len(alive) >= self._limit:
            raise NoCapacity(
                f"{self._name} takes no more: {self.channels} streams on {len(alive)} connections",
                hint="More connections a node: data_connections, 4 at most.",
            )
        if self._extending is None:
            self._extending = asyncio.ensure_future(self._connect())
            self._extending.add_done_callback(self._extension_done)
        try:
            return await asyncio.shield(self._extending)
        except SSHError as error:
            raise NoCapacity(
                f"{self._name}: all connections are full, and no other opens: {error}"
            ) from error

    def _extension_done(self, task: asyncio.Task[Connection]) -> None:
        self._extending = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.warning("%s: no further data connection: %s", self._name, error)
        else:
            log.info("%s: %d data connections", self._name, len(self._connections) + 1)
            self.add(task.result())

    async def close(self) -> None:
        if self._extending is not None:
            self._extending.cancel()
            await asyncio.gather(self._extending, return_exceptions=True)
        connections, self._connections = self._connections, []
        await asyncio.gather(*(connection.close() for connection in connections))


def _room(connection: Connection) -> int:
    """Learned from the server where it refused; else the number that is safe everywhere."""
    if asyncio.get_running_loop().time() < connection.full_until_s:
        return connection.full_at
    return CHANNELS_PER_CONNECTION


async def _has_room(connection: Connection) -> bool:
    try:
        protocol = await open_channel(connection, PROBE, Discard)
    except NoCapacity:
        return False
    except OSError:
        return True
    assert isinstance(protocol, Discard)
    protocol.discard()
    return True


class Discard(asyncio.Protocol):
    """For a stream that was only tried."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def discard(self) -> None:
        self._transport.abort()
