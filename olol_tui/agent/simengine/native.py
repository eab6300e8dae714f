"""Ollama's own routes: requests, replies and errors as its server writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import text
from .ask import check_options, compose, flatten
from .call import Call, Work
from .httpd import TEXT, Exchange
from .jsonbody import BadRequest, parse_object
from .keep_alive import DurationError, parse_keep_alive
from .replies import EmbedReply, NativeReply, rfc3339

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
        for model in server.shelf.all()
    ]
    exchange.reply_json(200, {"models": entries})


def _ps(server: SimServer, exchange: Exchange) -> None:
    """What is resident; a model that is still loading is in `/sim/stats` instead."""
    host = server.host
    entries = [
        {
            "name": runner.model.name,
            "model": runner.model.name,
            "size": runner.vram_bytes,
            "digest": runner.model.digest.replace("sha256:", "", 1),
            "details": runner.model.details(),
            "expires_at": rfc3339(host.expires_wall(runner)),
            "size_vram": runner.vram_bytes,
            "context_length": runner.num_ctx,
        }
        for runner in sorted(host.resident(), key=host.expires_wall, reverse=True)
    ]
    exchange.reply_json(200, {"models": entries})


def _version(server: SimServer, exchange: Exchange) -> None:
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


VERSION = "0.20.0-simulated"

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
