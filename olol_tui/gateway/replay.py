"""A stream that goes on elsewhere when its engine is lost in the middle of it.

A client asks for it with `X-Olol-Replay: deterministic`, and only where the same request has the
same reply: temperature 0, or a seed. What it has got already is compared with what the other
engine says, text for text; the rest is passed on. If they differ the client hears of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.message import Request
from olol_tui.gateway.replay_events import Event, Reader
from olol_tui.gateway.routes import Inference

HEADER = b"x-olol-replay"
MAX_ITEMS = 200_000
"""Beyond so many remembered pieces a stream is not replayed: memory has an end."""
Outcome = Literal["done", "differed", "failed"]


class Interrupted(Exception):
    """A stream cannot go on as it is."""

    before = b""
    """What the client still gets of it."""


class Differs(Interrupted):
    """The other engine says something else than what the client has already got."""


class Broken(Interrupted):
    """The engine reported a failure inside its stream. The message is its sentence."""


class _Options(msgspec.Struct):
    temperature: float | None = None
    seed: int | None = None


class _Sampling(_Options):
    options: _Options | None = None


_SAMPLING = msgspec.json.Decoder(_Sampling)


def wanted(request: Request, route: Inference, stream: bool) -> Replay | None:
    """Whether the client asks for it, and may.

    Raises:
        BadRequest: it asks for something else, or where replies are not reproducible.
    """
    asked = request.headers.get(HEADER)
    if asked is None:
        return None
    if asked.strip().lower() != b"deterministic":
        raise BadRequest("X-Olol-Replay: expected `deterministic`")
    if route.task == "embed":
        return None
    try:
        sampling = _SAMPLING.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"X-Olol-Replay: the sampling options cannot be read: {error}") from error
    options = sampling.options if route.dialect == "ollama" else sampling
    if options is None or (options.temperature != 0 and options.seed is None):
        raise BadRequest(
            "X-Olol-Replay: deterministic needs `temperature` 0 or a `seed`: without them another "
            "engine would say something else"
        )
    return Replay(route) if stream else None


class Replay:
    """What one client has got of its stream, and how a second one is joined to it."""

    def __init__(self, route: Inference) -> None:
        self._reader = Reader(route)
        self._items: list[_Item] = []
        """What was sent, in order."""
        self._at = 0
        """Item up to which a second stream has said the same."""
        self._offset = 0
        """Characters of that item."""
        self._mark = b""
        """Shape of the latest event of this stream."""
        self._noted = b""
        """Of the latest one that was sent."""
        self._runs = 0
        self._renamed: dict[tuple[str, Any], Any] = {}
        """(key, its value in this stream) → its value in the first one."""
        self._sequence = -1
        self.outcome: Outcome = "failed"

    @property
    def possible(self) -> bool:
        return len(self._items) < MAX_ITEMS

    def restart(self) -> None:
        """A stream begins, the first one or one that takes the place of a lost one."""
        self._reader.restart()
        self._at = self._offset = 0
        self._mark = b""
        self._runs += bool(self._items)
        self._renamed = {}
        for item in self._items:
            item.pieces = ["".join(item.pieces)]

    def feed(self, data: bytes) -> bytes:
        """Bytes for the client out of these of the engine; whole lines or events only.

        Raises:
            Differs: see there.
            Broken: see there.
        """
        return self._all(self._reader.feed(data))

    def rest(self) -> bytes:
        """The last event, when its stream ended without a newline."""
        return self._all(self._reader.rest())

    def _all(self, events: Iterator[Event]) -> bytes:
        out: list[bytes] = []
        try:
            for event in events:
                out.append(self._event(event))  # noqa: PERF401 - those before an error count
        except Interrupted as error:
            # It is remembered as sent, so it has to be.
            error.before = b"".join(out)
            raise
        return b"".join(out)

    def _event(self, event: Event) -> bytes:
        if event.failure:
            raise Broken(event.failure)
        if not self._runs:
            self._note(event)
            return event.raw
        behind = self._at < len(self._items)
        new = self._meet(event)
        for text in event.texts:
            text.value = self._skip(text.channel, text.value)
            new = new or bool(text.value)
        if behind and not new:
            return b""
        self._note(event)
        return self._reader.encode(event, self._renamed, self._sequence)

    def _meet(self, event: Event) -> bool:
        """The event's shape against what was sent next; True when that had come to its end."""
        if event.mark == self._mark:
            return False
        self._mark = event.mark
        if self._at == len(self._items):
            return True
        item = self._items[self._at]
        if item.mark != event.mark:
            raise Differs("it is built differently")
        self._renamed.update(
            ((key, value), old)
            for (key, value), (_, old) in zip(event.names, item.names, strict=False)
        )
        self._at += 1
        return False

    def _skip(self, channel: str, text: str) -> str:
        """What is left of a text when that is gone which was sent before."""
        while text and self._at < len(self._items):
            item = self._items[self._at]
            sent = item.pieces[0][self._offset :]
            size = min(len(sent), len(text))
            if item.channel != channel or sent[:size] != text[:size]:
                raise Differs("it says something else")
            text = text[size:]
            self._offset += size
            if size == len(sent):
                self._at += 1
                self._offset = 0
        return text

    def _note(self, event: Event) -> None:
        """Remember what is sent now."""
        items = self._items
        if event.sequence is not None:
            self._sequence = self._sequence + 1 if self._runs else event.sequence
        if event.mark != self._noted:
            self._noted = event.mark
            items.append(_Item(mark=event.mark, names=event.names))
        for text in event.texts:
            if text.value:
                if items[-1].channel != text.channel:
                    items.append(_Item(channel=text.channel))
                items[-1].pieces.append(text.value)
        self._at = len(items)


class _Item:
    """A stretch of text, or a change of the shape of events."""

    __slots__ = ("channel", "mark", "names", "pieces")

    def __init__(
        self,
        *,
        channel: str = "",
        mark: bytes = b"",
        names: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        self.channel = channel
        self.mark = mark
        self.names = names
        self.pieces: list[str] = []
