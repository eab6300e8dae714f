"""Pieces of a made-up fleet: figures that move, devices, nodes, models, requests.

Every snapshot is a function of the second it is asked for, so pictures are the same on
every machine. It is data for the screen only; `olol-tui demo` runs the real path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from olol_tui.fleet.snapshot import (
    Device,
    Engine,
    Loaded,
    Loading,
    Model,
    ModelLoad,
    Node,
    Request,
)

GIB = 2**30
WALL = "2026-11-23T18:56:30Z"

MODELS: tuple[tuple[str, float, str, str], ...] = (
    ("llama3.3:70b", 42.5, "70.6B", "Q4_K_M"),
    ("gpt-oss:120b", 65.3, "116.8B", "MXFP4"),
    ("qwen3:32b", 20.2, "32.8B", "Q4_K_M"),
    ("deepseek-r1:32b", 19.9, "32.8B", "Q4_K_M"),
    ("qwen3:8b", 5.2, "8.2B", "Q4_K_M"),
    ("phi4:14b", 9.1, "14.7B", "Q4_K_M"),
    ("mixtral:8x22b", 80.0, "141B", "Q4_0"),
    ("nomic-embed-text", 0.3, "137M", "F16"),
    ("gemma3:27b", 17.4, "27.4B", "Q4_K_M"),
    ("llama3.1:405b", 243.0, "406B", "Q4_K_M"),
)
_SIZE = {name: round(gib * GIB) for name, gib, _, _ in MODELS}

LIBRARY = tuple(
    Model(
        name=name,
        digest=f"sha256:{index:064x}",
        size_bytes=_SIZE[name],
        family=name.split(":")[0].rstrip("0123456789."),
        parameter_size=parameters,
        quantization=quantization,
        context_length=131_072,
    )
    for index, (name, _, parameters, quantization) in enumerate(MODELS)
)


def wave(seed: int, at_s: float, low: float, high: float) -> float:
    """A figure between two bounds that wanders without repeating soon."""
    slow = math.sin(at_s / (17 + seed % 7) + seed * 1.7)
    fast = math.sin(at_s / (3.1 + seed % 5) + seed * 0.6)
    jitter = math.sin(at_s * 2.3 + seed * 3.1)
    share = 0.5 + 0.32 * slow + 0.13 * fast + 0.05 * jitter
    return low + (high - low) * min(1.0, max(0.0, share))


@dataclass(frozen=True, slots=True)
class GpuKind:
    name: str
    vram_gib: int
    idle_w: float
    limit_w: float


H200 = GpuKind("NVIDIA H200", 141, 75, 700)
L40S = GpuKind("NVIDIA L40S", 48, 35, 350)
RTX_4090 = GpuKind("NVIDIA GeForce RTX 4090", 24, 22, 450)


def gpu(kind: GpuKind, index: int, seed: int, at_s: float, held_gib: float, busy: float) -> Device:
    """One GPU; `busy` 0..1 is how hard it works on average."""
    util = wave(seed, at_s, 0, 100 * min(1.0, 1.6 * busy)) if busy else 0.0
    total = kind.vram_gib * GIB
    return Device(
        uuid=f"GPU-{seed:08x}",
        index=index,
        name=kind.name,
        vendor="nvidia",
        vram_bytes=total,
        used_bytes=min(total, round((0.4 + held_gib) * GIB)),
        util_percent=util,
        temp_c=34 + 0.36 * util + wave(seed + 3, at_s, 0, 9),
        temp_limit_c=83,
        power_w=kind.idle_w + (kind.limit_w - kind.idle_w) * util / 112,
        power_limit_w=kind.limit_w,
        clock_mhz=1980,
    )


def loaded(name: str, *, keep_s: int = 240, pinned: bool = False) -> Loaded:
    size = round(_SIZE[name] * 1.08)
    minute, second = divmod(30 + keep_s, 60)
    expires = "" if pinned else f"2026-11-23T18:{56 + minute:02d}:{second:02d}Z"
    if 56 + minute >= 60:
        expires = f"2026-11-23T19:{minute - 4:02d}:{second:02d}Z"
    return Loaded(
        name=name,
        size_bytes=size,
        vram_bytes=size,
        context_length=8192,
        expires_at="" if pinned else expires,
        pinned=pinned,
    )


def node(
    name: str,
    kind: GpuKind,
    seed: int,
    at_s: float,
    held: Sequence[Sequence[str]],
    *,
    pinned: frozenset[str] = frozenset(),
    loading: dict[int, tuple[str, float]] | None = None,
) -> Node:
    """A node with one Ollama per GPU; `held` names the models on each."""
    devices, engines = [], []
    for index, names in enumerate(held):
        gib = sum(_SIZE[n] * 1.08 for n in names) / GIB
        device = gpu(kind, index, seed + index, at_s, gib, 0.55 if names else 0.0)
        on_its_way = (loading or {}).get(index)
        engines.append(
            Engine(
                id=f"{name}/ollama-gpu{index}",
                node=name,
                kind="ollama",
                state="ready",
                devices=(device.uuid,),
                address=f"127.0.0.1:{29100 + index}",
                pid=4100 + seed + index,
                version="0.13.1",
                slots=4,
                loaded=tuple(
                    loaded(n, pinned=n in pinned, keep_s=60 + 37 * (seed + k) % 240)
                    for k, n in enumerate(names)
                ),
                loading=(Loading(on_its_way[0], at_s - 8, on_its_way[1]),) if on_its_way else (),
            )
        )
        devices.append(device)
    return Node(
        name=name,
        state="ready",
        kind="ssh",
        devices=tuple(devices),
        engines=tuple(engines),
        library=LIBRARY,
        agent_version="0.1.0",
        age_s=0.5,
        cpu_percent=wave(seed, at_s, 2, 20),
        memory_bytes=1024 * GIB,
        memory_used_bytes=180 * GIB,
    )


def model_load(name: str, at_s: float, queued: int, running: int, replicas: int) -> ModelLoad:
    seed = len(name)
    busy = replicas > 0
    return ModelLoad(
        model=name,
        queued=queued,
        running=running,
        replicas=replicas,
        requests_per_s=wave(seed, at_s, 0.4, 4),
        tokens_per_s=wave(seed + 1, at_s, 40, 190) if busy and "embed" not in name else 0.0,
        ttft_p50_s=wave(seed, at_s, 0.1, 0.8) if busy else None,
        ttft_p95_s=wave(seed, at_s, 0.9, 2.4) if busy else None,
        pinned=name == "llama3.3:70b",
        loading=not busy,
    )


def requests(at_s: float, places: Sequence[tuple[str, str]], queued: int) -> tuple[Request, ...]:
    """Queued and running requests, then some that ended; `places` are (where, model)."""
    clients = ("webui", "ci-7", "batch-nightly", "10.0.4.21")
    waiting = ("llama3.3:70b", "gpt-oss:120b", "qwen3:32b")
    found: list[Request] = []
    number = 9412
    for index in range(queued):
        age_s = 17.5 - 0.7 * index
        found.append(
            Request(
                id=f"r{number - index}",
                state="queued",
                model=waiting[index % 3],
                dialect="openai" if index % 2 else "ollama",
                path="/v1/chat/completions" if index % 2 else "/api/chat",
                client=clients[index % 4],
                age_s=age_s,
                prompt_tokens=None,
                priority="batch" if index % 4 == 2 else "interactive",
                position=1 + index // 3,
                expected_s=4.2 * (1 + index // 3) + index % 3,
            )
        )
    for index, (where, model) in enumerate(places):
        i = index + queued
        prefill = index % 6 == 0
        found.append(
            Request(
                id=f"r{number - i}",
                state="prefill" if prefill else "decode",
                model=model,
                dialect="ollama",
                path="/api/chat",
                client=clients[i % 4],
                age_s=max(0.4, 14.7 - 0.6 * index),
                engine=where.replace("/", "/ollama-"),
                where=where,
                wait_s=wave(i, at_s, 0.02, 1.3),
                ttft_s=None if prefill else wave(i + 1, at_s, 0.1, 1.9),
                prompt_tokens=180 + 37 * i % 900,
                tokens=0 if prefill else round(wave(i + 2, at_s, 12, 860)),
                tokens_per_s=None if prefill else wave(i + 3, at_s, 18, 88),
                why="warm on 2 engines; shortest expected wait 0.1 s (other: 0.8 s)",
            )
        )
    found.reverse()
    for index in range(14):
        failed = index % 7 == 3
        found.append(
            Request(
                id=f"r{9300 + index}",
                state="failed" if failed else "cancelled" if index % 7 == 5 else "done",
                model=MODELS[index % 5][0],
                dialect="ollama",
                path="/api/generate",
                client=clients[index % 4],
                age_s=30 + 9.0 * index,
                engine="n01/ollama-gpu0",
                where=f"n0{1 + index % 2}/gpu{index % 4}",
                wait_s=0.1 * index,
                ttft_s=None if failed else 0.2 + 0.1 * index,
                total_s=4.0 + index,
                prompt_tokens=220,
                tokens=0 if failed else 180 + 20 * index,
                tokens_per_s=None if failed else 40.0 + index,
                status=503 if failed else 200,
                error="engine exited: CUDA error: out of memory" if failed else "",
            )
        )
    return tuple(found)


LOG = (
    'time=18:56:01 level=INFO source=server.go:1289 msg="llama runner started in 3.42 seconds"',
    "[GIN] 2026/11/23 - 18:56:04 | 200 |  1.92s | 127.0.0.1 | POST /api/chat",
    'time=18:56:09 level=WARN source=sched.go:642 msg="gpu VRAM did not recover in time"',
    "CUDA error: out of memory at ggml-cuda.cu:88",
)
