"""Anthropic's routes: what can be refused before a request waits for an engine, and counting.

Ollama (0.14 and newer) and llama-server both speak `/v1/messages`: bodies go to them as they
came. llama-server's 500 for a missing field and what Ollama would refuse after a load are
refused here, in Anthropic's shape and with Ollama's sentences.
"""

from __future__ import annotations

from typing import Any

import msgspec

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.fields import kind_of

COUNT_TOKENS = "/v1/messages/count_tokens"
_BYTES_PER_TOKEN = 4


class _Body(msgspec.Struct):
    model: Any = None
    max_tokens: Any = None
    stream: Any = None
    messages: msgspec.Raw = msgspec.Raw()


class _Counted(msgspec.Struct):
    system: Any = None
    messages: list[Any] = []
    tools: list[Any] = []


_decode = msgspec.json.Decoder(_Body).decode
_decode_any = msgspec.json.Decoder().decode
_decode_counted = msgspec.json.Decoder(_Counted).decode


def check(route: str, raw: bytes) -> None:
    """Refuse what no engine could answer; the messages are not taken apart.

    Raises:
        BadRequest: not an object, no model, no positive `max_tokens`, no messages.
    """
    body = _parse(raw)
    _require_model(body)
    if body.stream is not None and not isinstance(body.stream, bool):
        raise _wrong("stream", body.stream, "bool")
    if body.max_tokens is not None and (
        isinstance(body.max_tokens, bool) or not isinstance(body.max_tokens, int)
    ):
        raise _wrong("max_tokens", body.max_tokens, "int")
    if not body.max_tokens or body.max_tokens < 0:
        raise BadRequest("max_tokens is required and must be positive")
    _require_messages(body)


def check_count(raw: bytes) -> str:
    """The model whose tokens are to be counted.

    Raises:
        BadRequest: not an object, no model, no messages.
    """
    body = _parse(raw)
    _require_model(body)
    _require_messages(body)
    return str(body.model)


def estimate(raw: bytes) -> int:
    """Tokens of a request by its length: what Ollama says, which counts none before it runs.

    Raises:
        BadRequest: messages or tools are no lists.
    """
    try:
        body = _decode_counted(raw)
    except msgspec.ValidationError as error:
        raise BadRequest(f"invalid request: {error}") from None
    size = _size(body.system)
    for message in body.messages:
        if isinstance(message, dict):
            size += len(str(message.get("role", ""))) + _size(message.get("content"))
    for tool in body.tools:
        if isinstance(tool, dict):
            size += sum(len(str(tool.get(key, ""))) for key in ("name", "description"))
            size += len(msgspec.json.encode(tool.get("input_schema")))
    return max(1, size // _BYTES_PER_TOKEN)


def _size(content: Any) -> int:
    """Bytes of a text, or of the blocks that a model gets to read as text."""
    if isinstance(content, str):
        return len(content.encode())
    if not isinstance(content, list):
        return 0
    total = 0
    for block in content:
        if not isinstance(block, dict):
            continue
        if block.get("type") in ("tool_use", "tool_result"):
            total += len(msgspec.json.encode(block))
        for key in ("text", "thinking"):
            if isinstance(block.get(key), str):
                total += len(block[key].encode())
    return total


def _parse(raw: bytes) -> _Body:
    if not raw.strip():
        raise BadRequest("missing request body")
    try:
        return _decode(raw)
    except msgspec.ValidationError:
        kind = kind_of(_decode_any(raw))
        raise BadRequest(
            f"json: cannot unmarshal {kind} into Go value of type anthropic.MessagesRequest"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"invalid JSON: {error}") from None


def _require_model(body: _Body) -> None:
    if body.model is None or body.model == "":
        raise BadRequest("model is required")
    if not isinstance(body.model, str):
        raise _wrong("model", body.model, "string")


def _require_messages(body: _Body) -> None:
    text = bytes(body.messages).strip() or b"null"
    if text == b"null" or text[1:-1].strip() == b"":
        raise BadRequest("messages is required")
    if not text.startswith(b"["):
        raise _wrong("messages", _decode_any(text), "[]anthropic.MessageParam")


def _wrong(field: str, value: object, go_type: str) -> BadRequest:
    return BadRequest(
        f"json: cannot unmarshal {kind_of(value)} into Go struct field "
        f"MessagesRequest.{field} of type {go_type}"
    )
