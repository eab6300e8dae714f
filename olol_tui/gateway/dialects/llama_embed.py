"""llama-server's embeddings as Ollama's."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from olol_tui.gateway.dialects.errors import TranslationError, upstream_message
from olol_tui.gateway.dialects.llama_request import Ask
from olol_tui.gateway.dialects.translation import Translation

_INPUT_TOO_LONG = (
    "too large",
    "context size",
    "context length",
    "physical batch size",
    "exceeds the available context",
)
"""How llama-server says that an embedding input does not fit, over its versions."""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Row(msgspec.Struct):
    embedding: msgspec.Raw
    index: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Row]
    usage: _Usage | None = None


_encode = msgspec.json.Encoder().encode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode


class EmbedTranslation(Translation):
    """`/api/embed` and the legacy `/api/embeddings`: one object when the reply is complete."""

    __slots__ = ("_dimensions", "_legacy", "_model", "_parts")

    def __init__(
        self,
        ask: Ask,
        created: Callable[[], str],
        clock_ns: Callable[[], int],
        *,
        legacy: bool,
        dimensions: int = 0,
    ) -> None:
        super().__init__(ask, created, clock_ns)
        self._model = ask.model
        self._legacy = legacy
        self._dimensions = dimensions
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        self._parts.append(data)
        return b""

    def finish(self) -> bytes:
        try:
            reply = _decode_embeddings(b"".join(self._parts))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TranslationError(f"the engine's reply makes no sense: {error}") from None
        rows = sorted(reply.data, key=lambda row: row.index)
        if not rows:
            raise TranslationError("the engine returned no embedding")
        self.prompt_tokens = reply.usage.prompt_tokens if reply.usage is not None else 0
        self.done_reason = "stop"
        if self._legacy:
            return b'{"embedding":' + bytes(rows[0].embedding) + b"}"
        vectors = b",".join(self._cut(row.embedding) for row in rows)
        return (
            b'{"model":%b,"embeddings":[%b],"total_duration":%d,"load_duration":%d,'
            b'"prompt_eval_count":%d}'
            % (
                _encode(self._model),
                vectors,
                max(1, self._now_ns() - self._started_ns),
                self.load_ns,
                self.prompt_tokens,
            )
        )

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        message = upstream_message(body)
        lowered = message.lower()
        if any(sign in lowered for sign in _INPUT_TOO_LONG):
            status, message = 400, "the input length exceeds the context length"
        elif status == 501 or "pooling type" in lowered:
            status, message = 400, f'"{self._model}" does not support embeddings'
        return status, _encode({"error": message or f"the engine said {status}"})

    def _cut(self, embedding: msgspec.Raw) -> bytes:
        """The engine's own digits, unless fewer dimensions are wanted: cut and normalised."""
        if not self._dimensions:
            return bytes(embedding)
        vector = msgspec.json.decode(embedding, type=list[float])
        if self._dimensions >= len(vector):
            return bytes(embedding)
        vector = vector[: self._dimensions]
        norm = max(math.sqrt(math.fsum(value * value for value in vector)), 1e-12)
        return _encode([value / norm for value in vector])
