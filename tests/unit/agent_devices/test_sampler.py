"""The sampler over sources that misbehave; NVML's own misbehaviour is in the stub's tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from olol_tui.agent.devices.source import Composite, DeviceSource
from olol_tui.agent.sampler import Sampler


class Source(DeviceSource):
    """Two devices; `gate` closed makes reading the second hang."""

    def __init__(self, name: str = "d") -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.blame = True
        self.fail: Exception | None = None
        self.readings = 0
        self._devices = [{"uuid": f"{name}{n}", "index": n, "name": "x"} for n in range(2)]

    def inventory(self) -> list[dict[str, Any]]:
        return [dict(device) for device in self._devices]

    def sample(self) -> list[dict[str, Any]]:
        if self.fail is not None:
            raise self.fail
        out = []
        for device in self._devices:
            left_out = self.suspended(device)
            if left_out is None:
                self._busy = str(device["uuid"]) if self.blame else None
                if device["index"] == 1:
                    self.gate.wait()
                self._busy = None
                left_out = {**device, "util_percent": float(self.readings)}
            out.append(left_out)
        self.readings += 1
        return out


@contextmanager
def sampling(source: DeviceSource) -> Iterator[Sampler]:
    sampler = Sampler(source, hz=50, patience_s=0.2)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)


def test_before_the_first_reading_there_is_the_inventory() -> None:
    frame = Sampler(Source(), hz=1).latest()
    assert [d["uuid"] for d in frame["devices"]] == ["d0", "d1"]
    assert frame["memory_bytes"] > frame["memory_used_bytes"] > 0


def test_a_frame_has_fresh_devices_and_the_nodes_load() -> None:
    with sampling(Source()) as sampler:
        assert sampler.wait_fresh(20)
        until(lambda: sampler.latest()["cpu_percent"] is not None)
        frame = sampler.latest()
        assert set(frame) == {
            "t_mono", "devices", "cpu_percent", "memory_bytes", "memory_used_bytes",
        }  # fmt: skip
        assert frame["devices"][1]["util_percent"] >= 0
        assert 0 <= time.monotonic() - frame["t_mono"] < 20


def test_a_hung_device_is_blamed_left_out_and_taken_back() -> None:
    source = Source()
    both = Composite([Source("other"), source])
    with sampling(both) as sampler:
        sampler.wait_fresh(20)
        source.gate.clear()
        until(lambda: "error" in sampler.latest()["devices"][3])
        at = sampler.latest()["devices"][0]["util_percent"]
        until(lambda: sampler.latest()["devices"][0]["util_percent"] > at + 3)
        assert "error" not in sampler.latest()["devices"][2]
        assert [d["index"] for d in sampler.latest()["devices"]] == [0, 1, 2, 3]
        source.gate.set()
        until(lambda: "error" not in sampler.latest()["devices"][3])


def test_a_hang_that_cannot_be_blamed_keeps_the_last_facts_and_says_so() -> None:
    source = Source()
    source.blame = False
    with sampling(source) as sampler:
        until(lambda: "util_percent" in sampler.latest()["devices"][1])
        before = threading.active_count()
        source.gate.clear()
        until(lambda: "hung" in " ".join(sampler.errors()))
        at = sampler.latest()["t_mono"]
        until(lambda: sampler.latest()["t_mono"] > at + 1.0)  # the node's own load goes on
        assert "util_percent" in sampler.latest()["devices"][1]
        assert threading.active_count() <= before + 9
        source.gate.set()


def test_a_source_that_raises_is_an_error_until_it_stops() -> None:
    source = Source()
    with sampling(source) as sampler:
        source.fail = RuntimeError("bad card")
        until(lambda: sampler.errors() != [])
        assert sampler.errors() == ["Reading the devices failed: RuntimeError: bad card"]
        source.fail = None
        until(lambda: sampler.errors() == [])


def test_stop_ends_its_threads() -> None:
    before = threading.active_count()
    with sampling(Source()) as sampler:
        sampler.wait_fresh(20)
    until(lambda: threading.active_count() <= before)
