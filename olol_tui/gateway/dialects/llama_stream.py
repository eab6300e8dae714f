"""llama-server's tokens as Ollama's: a line for each while streaming, or one object at the end.

The hot path of engines that do not speak Ollama: an event is decoded only as far as it is
used, and a line is joined from bytes prepared when the request came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from olol_tui.gateway.dialects.errors import TranslationError, error_frame
from olol_tui.gateway.dialects.llama_events import (
    Call,
    Chunk,
    Piece,
    Timings,
    TokenProb,
    ToolDelta,
    decode_chunk,
    decode_piece,
    failure_of,
    native_prob,
)
from olol_tui.gateway.dialects.llama_request import Ask
from olol_tui.gateway.dialects.sse import EventReader
from olol_tui.gateway.dialects.translation import Translation

_NS_PER_MS = 1_000_000

_encode = msgspec.json.Encoder().encode


class TokenTranslation(Translation):
    """Replies made of tokens: `/api/generate` and `/api/chat`."""

    __slots__ = (
        "_calls",
        "_chat",
        "_content",
        "_ended",
        "_events",
        "_head",
        "_logprobs",
        "_raw",
        "_thinking",
        "_timings",
        "_top_logprobs",
    )

    def __init__(
        self,
        ask: Ask,
        created: Callable[[], str],
        clock_ns: Callable[[], int],
        *,
        chat: bool,
    ) -> None:
        super().__init__(ask, created, clock_ns)
        self._chat = chat
        """The client asked /api/chat: text lies in `message.content`, else in `response`."""
        self._raw = not ask.path.startswith("/v1/")
        self._events = EventReader()
        self._head = b'{"model":' + _encode(ask.model) + b',"created_at":"'
        self._top_logprobs = ask.top_logprobs
        self._calls: dict[int, Call] = {}
        self._timings: Timings | None = None
        self._ended = False
        """The terminal line is out, or the failure is known."""
        self._content: list[str] = []
        self._thinking: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def feed(self, data: bytes) -> bytes:
        if self._ended:
            return b""
        out: list[bytes] = []
        try:
            for payload in self._events.feed(data):
                if line := self._event(payload):
                    out.append(line)
                if self._ended:
                    break
        except TranslationError as error:
            out.append(self._fail(error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            out.append(self._fail(TranslationError(f"the engine's reply makes no sense: {error}")))
        return b"".join(out)

    def finish(self) -> bytes:
        if self.failure is not None and not self.stream:
            raise self.failure
        if self._ended:
            return b""
        out = self._last_words()
        if self.failure is not None and not self.stream:
            raise self.failure
        if not self._ended:
            raise TranslationError("the engine's reply ended before it was complete")
        return out

    def _last_words(self) -> bytes:
        """A last event without its newline, and the end of a reply that stopped untimed."""
        out = b""
        try:
            for payload in self._events.rest():
                out += self._event(payload)
        except TranslationError as error:
            out += self._fail(error)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return b""  # half an event: the reply broke off
        if self.done_reason and not self._ended:
            out += self._end()
        return out

    def _event(self, payload: bytes) -> bytes:
        if self._raw:
            return self._piece(decode_piece(payload))
        if payload == b"[DONE]":
            return self._end() if self.done_reason else b""
        return self._chunk(decode_chunk(payload))

    def _chunk(self, chunk: Chunk) -> bytes:
        if chunk.error is not None:
            raise failure_of(chunk.error)
        if chunk.timings is not None:
            self._timings = chunk.timings
        line = b""
        if chunk.choices:
            choice = chunk.choices[0]
            probs = choice.logprobs.content if choice.logprobs is not None else None
            delta = choice.delta
            if delta is not None:
                if delta.tool_calls:
                    self._collect(delta.tool_calls)
                line = self._text(delta.content or "", delta.reasoning_content or "", probs)
            if choice.finish_reason is not None:
                self.done_reason = "length" if choice.finish_reason == "length" else "stop"
        if self.done_reason and self._timings is not None:
            line += self._end()
        return line

    def _piece(self, piece: Piece) -> bytes:
        if piece.error is not None:
            raise failure_of(piece.error)
        line = self._text(piece.content, "", piece.completion_probabilities)
        if piece.stop:
            self.done_reason = "length" if piece.stop_type == "limit" else "stop"
            self._timings = piece.timings
            line += self._end()
        return line

    def _text(self, content: str, thinking: str, probs: list[TokenProb] | None) -> bytes:
        """One token for the client, or kept for later when it is not streaming."""
        logprobs = self._probs(probs) if probs and self._top_logprobs is not None else None
        if not (content or thinking or logprobs):
            return b""
        self.tokens += 1
        if self.stream:
            return self._line(content, thinking, b"", logprobs, b"false") + b"}\n"
        self._content.append(content)
        if thinking:
            self._thinking.append(thinking)
        if logprobs:
            self._logprobs += logprobs
        return b""

    def _line(
        self,
        content: str,
        thinking: str,
        tool_calls: bytes,
        logprobs: list[dict[str, Any]] | None,
        done: bytes,
    ) -> bytes:
        """A reply object without its closing brace, fields in Ollama's order."""
        tail = b',"thinking":' + _encode(thinking) if thinking else b""
        if tool_calls:
            tail += b',"tool_calls":' + tool_calls
        created = self._created().encode()
        if self._chat:
            text = b'","message":{"role":"assistant","content":'
            tail += b'},"done":' + done
        else:
            text = b'","response":'
            tail += b',"done":' + done
        if logprobs:
            tail += b',"logprobs":' + _encode(logprobs)
        return self._head + created + text + _encode(content) + tail

    def _end(self) -> bytes:
        """The terminal line, or the whole reply when not streaming; called once."""
        try:
            calls = [self._calls[index].native() for index in sorted(self._calls)]
        except TranslationError as error:
            return self._fail(error)
        self._ended = True
        called = _encode(calls) if calls else b""
        if not self.stream:
            content, thinking = "".join(self._content), "".join(self._thinking)
            return self._closing(self._line(content, thinking, called, self._logprobs, b"true"))
        # Tool calls go before the last line: clients written for older servers stop reading
        # a message at `done`.
        line = self._line("", "", called, None, b"false") + b"}\n" if called else b""
        return line + self._closing(self._line("", "", b"", None, b"true")) + b"\n"

    def _closing(self, line: bytes) -> bytes:
        timings = self._timings or Timings(predicted_n=self.tokens)
        self.tokens = timings.predicted_n
        self.prompt_tokens = timings.cache_n + timings.prompt_n
        return line + (
            b',"done_reason":"%b","total_duration":%d,"load_duration":%d,"prompt_eval_count":%d,'
            b'"prompt_eval_duration":%d,"eval_count":%d,"eval_duration":%d}'
            % (
                self.done_reason.encode(),
                max(1, self._now_ns() - self._started_ns),
                self.load_ns,
                self.prompt_tokens,
                round(timings.prompt_ms * _NS_PER_MS),
                self.tokens,
                round(timings.predicted_ms * _NS_PER_MS),
            )
        )

    def _fail(self, error: TranslationError) -> bytes:
        self.failure = error
        self._ended = True
        return error_frame("ollama", error.status, error.message) if self.stream else b""

    def _collect(self, deltas: list[ToolDelta]) -> None:
        for delta in deltas:
            call = self._calls.setdefault(delta.index, Call(delta.index))
            # Id and name come whole, with the first piece (some builds repeat them).
            call.id = call.id or delta.id or ""
            if delta.function is not None:
                call.name = call.name or delta.function.name or ""
                call.arguments.append(delta.function.arguments or "")

    def _probs(self, probs: list[TokenProb]) -> list[dict[str, Any]]:
        return [native_prob(prob, top=bool(self._top_logprobs)) for prob in probs]
