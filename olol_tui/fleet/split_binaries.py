"""Which programs of llama.cpp a node's parts of a split are started with."""

from __future__ import annotations

from olol_tui.config import EnginesConfig, NodeConfig

HOW_TO_GET = (
    "Install llama.cpp there (built with -DGGML_RPC=ON) or give its path as llama_server; "
    "or name an archive as [engines] llama_archive; or have it built there: "
    "[engines] llama_build = true. Then provision it again (P)."
)
HOW_TO_GET_HERE = "Install llama.cpp, built with -DGGML_RPC=ON, or give its path as llama_server."
"""This machine is not provisioned."""


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


def is_needed(node: NodeConfig) -> bool:
    """Whether the configuration gives the node a part that only llama.cpp can play."""
    return node.engine == "llama-server" or "rpc" in node.roles.values()
