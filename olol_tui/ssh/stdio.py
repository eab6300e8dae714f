"""Streams where the node forbids forwarding: one session carries them all over its stdio.

The other end is `stdio_node`, sent as source through the session's stdin: nothing is
installed, and nothing of it shows in the node's process list but `python3 -I -c …`.
Costs one of the server's sessions, and a millisecond or so more a message than a channel.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shlex
import struct
from importlib import resources

import asyncssh

from olol_tui.ssh import stdio_node
from olol_tui.ssh.channels import Factory, split_address
from olol_tui.ssh.connection import Connection
from olol_tui.ssh.errors import ChannelRefused, ForwardingForbidden, LinkLost, NoCapacity
from olol_tui.ssh.stdio_node import (
    CHUNK,
    CLOSE,
    CREDIT,
    DATA,
    EOF,
    FAILED,
    GREETING,
    HEAD,
    OPEN,
    OPENED,
    WINDOW,
)
from olol_tui.ssh.text import clean
from olol_tui.ssh.transport import HIGH_WATER_BYTES, RemoteTransport

log = logging.getLogger("olol.ssh.stdio")

START_TIMEOUT_S = 15.0
_NOISE_LIMIT_BYTES = 64 * 1024
"""What a shell's start-up files may print before the greeting."""
_STDERR_LIMIT = 2000
_FRAME_LIMIT_BYTES = 4 * CHUNK
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)


