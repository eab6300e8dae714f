"""Model names as Ollama reads them: `[host/][namespace/]model[:tag]`.

Rules from Ollama's `types/model/name.go`: default host `registry.ollama.ai`, namespace
`library`, tag `latest`; look-ups ignore case.
"""

from __future__ import annotations

import re
from functools import lru_cache

DEFAULT_REGISTRY = "registry.ollama.ai"
_NAME = re.compile(
    r"(?:(?:(?P<host>\w[\w.:-]{0,349})/)?(?P<namespace>\w[\w-]{0,79})/)?"
    r"(?P<model>\w[\w.-]{0,79})(?::(?P<tag>\w[\w.-]{0,79}))?",
    re.ASCII,
)
_DEFAULT_PREFIXES = ("registry.ollama.ai/library/", "registry.ollama.ai/", "library/")


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """The one spelling by which names are compared: lower case, defaults dropped, tag added.

    >>> canonical("registry.ollama.ai/library/Gemma3"), canonical("llama3.2:3b")
    ('gemma3:latest', 'llama3.2:3b')
    """
    short = name.strip().lower()
    for prefix in _DEFAULT_PREFIXES:
        if short.startswith(prefix):
            short = short.removeprefix(prefix)
            break
    return short if ":" in short.rsplit("/", 1)[-1] else f"{short}:latest"


def same(left: str, right: str) -> bool:
    return canonical(left) == canonical(right)


def registry_of(name: str) -> str:
    """The host that a name is pulled from or pushed to.

    >>> registry_of("qwen3:8b"), registry_of("hf.co/user/model:Q4_K_M")
    ('registry.ollama.ai', 'hf.co')

    Raises:
        ValueError: it is no name: a scheme, too many parts, or a character that is in none.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise ValueError(f"{name!r} is no model name")
    return (match["host"] or DEFAULT_REGISTRY).lower()


@lru_cache(maxsize=4096)
def is_cloud(name: str) -> bool:
    """True for names that Ollama would pass on to its cloud: they never leave the premises."""
    tag = canonical(name).rsplit(":", 1)[-1]
    return tag == "cloud" or tag.endswith("-cloud")
