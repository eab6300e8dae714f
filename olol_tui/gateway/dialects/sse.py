"""Events out of a `text/event-stream` that arrives in pieces."""

from __future__ import annotations

from olol_tui.gateway.dialects.errors import TranslationError

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""A line longer than this is not a token: the engine is broken, memory must not follow it."""


class EventReader:
    """Splits bytes into the payloads of `data:` lines, wherever the pieces end.

    Lines are cut at the newline byte before anything is decoded, so a character split over
    two pieces is whole again. Comments (`: ping`) and other fields are skipped. An `error:`
    line, llama-server's older way to report a failure in a stream, comes out as its payload
    too: it holds an `error` object like a `data:` line does.
    """

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by these bytes."""
        lines = (self._tail + data if self._tail else data).split(b"\n")
        self._tail = lines.pop()
        if len(self._tail) > MAX_EVENT_BYTES:
            raise TranslationError("the engine sent an event of more than 64 MiB")
        return [payload for line in lines if (payload := _payload(line))]

    def rest(self) -> list[bytes]:
        """The last payload when the stream ended without its newline."""
        line, self._tail = self._tail, b""
        payload = _payload(line)
        return [payload] if payload else []


def _payload(line: bytes) -> bytes:
    if line.startswith(b"data:"):
        return line[5:].strip()
    if line.startswith(b"error:"):
        return line[6:].strip()
    return b""
