"""What an Ollama store says of a model beside its weights, applied to requests for a split.

Ollama's own engine does this itself; llama-server knows nothing of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_layers(
    route: str, body: dict[str, Any], system: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The client's request with the model's system prompt and parameters under its own.

    Args:
        body: not yet checked: what has a wrong type stays as it is, to be refused later.
    """
    changed = dict(body)
    given = body.get("options")
    if options and (given is None or isinstance(given, dict)):
        changed["options"] = {**options, **(given or {})}
    if not system:
        return changed
    messages = body.get("messages")
    if route == "/api/chat" and isinstance(messages, list) and messages:
        first = messages[0]
        if not (isinstance(first, dict) and first.get("role") == "system"):
            changed["messages"] = [{"role": "system", "content": system}, *messages]
    elif route == "/api/generate" and not body.get("system") and not body.get("raw"):
        changed["system"] = system
    return changed
