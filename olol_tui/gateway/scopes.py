"""What a key must be allowed for each path. One table; what it does not name needs `admin`."""

from __future__ import annotations

from typing import Literal

from olol_tui.gateway.keys import Scope

Need = Scope | Literal["open", "own"]
"""`open`: no key at all. `own`: any key, and it sees its own requests unless it is an admin's."""

_PATHS: dict[Need, tuple[str, ...]] = {
    # What load balancers and the `ollama` command ask before anything else; says nothing.
    "open": ("/", "/health"),
    "infer": (
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/audio/transcriptions",
    ),
    "read": (
        "/api/version",
        "/api/tags",
        "/api/ps",
        "/api/show",
        "/api/status",
        "/api/models",
        "/api/servers",
        "/v1/models",
        "/metrics",
    ),
    "own": ("/olol/v1/requests",),
    # Written down although it is the rule: these change models or show everybody's work.
    "admin": (
        "/api/pull",
        "/api/push",
        "/api/me",
        "/api/create",
        "/api/copy",
        "/api/delete",
        "/olol/v1/fleet",
        "/olol/v1/fit",
        "/olol/v1/logs",
        "/olol/v1/commands",
    ),
}
UNDER: tuple[tuple[str, Need], ...] = (
    ("/v1/models/", "read"),
    ("/olol/v1/requests/", "own"),
    ("/olol/v1/models/", "admin"),
    ("/api/blobs/", "admin"),
)
SCOPE_OF: dict[str, Need] = {path: need for need, paths in _PATHS.items() for path in paths}


def need_of(path: str) -> Need:
    """The scope that a path asks for; unknown paths ask for the most."""
    found = SCOPE_OF.get(path)
    if found is not None:
        return found
    return next((need for start, need in UNDER if path.startswith(start)), "admin")
