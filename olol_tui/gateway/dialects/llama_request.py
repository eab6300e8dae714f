"""Native Ollama requests as the body that llama-server expects.

Follows what Ollama itself sends to the llama-server it runs (`llm/llama_server.go`), so
that a model answers alike behind either. Where it needs a second call to the engine (older
messages cut to fit the context, embedding inputs cut to length, `context` of a former
reply) the request goes out whole and the engine's refusal reaches the client.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway.dialects import keepalive, options
from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.fields import STRUCTS, Fields, kind_of
from olol_tui.gateway.dialects.finished import with_prompt
from olol_tui.models.names import canonical

_encode = msgspec.json.Encoder().encode

TOP_LOGPROBS_MAX = 20
_THINK_LEVELS = ("high", "medium", "low", "max")

# What an image or a sound starts with, and how llama-server wants to be told.
_IMAGE_TYPES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


class Ask(msgspec.Struct, frozen=True):
    """One request on its way upstream."""

    path: str
    body: bytes
    model: str
    """As the client wrote it: replies repeat it."""
    stream: bool
    top_logprobs: int | None = None
    """None: no log probabilities wanted. 0: only those of the chosen tokens."""


def generate(body: dict[str, Any], model: Model, finished: str | None = None) -> Ask:
    """`/api/generate`: `/completion` for raw prompts, `/infill` with a suffix, else a chat."""
    fields = Fields(STRUCTS["/api/generate"], body)
    name = _model_name(fields)
    prompt, suffix, system = fields.text("prompt"), fields.text("suffix"), fields.text("system")
    template, raw = fields.text("template"), fields.flag("raw")
    context, images = fields.items("context", "[]int"), _media(fields, "images", body)
    top_logprobs = _top_logprobs(fields)
    if raw and (template or system or context):
        raise BadRequest("raw mode does not support template, system, or context")
    if template and finished is None:
        raise BadRequest(
            "this engine renders prompts with the model's own template: send a finished prompt "
            'with "raw": true instead of "template"'
        )
    if context:
        raise BadRequest(
            'this engine does not support "context": send the conversation to /api/chat'
        )
    if "completion" not in model.capabilities:
        raise BadRequest(f'"{name}" does not support generate')
    if suffix and "insert" not in model.capabilities:
        raise BadRequest(f"{_qualified(name)} does not support insert")
    if images and (raw or suffix):
        raise BadRequest('images cannot be sent with "raw" or "suffix" to this engine')
    think = _think(fields, name, model)
    request = _common(fields, model)
    if raw or suffix:
        request |= _raw_format(fields)
        if top_logprobs is not None:
            request["n_probs"] = max(top_logprobs, 1)
        if suffix:
            request |= {"input_prefix": prompt, "input_suffix": suffix}
        else:
            request["prompt"] = prompt
        path = "/infill" if suffix else "/completion"
    else:
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": _content(prompt, images, model, name)})
        request["messages"] = messages
        request |= _chat_extras(fields, think, top_logprobs)
        path = "/v1/chat/completions"
        if finished is not None:
            request = with_prompt(path, request, finished)
    return Ask(path, _encode(request), name, fields.flag("stream", True), top_logprobs)


def chat(body: dict[str, Any], model: Model, finished: str | None = None) -> Ask:
    """`/api/chat`: `/v1/chat/completions` with the template of the GGUF, or a finished prompt."""
    fields = Fields(STRUCTS["/api/chat"], body)
    name = _model_name(fields)
    top_logprobs = _top_logprobs(fields)
    if "completion" not in model.capabilities:
        raise BadRequest(f'"{name}" does not support chat')
    think = _think(fields, name, model)
    messages = fields.objects("messages", "api.Message")
    request = _common(fields, model)
    request["messages"] = [_message(message, model, name) for message in messages]
    request |= _chat_extras(fields, think, top_logprobs)
    tools = fields.objects("tools", "api.Tool")
    if tools:
        if "tools" not in model.capabilities:
            raise BadRequest(f"{_qualified(name)} does not support tools")
        request["tools"] = [_tool(tool) for tool in tools]
    path = "/v1/chat/completions"
    if finished is not None:
        request = with_prompt(path, request, finished)
    return Ask(path, _encode(request), name, fields.flag("stream", True), top_logprobs)


def embed(body: dict[str, Any]) -> tuple[Ask, int]:
    """`/api/embed`: `/v1/embeddings`, and the dimensions wanted (0: all)."""
    fields = Fields(STRUCTS["/api/embed"], body)
    name = _model_name(fields)
    _check_ignored(fields)
    texts = _inputs(body)
    dimensions = fields.whole("dimensions")
    if dimensions < 0:
        raise BadRequest("dimensions must be a positive number")
    return Ask("/v1/embeddings", _encode({"input": texts}), name, stream=False), dimensions


def _inputs(body: dict[str, Any]) -> list[str]:
    """The texts of an `/api/embed` request."""
    given = body.get("input")
    if given is None or given == "":
        return []
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("invalid input type")
    return texts


def embeddings(body: dict[str, Any]) -> Ask:
    """`/api/embeddings`, the legacy route with one prompt."""
    fields = Fields(STRUCTS["/api/embeddings"], body)
    name = _model_name(fields)
    _check_ignored(fields)
    upstream = _encode({"input": [fields.text("prompt")]})
    return Ask("/v1/embeddings", upstream, name, stream=False)


def _model_name(fields: Fields) -> str:
    name = fields.text("model")
    if not name:
        raise BadRequest("model is required")
    return name


def _check_ignored(fields: Fields) -> None:
    """Types of fields that this engine needs nothing from, wrong all the same."""
    keepalive.parse(fields.raw("keep_alive"))
    fields.flag("truncate")
    fields.table("options")


def _common(fields: Fields, model: Model) -> dict[str, Any]:
    if fields.flag("_debug_render_only"):
        raise BadRequest('this engine does not support "_debug_render_only"')
    _check_ignored(fields)
    fields.flag("shift")
    request = options.sampling(fields, context_length=model.context_length)
    # Streamed also when the client is not: a leaving client is then noticed, and its slot
    # freed, at the next token instead of at the end.
    request["stream"] = True
    request["cache_prompt"] = True
    return request


def _chat_extras(
    fields: Fields, think: bool | str | None, top_logprobs: int | None
) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if think is not None:
        kwargs: dict[str, Any] = {"enable_thinking": bool(think)}
        if isinstance(think, str):
            kwargs["reasoning_effort"] = think
        extras["chat_template_kwargs"] = kwargs
    if top_logprobs is not None:
        extras |= {"logprobs": True, "top_logprobs": max(top_logprobs, 1)}
    schema = _schema(fields)
    if schema == "json":
        extras["response_format"] = {"type": "json_object"}
    elif schema is not None:
        wrapped = {"name": "schema", "schema": schema}
        extras["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    return extras


def _raw_format(fields: Fields) -> dict[str, Any]:
    schema = _schema(fields)
    if schema is None:
        return {}
    return {"json_schema": {"type": "object"} if schema == "json" else schema}


def _schema(fields: Fields) -> str | dict[str, Any] | None:
    """`format`: `"json"`, a JSON schema, or None when not set."""
    value = fields.raw("format")
    if value is None or value == "":
        return None
    if value == "json":
        return "json"
    if isinstance(value, dict):
        return value
    shown = _encode(value).decode()
    raise BadRequest(f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def _think(fields: Fields, name: str, model: Model) -> bool | str | None:
    """What the template is told about thinking; None when the model knows nothing of it."""
    value = fields.raw("think")
    capable = "thinking" in model.capabilities
    if value is None:
        return True if capable else None
    if not isinstance(value, bool | str):
        raise BadRequest(
            'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'
        )
    if isinstance(value, str) and value not in _THINK_LEVELS:
        raise BadRequest(
            f'invalid think value: "{value}" (must be "high", "medium", "low", "max", '
            "true, or false)"
        )
    if value and not capable:
        raise BadRequest(f'"{name}" does not support thinking')
    return value


def _top_logprobs(fields: Fields) -> int | None:
    top = fields.whole("top_logprobs")
    if not 0 <= top <= TOP_LOGPROBS_MAX:
        raise BadRequest(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}")
    return top if fields.flag("logprobs") else None


def _message(message: dict[str, Any], model: Model, name: str) -> dict[str, Any]:
    fields = Fields("Message", message)
    role = fields.text("role").lower()
    images = _media(fields, "images", message)
    converted: dict[str, Any] = {"role": role}
    if call_id := fields.text("tool_call_id"):
        converted["tool_call_id"] = call_id
    if tool_name := fields.text("tool_name"):
        converted["name"] = tool_name
    calls = fields.objects("tool_calls", "api.ToolCall")
    if calls:
        converted["tool_calls"] = [_tool_call(call, index) for index, call in enumerate(calls)]
    if thinking := fields.text("thinking"):
        converted["reasoning_content"] = thinking
    converted["content"] = _content(fields.text("content"), images, model, name)
    return converted


def _tool_call(call: dict[str, Any], index: int) -> dict[str, Any]:
    fields = Fields("ToolCall", call)
    function = Fields("ToolCallFunction", fields.table("function"))
    arguments = function.raw("arguments")
    if arguments is not None and not isinstance(arguments, dict):
        raise function.wrong("arguments", arguments, "api.ToolCallFunctionArguments")
    return {
        "id": fields.text("id"),
        "type": "function",
        "index": function.whole("index", index),
        "function": {
            "name": function.text("name"),
            "arguments": _encode(arguments or {}).decode(),
        },
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    fields = Fields("Tool", tool)
    function = Fields("ToolFunction", fields.table("function"))
    function.text("name")
    function.table("parameters")
    return tool | {"type": fields.text("type") or "function"}


def _media(fields: Fields, field: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """`images`: base64 texts as the content parts llama-server takes."""
    if not body.get(field):
        return []
    return [_media_part(item) for item in fields.items(field, "[]api.ImageData")]


def _media_part(item: object) -> dict[str, Any]:
    if not isinstance(item, str):
        raise BadRequest(
            f"json: cannot unmarshal {kind_of(item)} into Go value of type api.ImageData"
        )
    try:
        data = base64.b64decode(item, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"illegal base64 data in images: {error}") from None
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return {"type": "input_audio", "input_audio": {"data": item, "format": "wav"}}
    if data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2):
        return {"type": "input_audio", "input_audio": {"data": item, "format": "mp3"}}
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        raise BadRequest("WebP images are not supported by this engine: send PNG or JPEG")
    mime = next((mime for magic, mime in _IMAGE_TYPES if data.startswith(magic)), "image/jpeg")
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{item}"}}


def _content(
    text: str, media: list[dict[str, Any]], model: Model, name: str
) -> str | list[dict[str, Any]]:
    if not media:
        return text
    needed = {"audio" if part["type"] == "input_audio" else "vision" for part in media}
    for capability in sorted(needed.difference(model.capabilities)):
        raise BadRequest(f"{_qualified(name)} does not support {capability}")
    parts = [{"type": "text", "text": text}] if text else []
    return [*parts, *media]


def _qualified(name: str) -> str:
    """The full name that Ollama puts into its capability errors."""
    short = canonical(name)
    if "/" not in short:
        return f"registry.ollama.ai/library/{short}"
    return short if short.count("/") > 1 else f"registry.ollama.ai/{short}"
