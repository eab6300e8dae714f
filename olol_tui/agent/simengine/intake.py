"""A request body that is taken in as it comes, for blobs too big to hold.

Either framing of HTTP/1.1: a length, or chunks. The pieces go to a sink; nothing is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_LINE_BYTES = 4096


class BadBody(Exception):
    """The framing of the body is not HTTP."""


class Intake:
    """Decodes one body.

    Attributes:
        complete: the last byte was fed.
    """

    __slots__ = ("_left", "_line", "_state", "complete")

    def __init__(self, length: int | None) -> None:
        """`length`: None for a chunked body."""
        self._left = length or 0
        self._line = b""
        self._state = "size" if length is None else "data"
        self.complete = length == 0

    def feed(self, data: bytes, sink: Callable[[bytes], None]) -> bytes:
        """Passes body bytes on; returns what follows the body.

        Raises:
            BadBody: malformed chunks.
        """
        while data and not self.complete:
            if self._state in ("data", "chunk"):
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                sink(piece)
                if self._left == 0:
                    self.complete = self._state == "data"
                    self._state = "chunk end"
                continue
            line, newline, rest = data.partition(b"\n")
            self._line += line
            if len(self._line) > _MAX_LINE_BYTES:
                raise BadBody("malformed chunk")
            if not newline:
                return b""
            data = rest
            text, self._line = self._line.rstrip(b"\r"), b""
            self._take_line(text)
        return data

    def _take_line(self, text: bytes) -> None:
        if self._state == "chunk end":
            if text:
                raise BadBody("malformed chunk")
            self._state = "size"
        elif self._state == "size":
            try:
                self._left = int(text.split(b";", 1)[0].strip(), 16)
            except ValueError:
                raise BadBody("malformed chunk") from None
            if self._left < 0:
                raise BadBody("malformed chunk")
            self._state = "chunk" if self._left else "trailer"
        elif not text:  # trailers end with an empty line
            self.complete = True
