"""The OpenAI routes as Ollama answers them: chunks, usage, `[DONE]`, error objects."""

from __future__ import annotations

import array
import base64
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from .ask import check_options, compose, flatten
from .call import Call
from .httpd import JSON, SSE, Exchange, dumps
from .jsonbody import BadRequest, parse_object
from .native import embed_work
from .replies import vectors_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalogue import SimModel
    from .server import SimServer

_SAMPLING = {
    "model": "str",
    "stream": "bool",
    "stream_options": "map",
    "max_tokens": "int",
    "seed": "int",
    "temperature": "float",
    "top_p": "float",
    "presence_penalty": "float",
    "frequency_penalty": "float",
}
_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def error_body(status: int, message: str) -> bytes:
    """OpenAI's error shape with Ollama's types."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})


class OpenAIReply:
    """Writes a call's results as chat completions, or as text completions."""

    __slots__ = (
        "_chat",
        "_created",
        "_exchange",
        "_first",
        "_id",
        "_model",
        "_stream",
        "_usage",
    )

    def __init__(
        self, exchange: Exchange, number: int, model: str, chat: bool, stream: bool, usage: bool
    ) -> None:
        self._exchange = exchange
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{number}"
        self._model = model
        self._created = int(time.time())
        self._chat = chat
        self._stream = stream
        self._usage = usage
        self._first = True

    def token(self, piece: str, thought: bool) -> None:
        if not self._exchange.streaming:
            self._exchange.start(SSE)
        self._exchange.chunk(self._event([self._choice(piece, thought, None)]))

    def done(self, call: Call) -> None:
        timings = call.timings()
        prompt, reply = timings["prompt_eval_count"], timings["eval_count"]
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": reply,
            "total_tokens": prompt + reply,
        }
        if not self._stream:
            self._exchange.reply(200, self._whole(call, usage), JSON)
            return
        if not self._exchange.streaming:
            self._exchange.start(SSE)
        tail = self._event([self._choice("", False, call.done_reason)])
        if self._usage:
            tail += self._event([], usage)
        self._exchange.end(tail + b"data: [DONE]\n\n")

    def error(self, status: int, message: str) -> None:
        if self._exchange.streaming:
            self._exchange.end(b"data: " + error_body(status, message) + b"\n\n")
        else:
            self._exchange.reply(status, error_body(status, message), JSON)

    def loaded(self, call: Call) -> None:
        raise RuntimeError("these routes have no load request")

    def embedded(self, call: Call) -> None:
        raise RuntimeError("an embedding call has its own reply")

    def _choice(self, piece: str, thought: bool, reason: Any) -> dict[str, Any]:
        if not self._chat:
            return {"text": piece, "index": 0, "finish_reason": reason}
        delta: dict[str, Any] = {}
        if self._first:
            delta["role"] = "assistant"
            self._first = False
        if reason is None:
            delta["content"] = "" if thought else piece
            if thought:
                delta["reasoning"] = piece
        return {"index": 0, "delta": delta, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], usage: Any = None) -> bytes:
        body: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
            "choices": choices,
        }
        if usage is not None:
            body["usage"] = usage
        return b"data: " + dumps(body) + b"\n\n"

    def _whole(self, call: Call, usage: dict[str, int]) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": call.done_reason}
        if self._chat:
            message = {"role": "assistant", "content": call.text()}
            if call.work.thoughts:
                message["reasoning"] = call.thoughts_text()
            choice["message"] = message
        else:
            choice["text"] = call.text()
        return dumps(
            {
                "id": self._id,
                "object": "chat.completion" if self._chat else "text_completion",
                "created": self._created,
                "model": self._model,
                "system_fingerprint": "fp_ollama",
                "choices": [choice],
                "usage": usage,
            }
        )


class OpenAIEmbedReply:
    """Writes vectors as `/v1/embeddings`: numbers, or base64 of little-endian float32."""

    __slots__ = ("_base64", "_dimensions", "_exchange", "_inputs", "_model")

    def __init__(
        self, exchange: Exchange, model: str, inputs: list[str], dimensions: int, as_base64: bool
    ) -> None:
        self._exchange = exchange
        self._model = model
        self._inputs = inputs
        self._dimensions = dimensions
        self._base64 = as_base64

    def embedded(self, call: Call) -> None:
        vectors = vectors_for(call.model, self._inputs, self._dimensions)
        data = [
            {"object": "embedding", "embedding": self._encode(vector), "index": index}
            for index, vector in enumerate(vectors)
        ]
        tokens = call.work.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._exchange.reply_json(
            200, {"object": "list", "data": data, "model": self._model, "usage": usage}
        )

    def loaded(self, call: Call) -> None:
        self._exchange.reply_json(
            200,
            {
                "object": "list",
                "data": [],
                "model": self._model,
                "usage": {"prompt_tokens": 0, "total_tokens": 0},
            },
        )

    def token(self, piece: str, thought: bool) -> None:
        raise RuntimeError("an embedding call has no tokens")

    def done(self, call: Call) -> None:
        raise RuntimeError("an embedding call has no text")

    def error(self, status: int, message: str) -> None:
        self._exchange.reply(status, error_body(status, message), JSON)

    def _encode(self, vector: list[float]) -> Any:
        if not self._base64:
            return vector
        raw = array.array("f", vector)
        if sys.byteorder == "big":
            raw.byteswap()
        return base64.b64encode(raw.tobytes()).decode()


