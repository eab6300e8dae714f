"""From a client's wishes to the Work of a call; shared by both dialects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import text
from .call import Work
from .jsonbody import BadRequest, fits

if TYPE_CHECKING:
    from .catalogue import SimModel
    from .server import SimServer

_TEMPLATE_TOKENS = 4
"""What a chat template adds to each message."""
_OPTION_KINDS = {
    "num_ctx": "int",
    "num_predict": "int",
    "seed": "int",
    "top_k": "int",
    "num_keep": "int",
    "repeat_last_n": "int",
    "temperature": "float",
    "top_p": "float",
    "min_p": "float",
    "repeat_penalty": "float",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "stop": "list",
}
_OPTION_WORDS = {"int": "integer", "float": "float32", "list": "array"}


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """
    Raises:
        BadRequest: an option has the wrong type; Ollama answers 500 to that.
    """
    out = {key: value for key, value in options.items() if value is not None}
    for key, kind in _OPTION_KINDS.items():
        value = out.get(key)
        if value is None:
            continue
        if kind == "int" and isinstance(value, float):
            value = out[key] = int(value)  # Go's JSON numbers are floats; Ollama truncates
        if kind == "list" and isinstance(value, str):
            value = out[key] = [value]
        if not fits(value, kind):
            raise BadRequest(f'option "{key}" must be of type {_OPTION_WORDS[kind]}', 500)
    return out


def compose(
    server: SimServer,
    model: SimModel,
    prompt: str,
    messages: int,
    options: dict[str, Any],
    schema: Any | None,
    think: bool,
    stream: bool,
) -> Work:
    """What the model «says» to a prompt, and within which limits.

    Args:
        messages: how many the prompt was made of; each costs some template.
        schema: None for prose, "json" for any JSON, an object for JSON by that schema.
        think: whether a train of thought comes first.
    """
    num_ctx = min(options.get("num_ctx", server.settings.num_ctx), model.context_length)
    prompt_tokens = min(text.count_tokens(prompt) + _TEMPLATE_TOKENS * messages, num_ctx - 1)
    if "seed" in options:
        seed: int = options["seed"]
    elif options.get("temperature") == 0:
        seed = 0
    else:
        seed = server.seed()
    dice = text.Dice(text.seed_of(model.name, prompt, seed))
    thoughts = text.thinking(dice) if think else []
    if schema is None:
        least, most = server.settings.reply_tokens
        tokens = text.reply(model.name, prompt, dice, dice.between(least, most))
    else:
        tokens = text.json_reply(
            model.name, prompt, dice, schema if isinstance(schema, dict) else None
        )
    tokens = text.cut_at_stop(tokens, [s for s in options.get("stop", []) if isinstance(s, str)])
    limit = max(1, num_ctx - prompt_tokens)
    if options.get("num_predict", -1) > 0:
        limit = min(limit, options["num_predict"])
    return Work("text", prompt_tokens, thoughts, tokens, limit, stream, prompt)


def flatten(messages: list[dict[str, Any]]) -> str:
    """The prompt that a conversation makes; content may be text or OpenAI's parts."""
    lines = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = (p.get("text") for p in content if isinstance(p, dict))
            content = " ".join(part for part in parts if isinstance(part, str))
        elif not isinstance(content, str):
            content = "" if content is None else json.dumps(content)
        lines.append(content)
    return "\n".join(lines)
