"""Replies in Ollama's own shapes: NDJSON lines, whole objects, vectors, errors."""

from __future__ import annotations

import datetime
import json
import time
from typing import TYPE_CHECKING, Any

from . import text
from .httpd import JSON, NDJSON, Exchange, dumps

if TYPE_CHECKING:
    from .call import Call
    from .catalogue import SimModel

_LAST_YEAR = 9999


def error_body(status: int, message: str) -> bytes:
    """Ollama's error shape."""
    return dumps({"error": message})


def rfc3339(seconds: float) -> str:
    """A Unix time as Go writes it; beyond Python's calendar with Go's year."""
    whole = int(seconds)
    try:
        moment = datetime.datetime.fromtimestamp(whole, datetime.timezone.utc)
    except (OverflowError, ValueError):
        return f"{_LAST_YEAR}-12-31T23:59:59Z"
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + f".{int((seconds - whole) * 1e6):06d}Z"


class _Stamp:
    """`created_at` for many tokens a second: the date is formatted once a second."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def now(self) -> str:
        now_ns = time.time_ns()
        second, rest = divmod(now_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{rest:09d}Z"


_STAMP = _Stamp()


class NativeReply:
    """Writes a call's results as `/api/generate` or `/api/chat` do."""

    __slots__ = ("_chat", "_exchange", "_head", "_stream")

    def __init__(self, exchange: Exchange, name: str, chat: bool, stream: bool) -> None:
        self._exchange = exchange
        self._chat = chat
        self._stream = stream
        self._head = f'{{"model":{json.dumps(name, ensure_ascii=False)},"created_at":"'

    def token(self, piece: str, thought: bool) -> None:
        quoted = json.dumps(piece, ensure_ascii=False)
        if self._chat:
            kind = f'"content":"","thinking":{quoted}' if thought else f'"content":{quoted}'
            body = f'"message":{{"role":"assistant",{kind}}}'
        else:
            body = f'"response":"","thinking":{quoted}' if thought else f'"response":{quoted}'
        if not self._exchange.streaming:
            self._exchange.start(NDJSON)
        line = f'{self._head}{_STAMP.now()}",{body},"done":false}}\n'
        self._exchange.chunk(line.encode("utf-8", "surrogatepass"))

    def loaded(self, call: Call) -> None:
        self._exchange.reply(200, self._final("", "", "load", {}), JSON)

    def unloaded(self) -> None:
        self._exchange.reply(200, self._final("", "", "unload", {}), JSON)

    def done(self, call: Call) -> None:
        if self._stream:
            line = self._final("", "", call.done_reason, call.timings()) + b"\n"
            if not self._exchange.streaming:
                self._exchange.start(NDJSON)
            self._exchange.end(line)
        else:
            body = self._final(call.text(), call.thoughts_text(), call.done_reason, call.timings())
            self._exchange.reply(200, body, JSON)

    def embedded(self, call: Call) -> None:
        raise RuntimeError("an embedding call has its own reply")

    def error(self, status: int, message: str) -> None:
        if self._exchange.streaming:
            self._exchange.end(error_body(status, message) + b"\n")
        else:
            self._exchange.reply(status, error_body(status, message), JSON)

    def _final(self, reply: str, thoughts: str, reason: str, timings: dict[str, int]) -> bytes:
        if self._chat:
            message = {"role": "assistant", "content": reply}
            if thoughts:
                message["thinking"] = thoughts
            result: dict[str, Any] = {"message": message}
        else:
            result = {"response": reply}
            if thoughts:
                result["thinking"] = thoughts
        result.update({"done": True, "done_reason": reason})
        result.update(timings)
        return (self._head + _STAMP.now() + '",').encode() + dumps(result)[1:]


class EmbedReply:
    """Writes vectors as `/api/embed` or, with `legacy`, `/api/embeddings`."""

    __slots__ = ("_dimensions", "_exchange", "_inputs", "_legacy", "_name")

    def __init__(
        self, exchange: Exchange, name: str, inputs: list[str], dimensions: int, legacy: bool
    ) -> None:
        self._exchange = exchange
        self._name = name
        self._inputs = inputs
        self._dimensions = dimensions
        self._legacy = legacy

    def embedded(self, call: Call) -> None:
        vectors = vectors_for(call.model, self._inputs, self._dimensions)
        if self._legacy:
            self._exchange.reply_json(200, {"embedding": vectors[0]})
            return
        timings = call.timings()
        self._exchange.reply_json(
            200,
            {
                "model": self._name,
                "embeddings": vectors,
                "total_duration": timings["total_duration"],
                "load_duration": timings["load_duration"],
                "prompt_eval_count": call.work.prompt_tokens,
            },
        )

    def loaded(self, call: Call) -> None:
        empty: dict[str, Any] = {"model": self._name, "embeddings": []}
        self._exchange.reply_json(200, {"embedding": []} if self._legacy else empty)

    def token(self, piece: str, thought: bool) -> None:
        raise RuntimeError("an embedding call has no tokens")

    def done(self, call: Call) -> None:
        raise RuntimeError("an embedding call has no text")

    def error(self, status: int, message: str) -> None:
        self._exchange.reply(status, error_body(status, message), JSON)


def vectors_for(model: SimModel, inputs: list[str], dimensions: int) -> list[list[float]]:
    """One unit vector an input, shortened to `dimensions` when that is above 0."""
    out = []
    for item in inputs:
        vector = text.embedding(item, model.embedding_length)
        if 0 < dimensions < len(vector):
            vector = text.unit(vector[:dimensions])
        out.append(vector)
    return out
