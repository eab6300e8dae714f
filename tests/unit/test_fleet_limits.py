"""`vram_limit`: what everybody sees of a device that may not be filled."""

from __future__ import annotations

from olol_tui.fleet.limits import limited
from olol_tui.fleet.snapshot import Device, Engine, Loaded

GPU = Device("GPU-abc", 0, "GPU", "nvidia", vram_bytes=1000, used_bytes=100)


def test_a_limited_device_is_no_larger_than_its_limit() -> None:
    (one,) = limited((GPU,), {"": 300}, (), {})
    assert (one.vram_bytes, one.used_bytes, one.free_bytes) == (300, 0, 300)


def test_what_our_models_and_splits_take_counts_and_so_does_a_full_device() -> None:
    engine = Engine(
        "n/e", "n", "ollama", "ready", ("GPU-abc",), loaded=(Loaded("m", size_bytes=120),)
    )
    (one,) = limited((GPU,), {"": 300}, (engine,), {"GPU-abc": 100})
    assert one.free_bytes == 80
    full = Device("GPU-abc", 0, "GPU", "nvidia", vram_bytes=1000, used_bytes=950)
    (one,) = limited((full,), {"": 300}, (), {})
    assert one.free_bytes == 50


def test_a_limit_may_be_of_one_device() -> None:
    other = Device("GPU-def", 1, "GPU", "nvidia", vram_bytes=1000, used_bytes=0)
    by_index = limited((GPU, other), {"1": 300}, (), {})
    assert [device.vram_bytes for device in by_index] == [1000, 300]
    by_uuid = limited((GPU, other), {"GPU-a": 300, "": 500}, (), {})
    assert [device.vram_bytes for device in by_uuid] == [300, 500]
    assert limited((GPU,), {"": 5000}, (), {}) == (GPU,), "a limit above what there is says nothing"
