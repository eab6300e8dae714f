"""What models may take of a device: less than it has by `vram_limit`, and beside splits. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from olol_tui.config import NodeConfig
from olol_tui.fleet.snapshot import Device, Engine


@dataclass(frozen=True, slots=True)
class Reserved:
    """What splits have of one device, in bytes."""

    total_bytes: int = 0
    coming_bytes: int = 0
    """Of that, what is not loaded yet."""


_NOTHING = Reserved()


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
    reserved: Mapping[str, Reserved],
) -> tuple[Device, ...]:
    """The devices as everybody shall see them: no larger than their limit, and with what splits
    are about to take as taken.

    Used is what our own models take, and more where others left less free.

    Args:
        engines: without heads of splits, whose models lie elsewhere too.
        reserved: by UUID.
    """
    if not limits and not reserved:
        return devices
    taken = {uuid: one.total_bytes for uuid, one in reserved.items()}
    for engine in engines:
        for uuid in engine.devices:
            size = sum(one.vram_bytes or one.size_bytes for one in engine.loaded)
            taken[uuid] = taken.get(uuid, 0) + size // len(engine.devices)
    return tuple(
        _limited(
            device,
            limit_of(device, limits),
            taken.get(device.uuid, 0),
            reserved.get(device.uuid, _NOTHING),
        )
        for device in devices
    )


def _limited(device: Device, limit: int | None, taken: int, reserved: Reserved) -> Device:
    total = device.vram_bytes
    if total is None or (not reserved.total_bytes and (limit is None or limit >= total)):
        return device
    size = total if limit is None else min(limit, total)
    free = max(0, size - taken)
    if device.free_bytes is not None:
        # What is being loaded is in the device's own account only in part, or not yet.
        free = min(free, max(0, device.free_bytes - reserved.coming_bytes))
    elif limit is None:
        return replace(device, lent_bytes=reserved.total_bytes)
    return replace(device, vram_bytes=size, used_bytes=size - free, lent_bytes=reserved.total_bytes)
