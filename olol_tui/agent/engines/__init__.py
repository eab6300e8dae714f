"""Engine kinds: how each is started, known to be ready, and asked what it holds."""

from __future__ import annotations

from ..errors import EngineError
from .base import Advance, Context, EngineKind, Launch, NotYet, Unsupported
from .embedded import Embedded
from .forward import Forward
from .llama_server import LlamaServer
from .ollama import Ollama
from .rpc_server import RpcServer
from .simulated import Simulated

__all__ = ["Advance", "Context", "EngineKind", "Launch", "NotYet", "Unsupported", "kind_of"]

_KINDS: dict[str, EngineKind] = {
    kind.name: kind
    for kind in (Ollama(), LlamaServer(), Embedded(), Simulated(), RpcServer(), Forward())
}


def kind_of(name: str) -> EngineKind:
    """Raises EngineError for a kind that does not exist."""
    try:
        return _KINDS[name]
    except KeyError:
        raise EngineError(f"unknown engine kind {name!r}") from None
