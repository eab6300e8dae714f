"""The processor: the only device of a node without GPU, and the node's own load.

Reads /proc and /sys, which never block.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .source import DeviceSource

UUID = "cpu"
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


class CpuMeter:
    """Load since the last call, over all processors."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = root / "proc/stat"
        self._last = self._read()
        self._percent: float | None = None

    def percent(self) -> float | None:
        """0..100; None until two readings are apart, or where /proc is not there."""
        now = self._read()
        if now is not None and self._last is not None:
            total = now[0] - self._last[0]
            if total <= 0:
                return self._percent
            self._percent = round(100.0 * max(0, now[1] - self._last[1]) / total, 1)
        self._last = now
        return self._percent

    def _read(self) -> tuple[int, int] | None:
        """Jiffies in all and busy ones."""
        try:
            with self._stat.open() as stat:
                fields = [int(field) for field in stat.readline().split()[1:9]]
        except (OSError, ValueError):
            return None
        if len(fields) < 5:
            return None
        total = sum(fields)
        return total, total - fields[3] - fields[4]  # idle and iowait


def memory(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Bytes of RAM in all and in use (what programs could not have at once)."""
    values: dict[str, int] = {}
    try:
        with (root / "proc/meminfo").open() as meminfo:
            for line in meminfo:
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    values[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        values = {}
    total = values.get("MemTotal")
    if total is None:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
        except (OSError, ValueError):
            return None, None
    available = values.get("MemAvailable")
    return total, None if available is None else max(0, total - available)


def cpu_name(root: Path = Path("/")) -> str:
    """The model of the processor, or `CPU`."""
    try:
        with (root / "proc/cpuinfo").open() as cpuinfo:
            for line in cpuinfo:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "Model") and value.strip():
                    return value.strip()
    except OSError:
        pass  # no /proc: the generic name says enough
    return "CPU"


class CpuSource(DeviceSource):
    """One device `cpu` whose memory is the machine's RAM."""

    def __init__(self, root: Path = Path("/"), errors: list[str] | None = None) -> None:
        super().__init__()
        self._root = root
        self._errors = errors or []
        self._meter = CpuMeter(root)
        self._identity = {"vendor": "cpu", "uuid": UUID, "index": 0, "name": cpu_name(root)}
        self._sensor = _sensor(root)

    def inventory(self) -> list[dict[str, Any]]:
        total, _ = memory(self._root)
        return [dict(self._identity) if total is None else {**self._identity, "vram_bytes": total}]

    def sample(self) -> list[dict[str, Any]]:
        device: dict[str, Any] = dict(self._identity)
        total, used = memory(self._root)
        percent = self._meter.percent()
        if total is not None:
            device["vram_bytes"] = total
        if used is not None:
            device["used_bytes"] = used
        if percent is not None:
            device["util_percent"] = percent
        if self._sensor is not None:
            try:
                device["temp_c"] = int(self._sensor.read_text()) / 1000
            except (OSError, ValueError):
                self._sensor = None  # sensors may vanish; then the fact is absent
        return [device]

    def errors(self) -> list[str]:
        return self._errors


def _sensor(root: Path) -> Path | None:
    for hwmon in sorted(root.glob("sys/class/hwmon/hwmon*")):
        try:
            name = (hwmon / "name").read_text().strip()
        except OSError:
            continue
        if name in _CPU_SENSORS and (hwmon / "temp1_input").exists():
            return hwmon / "temp1_input"
    return None
