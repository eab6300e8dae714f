"""The processor as a device, from files like those of /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from olol_tui.agent.devices import open_devices
from olol_tui.agent.devices.cpu import CpuMeter, CpuSource, memory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:       1000 kB\nMemFree: 10 kB\nMemAvailable:    400 kB\n"
    )
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Xeon Fast\n")
    stat(tmp_path, user=100, idle=100)
    return tmp_path


def stat(root: Path, *, user: int, idle: int, iowait: int = 0) -> None:
    (root / "proc/stat").write_text(f"cpu  {user} 0 0 {idle} {iowait} 0 0 0 0 0\ncpu0 1 1 1 1\n")


def test_load_is_what_happened_between_two_readings(root: Path) -> None:
    meter = CpuMeter(root)
    assert meter.percent() is None
    stat(root, user=130, idle=160, iowait=10)
    assert meter.percent() == 30.0
    assert meter.percent() == 30.0  # no time has passed: the last value, not zero
    stat(root, user=130, idle=260, iowait=10)
    assert meter.percent() == 0.0


def test_the_device_has_the_machines_memory_and_load(root: Path) -> None:
    hwmon = root / "sys/class/hwmon/hwmon1"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("k10temp\n")
    (hwmon / "temp1_input").write_text("55250\n")
    source = CpuSource(root)
    stat(root, user=200, idle=200)
    assert source.sample() == [
        {
            "vendor": "cpu",
            "uuid": "cpu",
            "index": 0,
            "name": "Xeon Fast",
            "vram_bytes": 1000 * 1024,
            "used_bytes": 600 * 1024,
            "util_percent": 50.0,
            "temp_c": 55.25,
        }
    ]
    (hwmon / "temp1_input").unlink()
    assert "temp_c" not in source.sample()[0]


def test_without_proc_facts_are_absent(tmp_path: Path) -> None:
    source = CpuSource(tmp_path)
    (device,) = source.sample()
    assert device["name"] == "CPU" and not {"util_percent", "used_bytes"} & device.keys()
    assert memory(tmp_path)[1] is None


def test_a_node_without_gpu_has_one_device(root: Path) -> None:
    source = open_devices(root=root)
    assert [d["uuid"] for d in source.inventory()] == ["cpu"]
    assert source.inventory()[0]["vram_bytes"] == 1000 * 1024
