"""Anthropic's `/v1/messages` as Ollama answers it: events, blocks, forced tools, errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import text
from .ask import check_options, compose, flatten
from .call import Call, Work
from .httpd import JSON, SSE, Exchange, dumps
from .jsonbody import BadRequest, parse_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalogue import SimModel
    from .server import SimServer

_KINDS = {
    "model": "str",
    "max_tokens": "int",
    "messages": "messages",
    "stream": "bool",
    "stop_sequences": "list",
    "temperature": "float",
    "tools": "messages",
    "tool_choice": "map",
    "thinking": "map",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    503: "overloaded_error",
}


def error_body(status: int, message: str) -> bytes:
    """Anthropic's error envelope."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return dumps({"type": "error", "error": {"type": kind, "message": message}})


class AnthropicReply:
    """Writes a call's results as one message, whole or as events."""

    def __init__(
        self, exchange: Exchange, number: int, model: str, stream: bool, tool: str = ""
    ) -> None:
        """`tool`: the reply is a call of this tool, its text the arguments."""
        self._exchange = exchange
        self._id = f"msg_{number:024x}"
        self._tool_id = f"toolu_{number:022x}"
        self._model = model
        self._stream = stream
        self._tool = tool
        self._index = -1
        self._block = ""

    def token(self, piece: str, thought: bool) -> None:
        self._open("thinking" if thought else "tool_use" if self._tool else "text")
        if thought:
            delta = {"type": "thinking_delta", "thinking": piece}
        elif self._tool:
            delta = {"type": "input_json_delta", "partial_json": piece}
        else:
            delta = {"type": "text_delta", "text": piece}
        self._event("content_block_delta", index=self._index, delta=delta)

    def done(self, call: Call) -> None:
        usage = {"input_tokens": call.work.prompt_tokens, "output_tokens": call.produced}
        reason = "max_tokens" if call.done_reason == "length" else "end_turn"
        if self._tool and reason == "end_turn":
            reason = "tool_use"
        if not self._stream:
            self._exchange.reply(200, self._whole(call, reason, usage), JSON)
            return
        self._start()
        self._close()
        delta = {"stop_reason": reason, "stop_sequence": None}
        self._event("message_delta", delta=delta, usage=usage)
        self._event("message_stop")
        self._exchange.end()

    def error(self, status: int, message: str) -> None:
        body = error_body(status, message)
        if self._exchange.streaming:
            self._exchange.end(b"event: error\ndata: " + body + b"\n\n")
        else:
            self._exchange.reply(status, body, JSON)

    def loaded(self, call: Call) -> None:
        raise RuntimeError("this route has no load request")

    def embedded(self, call: Call) -> None:
        raise RuntimeError("an embedding call has its own reply")

    def _start(self) -> None:
        if not self._exchange.streaming:
            self._exchange.start(SSE)
            usage = {"input_tokens": 0, "output_tokens": 0}
            self._event("message_start", message=self._message([], None, usage))

    def _open(self, kind: str) -> None:
        self._start()
        if self._block == kind:
            return
        self._close()
        self._block = kind
        self._index += 1
        block: dict[str, Any] = {"type": kind}
        if kind == "tool_use":
            block.update({"id": self._tool_id, "name": self._tool, "input": {}})
        else:
            block[kind] = ""
        self._event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> None:
        if self._block:
            self._event("content_block_stop", index=self._index)
            self._block = ""

    def _event(self, kind: str, **fields: Any) -> None:
        data = dumps({"type": kind, **fields})
        self._exchange.chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def _message(self, content: list[Any], reason: Any, usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage,
        }

    def _whole(self, call: Call, reason: str, usage: dict[str, int]) -> bytes:
        content: list[dict[str, Any]] = []
        if call.work.thoughts:
            thoughts = call.thoughts_text()
            content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
        if self._tool:
            try:
                arguments = json.loads(call.text())
            except ValueError:  # cut by max_tokens
                arguments = {}
            block = {"type": "tool_use", "id": self._tool_id, "name": self._tool}
            content.append({**block, "input": arguments})
        else:
            content.append({"type": "text", "text": call.text()})
        return dumps(self._message(content, reason, usage))


def _messages(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "MessagesRequest", _KINDS)
    name = body.get("model", "")
    if not name:
        raise BadRequest("model is required")
    if body.get("max_tokens", 0) <= 0:
        raise BadRequest("max_tokens is required and must be positive")
    messages = body.get("messages", [])
    if not messages:
        raise BadRequest("messages is required")
    model = server.find(name)
    if model is None:
        raise BadRequest(f"model '{name}' not found", 404)
    if "completion" not in model.capabilities:
        raise BadRequest(f"{json.dumps(name, ensure_ascii=False)} does not support chat")
    options = {"num_predict": body["max_tokens"], "stop": body.get("stop_sequences")}
    options["temperature"] = body.get("temperature")
    system = body.get("system")
    spoken = [{"content": system}, *messages] if system else messages
    # As Ollama: a model that cannot think is not asked to, whatever the client wishes.
    wants = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
    think = wants and "thinking" in model.capabilities
    stream = body.get("stream", False)
    checked = check_options(options)
    prompt = flatten(spoken)
    tool = _forced_tool(body)
    work = compose(server, model, prompt, len(spoken), checked, None, think, stream)
    if tool is not None:
        work = _arguments(server, model, prompt, tool, work)
    called = "" if tool is None else str(tool.get("name", ""))
    reply = AnthropicReply(exchange, server.requests, name, stream, called)
    fault = server.faults.take(computes=True)
    Call(server, exchange, model, work, reply, fault).begin(server.settings.num_ctx, None)


def _forced_tool(body: dict[str, Any]) -> dict[str, Any] | None:
    """A simulated model calls a tool only when it has to: it understands none."""
    choice = body.get("tool_choice", {})
    tools = body.get("tools", [])
    if choice.get("type") not in ("any", "tool") or not tools:
        return None
    named = choice.get("name")
    for tool in tools:
        if named in (None, tool.get("name")):
            return dict(tool)
    raise BadRequest(f"tool_choice: there is no tool {json.dumps(named)}")


def _arguments(
    server: SimServer, model: SimModel, prompt: str, tool: dict[str, Any], work: Work
) -> Work:
    dice = text.Dice(text.seed_of(model.name, prompt, server.seed()))
    schema = tool.get("input_schema")
    tokens = text.json_reply(model.name, prompt, dice, schema if isinstance(schema, dict) else {})
    return Work("text", work.prompt_tokens, work.thoughts, tokens, work.limit, work.stream)


ROUTES: dict[str, dict[str, Callable[[SimServer, Exchange], None]]] = {
    "/v1/messages": {"POST": _messages},
}
