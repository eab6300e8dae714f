"""OpenAI's routes: what can be refused before a request waits for an engine.

Ollama and llama-server both speak `/v1/*`, so bodies go to them as they came: nothing is
rewritten, unknown fields pass. Only what no engine could answer is refused here, in
OpenAI's shape, instead of after a queue and a load.
"""

from __future__ import annotations

from typing import Any

import msgspec

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.fields import kind_of

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

_INPUT = {
    "/v1/chat/completions": ("messages", "ChatCompletionRequest"),
    "/v1/completions": ("prompt", "CompletionRequest"),
    "/v1/embeddings": ("input", "EmbedRequest"),
}


class Checked(msgspec.Struct, frozen=True):
    """What the gateway needs to know of a body that may go to an engine."""

    model: str
    stream: bool
    include_usage: bool
    """The stream carries a `usage` object before `[DONE]`: the only exact token count."""


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None
    stream_options: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Body).decode
_decode_any = msgspec.json.Decoder().decode


def check(route: str, raw: bytes) -> Checked:
    """The routing fields of a body on one of ROUTES; long inputs are not taken apart.

    Raises:
        BadRequest: empty, not JSON, no model, no input, or a wrong type.
    """
    field, struct = _INPUT[route]
    if not raw.strip():
        raise BadRequest("missing request body")
    try:
        body = _decode(raw)
    except msgspec.ValidationError:
        kind = kind_of(_decode_any(raw))
        raise BadRequest(
            f"json: cannot unmarshal {kind} into Go value of type openai.{struct}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"invalid JSON: {error}") from None
    if body.model is None or body.model == "":
        raise BadRequest("model is required")
    if not isinstance(body.model, str):
        raise _wrong(struct, "model", body.model, "string")
    if body.stream is not None and not isinstance(body.stream, bool):
        raise _wrong(struct, "stream", body.stream, "bool")
    options = body.stream_options
    if options is not None and not isinstance(options, dict):
        raise _wrong(struct, "stream_options", options, "openai.StreamOptions")
    _check_input(getattr(body, field), field, struct)
    include_usage = bool(options and options.get("include_usage"))
    return Checked(body.model, bool(body.stream), include_usage)


def _check_input(value: msgspec.Raw, field: str, struct: str) -> None:
    text = bytes(value).strip() or b"null"
    if field == "messages":
        if text == b"null" or text[1:-1].strip() == b"":
            raise BadRequest("[] is too short - 'messages'")
        if not text.startswith(b"["):
            raise _wrong(struct, field, _decode_any(text), "[]openai.Message")
    elif field == "input":
        if text in (b"null", b'""', b"[]"):
            raise BadRequest("invalid input")
        if text[:1] not in b'"[':
            raise BadRequest("invalid input type")
    elif text != b"null" and text[:1] not in b'"[':
        raise _wrong(struct, field, _decode_any(text), "string")


def _wrong(struct: str, field: str, value: object, go_type: str) -> BadRequest:
    return BadRequest(
        f"json: cannot unmarshal {kind_of(value)} into Go struct field "
        f"{struct}.{field} of type {go_type}"
    )