# -- routes ---------------------------------------------------------------------------


def _chat(server: SimServer, exchange: Exchange) -> None:
    kinds = {**_SAMPLING, "messages": "messages", "tools": "list", "response_format": "map"}
    body = parse_object(exchange.body, "ChatCompletionRequest", kinds)
    messages = body.get("messages", [])
    if not messages:
        raise BadRequest("[] is too short - 'messages'")
    model = named_model(server, body, "chat")
    wish = body.get("response_format", {})
    schema: Any = None
    if wish.get("type") == "json_object":
        schema = "json"
    elif wish.get("type") == "json_schema":
        schema = (wish.get("json_schema") or {}).get("schema", "json")
    think = body.get("reasoning_effort", "none") != "none"
    if think and "thinking" not in model.capabilities:
        raise BadRequest(f"{json.dumps(body['model'])} does not support thinking")
    _text(server, exchange, body, model, flatten(messages), len(messages), schema, think, True)


def _completions(server: SimServer, exchange: Exchange) -> None:
    kinds = {**_SAMPLING, "prompt": "str", "suffix": "str"}
    body = parse_object(exchange.body, "CompletionRequest", kinds)
    model = named_model(server, body, "generate")
    _text(server, exchange, body, model, body.get("prompt", ""), 1, None, False, False)


def _text(
    server: SimServer,
    exchange: Exchange,
    body: dict[str, Any],
    model: SimModel,
    prompt: str,
    messages: int,
    schema: Any,
    think: bool,
    chat: bool,
) -> None:
    options: dict[str, Any] = {
        key: body[key] for key in ("seed", "temperature", "stop") if key in body
    }
    if "max_completion_tokens" in body or "max_tokens" in body:
        options["num_predict"] = body.get("max_completion_tokens", body.get("max_tokens"))
    checked = check_options(options)
    stream = body.get("stream", False)
    work = compose(server, model, prompt, messages, checked, schema, think, stream)
    usage = bool(body.get("stream_options", {}).get("include_usage"))
    reply = OpenAIReply(exchange, server.requests, body["model"], chat, stream, usage)
    fault = server.faults.take(computes=True)
    Call(server, exchange, model, work, reply, fault).begin(server.settings.num_ctx, None)


def _embeddings(server: SimServer, exchange: Exchange) -> None:
    kinds = {"model": "str", "dimensions": "int", "encoding_format": "str"}
    body = parse_object(exchange.body, "EmbedRequest", kinds)
    wanted = body.get("encoding_format", "float").lower()
    if wanted not in ("float", "base64"):
        raise BadRequest(
            f"Invalid value for 'encoding_format' = {body['encoding_format']}. "
            "Supported values: ['float', 'base64']."
        )
    value = body.get("input")
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
        raise BadRequest("invalid input")
    name = body.get("model", "")
    model = server.find(name) if name else None
    if model is None:
        if not name:
            raise BadRequest("model is required")
        raise BadRequest(f'model "{name}" not found, try pulling it first', 404)
    num_ctx = server.settings.num_ctx
    work = embed_work(model, inputs, num_ctx, True)
    reply = OpenAIEmbedReply(exchange, name, inputs, body.get("dimensions", 0), wanted == "base64")
    fault = server.faults.take(computes=True)
    Call(server, exchange, model, work, reply, fault).begin(num_ctx, None)


def _models(server: SimServer, exchange: Exchange) -> None:
    data = [_entry(model) for model in server.shelf.all()]
    exchange.reply_json(200, {"object": "list", "data": data})


def _one_model(server: SimServer, exchange: Exchange) -> None:
    name = exchange.path[len("/v1/models/") :]
    model = server.find(name)
    if model is None:
        raise BadRequest(f"model '{name}' not found", 404)
    exchange.reply_json(200, _entry(model))


def _entry(model: SimModel) -> dict[str, Any]:
    created = int(time.mktime(time.strptime(model.modified_at[:19], "%Y-%m-%dT%H:%M:%S")))
    return {"id": model.name, "object": "model", "created": created, "owned_by": "library"}


def named_model(server: SimServer, body: dict[str, Any], word: str) -> SimModel:
    """The model of a request that is to compute text.

    Raises:
        BadRequest: it names none, one that is not here, or one that cannot.
    """
    name = body.get("model", "")
    if not name:
        raise BadRequest("model is required")
    model = server.find(name)
    if model is None:
        raise BadRequest(f"model '{name}' not found", 404)
    if "completion" not in model.capabilities:
        raise BadRequest(f"{json.dumps(name, ensure_ascii=False)} does not support {word}")
    return model


MODEL_ROUTE: dict[str, Callable[[SimServer, Exchange], None]] = {"GET": _one_model}

ROUTES: dict[str, dict[str, Callable[[SimServer, Exchange], None]]] = {
    "/v1/chat/completions": {"POST": _chat},
    "/v1/completions": {"POST": _completions},
    "/v1/embeddings": {"POST": _embeddings},
    "/v1/models": {"GET": _models},
}
