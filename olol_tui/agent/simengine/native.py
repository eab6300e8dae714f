"""Ollama's own routes: requests, replies and errors as its server writes them."""

from __future__ import annotations

import datetime
import json
import time
from typing import TYPE_CHECKING, Any

from . import text
from .ask import check_options, compose, flatten
from .call import Call, Work
from .host import resident_json
from .httpd import NDJSON, TEXT, Exchange, dumps
from .jsonbody import BadRequest, parse_object
from .keep_alive import DurationError, parse_keep_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalogue import SimModel
    from .server import SimServer

_COMMON = {
    "model": "str",
    "stream": "bool",
    "options": "map",
    "truncate": "bool",
}
_GENERATE = {**_COMMON, "prompt": "str", "suffix": "str", "system": "str", "template": "str",
             "raw": "bool", "images": "list", "context": "list"}  # fmt: skip
_CHAT = {**_COMMON, "messages": "messages", "tools": "list"}
_EMBED = {"model": "str", "options": "map", "truncate": "bool", "dimensions": "int"}
_EMBEDDINGS = {"model": "str", "options": "map", "prompt": "str"}
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
        self._exchange.reply(200, self._final("", "", "load", {}), "application/json")

    def unloaded(self) -> None:
        self._exchange.reply(200, self._final("", "", "unload", {}), "application/json")

    def done(self, call: Call) -> None:
        if self._stream:
            line = self._final("", "", call.done_reason, call.timings()) + b"\n"
            if not self._exchange.streaming:
                self._exchange.start(NDJSON)
            self._exchange.end(line)
        else:
            body = self._final(call.text(), call.thoughts_text(), call.done_reason, call.timings())
            self._exchange.reply(200, body, "application/json; charset=utf-8")

    def embedded(self, call: Call) -> None:
        raise RuntimeError("an embedding call has its own reply")

    def error(self, status: int, message: str) -> None:
        if self._exchange.streaming:
            self._exchange.end(error_body(status, message) + b"\n")
        else:
            self._exchange.reply(status, error_body(status, message), "application/json")

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
        self._exchange.reply(status, error_body(status, message), "application/json")


def vectors_for(model: SimModel, inputs: list[str], dimensions: int) -> list[list[float]]:
    """One unit vector an input, shortened to `dimensions` when that is above 0."""
    out = []
    for item in inputs:
        vector = text.embedding(item, model.embedding_length)
        if 0 < dimensions < len(vector):
            vector = text.unit(vector[:dimensions])
        out.append(vector)
    return out


# -- routes ---------------------------------------------------------------------------


def _generate(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "GenerateRequest", _GENERATE)
    prompt = body.get("prompt", "")
    if body.get("raw") and (body.get("template") or body.get("system") or body.get("context")):
        raise BadRequest("raw mode does not support template, system, or context")
    spoken = "\n".join(part for part in (body.get("system", ""), prompt) if part)
    _text_call(server, exchange, body, spoken, 0 if prompt == "" else 1, chat=False)


def _chat(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "ChatRequest", _CHAT)
    messages = body.get("messages", [])
    _text_call(server, exchange, body, flatten(messages), len(messages), chat=True)


def _text_call(
    server: SimServer,
    exchange: Exchange,
    body: dict[str, Any],
    prompt: str,
    messages: int,
    *,
    chat: bool,
) -> None:
    keep_alive_s = _keep_alive(body)
    name = _name(body)
    model = server.find(name)
    if model is None:
        raise BadRequest(f"model '{name}' not found", 404)
    stream = body.get("stream", True)
    reply = NativeReply(exchange, name, chat, stream)
    if messages == 0 and keep_alive_s == 0:
        server.host.expire(model)
        reply.unloaded()
        return
    _require(model, name, "completion", "chat" if chat else "generate")
    think = body.get("think", False)
    if think:
        _require(model, name, "thinking", "thinking")
    if body.get("tools"):
        _require(model, name, "tools", "tools")
    options = check_options(body.get("options", {}))
    if messages == 0:
        work = Work("load")
    else:
        schema = _schema(body.get("format"))
        work = compose(server, model, prompt, messages, options, schema, bool(think), stream)
    fault = server.faults.take(computes=True)
    num_ctx = options.get("num_ctx", server.settings.num_ctx)
    Call(server, exchange, model, work, reply, fault).begin(num_ctx, keep_alive_s)


def _embed(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "EmbedRequest", _EMBED)
    value = body.get("input", [])
    inputs = ([value] if value else []) if isinstance(value, str) else value
    if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
        raise BadRequest("invalid input type")
    _embed_call(server, exchange, body, inputs, legacy=False)


def _embeddings(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "EmbeddingRequest", _EMBEDDINGS)
    prompt = body.get("prompt", "")
    _embed_call(server, exchange, body, [prompt] if prompt else [], legacy=True)


