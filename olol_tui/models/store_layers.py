"""What an Ollama store says of a model beside its weights. Pure.

Ollama applies it to every request; llama-server knows nothing of a store, so for a split the
gateway does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

PROMPT = "olol_prompt"
"""Of `chat_template_kwargs`: a finished prompt, in place of what the chat template would make."""
_MOST_CHARACTERS = 100_000
"""Linux takes no longer argument than 128 KiB."""
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""What llama-server takes for a file without a template."""


class StoreLayers(msgspec.Struct, frozen=True):
    """Texts of the layers of one model."""

    system: str = ""
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    """`params`: as a request's `options`."""
    template: str = ""
    """Go's text/template; empty where the head's own chat template is all there is."""
    messages: tuple[dict[str, str], ...] = ()
    """With which every conversation begins: role and content."""

    def __bool__(self) -> bool:
        return bool(self.system or self.options or self.template or self.messages)


def layers_of(texts: Mapping[str, Any]) -> StoreLayers:
    """Of an agent's answer; what has another form than Ollama gives it is left out."""
    options, messages = texts.get("params"), texts.get("messages")
    return StoreLayers(
        system=str(texts.get("system") or ""),
        options=dict(options) if isinstance(options, dict) else {},
        template=str(texts.get("template") or ""),
        messages=tuple(
            {"role": one["role"], "content": one["content"]}
            for one in (messages if isinstance(messages, list) else ())
            if isinstance(one, dict)
            and isinstance(one.get("role"), str)
            and isinstance(one.get("content"), str)
        ),
    )


def accepting_prompts(chat_template: str) -> str:
    """A chat template that gives a finished prompt as it is, and else does as before.

    Args:
        chat_template: Jinja text of the file; empty where it has none.

    Returns:
        Empty where there would be too much of it.
    """
    own = chat_template or _CHATML
    begin = "{% if olol_prompt is defined %}{{ olol_prompt }}{% else %}{{ '' }}"
    text = f"{begin}{own}{{% endif %}}"
    return text if len(text.encode()) <= _MOST_CHARACTERS else ""
