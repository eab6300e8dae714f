"""AMD cards read from a sysfs tree of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olol_tui.agent.devices import open_devices
from olol_tui.agent.devices.amd import AmdSource

GIB = 1 << 30


def card(root: Path, number: int, **files: Any) -> Path:
    """A card with these files; `hwmon_x` lies in its hwmon folder."""
    device = root / f"sys/class/drm/card{number}/device"
    hwmon = device / "hwmon/hwmon3"
    hwmon.mkdir(parents=True)
    for name, value in {"vendor": "0x1002", "device": "0x744c", **files}.items():
        folder = hwmon if name.startswith("hwmon_") else device
        (folder / name.removeprefix("hwmon_")).write_text(f"{value}\n")
    return device


def test_all_facts_of_a_card(tmp_path: Path) -> None:
    card(
        tmp_path, 0, unique_id="0x93ae1f2b00aa01", product_name="Radeon PRO W7900",
        mem_info_vram_total=48 * GIB, mem_info_vram_used=3 * GIB, gpu_busy_percent=87,
        hwmon_temp1_input=71000, hwmon_temp1_crit=100000, hwmon_power1_average=241000000,
        hwmon_power1_cap=295000000, hwmon_freq1_input=2304000000,
    )  # fmt: skip
    source = AmdSource(tmp_path / "sys")
    identity = {
        "vendor": "amd",
        "uuid": "GPU-0093ae1f2b00aa01",
        "index": 0,
        "name": "Radeon PRO W7900",
        "vram_bytes": 48 * GIB,
    }
    assert source.inventory() == [identity]
    assert source.sample() == [
        {
            **identity,
            "used_bytes": 3 * GIB,
            "util_percent": 87,
            "temp_c": 71.0,
            "temp_limit_c": 100.0,
            "power_w": 241.0,
            "power_limit_w": 295.0,
            "clock_mhz": 2304.0,
        }
    ]


def test_what_a_card_does_not_say_is_absent(tmp_path: Path) -> None:
    card(tmp_path, 0, mem_info_vram_total=16 * GIB, gpu_busy_percent="", hwmon_power1_input=9000000)
    (device,) = AmdSource(tmp_path / "sys").sample()
    assert device["name"] == "AMD GPU [744c]" and device["uuid"].startswith("AMD-")
    assert device["power_w"] == 9.0  # newer kernels have only the instantaneous value
    assert not {"util_percent", "used_bytes", "temp_c", "temp_limit_c"} & device.keys()


def test_other_vendors_outputs_and_carve_outs_are_no_cards(tmp_path: Path) -> None:
    card(tmp_path, 0, vendor="0x8086", mem_info_vram_total=16 * GIB)
    card(tmp_path, 1, mem_info_vram_total=GIB // 2)
    card(tmp_path, 10, unique_id="0x2", mem_info_vram_total=16 * GIB)
    card(tmp_path, 9, unique_id="0x1", mem_info_vram_total=16 * GIB)
    (tmp_path / "sys/class/drm/card9-DP-1").mkdir()
    found = AmdSource(tmp_path / "sys").inventory()
    assert [(d["uuid"][-1], d["index"]) for d in found] == [("1", 0), ("2", 1)]


def test_a_card_that_vanishes_is_an_error(tmp_path: Path) -> None:
    device = card(tmp_path, 0, mem_info_vram_total=16 * GIB, mem_info_vram_used=1)
    source = AmdSource(tmp_path / "sys")
    assert "error" not in source.sample()[0]
    (device / "mem_info_vram_total").unlink()
    assert "gone from sysfs" in source.sample()[0]["error"]


def test_open_devices_finds_them_and_they_replace_the_cpu(tmp_path: Path) -> None:
    card(tmp_path, 0, mem_info_vram_total=16 * GIB)
    assert [d["vendor"] for d in open_devices(root=tmp_path).inventory()] == ["amd"]
