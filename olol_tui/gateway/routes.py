"""The paths the gateway answers, and what each is. An allow-list: nothing else is forwarded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from olol_tui.gateway import bodies
from olol_tui.gateway.dialects import anthropic, openai, responses
from olol_tui.gateway.message import Request
from olol_tui.gateway.records import Dialect


@dataclass(frozen=True, slots=True)
class Inference:
    """A path whose requests queue for an engine."""

    path: str
    dialect: Dialect
    task: Literal["generate", "chat", "embed"]
    stream_default: bool
    end_mark: bytes
    """What the last line of a complete stream holds."""
    other_end: bytes = b""
    """Or this, when the reply ended before it was all said."""
    check: Callable[[str, bytes], object] | None = None
    """Refuses a body that no engine could serve, with BadRequest."""
    reader: Callable[[Request], bodies.RouteBody] | None = None
    """Reads the routing fields where they are not in plain JSON; such a body may be compressed."""
    events: bool = False
    """Its stream is made of named events that carry the counts."""


def _read_form(request: Request) -> bodies.RouteBody:
    kind = request.headers.get(b"content-type", b"")
    return bodies.RouteBody(model=responses.model_of_form(kind, request.body))


def _read_json(request: Request) -> bodies.RouteBody:
    return bodies.read(request.body)


INFERENCE = {
    route.path: route
    for route in (
        Inference("/api/generate", "ollama", "generate", True, b'"done":true'),
        Inference("/api/chat", "ollama", "chat", True, b'"done":true'),
        Inference("/api/embed", "ollama", "embed", False, b""),
        Inference("/api/embeddings", "ollama", "embed", False, b""),
        Inference("/v1/chat/completions", "openai", "chat", False, b"[DONE]", check=openai.check),
        Inference("/v1/completions", "openai", "generate", False, b"[DONE]", check=openai.check),
        Inference("/v1/embeddings", "openai", "embed", False, b"", check=openai.check),
        Inference(
            "/v1/responses",
            "openai",
            "chat",
            False,
            b'"type":"response.completed"',
            b'"type":"response.incomplete"',
            check=responses.check,
            reader=_read_json,
            events=True,
        ),
        Inference("/v1/audio/transcriptions", "openai", "chat", False, b"", reader=_read_form),
        Inference(
            "/v1/messages",
            "anthropic",
            "chat",
            False,
            b'"type":"message_stop"',
            check=anthropic.check,
            events=True,
        ),
    )
}


_ACCOUNT = frozenset({"/api/signout"})
_ACCOUNT_UNDER = ("/api/user/keys/", "/api/experimental/")
NO_ACCOUNT = (
    "accounts and cloud services are disabled: this gateway answers for a cluster, and "
    "nothing it is asked leaves it"
)

BLOBS = "/api/blobs/"
"""Under this path bodies are of any size: they pass through as they come."""


def is_account(path: str) -> bool:
    """One of Ollama's routes to its cloud, or to the account of one machine there."""
    return path in _ACCOUNT or path.startswith(_ACCOUNT_UNDER)


def dialect_of(path: str) -> Dialect:
    """In which shape to answer on a path, also on one that does not exist."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "ollama"
