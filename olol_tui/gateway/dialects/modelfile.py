"""What an Ollama store says of a model beside its weights, applied to requests for a split.

As Ollama applies it behind each of its dialects (`server/routes.go`, `openai/openai.go`,
`anthropic/anthropic.go`): the client's own fields come first.
"""

from __future__ import annotations

from typing import Any

from olol_tui.gateway.dialects import options
from olol_tui.gateway.dialects.fields import Fields
from olol_tui.models.store_layers import StoreLayers

_LIMITS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
}
"""How a client says how long the reply may be; the first is how we would."""
TOKEN_ROUTES = frozenset(_LIMITS)
"""Routes of other dialects than Ollama's own whose replies are generated."""
_OPENAI_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
"""Ollama sends these for its OpenAI routes, whatever the model's parameters are."""


def with_layers(route: str, body: dict[str, Any], layers: StoreLayers) -> dict[str, Any]:
    """The client's request with the model's system prompt, first messages and parameters.

    Args:
        body: not yet checked: what has a wrong type stays as it is, to be refused later.
    """
    changed = dict(body)
    if route in _LIMITS:
        _sample(route, changed, layers)
    else:
        given = body.get("options")
        if layers.options and (given is None or isinstance(given, dict)):
            changed["options"] = {**layers.options, **(given or {})}
    match route:
        case "/api/chat" | "/v1/chat/completions":
            _begin(changed, layers)
        case "/api/generate":
            if layers.system and not body.get("system") and not body.get("raw"):
                changed["system"] = layers.system
        case "/v1/messages" | "/v1/responses":
            name = "system" if route == "/v1/messages" else "instructions"
            if layers.system and not body.get(name):
                changed[name] = layers.system
            _first(changed, "messages" if route == "/v1/messages" else "input", layers)
    return changed


def _begin(changed: dict[str, Any], layers: StoreLayers) -> None:
    """The system prompt before all, where the client begins with none."""
    messages = changed.get("messages")
    if not isinstance(messages, list) or not messages:
        return
    first = messages[0]
    _first(changed, "messages", layers)
    if layers.system and not (isinstance(first, dict) and first.get("role") == "system"):
        system = {"role": "system", "content": layers.system}
        changed["messages"] = [system, *changed["messages"]]


def _first(changed: dict[str, Any], name: str, layers: StoreLayers) -> None:
    """The model's own messages before the client's."""
    given = changed.get(name)
    if not layers.messages:
        return
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if isinstance(given, list) and given:
        changed[name] = [*layers.messages, *given]


def _sample(route: str, changed: dict[str, Any], layers: StoreLayers) -> None:
    """Sampling as Ollama would do it, where the client says nothing."""
    params = Fields("Params", {"options": dict(layers.options)})
    wanted = options.sampling(params, context_length=None)
    if route != "/v1/messages":
        wanted |= _OPENAI_DEFAULTS
    limit = wanted.pop("n_predict")
    names = _LIMITS[route]
    if limit > 0 and all(changed.get(name) is None for name in names):
        changed[names[0]] = limit
    stops = wanted.pop("stop", None)
    name = "stop_sequences" if route == "/v1/messages" else "stop"
    if stops and not changed.get(name):
        changed[name] = stops
    for name, value in wanted.items():
        if changed.get(name) is None:
            changed[name] = value
