"""Which programs of llama.cpp a node's parts of a split are started with."""

from __future__ import annotations

from olol_tui.config import EnginesConfig, NodeConfig


def head(node: NodeConfig, engines: EnginesConfig) -> str:
    """Path of llama-server or its directory there; empty: looked up on PATH."""
    own = node.binary if node.engine == "llama-server" else ""
    return node.llama_server or engines.llama_server or own


def worker(node: NodeConfig, engines: EnginesConfig) -> str:
    """Path of the worker, or of the llama-server that it lies beside; empty: on PATH."""
    return node.rpc_server or engines.rpc_server or head(node, engines)


def named(node: NodeConfig, engines: EnginesConfig) -> frozenset[str]:
    """Engine kinds whose program the configuration names."""
    found = {"llama-server": head(node, engines), "rpc-server": worker(node, engines)}
    return frozenset(kind for kind, path in found.items() if path)
