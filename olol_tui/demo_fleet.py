"""The configuration behind `olol-tui demo`: simulated nodes, and a state of their own."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from olol_tui.config import ClusterConfig, GatewayConfig, NodeConfig, SimulatedConfig
from olol_tui.paths import Paths

VRAM_BYTES = 24 * 2**30


def demo_paths(state_dir: Path | None) -> Paths:
    """Apart from the real state, so that a demo can run beside it."""
    return Paths.resolve(state_dir or Paths.resolve().state_dir / "demo")


def demo_config(*, nodes: int, gpus: int, host: str | None, port: int | None) -> ClusterConfig:
    """`nodes` simulated machines with `gpus` GPUs each.

    Args:
        host, port: None for the default; the default port gives way when it is taken.
    """
    default = GatewayConfig()
    host = host or default.host
    if port is None:
        port = default.port if _is_free(host, default.port) else 0
    simulated = SimulatedConfig(gpus=gpus, vram=VRAM_BYTES, name="SIM 24G")
    node = NodeConfig(local=True, engine="simulated", simulated=simulated)
    return ClusterConfig(
        name="demo",
        gateway=GatewayConfig(host=host, port=port),
        nodes={f"n{number}": node for number in range(1, nodes + 1)},
    )


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True
