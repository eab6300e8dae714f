"""The paths the gateway answers, and what each is. An allow-list: nothing else is forwarded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


INFERENCE = {
    route.path: route
    for route in (
        Inference("/api/generate", "ollama", "generate", True, b'"done":true'),
        Inference("/api/chat", "ollama", "chat", True, b'"done":true'),
        Inference("/api/embed", "ollama", "embed", False, b""),
        Inference("/api/embeddings", "ollama", "embed", False, b""),
        Inference("/v1/chat/completions", "openai", "chat", False, b"[DONE]"),
        Inference("/v1/completions", "openai", "generate", False, b"[DONE]"),
        Inference("/v1/embeddings", "openai", "embed", False, b""),
    )
}


_ACCOUNT = frozenset({"/api/me", "/api/signout"})
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
