"""The devices of a node: NVIDIA, AMD, the processor, or simulated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .amd import AmdSource
from .cpu import CpuSource
from .nvml import OPEN_PATIENCE_S, open_nvml
from .simulated import SimulatedSource
from .source import Composite, DeviceSource

__all__ = ["DeviceSource", "open_devices"]


def open_devices(
    simulated: dict[str, Any] | None = None,
    *,
    root: Path = Path("/"),
    patience_s: float = OPEN_PATIENCE_S,
) -> DeviceSource:
    """What computes on this node. Returns in bounded time even when a driver hangs.

    Args:
        simulated: simulated cards that replace the hardware, see SimulatedSource.
        root: where /proc and /sys are.
        patience_s: how long the NVIDIA driver may take for each card it cannot open.

    Raises:
        ValueError: `simulated` is not understood.
    """
    if simulated is not None:
        return SimulatedSource(simulated)
    nvidia, errors = open_nvml(patience_s, root / "proc")
    amd = AmdSource(root / "sys")
    found: list[DeviceSource] = []
    if nvidia is not None:
        found.append(nvidia)
    if amd.inventory():
        found.append(amd)
    if not found:
        return CpuSource(root, errors)
    return Composite(found, errors)
