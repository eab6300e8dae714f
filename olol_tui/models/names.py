"""Model names as Ollama reads them: `[host/][namespace/]model[:tag]`.

Rules from Ollama's `types/model/name.go`: default host `registry.ollama.ai`, namespace
`library`, tag `latest`; look-ups ignore case.
"""

from __future__ import annotations

from functools import lru_cache

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


def is_cloud(name: str) -> bool:
    """True for names that Ollama would pass on to its cloud: they never leave the premises."""
    tag = canonical(name).rsplit(":", 1)[-1]
    return tag == "cloud" or tag.endswith("-cloud")
