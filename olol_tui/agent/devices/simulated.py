"""GPUs that exist on paper: they behave as the simulated engines on them work.

Utilisation and memory are what the engines say; power follows utilisation within a
moment, temperature follows power within half a minute, clocks follow utilisation.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from .source import DeviceSource

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULT_VRAM_BYTES = 24 << 30
_DRIVER_BYTES = 380 << 20
"""What a driver keeps for itself when nothing runs."""
_POWER_LAG_S = 1.5
_TEMP_LAG_S = 25.0
_AMBIENT_C = 31.0
_TEMP_LIMIT_C = 90.0
_IDLE_MHZ = 210.0
_BOOST_MHZ = 1980.0
_MAX_GPUS = 4096


class _Gpu:
    """One simulated card with its slow quantities."""

    def __init__(self, index: int, uuid: str, name: str, vram_bytes: int, limit_w: float) -> None:
        self.identity = {
            "vendor": "simulated",
            "uuid": uuid,
            "index": index,
            "name": name,
            "vram_bytes": vram_bytes,
        }
        self.limit_w = limit_w
        self.idle_w = round(limit_w * 0.07, 1)
        self.power_w = self.idle_w
        # Cards in one case differ a little: by place, which the index stands for.
        self.ambient_c = _AMBIENT_C + (index % 4) * 1.5
        self.temp_c = self.ambient_c + 4.0
        self.engine_bytes = 0
        self.util_percent = 0.0

    def advance(self, seconds: float) -> None:
        """Lets power and temperature follow what the engines do."""
        # Power rises faster than utilisation at first: a few kernels wake the whole card.
        share = (self.util_percent / 100.0) ** 0.7
        goal_w = self.idle_w + (self.limit_w * 0.96 - self.idle_w) * share
        self.power_w += (goal_w - self.power_w) * (1.0 - math.exp(-seconds / _POWER_LAG_S))
        goal_c = self.ambient_c + 48.0 * self.power_w / self.limit_w
        self.temp_c += (goal_c - self.temp_c) * (1.0 - math.exp(-seconds / _TEMP_LAG_S))

    def report(self) -> dict[str, Any]:
        vram_bytes = int(self.identity["vram_bytes"])  # type: ignore[call-overload]
        share = min(1.0, self.util_percent / 60.0)
        return {
            **self.identity,
            "used_bytes": min(vram_bytes, _DRIVER_BYTES + self.engine_bytes),
            "util_percent": round(self.util_percent, 1),
            "temp_c": round(self.temp_c, 1),
            "temp_limit_c": _TEMP_LIMIT_C,
            "power_w": round(self.power_w, 1),
            "power_limit_w": self.limit_w,
            "clock_mhz": round(_IDLE_MHZ + (_BOOST_MHZ - _IDLE_MHZ) * share),
            "throttle": ["power cap"] if self.power_w > 0.94 * self.limit_w else [],
            "ecc_errors": 0,
        }


class SimulatedSource(DeviceSource):
    """`gpus` cards of one kind, or a list of cards."""

    def __init__(self, config: dict[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            config: {"gpus": n, "vram_bytes", "name", "power_limit_w", "seed"}, or "gpus" as a
                list of objects with these keys; `seed` tells the cards of one node from
                those of another.

        Raises:
            ValueError: the configuration is not understood.
        """
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._at = clock()
        self._gpus = [_gpu(index, entry, config) for index, entry in enumerate(_entries(config))]

    def inventory(self) -> list[dict[str, Any]]:
        return [dict(gpu.identity) for gpu in self._gpus]

    def sample(self) -> list[dict[str, Any]]:
        with self._lock:
            now = self._clock()
            for gpu in self._gpus:
                gpu.advance(now - self._at)
            self._at = now
            return [self.suspended(g.identity) or g.report() for g in self._gpus]

    def set_engine_stats(self, stats: list[dict[str, Any]]) -> None:
        """
        Args:
            stats: of each engine {"devices": [uuid], "used_bytes", "util_percent"}; an engine
                over several devices lies on them in equal parts.
        """
        used: dict[str, int] = {}
        idle: dict[str, float] = {}
        for engine in stats:
            devices = engine.get("devices") or []
            for uuid in devices:
                part = int(engine.get("used_bytes") or 0) // len(devices)
                used[uuid] = used.get(uuid, 0) + part
                # Two engines on one card: it is idle when both are.
                share = 1.0 - float(engine.get("util_percent") or 0.0) / 100.0
                idle[uuid] = idle.get(uuid, 1.0) * min(1.0, max(0.0, share))
        with self._lock:
            now = self._clock()
            for gpu in self._gpus:
                gpu.advance(now - self._at)
                uuid = str(gpu.identity["uuid"])
                gpu.engine_bytes = used.get(uuid, 0)
                gpu.util_percent = 100.0 * (1.0 - idle.get(uuid, 1.0))
            self._at = now


def _entries(config: dict[str, Any]) -> list[dict[str, Any]]:
    gpus = config.get("gpus", 1)
    if isinstance(gpus, int) and not isinstance(gpus, bool) and 0 < gpus <= _MAX_GPUS:
        return [{} for _ in range(gpus)]
    if isinstance(gpus, list) and gpus and all(isinstance(gpu, dict) for gpu in gpus):
        return gpus
    raise ValueError(f"simulated: gpus: expected 1..{_MAX_GPUS} or a list of objects")


def _gpu(index: int, entry: dict[str, Any], config: dict[str, Any]) -> _Gpu:
    def value(key: str, default: Any) -> Any:
        found = entry.get(key, config.get(key))
        return default if found is None else found

    vram_bytes = value("vram_bytes", _DEFAULT_VRAM_BYTES)
    limit_w = value("power_limit_w", 350.0)
    for key, number in (("vram_bytes", vram_bytes), ("power_limit_w", limit_w)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number <= 0:
            raise ValueError(f"simulated: {key}: expected a number above 0, got {number!r}")
    name = str(value("name", f"SIM {int(vram_bytes) >> 30}G"))
    digest = hashlib.sha256(f"simulated:{value('seed', '')}:{index}".encode()).hexdigest()
    uuid = str(entry.get("uuid") or f"SIM-{digest[:8]}-{digest[8:12]}-{digest[12:16]}")
    return _Gpu(index, uuid, name, int(vram_bytes), float(limit_w))
