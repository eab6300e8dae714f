"""Large request bodies: kept in a file while they wait, sent from there at the engine's pace.

Memory does not grow with the body, and no step takes long: neither its arrival nor its way out
is more than a read buffer at a time, and what has to be parsed is its skeleton. From a file it can
be sent again, to another engine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from olol_tui.gateway import upstream
from olol_tui.gateway.skeleton import Hole, Skeleton

SPOOL_BYTES = 1024 * 1024
"""Larger bodies go to a file."""
MAX_SKELETON_BYTES = 16 * 1024 * 1024
"""Parsing so much takes some 50 ms, in which no other request moves."""
_PIECE_BYTES = 128 * 1024
_CRUMB_BYTES = 16 * 1024
"""Smaller pieces are gathered: a client may send its body byte by byte."""


class Spool:
    """One body. The file has no name: it is gone with the process, and nobody else can open it."""

    def __init__(self) -> None:
        """Raises OSError: there is no room."""
        self._file = _nameless()
        self._skeleton = Skeleton()
        self._crumbs = bytearray()
        self.size = 0

    def feed(self, data: bytes) -> None:
        """The next piece. Raises OSError: there is no room for it."""
        self.size += len(data)
        if not self._crumbs and len(data) >= _CRUMB_BYTES:
            self._keep(data)
            return
        self._crumbs += data
        if len(self._crumbs) >= _CRUMB_BYTES:
            self._sweep()

    @property
    def weight(self) -> int:
        """Bytes of text by which its tokens may be estimated."""
        return self._skeleton.size + self._skeleton.weight

    @property
    def is_bulky(self) -> bool:
        """Whether too much of it is not in long strings: it would have to be parsed."""
        return self._skeleton.size > MAX_SKELETON_BYTES

    def finish(self) -> bytes:
        """The body is complete: its skeleton. Raises OSError: there is no room for its end."""
        self._sweep()
        return self._skeleton.finish()

    def _sweep(self) -> None:
        data, self._crumbs = bytes(self._crumbs), bytearray()
        self._keep(data)

    def _keep(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self._skeleton.feed(data)

    def whole(self) -> list[bytes | Hole]:
        """The body as it came."""
        return [Hole(0, self.size)]

    def filled(self, text: bytes) -> list[bytes | Hole]:
        """What was made from the skeleton, with the long strings in it again."""
        return self._skeleton.fill(text)

    def named(self, text: bytes) -> bytes:
        """A part of the skeleton with what tells the long strings apart in their places."""
        return self._skeleton.named(text)

    def read(self, start: int, count: int) -> bytes:
        return os.pread(self._file, count, start)

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()


def _nameless() -> int:
    # Not /tmp first: that is memory on many machines.
    directory = "/var/tmp" if os.access("/var/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        # Not every file system has files without a name.
        file, path = tempfile.mkstemp(dir=directory)
        Path(path).unlink()
        return file


class Pump:
    """Sends a request whose body lies in a spool. Implements upstream.BodySource."""

    def __init__(self, spool: Spool, pieces: list[bytes | Hole]) -> None:
        self._spool = spool
        self._pieces = [piece for piece in pieces if _size(piece)]
        self._call: upstream.Call | None = None
        self._moved: Callable[[], None] = _nothing
        self._full = False
        self._due = False
        self.size = sum(_size(piece) for piece in pieces)

    def open(
        self,
        pool: upstream.UpstreamPool,
        address: str,
        head: bytes,
        receiver: upstream.Receiver,
        moved: Callable[[], None],
    ) -> upstream.Call:
        """Args: moved: called after each piece, for whoever watches over silence."""
        self._moved = moved
        self._call = pool.open(address, head, receiver, self)
        return self._call

    def up_open(self) -> None:
        self._send()

    def up_full(self) -> None:
        self._full = True

    def up_drained(self) -> None:
        self._full = False
        self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        """One piece, and the next one when others had their turn."""
        self._due = False
        call = self._call
        if self._full or not self._pieces or call is None or not call.wants(self):
            return
        data = self._next()
        call.write(data, last=not self._pieces)
        self._moved()
        if self._pieces and not self._full:
            self._soon()

    def _next(self) -> bytes:
        piece = self._pieces[0]
        if isinstance(piece, Hole):
            data = self._spool.read(piece.start, min(_PIECE_BYTES, piece.end - piece.start))
            rest: bytes | Hole = Hole(piece.start + len(data), piece.end)
        else:
            data, rest = piece[:_PIECE_BYTES], piece[_PIECE_BYTES:]
        if _size(rest):
            self._pieces[0] = rest
        else:
            del self._pieces[0]
        return data


def _nothing() -> None:
    pass


Payload = bytes | tuple[bytes, Pump]
"""A request to an engine: whole, or its head and who sends the body."""


def _size(piece: bytes | Hole) -> int:
    return piece.end - piece.start if isinstance(piece, Hole) else len(piece)
