"""`vram_limit`: what models may take of a device together, less than it has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from olol_tui.config import NodeConfig
from olol_tui.fleet.snapshot import Device, Engine


def configured(config: NodeConfig) -> Mapping[str, int]:
    """The limits of a node by UUID or index, `""` for all."""
    limit = config.vram_limit
    if limit is None:
        return {}
    return limit if isinstance(limit, dict) else {"": limit}


def limit_of(device: Device, limits: Mapping[str, int]) -> int | None:
    """By UUID (or its start) or index, else the one for all (`""`)."""
    for key, limit in limits.items():
        if key == str(device.index) or (key and not key.isdigit() and device.uuid.startswith(key)):
            return limit
    return limits.get("")


def limited(
    devices: tuple[Device, ...],
    limits: Mapping[str, int],
    engines: Iterable[Engine],
    reserved: Mapping[str, int],
) -> tuple[Device, ...]:
    """The devices as everybody shall see them: no larger than their limit.

    Used is what our own models take, and more where others left less than the limit free.

    Args:
        reserved: bytes by UUID that splits take or are about to take.
    """
    if not limits:
        return devices
    taken = dict(reserved)
    for engine in engines:
        for uuid in engine.devices:
            size = sum(one.vram_bytes or one.size_bytes for one in engine.loaded)
            taken[uuid] = taken.get(uuid, 0) + size // len(engine.devices)
    return tuple(_limited(device, limit_of(device, limits), taken) for device in devices)


def _limited(device: Device, limit: int | None, taken: Mapping[str, int]) -> Device:
    if limit is None or device.vram_bytes is None or limit >= device.vram_bytes:
        return device
    free = max(0, limit - taken.get(device.uuid, 0))
    if device.free_bytes is not None:
        free = min(free, device.free_bytes)
    return replace(device, vram_bytes=limit, used_bytes=limit - free)
