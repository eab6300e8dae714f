"""AMD GPUs through the amdgpu driver's sysfs files: no tools, no library, no root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .source import DeviceSource

_VENDOR = "0x1002"
_LEAST_VRAM_BYTES = 1 << 30
"""An APU's carve-out is no place for an engine."""


class AmdSource(DeviceSource):
    """Every amdgpu card with memory of its own. The root of sysfs is an argument for tests."""

    def __init__(self, sys_root: Path = Path("/sys")) -> None:
        super().__init__()
        self._cards: list[tuple[Path, dict[str, Any]]] = []
        for device in _device_dirs(sys_root):
            vram_bytes = _number(device / "mem_info_vram_total")
            if vram_bytes is None or vram_bytes < _LEAST_VRAM_BYTES:
                continue
            identity = {
                "vendor": "amd",
                "uuid": _uuid(device),
                "index": len(self._cards),
                "name": _name(device),
                "vram_bytes": vram_bytes,
            }
            self._cards.append((device, identity))

    def inventory(self) -> list[dict[str, Any]]:
        return [dict(identity) for _, identity in self._cards]

    def sample(self) -> list[dict[str, Any]]:
        out = []
        for device, identity in self._cards:
            left_out = self.suspended(identity)
            if left_out is not None:
                out.append(left_out)
                continue
            self._busy = identity["uuid"]
            try:
                out.append(_read(device, identity))
            finally:
                self._busy = None
        return out


def _read(device: Path, identity: dict[str, Any]) -> dict[str, Any]:
    if not (device / "mem_info_vram_total").exists():
        return {
            **identity,
            "error": "The GPU is gone from sysfs (driver unloaded, or the card fell off the "
            "bus). See `dmesg | grep amdgpu`; a reboot brings it back.",
        }
    report = dict(identity)
    hwmon = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "no-hwmon")
    power_uw = _number(hwmon / "power1_average")
    if power_uw is None:
        power_uw = _number(hwmon / "power1_input")
    facts = {
        "used_bytes": _number(device / "mem_info_vram_used"),
        "util_percent": _number(device / "gpu_busy_percent"),
        "temp_c": _scaled(_number(hwmon / "temp1_input"), 1e3),
        "temp_limit_c": _scaled(_number(hwmon / "temp1_crit"), 1e3),
        "power_w": _scaled(power_uw, 1e6),
        "power_limit_w": _scaled(_number(hwmon / "power1_cap"), 1e6),
        "clock_mhz": _scaled(_number(hwmon / "freq1_input"), 1e6),
    }
    report.update({key: value for key, value in facts.items() if value is not None})
    return report


def _device_dirs(sys_root: Path) -> list[Path]:
    cards = [c for c in (sys_root / "class/drm").glob("card*") if c.name[4:].isdigit()]
    cards.sort(key=lambda card: int(card.name[4:]))
    return [card / "device" for card in cards if _text(card / "device/vendor") == _VENDOR]


def _uuid(device: Path) -> str:
    """As ROCR_VISIBLE_DEVICES wants it; older cards have none and go by their PCI slot."""
    unique = _text(device / "unique_id")
    if unique and int(unique, 16) != 0:
        return "GPU-" + unique.lower().replace("0x", "").zfill(16)
    return "AMD-" + (device.resolve().name or device.parent.name)


def _name(device: Path) -> str:
    product = _text(device / "product_name")
    if product:
        return product
    return f"AMD GPU [{(_text(device / 'device') or 'unknown').replace('0x', '')}]"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""  # the kernel leaves out files that a card does not support


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 1)
