"""The way of one request to an engine that speaks another dialect, and of its reply back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec

from olol_tui.gateway.dialects.errors import TranslationError, upstream_message
from olol_tui.gateway.dialects.llama_request import Ask

NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"

_encode = msgspec.json.Encoder().encode


class Translation(ABC):
    """One request to a llama-server engine and the way back of its reply.

    Life: send `body` to `path`; on status 200 pass every piece of the reply to `feed` and
    write what it returns; at the engine's clean end write what `finish` returns. Any other
    status goes to `error` with the whole body. Nothing here blocks or keeps the reply of a
    stream.
    """

    __slots__ = (
        "_created",
        "_now_ns",
        "_started_ns",
        "body",
        "content_type",
        "done_reason",
        "failure",
        "load_ns",
        "path",
        "prompt_tokens",
        "stream",
        "tokens",
    )

    def __init__(self, ask: Ask, created: Callable[[], str], clock_ns: Callable[[], int]) -> None:
        self.path = ask.path
        """Where the engine takes it."""
        self.body = ask.body
        self.stream = ask.stream
        """The client reads NDJSON; else one JSON object at the end."""
        self.content_type = NDJSON if ask.stream else JSON
        self.tokens = 0
        """Reply tokens so far (pieces until the engine reports its count)."""
        self.prompt_tokens: int | None = None
        """Cached and new ones, known at the end."""
        self.done_reason = ""
        self.failure: TranslationError | None = None
        """Set when the engine reported an error inside its reply. While no byte has been
        returned by `feed`, the client can still get its status; afterwards `feed` has
        returned the terminal error line."""
        self.load_ns = 0
        """Time the request waited for its model to load, for `load_duration`; set by the caller."""
        self._created = created
        self._now_ns = clock_ns
        self._started_ns = clock_ns()

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Bytes for the client out of these of the engine; may be empty."""

    @abstractmethod
    def finish(self) -> bytes:
        """The last bytes for the client.

        Raises:
            TranslationError: the engine's reply ended before its terminal event.
        """

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Status and body for the client when the engine refused the request."""
        return status, _encode({"error": upstream_message(body) or f"the engine said {status}"})

    def started_at(self, started_ns: int) -> None:
        """Count `total_duration` from here (default: when the request was translated)."""
        self._started_ns = started_ns
