"""How each dialect says that something failed.

Native Ollama: `{"error": "…"}`; OpenAI: an object with type and code; Anthropic: an
envelope. A stream that has begun keeps its status 200, so its last line or event carries
the error and no clean end (`"done": true`, `data: [DONE]`, `message_stop`) follows it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Dialect = Literal["ollama", "openai", "anthropic"]

_encode = msgspec.json.Encoder().encode

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class BadRequest(Exception):
    """The client's request cannot be served as it is: answered at once, never sent upstream."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class TranslationError(Exception):
    """An engine's reply cannot be given to the client: it failed, broke off or made no sense."""

    def __init__(self, message: str, *, status: int = 502) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def error_body(dialect: Dialect, status: int, message: str, *, request_id: str = "") -> bytes:
    """The JSON body of a failed request, as the dialect's clients parse it."""
    if dialect == "openai":
        return _encode({"error": _openai_error(status, message)})
    if dialect == "anthropic":
        envelope: dict[str, object] = {"type": "error", "error": _anthropic_error(status, message)}
        if request_id:
            envelope["request_id"] = request_id
        return _encode(envelope)
    return _encode({"error": message})


def error_frame(dialect: Dialect, status: int, message: str, *, request_id: str = "") -> bytes:
    """The terminal error of a stream whose head is already out: one NDJSON line or SSE event."""
    body = error_body(dialect, status, message, request_id=request_id)
    if dialect == "openai":
        return b"data: " + body + b"\n\n"
    if dialect == "anthropic":
        return b"event: error\ndata: " + body + b"\n\n"
    return body + b"\n"


def model_not_found(name: str) -> str:
    """Ollama's sentence for a model that nobody has (status 404)."""
    return f"model '{name}' not found"


def upstream_message(body: bytes) -> str:
    """The sentence in an engine's error body, whichever shape it has."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace").strip()
    error = decoded.get("error") if isinstance(decoded, dict) else decoded
    if isinstance(error, dict):
        error = error.get("message")
    if isinstance(error, str) and error.strip():
        return error.strip()
    return body.decode("utf-8", "replace").strip()


def _openai_error(status: int, message: str) -> dict[str, object]:
    kind = _OPENAI_TYPES.get(status, "api_error")
    return {"message": message, "type": kind, "param": None, "code": None}


def _anthropic_error(status: int, message: str) -> dict[str, object]:
    return {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
