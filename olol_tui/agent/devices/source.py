"""What every source of devices offers, and how several are read as one.

A device is a dict with the field names of the fleet's Device; a fact that the hardware
does not give is absent, never 0. Reading may block in a driver, so the sampler reads in
a thread of its own, asks `busy()` which device hangs, and has it left out.
"""

from __future__ import annotations

from typing import Any


class DeviceSource:
    """Devices of one kind. `sample()` is called from one thread at a time, except that a
    thread that hangs in the driver may still be inside an earlier call."""

    def __init__(self) -> None:
        self._busy: str | None = None
        self._suspended: dict[str, str] = {}

    def inventory(self) -> list[dict[str, Any]]:
        """The devices with what never changes; does not touch the driver."""
        raise NotImplementedError

    def sample(self) -> list[dict[str, Any]]:
        """The devices with everything they say now."""
        raise NotImplementedError

    def errors(self) -> list[str]:
        """What is wrong with the source as a whole, each with what to do."""
        return []

    def set_engine_stats(self, stats: list[dict[str, Any]]) -> None:
        """What simulated engines do; hardware knows for itself."""

    def busy(self) -> str | None:
        """UUID of the device that is being read at this moment."""
        return self._busy

    def suspend(self, uuid: str, error: str) -> None:
        """From now on the device is not read: it is reported with this error."""
        self._suspended[uuid] = error

    def resume(self, uuid: str) -> None:
        """Undoes `suspend`."""
        self._suspended.pop(uuid, None)

    def suspended(self, device: dict[str, Any]) -> dict[str, Any] | None:
        """The report of a device that is left out, None when it is to be read."""
        error = self._suspended.get(device["uuid"])
        return None if error is None else {**device, "error": error}


class Composite(DeviceSource):
    """Several sources as one; indexes are renumbered so that each label is unique."""

    def __init__(self, sources: list[DeviceSource], errors: list[str] | None = None) -> None:
        super().__init__()
        self._sources = sources
        self._errors = errors or []

    def inventory(self) -> list[dict[str, Any]]:
        return _renumbered([d for source in self._sources for d in source.inventory()])

    def sample(self) -> list[dict[str, Any]]:
        return _renumbered([d for source in self._sources for d in source.sample()])

    def errors(self) -> list[str]:
        return self._errors + [e for source in self._sources for e in source.errors()]

    def busy(self) -> str | None:
        return next((b for b in (s.busy() for s in self._sources) if b is not None), None)

    def suspend(self, uuid: str, error: str) -> None:
        for source in self._sources:
            source.suspend(uuid, error)

    def resume(self, uuid: str) -> None:
        for source in self._sources:
            source.resume(uuid)

    def set_engine_stats(self, stats: list[dict[str, Any]]) -> None:
        for source in self._sources:
            source.set_engine_stats(stats)


def _renumbered(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**device, "index": index} for index, device in enumerate(devices)]