def _embed_call(
    server: SimServer, exchange: Exchange, body: dict[str, Any], inputs: list[str], *, legacy: bool
) -> None:
    keep_alive_s = _keep_alive(body)
    name = _name(body)
    model = server.find(name)
    if model is None:
        raise BadRequest(f'model "{name}" not found, try pulling it first', 404)
    options = check_options(body.get("options", {}))
    num_ctx = options.get("num_ctx", server.settings.num_ctx)
    reply = EmbedReply(exchange, name, inputs, body.get("dimensions", 0), legacy)
    work = embed_work(model, inputs, num_ctx, body.get("truncate", True))
    fault = server.faults.take(computes=True)
    Call(server, exchange, model, work, reply, fault).begin(num_ctx, keep_alive_s)


def embed_work(model: SimModel, inputs: list[str], num_ctx: int, truncate: bool) -> Work:
    """
    Raises:
        BadRequest: an input is too long and may not be cut.
    """
    longest = min(num_ctx, model.context_length)
    counts = [text.count_tokens(item) for item in inputs]
    if not truncate and any(count > longest for count in counts):
        raise BadRequest("the input length exceeds the context length")
    tokens = sum(min(count, longest) for count in counts)
    return Work("embed" if inputs else "load", tokens)


def _show(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "ShowRequest", {"model": "str", "name": "str"})
    name = body.get("model") or body.get("name")
    if not name:
        raise BadRequest("model is required")
    model = server.find(name)
    if model is None:
        raise BadRequest(f"model '{name}' not found", 404)
    family = model.family
    exchange.reply_json(
        200,
        {
            "license": "Simulated: no weights, no license.",
            "modelfile": f"# Simulated\nFROM {model.name}\n",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": model.details(),
            "model_info": {
                "general.architecture": family,
                "general.name": model.name,
                f"{family}.context_length": model.context_length,
                f"{family}.embedding_length": model.embedding_length,
                f"{family}.block_count": model.layers,
            },
            "capabilities": model.capabilities,
            "modified_at": model.modified_at,
        },
    )


def _tags(server: SimServer, exchange: Exchange) -> None:
    entries = [
        {
            "name": model.name,
            "model": model.name,
            "modified_at": model.modified_at,
            "size": model.size_bytes,
            "digest": model.digest.replace("sha256:", "", 1),
            "details": model.details(),
            "capabilities": model.capabilities,
        }
        for model in server.models.values()
    ]
    exchange.reply_json(200, {"models": entries})


def _ps(server: SimServer, exchange: Exchange) -> None:
    host = server.host
    runners = sorted(host.resident(), key=host.expires_wall, reverse=True)
    entries = [resident_json(host, r, rfc3339(host.expires_wall(r))) for r in runners]
    exchange.reply_json(200, {"models": entries})


def _version(server: SimServer, exchange: Exchange) -> None:
    from .server import VERSION

    exchange.reply_json(200, {"version": VERSION})


def _status(server: SimServer, exchange: Exchange) -> None:
    exchange.reply_json(200, {"cloud": {"disabled": True, "source": "env"}})


def _root(server: SimServer, exchange: Exchange) -> None:
    exchange.reply(200, b"Ollama is running", TEXT)


def _keep_alive(body: dict[str, Any]) -> float | None:
    try:
        return parse_keep_alive(body.get("keep_alive"))
    except DurationError as error:
        raise BadRequest(str(error)) from error


def _name(body: dict[str, Any]) -> str:
    name = body.get("model", "")
    if not name:
        raise BadRequest("model is required")
    return str(name)


def _require(model: SimModel, name: str, capability: str, word: str) -> None:
    if capability not in model.capabilities:
        raise BadRequest(f"{json.dumps(name, ensure_ascii=False)} does not support {word}")


def _schema(value: Any) -> Any:
    """None, "json" or a schema object.

    Raises:
        BadRequest: anything else.
    """
    if value in (None, ""):
        return None
    if value == "json" or isinstance(value, dict):
        return value
    raise BadRequest(
        f'invalid format: {json.dumps(value)}; expected "json" or a valid JSON Schema object'
    )


HEAD_TOO = ("/", "/api/version", "/api/tags")
"""Routes that Ollama also answers to HEAD."""

ROUTES: dict[str, dict[str, Callable[[SimServer, Exchange], None]]] = {
    "/": {"GET": _root},
    "/api/version": {"GET": _version},
    "/api/status": {"GET": _status},
    "/api/tags": {"GET": _tags},
    "/api/ps": {"GET": _ps},
    "/api/show": {"POST": _show},
    "/api/generate": {"POST": _generate},
    "/api/chat": {"POST": _chat},
    "/api/embed": {"POST": _embed},
    "/api/embeddings": {"POST": _embeddings},
}
