"""An exchange whose stream is a sequence of named events: Anthropic's messages, OpenAI's responses.

The bytes pass through as in any exchange. What differs is where the counts are, how an error
looks inside a stream, and which headers a client expects.
"""

from __future__ import annotations

from olol_tui.gateway import bodies
from olol_tui.gateway.dialects.errors import TranslationError
from olol_tui.gateway.dialects.sse import EventReader
from olol_tui.gateway.exchange import Exchange
from olol_tui.gateway.spool import Payload
from olol_tui.routing.roster import Seat


class EventExchange(Exchange):
    """See the module."""

    __slots__ = ("_prompt", "_reader", "_reply")

    def _send(self, seat: Seat, payload: Payload, *, fresh: bool) -> None:
        self._reader = EventReader()
        self._prompt: int | None = None
        self._reply: int | None = None
        super()._send(seat, payload, fresh=fresh)

    def up_data(self, data: bytes, final: bool) -> None:
        if self._streaming:
            self._note(data)
        super().up_data(data, final)

    def _note(self, data: bytes) -> None:
        """Remember the latest counts: prompt and reply may come in different events."""
        try:
            payloads = self._reader.feed(data)
        except TranslationError:
            return  # a line too long to be an event: the bytes pass, uncounted
        for payload in payloads:
            usage = bodies.event_usage(payload) if payload.find(b'"usage"') >= 0 else None
            if usage is not None:
                # Later ones count more, or do not repeat the prompt at all.
                self._prompt = max(usage.prompt or 0, self._prompt or 0) or None
                self._reply = usage.reply or self._reply

    def _learn_stream(self, last: bytes) -> None:
        record = self.record
        if self._prompt is not None:
            record.prompt_tokens = self._prompt
        if self._reply is not None:
            record.tokens = self._reply
        self._served(None, None)

    def _failure(self, last: bytes) -> str:
        return bodies.event_error(last) or "the engine reported an error"

    def _marks(self) -> bytes:
        marks = super()._marks()
        if self.route.dialect == "anthropic":
            marks += b"request-id: %s\r\n" % self.record.id.encode()
        return marks
