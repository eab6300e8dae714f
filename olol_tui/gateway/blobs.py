"""One blob on its way from a client into a store: gigabytes, a read buffer at a time.

The client is read only as fast as the store takes the bytes, so memory does not grow with the
blob. The last piece is held back until the digest is known to be right: a store never gets to
see the end of a blob that is another than its name says.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from typing import TYPE_CHECKING

from olol_tui.gateway import upstream
from olol_tui.gateway.dialects import errors
from olol_tui.gateway.errands import GONE, Errand
from olol_tui.gateway.http import JSON, HttpConnection, Request
from olol_tui.gateway.routes import BLOBS

if TYPE_CHECKING:
    from olol_tui.gateway.library import Library
    from olol_tui.gateway.stores import Store

log = logging.getLogger("olol.gateway.library")

STALLED_S = 60.0
"""A store that takes nothing for so long will not take the rest either."""
INVALID_DIGEST = "invalid digest format"
"""Ollama's sentence, status 400."""
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


def digest_in(text: str) -> str | None:
    """A digest as clients write it, in its one spelling; None when it is none."""
    match = _DIGEST.fullmatch(text)
    return f"sha256:{match.group(1).lower()}" if match else None


class BlobUpload:
    """Implements http.BodySink, upstream.Receiver and upstream.BodySource."""

    def __init__(
        self,
        library: Library,
        connection: HttpConnection,
        request: Request,
        store: Store,
        digest: str,
        errand: Errand,
    ) -> None:
        self._library = library
        self._errand = errand
        self._connection: HttpConnection | None = connection
        self._store = store
        self._digest = digest
        self._hash = hashlib.sha256()
        self._pending = b""
        """Read, and not sent on yet: the last piece, or all until the store is connected."""
        self._open = False
        self._ended = False
        """The client sent everything."""
        self._status = 0
        self._content_type = b""
        self._parts: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        length = request.headers.get(b"content-length")
        self._chunked = length is None
        connection.handler = self
        connection.hold_body()
        head = upstream.head(
            "POST", store.address, BLOBS + digest, None if length is None else int(length)
        )
        self._call = library.pool.open(store.address, head, self, self)

    # -- http.BodySink

    def body_data(self, data: bytes) -> None:
        self._hash.update(data)
        if self._open:
            self._send(self._pending)
            self._pending = data
        else:
            self._pending += data

    def body_end(self) -> None:
        self._ended = True
        if self._open:
            self._send_last()

    def client_gone(self) -> None:
        self._connection = None
        self._errand.end(GONE, "the client left")
        self._stop()

    def client_paused(self) -> None:
        self._call.pause()

    def client_resumed(self) -> None:
        self._call.resume()

    # -- upstream.BodySource

    def up_open(self) -> None:
        self._open = True
        if self._ended:
            self._send_last()
        elif self._connection is not None:
            self._connection.want_body()

    def up_full(self) -> None:
        if self._connection is not None:
            self._connection.hold_body()
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(STALLED_S, self._stalled)

    def up_drained(self) -> None:
        self._calm()
        if self._connection is not None:
            self._connection.want_body()

    # -- upstream.Receiver

    def up_head(self, status: int, content_type: bytes) -> None:
        self._status = status
        self._content_type = content_type

    def up_data(self, data: bytes, final: bool) -> None:
        self._parts.append(data)

    def up_end(self) -> None:
        """The store has answered: maybe before the end, when it has the blob already."""
        self._calm()
        self._errand.end(self._status)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.reply(self._status, b"".join(self._parts), self._content_type)

    def up_lost(self, reason: str) -> None:
        self._fail(500, f"upstream lost: {self._store.node}: {reason}")

    # -- inside

    def _send(self, data: bytes, *, last: bool = False) -> None:
        if data and self._chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        if last and self._chunked:
            data += b"0\r\n\r\n"
        if data or last:
            self._call.write(data, last=last)

    def _send_last(self) -> None:
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._digest:
            # Ollama's sentence, quotes included.
            self._fail(400, f'digest mismatch, expected "{self._digest}", got "{found}"')
            return
        self._send(self._pending, last=True)
        self._pending = b""

    def _stalled(self) -> None:
        self._timer = None
        self._fail(500, f"{self._store.node} has taken nothing for {STALLED_S:.0f} s")

    def _fail(self, status: int, message: str) -> None:
        self._stop()
        self._errand.end(status, message)
        log.warning("blob failed", extra={"where": self._store.node, "reason": message})
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.reply(status, errors.error_body("ollama", status, message), JSON)

    def _stop(self) -> None:
        self._calm()
        self._call.cancel()

    def _calm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
