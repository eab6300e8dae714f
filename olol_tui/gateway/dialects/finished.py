"""Requests for a split as one finished prompt, by the Go template of the model's store.

llama-server knows the Jinja template in the GGUF; Ollama goes by the store's. What holds more
than text (images, tools and their calls) is left to Jinja, whose replies llama-server can read.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.models.gotemplate import ChatTemplate, TemplateError
from olol_tui.models.gotemplate.chat import Message, Thinking
from olol_tui.models.store_layers import PROMPT, StoreLayers

_PLACEHOLDER = [{"role": "user", "content": " "}]
"""A conversation must not be empty, and one that ends with the model's turn is continued."""
_TEXTS = ("text", "input_text", "output_text")
_BESIDE_TEXT = ("tools", "images", "suffix", "context", "raw", "functions")


class NotPlain(Exception):
    """There is more than text in it."""


def finished_prompt(
    route: str, body: dict[str, Any], layers: StoreLayers, today: date
) -> str | None:
    """The prompt of a request that already has its model's layers; None where Jinja makes it.

    Raises:
        BadRequest: the template cannot be filled in.
    """
    if not layers.template or any(body.get(name) for name in _BESIDE_TEXT):
        return None
    try:
        messages = list(_messages(route, body, layers))
    except NotPlain:
        return None
    try:
        own = body.get("template") if route == "/api/generate" else ""
        template = ChatTemplate.of(own if own and isinstance(own, str) else layers.template)
        return template.prompt(messages, _thinking(body, template), today) if messages else None
    except TemplateError as error:
        raise BadRequest(f"template: {error}", status=500) from error


def with_prompt(route: str, body: dict[str, Any], prompt: str) -> dict[str, Any]:
    """A request of `/v1/*` whose prompt is finished."""
    changed = dict(body)
    if route == "/v1/completions":
        return {**changed, "prompt": prompt}
    given = body.get("chat_template_kwargs")
    changed["chat_template_kwargs"] = {**(given if isinstance(given, dict) else {}), PROMPT: prompt}
    for name in ("system", "instructions"):
        changed.pop(name, None)
    changed["input" if route == "/v1/responses" else "messages"] = _PLACEHOLDER
    return changed


def _thinking(body: dict[str, Any], template: ChatTemplate) -> Thinking:
    """Ollama lets a model think unless asked not to, where its template knows of it."""
    if "thinking" not in template.names:
        return Thinking()
    asked = body.get("think", body.get("reasoning_effort"))
    if isinstance(asked, str):
        return Thinking(asked != "none", asked if asked != "none" else "")
    return Thinking(asked is not False)


def _messages(route: str, body: dict[str, Any], layers: StoreLayers) -> Iterator[Message]:
    match route:
        case "/api/generate" | "/v1/completions":
            system = body.get("system") or (layers.system if route == "/v1/completions" else "")
            if system:
                yield Message("system", _text(system))
            for one in layers.messages:
                yield Message(one["role"], one["content"])
            yield Message("user", _text(body.get("prompt")))
            return
        case "/v1/messages":
            system, turns = body.get("system"), body.get("messages")
        case "/v1/responses":
            system, turns = body.get("instructions"), body.get("input")
        case _:
            system, turns = None, body.get("messages")
    if system:
        yield Message("system", "".join(_parts(system)))
    if isinstance(turns, str) and route == "/v1/responses":
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list):
        raise NotPlain
    for turn in turns:
        yield from _turn(route, turn)


def _turn(route: str, turn: Any) -> Iterator[Message]:
    if not isinstance(turn, dict) or turn.get("type", "message") != "message":
        raise NotPlain
    role = turn.get("role")
    if role not in ("system", "user", "assistant") or turn.get("images") or turn.get("tool_calls"):
        raise NotPlain
    thinking = turn.get("thinking") or turn.get("reasoning_content") or ""
    parts = list(_parts(turn.get("content")))
    if route == "/v1/messages":
        parts = ["".join(parts)]
    # Of several parts Ollama makes as many messages.
    for part in parts or [""]:
        yield Message(role, part, thinking if isinstance(thinking, str) else "")


def _parts(content: Any) -> Iterator[str]:
    """Texts of a content that may have come in parts."""
    if not isinstance(content, list):
        yield _text(content)
        return
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in _TEXTS:
            raise NotPlain
        yield _text(part.get("text"))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise NotPlain
    return value
