"""Reads the devices once a beat, in threads that may be lost.

A call into a GPU driver can hang for ever when the card falls off the bus. So one thread
keeps the beat and never touches a driver, and another reads. A reader that does not come
back is left behind, its device is reported with an error, and a new reader goes on
without it. Should the lost reader return after all, its device is read again.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from .devices.cpu import CpuMeter, memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from .devices import DeviceSource

PATIENCE_S = 5.0
"""NVML answers in milliseconds; a busy driver has been seen to take a second."""
_MOST_LOST_READERS = 8
"""That hang without a device to blame; after these the last facts stay, with an error."""


class _Reader:
    """A thread that reads all devices when asked, until it hangs or is told to end."""

    def __init__(self, source: DeviceSource, on_return: Callable[[_Reader], None]) -> None:
        self._source = source
        self._on_return = on_return
        self._wanted = threading.Semaphore(0)
        self._done = threading.Event()
        self._abandoned = threading.Event()
        self.blamed: str | None = None
        """The device in whose driver it hung, once abandoned."""
        self.devices: list[dict[str, Any]] = []
        self.error = ""
        threading.Thread(target=self._run, name="device-reader", daemon=True).start()

    def read(self, patience_s: float) -> bool:
        """Reads once; False when it did not come back in time."""
        self._done.clear()
        self._wanted.release()
        return self._done.wait(patience_s)

    def abandon(self) -> None:
        self.blamed = self._source.busy()
        self._abandoned.set()
        self._wanted.release()

    def _run(self) -> None:
        while True:
            self._wanted.acquire()
            if self._abandoned.is_set():
                break
            try:
                self.devices = self._source.sample()
                self.error = ""
            except Exception as error:  # noqa: BLE001 - one bad reading must not end the readings
                self.error = f"Reading the devices failed: {type(error).__name__}: {error}"
            self._done.set()
        self._on_return(self)


class Sampler:
    """The latest facts of a node; `latest()` never blocks."""

    def __init__(self, source: DeviceSource, hz: float, patience_s: float = PATIENCE_S) -> None:
        """
        Args:
            source: of the devices.
            hz: readings a second.
            patience_s: how long a reading may take before its thread is given up.
        """
        if hz <= 0:
            raise ValueError("hz: expected a number above 0")
        self._source = source
        self._beat_s = 1.0 / hz
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._fresh = threading.Event()
        self._thread: threading.Thread | None = None
        self._meter = CpuMeter()
        self._error = ""
        self._unexplained = 0
        self._latest = self._frame(source.inventory())

    def start(self) -> None:
        """Starts reading. The first reading comes at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the beat. A reader that hangs is a daemon thread and keeps nothing alive."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._patience_s + 1.0)
            self._thread = None

    def latest(self) -> dict[str, Any]:
        """The last frame: t_mono, devices, cpu_percent, memory_bytes, memory_used_bytes."""
        with self._lock:
            return self._latest

    def errors(self) -> list[str]:
        """What is wrong with the sources or with reading them."""
        return self._source.errors() + ([self._error] if self._error else [])

    def wait_fresh(self, timeout_s: float) -> bool:
        """Blocks until a reading that began after this call is there."""
        self._fresh.clear()
        return self._fresh.wait(timeout_s)

    def _run(self) -> None:
        reader: _Reader | None = _Reader(self._source, self._returned)
        due = time.monotonic()
        while not self._stopping.is_set():
            if reader is None and self._unexplained < _MOST_LOST_READERS:
                reader = _Reader(self._source, self._returned)
            devices = self.latest()["devices"]
            if reader is not None:
                if reader.read(self._patience_s):
                    self._error = reader.error
                    devices = devices if reader.error else reader.devices
                else:
                    devices = self._give_up(reader, devices)
                    reader = None
            with self._lock:
                self._latest = self._frame(devices)
            self._fresh.set()
            due = max(due + self._beat_s, time.monotonic())
            if reader is not None:  # after a loss the others are read again at once
                self._stopping.wait(max(0.0, due - time.monotonic()))
            elif self._unexplained >= _MOST_LOST_READERS:
                self._stopping.wait(self._beat_s)
        if reader is not None:
            reader.abandon()

    def _give_up(self, reader: _Reader, devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leaves the reader behind; the devices with the one that hangs marked."""
        reader.abandon()
        uuid = reader.blamed
        if uuid is None:
            self._unexplained += 1
            self._error = f"Reading the devices has hung for {self._patience_s:g} s."
            return devices
        error = (
            f"The driver has not answered for this device for {self._patience_s:g} s. "
            "It is left out until it does; see `dmesg`, and reboot the node if it stays."
        )
        self._source.suspend(uuid, error)
        return [{**d, "error": error} if d["uuid"] == uuid else d for d in devices]

    def _returned(self, reader: _Reader) -> None:
        """A reader's thread ends: on stop, or because a hung call came back after all."""
        if reader.blamed is not None:
            self._source.resume(reader.blamed)

    def _frame(self, devices: list[dict[str, Any]]) -> dict[str, Any]:
        total, used = memory()
        return {
            "t_mono": time.monotonic(),
            "devices": devices,
            "cpu_percent": self._meter.percent(),
            "memory_bytes": total,
            "memory_used_bytes": used,
        }
