"""The last minutes of every figure that is drawn as a graph, and since when steps run.

Kept by the console, fed one snapshot at a time on the fleet's clock. A sample is one
byte, so an append is O(1) and nothing is bucketed again when a frame is drawn.
"""

from __future__ import annotations

from olol_tui.fleet.snapshot import Device, Fleet
from olol_tui.render.charts import level

CAPACITY = 512
"""Samples kept a figure: more than the widest terminal has columns."""

PERIOD_S = 1.0
"""Between samples: the beat of the agents' telemetry."""

QUEUE_FULL = 16
"""Queue depth that fills a queue graph."""

DeviceKey = tuple[str, str]
"""Node name and device UUID."""


class Ring:
    """The newest samples of one figure, one byte each."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def append(self, sample: int) -> None:
        self._bytes.append(sample)
        if len(self._bytes) >= 2 * CAPACITY:
            del self._bytes[:-CAPACITY]

    def tail(self, count: int) -> bytes:
        return bytes(self._bytes[-count:]) if count > 0 else b""


class DeviceHistory:
    """Utilisation, memory, temperature and power of one device."""

    __slots__ = ("power", "temp", "util", "vram")

    def __init__(self) -> None:
        self.util = Ring()
        self.vram = Ring()
        self.temp = Ring()
        self.power = Ring()

    def sample(self, device: Device, *, fresh: bool) -> None:
        if not fresh:
            for ring in (self.util, self.vram, self.temp, self.power):
                ring.append(0)
            return
        util, used, total = device.util_percent, device.used_bytes, device.vram_bytes
        self.util.append(0 if util is None else level(util / 100))
        self.vram.append(level(used / total) if used is not None and total else 0)
        temp, power = device.temp_c, device.power_w
        # 25..limit: room temperature is the floor of what a device can show.
        span_c = (device.temp_limit_c or 95.0) - 25.0
        self.temp.append(0 if temp is None else level((temp - 25.0) / span_c))
        limit_w = device.power_limit_w
        self.power.append(0 if power is None else level(power / (limit_w or 500.0)))


_NO_DEVICE = DeviceHistory()
_NO_RING = Ring()


class FleetHistory:
    """Histories of all devices and of every model's queue."""

    def __init__(self) -> None:
        self._devices: dict[DeviceKey, DeviceHistory] = {}
        self._queues: dict[str, Ring] = {}
        self._steps: dict[tuple[str, str], float] = {}
        self._sampled_s: float | None = None

    def feed(self, fleet: Fleet) -> bool:
        """Take a sample when a period has passed on the fleet's clock; True when it did."""
        self._steps = {
            key: self._steps.get(key, fleet.now_s)
            for node in fleet.nodes
            for step in node.steps
            if step.state == "running"
            for key in [(node.name, step.name)]
        }
        last_s = self._sampled_s
        if last_s is not None and 0 <= fleet.now_s - last_s < PERIOD_S * 0.95:
            return False
        self._sampled_s = fleet.now_s
        devices: dict[DeviceKey, DeviceHistory] = {}
        for node in fleet.nodes:
            fresh = not node.stale and node.state == "ready"
            for device in node.devices:
                key = (node.name, device.uuid)
                history = devices[key] = self._devices.get(key) or DeviceHistory()
                history.sample(device, fresh=fresh and not device.error)
        self._devices = devices
        queues: dict[str, Ring] = {}
        for load in fleet.gateway.models:
            ring = queues[load.model] = self._queues.get(load.model) or Ring()
            ring.append(level(load.queued / QUEUE_FULL))
        self._queues = queues
        return True

    def device(self, key: DeviceKey) -> DeviceHistory:
        return self._devices.get(key, _NO_DEVICE)

    def queue(self, model: str) -> Ring:
        return self._queues.get(model, _NO_RING)

    def step_since_s(self, node: str, step: str) -> float | None:
        """Fleet clock at which a running step was first seen to run."""
        return self._steps.get((node, step))
