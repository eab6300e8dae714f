"""Ollama's native routes on an engine that speaks only llama-server's dialect.

`translate` turns one request into what the engine takes and returns the object that turns
its reply back. Requests that only load or unload a model carry nothing to translate: the
gateway answers them itself with `load_reply`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway.dialects import llama_request
from olol_tui.gateway.dialects.errors import BadRequest, TranslationError
from olol_tui.gateway.dialects.llama_embed import EmbedTranslation
from olol_tui.gateway.dialects.llama_stream import TokenTranslation
from olol_tui.gateway.dialects.translation import Translation

__all__ = [
    "ROUTES",
    "BadRequest",
    "Translation",
    "TranslationError",
    "load_reply",
    "translate",
]

ROUTES = frozenset({"/api/generate", "/api/chat", "/api/embed", "/api/embeddings"})

_encode = msgspec.json.Encoder().encode


def translate(
    route: str,
    body: dict[str, Any],
    model: Model,
    *,
    prompt: str | None = None,
    created: Callable[[], str],
    clock_ns: Callable[[], int],
) -> Translation:
    """A native request for a llama-server engine.

    Args:
        route: one of ROUTES.
        body: the client's JSON object, not yet checked.
        model: what the engine serves; its capabilities decide what may be asked.
        prompt: finished already, in place of what the engine's template would make.
        created: RFC 3339 time with nanoseconds, for each object of the reply.
        clock_ns: monotonic; `total_duration` counts from this call.

    Raises:
        BadRequest: a field has a wrong type, or the model or engine cannot do what is asked.
    """
    if route in ("/api/chat", "/api/generate"):
        is_chat = route == "/api/chat"
        make = llama_request.chat if is_chat else llama_request.generate
        return TokenTranslation(make(body, model, prompt), created, clock_ns, chat=is_chat)
    if route == "/api/embed":
        ask, dimensions = llama_request.embed(body)
        return EmbedTranslation(ask, created, clock_ns, legacy=False, dimensions=dimensions)
    if route == "/api/embeddings":
        return EmbedTranslation(llama_request.embeddings(body), created, clock_ns, legacy=True)
    raise ValueError(f"no translation for {route}")


def load_reply(route: str, model: str, reason: Literal["load", "unload"], created: str) -> bytes:
    """Ollama's answer to a request without input: one object, whether streaming or not."""
    if route == "/api/embed":
        return _encode({"model": model, "embeddings": []})
    if route == "/api/embeddings":
        return _encode({"embedding": []})
    reply: dict[str, Any] = {"model": model, "created_at": created}
    if route == "/api/chat":
        reply["message"] = {"role": "assistant", "content": ""}
    else:
        reply["response"] = ""
    return _encode(reply | {"done": True, "done_reason": reason})
