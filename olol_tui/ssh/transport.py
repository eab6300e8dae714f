"""What streams over SSH have in common: an asyncio transport whose end is never ambiguous.

A stream that ends because the peer ended it has shown an end of file; everything else that
ends it is an exception in `connection_lost`. A reply cut by a dead link must not look like a
complete one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

HIGH_WATER_BYTES = 64 * 1024


class RemoteTransport(asyncio.Transport):
    """Calls one protocol; what carries the bytes is the subclass' business.

    Life: `begin` → any of `deliver`, `deliver_eof`, `pause_protocol`… → `finish`, once.
    A protocol that raises loses this stream only, as with a socket.
    """

    def __init__(self, info: dict[str, Any]) -> None:
        super().__init__(info)
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.Protocol | None = None
        self._closing = False
        self._finished = False
        self._eof_seen = False
        self._eof_sent = False
        self._reading = True
        self._writing_paused = False

    # What subclasses do.

    def _drop(self) -> None:
        """Give up the stream at once, with all that is buffered."""
        raise NotImplementedError

    # For subclasses.

    def begin(self, factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """The stream is open: make the protocol and tell it."""
        protocol = factory()
        self._protocol = protocol
        protocol.connection_made(self)
        return protocol

    def deliver(self, data: bytes) -> None:
        if self._protocol is None or self._closing:
            return
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001 - one stream's bug must not end the others
            self._failed(error, "data_received")

    def deliver_eof(self) -> None:
        self._eof_seen = True
        if self._protocol is None or self._closing:
            return
        try:
            keep_open = self._protocol.eof_received()
        except Exception as error:  # noqa: BLE001
            self._failed(error, "eof_received")
        else:
            if not keep_open:
                self.close()

    def pause_protocol(self) -> None:
        if self._protocol is None or self._writing_paused:
            return
        self._writing_paused = True
        try:
            self._protocol.pause_writing()
        except Exception as error:  # noqa: BLE001
            self._report(error, "pause_writing")

    def resume_protocol(self) -> None:
        if self._protocol is None or not self._writing_paused:
            return
        self._writing_paused = False
        try:
            self._protocol.resume_writing()
        except Exception as error:  # noqa: BLE001
            self._report(error, "resume_writing")

    def finish(self, error: Exception | None) -> None:
        """Tell the protocol that it is over; further calls do nothing."""
        if self._finished:
            return
        self._finished = True
        self._closing = True
        protocol, self._protocol = self._protocol, None
        if protocol is None:
            return
        try:
            protocol.connection_lost(error)
        except Exception as problem:  # noqa: BLE001
            self._report(problem, "connection_lost", protocol)

    def finish_soon(self) -> None:
        """As a socket does: not from within `close`."""
        self._loop.call_soon(self.finish, None)

    def _failed(self, error: Exception, where: str) -> None:
        self._report(error, where)
        if not self._closing:
            self._closing = True
            self._drop()
            self._loop.call_soon(self.finish, error)

    def _report(self, error: Exception, where: str, protocol: object = None) -> None:
        self._loop.call_exception_handler(
            {
                "message": f"a protocol failed in {where}()",
                "exception": error,
                "transport": self,
                "protocol": protocol or self._protocol,
            }
        )

    # asyncio.Transport

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def can_write_eof(self) -> bool:
        return True

    def abort(self) -> None:
        if not self._finished:
            self._closing = True
            self._drop()
            self.finish_soon()

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol
