"""Chat templates for files that carry none, as Jinja, by the names llama.cpp gives them.

llama-server takes such a name only without its Jinja engine, which tools and schemas need.
"""

from __future__ import annotations

_GEMMA = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}"
    "{% else %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' "
    "+ (ns.system if message['role'] == 'user' else '') "
    "+ message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% if message['role'] == 'user' %}{% set ns.system = '' %}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_NAMED = {"gemma": _GEMMA, "chatml": _CHATML}


def jinja(template: str) -> str:
    """Jinja text of a template given as text or as a known name; unknown text is kept."""
    return _NAMED.get(template.strip().lower(), template)