class StdioMux(asyncssh.SSHClientSession[bytes]):
    """One session on a node, and the streams in it.

    Owned by who called `start`; `close` ends it and every stream, as does the connection's
    loss: each with an error.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._streams: dict[int, _Stream] = {}
        self._number = 0
        self._inbox = bytearray()
        self._stderr = ""
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = ""
        self.full = False
        """The session takes no more for now: streams keep what they want to send."""

    @classmethod
    async def start(cls, connection: Connection, python: str = "python3") -> StdioMux:
        """Run the other end on the node.

        Raises:
            ForwardingForbidden: it does not run, which leaves no way to carry streams.
            LinkLost: the connection broke.
        """
        mux = cls(connection)
        source = resources.files(stdio_node.__package__).joinpath("stdio_node.py").read_bytes()
        # Read with os.read: a buffered reader would take frames with it.
        loader = (
            "import os;s=b''\n"
            f"while len(s)<{len(source)}:\n"
            f" d=os.read(0,{len(source)}-len(s))\n"
            " if not d: raise SystemExit(1)\n"
            " s+=d\n"
            "exec(compile(s,'olol-stdio','exec'),{'__name__':'__main__'})"
        )
        command = f"exec {shlex.quote(python)} -I -c {shlex.quote(loader)}"
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                channel, _ = await connection.ssh.create_session(
                    lambda: mux, command, encoding=None, request_pty=False
                )
                channel.write(source)
                await mux._greeted
        except (TimeoutError, asyncssh.Error, OSError) as error:
            if connection.is_lost:
                raise LinkLost(f"{connection.name}: {connection.reason}") from error
            await mux.close()
            why = mux._stderr or clean(str(error)) or f"no answer within {START_TIMEOUT_S:g} s"
            raise ForwardingForbidden(
                f"{connection.name}: sshd forbids forwarding, and {python} does not run there "
                f"in its place: {clean(why)}",
                hint="Allow it (AllowTcpForwarding yes), or install Python 3.8 or newer.",
            ) from error
        except asyncio.CancelledError:
            await mux.close()
            raise
        log.info("%s: streams go through a session's stdio", connection.name)
        return mux

    @property
    def is_ended(self) -> bool:
        return bool(self._ended)

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """As `channels.open_channel`."""
        where = split_address(address)
        if self._ended:
            raise LinkLost(f"{self._connection.name}: {self._ended}")
        self._number += 1
        stream = _Stream(self, self._number, address, factory)
        self._streams[self._number] = stream
        wanted = f"unix:{where}" if isinstance(where, str) else f"{where[0]}:{where[1]}"
        self.send(OPEN, self._number, wanted.encode())
        try:
            return await stream.opened
        except asyncio.CancelledError:
            stream.give_up()
            raise

    async def close(self) -> None:
        self._end("closed by us")
        if self._channel is not None:
            self._channel.abort()

    # For streams

    def send(self, kind: int, number: int, payload: bytes | bytearray = b"") -> None:
        if self._channel is None or self._channel.is_closing():
            return
        self._channel.write(HEAD.pack(kind, number, len(payload)) + bytes(payload))

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)

    def error(self, address: str, reason: str) -> LinkLost:
        return LinkLost(f"{self._connection.name}: {address}: {reason}")

    @property
    def name(self) -> str:
        return self._connection.name

    # asyncssh's side

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan
        if self._ended:
            chan.abort()  # Given up while the session was being opened.

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self._stderr = (self._stderr + data.decode(errors="replace"))[-_STDERR_LIMIT:]
            return
        self._inbox += data
        if not self._greeted.done() and not self._greet():
            return
        self._frames()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        for stream in list(self._streams.values()):
            stream.push()
            if self.full:
                return

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        reason = clean(str(exc)) if exc is not None else clean(self._stderr)
        self._end(reason or self._connection.reason or "the session on the node ended")

    def _greet(self) -> bool:
        at = self._inbox.find(GREETING)
        if at >= 0:
            del self._inbox[: at + len(GREETING)]
            self._greeted.set_result(None)
            return True
        if len(self._inbox) > _NOISE_LIMIT_BYTES:
            self._greeted.set_exception(OSError("the user's shell writes too much"))
        return False

    def _frames(self) -> None:
        at = 0
        inbox = self._inbox
        while len(inbox) - at >= HEAD.size:
            kind, number, length = HEAD.unpack_from(inbox, at)
            if length > _FRAME_LIMIT_BYTES:
                self._end("the other end of the stdio session talks nonsense")
                return
            if len(inbox) - at - HEAD.size < length:
                break
            at += HEAD.size
            stream = self._streams.get(number)
            if stream is not None:
                stream.frame(kind, bytes(inbox[at : at + length]))
            at += length
        del inbox[:at]

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = reason
        if not self._greeted.done():
            self._greeted.set_exception(OSError(reason))
            self._greeted.exception()  # Seen, even if nobody waits any more.
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lost(reason)


class _Stream(RemoteTransport):
    """One stream of a mux as an asyncio transport."""

    def __init__(self, mux: StdioMux, number: int, address: str, factory: Factory) -> None:
        super().__init__({"peername": address, "node": mux.name})
        self._mux = mux
        self._number = number
        self._address = address
        self._factory = factory
        self.opened: asyncio.Future[asyncio.Protocol] = self._loop.create_future()
        self._credit = WINDOW
        self._out = bytearray()
        self._high = HIGH_WATER_BYTES
        self._low = HIGH_WATER_BYTES // 4
        self._in: list[bytes] = []
        """Kept while reading is paused; the other end stops after a window of it."""
        self._eof_held = False
        self._end_held: str | None = None
        self._taken = 0
        self._eof_told = False

    def give_up(self) -> None:
        self._closing = True
        self._drop()

    def frame(self, kind: int, payload: bytes) -> None:
        if kind == DATA:
            self._in.append(payload)
            self._hand_over()
        elif kind == CREDIT:
            self._credit += int.from_bytes(payload, "big")
            self.push()
        elif kind == EOF:
            self._eof_held = True
            self._hand_over()
        elif kind == OPENED:
            self._open()
        elif kind == CLOSE:
            self._mux.forget(self._number)
            self._end_held = clean(payload)
            self._hand_over()
        elif kind == FAILED:
            self._mux.forget(self._number)
            if not self.opened.done():
                self.opened.set_exception(self._refusal(payload))

    def lost(self, reason: str) -> None:
        """The mux ended: what was not read is lost, too."""
        error = self._mux.error(self._address, reason)
        if not self.opened.done():
            self.opened.set_exception(error)
        self._in.clear()
        self.finish(error)

    def push(self) -> None:
        """Send what credit and the session's own buffer allow."""
        while self._out and self._credit and not self._mux.full:
            part = self._out[: min(CHUNK, self._credit)]
            del self._out[: len(part)]
            self._credit -= len(part)
            self._mux.send(DATA, self._number, part)
        if len(self._out) > self._high:
            self.pause_protocol()
        elif len(self._out) <= self._low:
            self.resume_protocol()
        if not self._out:
            if self._closing and not self._finished:
                self._drop()
                self.finish_soon()
            elif self._eof_sent and not self._eof_told:
                self._eof_told = True
                self._mux.send(EOF, self._number)

    def _open(self) -> None:
        if self.opened.done():
            return  # Given up; the close is under way.
        try:
            self.opened.set_result(self.begin(self._factory))
        except Exception as error:  # noqa: BLE001 - the dialler's own protocol failed: theirs
            self.opened.set_exception(error)
            self.give_up()

    def _hand_over(self) -> None:
        while self._in and self._reading and not self._closing:
            data = self._in.pop(0)
            self._taken += len(data)
            if self._taken >= WINDOW // 2:
                self._mux.send(CREDIT, self._number, self._taken.to_bytes(4, "big"))
                self._taken = 0
            self.deliver(data)
        if self._in and not self._closing:
            return
        if self._eof_held and not self._eof_seen:
            self.deliver_eof()
        if self._end_held is not None and not self._finished:
            reason, self._end_held = self._end_held, None
            self.finish(self._mux.error(self._address, reason) if reason else None)

    def _refusal(self, payload: bytes) -> ChannelRefused | NoCapacity:
        code = struct.unpack("!i", payload[:4])[0] if len(payload) >= 4 else 0
        told = f"{self._mux.name}: {self._address}: {clean(payload[4:])}"
        return NoCapacity(told) if code in _EXHAUSTED else ChannelRefused(told)

    # asyncio's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof_sent:
            raise RuntimeError("write after write_eof")
        if self._closing or not data:
            return
        self._out += data
        self.push()

    def write_eof(self) -> None:
        if not self._closing and not self._eof_sent:
            self._eof_sent = True
            self.push()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._in.clear()
            self.push()

    def _drop(self) -> None:
        self._out.clear()
        self._in.clear()
        self._mux.send(CLOSE, self._number)
        self._mux.forget(self._number)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._hand_over()

    def get_write_buffer_size(self) -> int:
        return len(self._out)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else 4 * low if low else HIGH_WATER_BYTES
        self._low = low if low is not None else self._high // 4
        self.push()
