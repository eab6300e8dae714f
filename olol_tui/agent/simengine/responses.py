"""OpenAI's `/v1/responses` and `/v1/audio/transcriptions`, as Ollama answers them."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from .ask import check_options, compose, flatten
from .call import Call
from .httpd import JSON, SSE, TEXT, Exchange, dumps
from .jsonbody import BadRequest, parse_object
from .openai import error_body, named_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server import SimServer

_KINDS = {
    "model": "str",
    "stream": "bool",
    "instructions": "str",
    "max_output_tokens": "int",
    "temperature": "float",
    "text": "map",
}
_BOUNDARY = re.compile(r'multipart/form-data\s*;.*\bboundary="?([^";]+)"?', re.IGNORECASE)
_FIELD = re.compile(rb'\bname="([^"]*)"', re.IGNORECASE)


class ResponsesReply:
    """Writes a call's text as one response with one message."""

    def __init__(self, exchange: Exchange, number: int, model: str, stream: bool) -> None:
        self._exchange = exchange
        self._id = f"resp_{number}"
        self._item = f"msg_{number}"
        self._model = model
        self._stream = stream
        self._created = int(time.time())
        self._sequence = 0

    def token(self, piece: str, thought: bool) -> None:
        self._start()
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        self._event("response.output_text.delta", **place, delta=piece, logprobs=[])

    def done(self, call: Call) -> None:
        prompt, reply = call.work.prompt_tokens, call.produced
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": reply,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + reply,
        }
        whole = self._response("completed", [self._message(call.text())], usage)
        if call.done_reason == "length":
            whole["status"] = "incomplete"
            whole["incomplete_details"] = {"reason": "max_output_tokens"}
        if not self._stream:
            self._exchange.reply(200, dumps(whole), JSON)
            return
        self._start()
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        text, message = call.text(), self._message(call.text())
        self._event("response.output_text.done", **place, text=text, logprobs=[])
        self._event("response.content_part.done", **place, part=message["content"][0])
        self._event("response.output_item.done", output_index=0, item=message)
        self._event(f"response.{whole['status']}", response=whole)
        self._exchange.end()

    def error(self, status: int, message: str) -> None:
        if self._exchange.streaming:
            whole = self._response("failed", [], None)
            whole["error"] = {"code": "server_error", "message": message}
            self._event("response.failed", response=whole)
            self._exchange.end()
        else:
            self._exchange.reply(status, error_body(status, message), JSON)

    def loaded(self, call: Call) -> None:
        raise RuntimeError("this route has no load request")

    def embedded(self, call: Call) -> None:
        raise RuntimeError("an embedding call has its own reply")

    def _start(self) -> None:
        if self._exchange.streaming:
            return
        self._exchange.start(SSE)
        begun = self._response("in_progress", [], None)
        self._event("response.created", response=begun)
        self._event("response.in_progress", response=begun)
        item = {**self._message(""), "status": "in_progress", "content": []}
        self._event("response.output_item.added", output_index=0, item=item)
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        self._event("response.content_part.added", **place, part=_part(""))

    def _event(self, kind: str, **fields: Any) -> None:
        data = dumps({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        self._exchange.chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def _message(self, text: str) -> dict[str, Any]:
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [_part(text)],
        }

    def _response(self, status: str, output: list[Any], usage: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _responses(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "ResponsesRequest", _KINDS)
    model = named_model(server, body, "chat")
    given = body.get("input", [])
    messages = [{"content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise BadRequest("input must be a string or an array")
    if body.get("instructions"):
        messages = [{"content": body["instructions"]}, *messages]
    options: dict[str, Any] = {"temperature": body.get("temperature")}
    options["num_predict"] = body.get("max_output_tokens")
    wish = body.get("text", {}).get("format") or {}
    schema: Any = None
    if wish.get("type") == "json_object":
        schema = "json"
    elif wish.get("type") == "json_schema":
        schema = wish.get("schema", "json")
    stream = body.get("stream", False)
    work = compose(
        server, model, flatten(messages), len(messages), check_options(options), schema,
        think=False, stream=stream,
    )  # fmt: skip
    reply = ResponsesReply(exchange, server.requests, body["model"], stream)
    fault = server.faults.take(computes=True)
    Call(server, exchange, model, work, reply, fault).begin(server.settings.num_ctx, None)


class TranscriptReply:
    """Writes a call's text as the transcript of a sound."""

    def __init__(self, exchange: Exchange, plain: bool) -> None:
        self._exchange = exchange
        self._plain = plain

    def done(self, call: Call) -> None:
        if self._plain:
            self._exchange.reply(200, call.text().encode(), TEXT)
        else:
            self._exchange.reply_json(200, {"text": call.text()})

    def error(self, status: int, message: str) -> None:
        self._exchange.reply(status, error_body(status, message), JSON)

    def token(self, piece: str, thought: bool) -> None:
        raise RuntimeError("a transcript is not streamed")

    def loaded(self, call: Call) -> None:
        raise RuntimeError("this route has no load request")

    def embedded(self, call: Call) -> None:
        raise RuntimeError("an embedding call has its own reply")


def _transcriptions(server: SimServer, exchange: Exchange) -> None:
    form = _form(exchange)
    name = form.get("model", b"").decode("utf-8", "replace")
    model = named_model(server, {"model": name}, "chat")
    sound = form.get("file")
    if sound is None:
        raise BadRequest("file is required: http: no such file")
    if not sound:
        raise BadRequest("audio file is empty")
    prompt = f"{len(sound)} bytes of sound"
    work = compose(server, model, prompt, 1, {}, None, think=False, stream=False)
    reply = TranscriptReply(exchange, form.get("response_format") == b"text")
    fault = server.faults.take(computes=True)
    Call(server, exchange, model, work, reply, fault).begin(server.settings.num_ctx, None)


def _form(exchange: Exchange) -> dict[str, bytes]:
    """The fields of a multipart body.

    Raises:
        BadRequest: it is none.
    """
    kind = _BOUNDARY.match(exchange.headers.get("content-type", ""))
    if kind is None:
        raise BadRequest("failed to parse multipart form: request Content-Type isn't multipart")
    fields: dict[str, bytes] = {}
    for part in (b"\r\n" + exchange.body).split(b"\r\n--" + kind.group(1).encode())[1:]:
        head, blank, content = part.partition(b"\r\n\r\n")
        name = _FIELD.search(head)
        if blank and name is not None:
            fields[name.group(1).decode("utf-8", "replace")] = content
    return fields


ROUTES: dict[str, dict[str, Callable[[SimServer, Exchange], None]]] = {
    "/v1/responses": {"POST": _responses},
    "/v1/audio/transcriptions": {"POST": _transcriptions},
}
