"""NVIDIA devices through the real pynvml against a libnvidia-ml.so.1 of our own.

The library is compiled from `nvml/stub.c`; a child process finds it through
LD_LIBRARY_PATH, reads devices as the agent does, and answers questions line by line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).parent / "nvml/stub.c"
GIB = 1 << 30

CHILD = """
import json, sys, threading
from pathlib import Path
from olol_tui.agent import devices, sampler
source = devices.open_devices(root=Path(sys.argv[1]), patience_s=0.5)
reader = sampler.Sampler(source, hz=20, patience_s=0.5)
for line in sys.stdin:
    word = line.strip()
    if word == "start":
        reader.start()
        answer = reader.wait_fresh(20)
    elif word == "sample":
        answer = source.sample()
    elif word == "latest":
        answer = reader.latest()
    elif word == "stop":
        reader.stop()
        answer = None
    elif word == "threads":
        answer = threading.active_count()
    else:
        answer = getattr(source if word == "inventory" else reader, word)()
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the compiled library."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler to build the stub of libnvidia-ml.so.1")
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", target, SOURCE], check=True)
    return folder


class Child:
    """The child process and the stub's control files."""

    def __init__(self, process: subprocess.Popen[str], control: Path) -> None:
        self._process = process
        self._control = control

    def ask(self, word: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the child ended"
        return json.loads(line)

    def set(self, name: str, value: str = "") -> None:
        (self._control / name).write_text(value)

    def clear(self, name: str) -> None:
        (self._control / name).unlink()

    def count(self, name: str) -> int:
        path = self._control / name
        return len(path.read_text()) if path.exists() else 0

    def until(self, condition: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The devices of the sampler's latest frame, as soon as they meet the condition."""
        deadline = time.monotonic() + 20
        while True:
            devices: list[dict[str, Any]] = self.ask("latest")["devices"]
            if condition(devices):
                return devices
            assert time.monotonic() < deadline, f"never happened; last: {devices}"
            time.sleep(0.02)


@pytest.fixture
def start(library: Path, tmp_path: Path) -> Callable[..., Any]:
    """Starts a child with these control files; a context manager."""

    @contextmanager
    def child(python: str = sys.executable, **control: str) -> Iterator[Child]:
        folder = tmp_path / "control"
        folder.mkdir(exist_ok=True)
        for name, value in control.items():
            (folder / name.replace("_", "-")).write_text(value)
        spec = importlib.util.find_spec("pynvml")
        assert spec is not None and spec.origin is not None
        alone = tmp_path / "pynvml"  # what a zipapp carries: this one file
        alone.mkdir(exist_ok=True)
        shutil.copy(spec.origin, alone / "pynvml.py")
        process = subprocess.Popen(
            [python, "-c", CHILD, str(tmp_path)],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(library),
                "NVML_STUB": str(folder),
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(alone)]),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            yield Child(process, folder)
        finally:
            process.kill()
            process.wait(30)
            process.stdin.close()
            process.stdout.close()

    return child


def test_every_fact_of_a_card_and_none_that_it_lacks(start: Any) -> None:
    with start() as child:
        first, second, third = child.ask("sample")
        assert child.ask("errors") == []
    assert first == {
        "vendor": "nvidia",
        "uuid": "GPU-00000000",
        "index": 0,
        "name": "Stub GPU A",
        "vram_bytes": 24 * GIB,
        "used_bytes": GIB,
        "util_percent": 30.0,
        "temp_c": 50,
        "temp_limit_c": 92,
        "power_w": 123.4,
        "power_limit_w": 350.0,
        "clock_mhz": 1410,
        "throttle": ["power cap", "thermal (hardware)"],
        "ecc_errors": 7,
        "pcie_rx_bytes_s": 2000 * 1024.0,
        "pcie_tx_bytes_s": 1000 * 1024.0,
    }
    assert (second["uuid"], second["index"], second["util_percent"]) == ("GPU-00000001", 1, 31.0)
    assert not {"power_w", "power_limit_w", "ecc_errors", "error"} & second.keys()
    assert second["throttle"] == []
    assert third["power_w"] == 123.4


def test_the_inventory_has_what_never_changes(start: Any) -> None:
    with start() as child:
        assert child.ask("inventory")[1] == {
            "vendor": "nvidia",
            "uuid": "GPU-00000001",
            "index": 1,
            "name": "Stub GPU B",
            "vram_bytes": 24 * GIB,
        }


def test_pcie_is_measured_less_often_than_the_rest(start: Any) -> None:
    with start(pcie="") as child:
        readings = [child.ask("sample") for _ in range(5)]
        assert child.count("pcie") == 2 * 3  # two directions of three cards, once
        assert all(reading[0]["pcie_rx_bytes_s"] == 2000 * 1024.0 for reading in readings)


def test_slices_are_devices_and_borrow_only_what_the_card_shares(start: Any) -> None:
    with start(mig_0="") as child:
        devices = child.ask("sample")
    assert [d["uuid"] for d in devices] == ["MIG-0-0", "MIG-0-1", "GPU-00000001", "GPU-00000002"]
    assert [d["index"] for d in devices] == [0, 1, 2, 3]
    part = devices[0]
    assert (part["name"], part["vram_bytes"]) == ("Stub 0 MIG 1g.10gb", 10 * GIB)
    assert part["temp_c"] == 50
    assert not {"util_percent", "power_w", "pcie_rx_bytes_s"} & part.keys()


def test_a_lost_card_is_an_error_on_that_card_alone(start: Any) -> None:
    with start() as child:
        assert child.ask("start")
        child.set("lost-1")
        devices = child.until(lambda devices: "error" in devices[1])
        assert "fell off the bus" in devices[1]["error"]
        assert devices[1]["name"] == "Stub GPU B" and "util_percent" not in devices[1]
        assert devices[0]["util_percent"] == 30.0 and "error" not in devices[2]
        child.clear("lost-1")
        child.until(lambda devices: "error" not in devices[1])


def test_a_card_that_is_lost_when_the_agent_starts_is_listed(start: Any) -> None:
    with start(lost_1="") as child:
        devices = child.ask("sample")
        assert [d["index"] for d in devices] == [0, 1, 2]
        assert devices[1]["uuid"] == "nvidia-1" and "fell off the bus" in devices[1]["error"]
        assert child.ask("inventory")[1]["error"] == devices[1]["error"]


def test_a_call_that_hangs_is_left_behind_and_the_others_go_on(start: Any) -> None:
    with start() as child:
        assert child.ask("start")
        child.set("hang-1")
        devices = child.until(lambda devices: "error" in devices[1])
        assert "has not answered" in devices[1]["error"] and "power_w" in devices[0]
        before = child.ask("latest")["t_mono"]
        child.until(lambda devices: child.ask("latest")["t_mono"] > before + 0.2)
        threads = child.ask("threads")
        assert threads <= 4  # main, beat, reader, and the one that hangs
        child.clear("hang-1")
        child.until(lambda devices: devices[1].get("util_percent") == 31.0)
        child.ask("stop")


def test_two_cards_may_hang_at_once(start: Any) -> None:
    with start() as child:
        assert child.ask("start")
        child.set("hang-0")
        child.set("hang-2")
        devices = child.until(lambda devices: "error" in devices[0] and "error" in devices[2])
        assert devices[1]["util_percent"] == 31.0


def test_a_card_that_hangs_while_it_is_opened_does_not_hide_the_others(start: Any) -> None:
    with start(openhang_1="") as child:
        devices = child.ask("sample")
        assert [d["uuid"] for d in devices] == ["GPU-00000000", "nvidia-1", "GPU-00000002"]
        assert "does not answer" in devices[1]["error"]


def test_a_driver_upgrade_under_way_is_named_with_its_remedy(start: Any, tmp_path: Path) -> None:
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.1\nGCC\n")
    with start(init="18") as child:
        (error,) = child.ask("errors")
        assert "mismatch" in error and "550.1" in error and "Reboot" in error
        (device,) = child.ask("inventory")
        assert device["uuid"] == "cpu"  # the node still computes


@pytest.mark.parametrize(("code", "word"), [("4", "permission"), ("9", "modprobe"), ("999", "smi")])
def test_other_failures_of_the_driver_are_named(
    start: Any, tmp_path: Path, code: str, word: str
) -> None:
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: x\n")
    with start(init=code) as child:
        (error,) = child.ask("errors")
        assert word in error


def test_a_library_without_driver_is_a_machine_without_gpu(start: Any) -> None:
    with start(init="9") as child:
        assert child.ask("errors") == []
        assert child.ask("inventory")[0]["uuid"] == "cpu"


def test_the_oldest_supported_python_reads_the_same(start: Any) -> None:
    found = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python"))
    python = str(found[0]) if found else shutil.which("python3.8")
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    with start(python=python) as child:
        assert [d["util_percent"] for d in child.ask("sample")] == [30.0, 31.0, 32.0]
