"""NVIDIA GPUs and MIG slices through the real NVML, keyed by UUID.

Every call may be unsupported on some card or driver, so each has its own try, and a fact
that cannot be had is absent. Every call may also hang in the driver when a GPU falls off
the bus: `busy()` tells the sampler which device to leave out.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .source import DeviceSource

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_PATIENCE_S = 10.0
"""A driver that does not answer for this long while the agent starts is left out."""
_PCIE_EVERY_S = 5.0
"""NVML measures PCIe throughput by waiting 20 ms in each call."""
_THROTTLE_WORDS = (
    # 0x1 idle and 0x2 clocks set by the administrator are no throttling
    (0x4, "power cap"),
    (0x8, "hardware slowdown"),
    (0x10, "sync boost"),
    (0x20, "thermal (software)"),
    (0x40, "thermal (hardware)"),
    (0x80, "power brake"),
    (0x100, "display clocks"),
    (0x200, "board limit"),
    (0x400, "reliability"),
)
_LOST = (
    "The GPU is lost: it fell off the bus (see `dmesg | grep -i xid`). Power-cycle the node; "
    "if it happens again, check the card's power and seating."
)
_RESET = "The GPU needs a reset: stop what uses it, then `nvidia-smi --gpu-reset`, or reboot."


class _DeviceFault(Exception):
    """The device as a whole gives no facts; the text says why and what to do."""


class _Gpu:
    """A GPU or a slice: its handle, what never changes, and when PCIe was measured."""

    def __init__(self, handle: Any, parent: Any, identity: dict[str, Any]) -> None:
        self.handle = handle
        self.parent = parent
        """Handle of the whole card for a MIG slice, else None."""
        self.identity = identity
        self.fault = ""
        self.pcie: dict[str, float] = {}
        self.pcie_at = float("-inf")


class NvmlSource(DeviceSource):
    """Opened by `open_nvml`; reads the devices that were there then."""

    def __init__(self, pynvml: Any, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._nvml = pynvml
        self._clock = clock
        self._gpus: list[_Gpu] = []
        self._errors: list[str] = []
        self.opening: int | None = None
        """NVML index of the card that is being opened at this moment."""

    def inventory(self) -> list[dict[str, Any]]:
        return [
            {**gpu.identity, "error": gpu.fault} if gpu.fault else dict(gpu.identity)
            for gpu in self._gpus
        ]

    def sample(self) -> list[dict[str, Any]]:
        out = []
        for gpu in self._gpus:
            left_out = self.suspended(gpu.identity)
            if left_out is None and gpu.fault:
                left_out = {**gpu.identity, "error": gpu.fault}
            if left_out is not None:
                out.append(left_out)
                continue
            self._busy = gpu.identity["uuid"]
            try:
                out.append({**gpu.identity, **self._read(gpu)})
            except _DeviceFault as fault:
                out.append({**gpu.identity, "error": str(fault)})
            finally:
                self._busy = None
        return out

    def errors(self) -> list[str]:
        return list(self._errors)

    # -- opening ---------------------------------------------------------------------

    def open(self, hung: set[int]) -> None:
        """Finds the devices; cards in `hung` are listed without being touched.

        Raises:
            pynvml.NVMLError: the library or the driver as a whole does not work.
        """
        nvml = self._nvml
        nvml.nvmlInit()
        for index in range(nvml.nvmlDeviceGetCount()):
            if index in hung:
                self._add_broken(index, "The driver does not answer for this GPU.")
                continue
            self.opening = index
            try:
                self._open_card(index, nvml.nvmlDeviceGetHandleByIndex(index))
            except nvml.NVMLError_GpuIsLost:
                self._add_broken(index, _LOST)
            except nvml.NVMLError as error:
                self._add_broken(index, f"NVML cannot open this GPU: {error}")
            self.opening = None
        for label, gpu in enumerate(self._gpus):
            gpu.identity["index"] = label

    def _open_card(self, index: int, handle: Any) -> None:
        mode = self._ask(self._nvml.nvmlDeviceGetMigMode, handle)
        if mode is None or mode[0] != 1:
            self._gpus.append(_Gpu(handle, None, self._identity(handle)))
            return
        slices = 0
        for number in range(self._ask(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._ask(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if part is not None:
                self._gpus.append(_Gpu(part, handle, self._identity(part)))
                slices += 1
        if not slices:
            card = _Gpu(handle, None, self._identity(handle))
            card.fault = (
                f"MIG is on and GPU {index} has no slice: make one with `nvidia-smi mig -cgi`, "
                "or turn MIG off."
            )
            self._gpus.append(card)

    def _identity(self, handle: Any) -> dict[str, Any]:
        identity = {
            "vendor": "nvidia",
            "uuid": _text(self._nvml.nvmlDeviceGetUUID(handle)),
            "index": 0,
            "name": _text(self._ask(self._nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"),
        }
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        if memory is not None:
            identity["vram_bytes"] = int(memory.total)
        return identity

    def _add_broken(self, index: int, why: str) -> None:
        identity = {
            "vendor": "nvidia",
            "uuid": f"nvidia-{index}",  # its real UUID cannot be asked for
            "index": index,
            "name": f"NVIDIA GPU {index}",
        }
        gpu = _Gpu(None, None, identity)
        gpu.fault = why
        self._gpus.append(gpu)

    # -- reading ---------------------------------------------------------------------

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """The answer, or None when this card or driver does not give one.

        Raises:
            _DeviceFault: the device does not work at all.
        """
        nvml = self._nvml
        try:
            return call(*args)
        except nvml.NVMLError_GpuIsLost as error:
            raise _DeviceFault(_LOST) from error
        except nvml.NVMLError_ResetRequired as error:
            raise _DeviceFault(_RESET) from error
        except nvml.NVMLError_Uninitialized as error:
            raise _DeviceFault("NVML was shut down; restart the agent.") from error
        except nvml.NVMLError:
            return None

    def _read(self, gpu: _Gpu) -> dict[str, Any]:
        nvml, handle = self._nvml, gpu.handle
        card = handle if gpu.parent is None else gpu.parent
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        limit = self._ask(
            nvml.nvmlDeviceGetTemperatureThreshold, card, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        )
        facts: dict[str, Any] = {
            "vram_bytes": None if memory is None else int(memory.total),
            "used_bytes": None if memory is None else int(memory.used),
            "temp_c": self._ask(nvml.nvmlDeviceGetTemperature, card, nvml.NVML_TEMPERATURE_GPU),
            "temp_limit_c": limit or None,  # some cards answer 0 for «has none»
            "clock_mhz": self._ask(nvml.nvmlDeviceGetClockInfo, card, nvml.NVML_CLOCK_SM),
            "throttle": self._throttle(card),
            "ecc_errors": self._ask(
                nvml.nvmlDeviceGetTotalEccErrors,
                card,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
            ),
        }
        if gpu.parent is None:
            # Of a slice NVML knows neither utilisation nor power: the card's would mislead.
            rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
            facts["util_percent"] = None if rates is None else float(rates.gpu)
            facts["power_w"] = _watts(self._ask(nvml.nvmlDeviceGetPowerUsage, handle))
            facts["power_limit_w"] = _watts(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle))
            facts.update(self._pcie(gpu))
        return {key: value for key, value in facts.items() if value is not None}

    def _throttle(self, card: Any) -> list[str] | None:
        reasons = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, card)
        if reasons is None:  # drivers before 535 know the older name only
            reasons = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, card)
        if reasons is None:
            return None
        return [word for bit, word in _THROTTLE_WORDS if reasons & bit]

    def _pcie(self, gpu: _Gpu) -> dict[str, float]:
        now = self._clock()
        if now - gpu.pcie_at >= _PCIE_EVERY_S:
            gpu.pcie_at = now
            gpu.pcie = {}
            for key, counter in (
                ("pcie_rx_bytes_s", self._nvml.NVML_PCIE_UTIL_RX_BYTES),
                ("pcie_tx_bytes_s", self._nvml.NVML_PCIE_UTIL_TX_BYTES),
            ):
                kib = self._ask(self._nvml.nvmlDeviceGetPcieThroughput, gpu.handle, counter)
                if kib is not None:
                    gpu.pcie[key] = kib * 1024.0
        return gpu.pcie


def open_nvml(
    patience_s: float = OPEN_PATIENCE_S, proc_root: Path = Path("/proc")
) -> tuple[NvmlSource | None, list[str]]:
    """NVML, or None without NVIDIA hardware, and what is wrong with what to do.

    Opening happens in a thread, because the driver may hang in it; a card that hangs is
    listed with that error and the others are opened without it.
    """
    try:
        import pynvml
    except ImportError:
        return None, ["pynvml is missing from the agent: NVIDIA GPUs cannot be seen."]
    hung: set[int] = set()
    while True:
        source = NvmlSource(pynvml)
        outcome: list[BaseException | None] = []

        def work(source: NvmlSource = source, outcome: list[Any] = outcome) -> None:
            try:
                source.open(hung)
                outcome.append(None)
            except Exception as failure:  # noqa: BLE001 - carried to the caller's thread
                outcome.append(failure)

        thread = threading.Thread(target=work, name="nvml-open", daemon=True)
        thread.start()
        thread.join(patience_s)
        if not outcome:
            if source.opening is None or source.opening in hung:
                return None, [
                    f"The NVIDIA driver did not answer within {patience_s:g} s: its GPUs are "
                    "left out. See `dmesg | grep -i nvrm`; usually only a reboot helps."
                ]
            hung.add(source.opening)
            continue
        error = outcome[0]
        if error is None:
            return (source, []) if source.inventory() else (None, [])
        if not isinstance(error, pynvml.NVMLError):
            raise error
        return None, _explain(pynvml, error, proc_root)


def _explain(pynvml: Any, error: Any, proc_root: Path) -> list[str]:
    """Why NVML does not work and what to do; nothing on a machine without NVIDIA."""
    module = proc_root / "driver/nvidia/version"
    if isinstance(error, pynvml.NVMLError_LibRmVersionMismatch):
        try:
            loaded = module.read_text().splitlines()[0].partition(":")[2].strip()
        except (OSError, IndexError):
            loaded = ""
        of_what = f" (the loaded module is: {loaded})" if loaded else ""
        return [
            "NVIDIA driver/library version mismatch: the driver was upgraded while its old "
            f"kernel module stayed loaded{of_what}. Reboot, or stop everything on the GPUs and "
            "reload the nvidia modules. Engines that run keep running; new ones cannot start "
            "on the GPUs."
        ]
    missing = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
    if isinstance(error, missing) and not module.exists():
        return []
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return [
            "The NVIDIA driver is loaded, but libnvidia-ml.so.1 is not found: install the "
            "driver's utilities (nvidia-utils), or start the container with the utility "
            "capability."
        ]
    if isinstance(error, pynvml.NVMLError_DriverNotLoaded):
        return ["The NVIDIA driver is not loaded: try `modprobe nvidia`, or reinstall it."]
    if isinstance(error, pynvml.NVMLError_NoPermission):
        return [
            "NVML gives no permission: the user needs access to /dev/nvidia* (group video or "
            "render)."
        ]
    return [f"NVML does not work: {error}. `nvidia-smi` on the node tells more."]


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
