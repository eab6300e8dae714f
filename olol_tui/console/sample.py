"""A fleet made up for pictures and tests: figures that move, models, requests, faults.

Every snapshot is a function of the second it is asked for, so pictures are the same on
every machine. It is data for the screen only; `olol-tui demo` runs the real path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from olol_tui.fleet.snapshot import (
    Alert,
    Device,
    Engine,
    Fleet,
    GatewayState,
    Loaded,
    Loading,
    Model,
    ModelLoad,
    Node,
    Operation,
    Pin,
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
                wait_s=age_s,
                prompt_tokens=None,
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


def panes_fleet(at_s: float = 300.0) -> Fleet:
    """Two nodes of four GPUs: loading, hot, stale, pinned."""
    first = node(
        "n01",
        H200,
        11,
        at_s,
        (
            ("llama3.3:70b", "qwen3:8b"),
            ("llama3.3:70b", "gemma3:27b"),
            ("deepseek-r1:32b", "nomic-embed-text"),
            (),
        ),
        pinned=frozenset({"llama3.3:70b"}),
    )
    second = node(
        "n02",
        H200,
        40,
        at_s,
        (("gpt-oss:120b",), ("gpt-oss:120b", "qwen3:8b"), (), ("phi4:14b",)),
        loading={2: ("qwen3:32b", 0.41)},
    )
    hot = replace(second.devices[0], temp_c=84.0, throttle=("thermal",))
    broken = replace(
        second.engines[3],
        state="backoff",
        retry_in_s=4.0,
        restarts=2,
        loaded=(),
        error="exit status 2",
        log_tail=("CUDA error: out of memory at ggml-cuda.cu:88",),
        since_s=at_s - 3,
    )
    second = replace(
        second,
        devices=(hot, *second.devices[1:3], replace(second.devices[3], util_percent=0.0)),
        engines=(*second.engines[:3], broken),
    )
    places = [
        ("n01/gpu0", "llama3.3:70b"),
        ("n01/gpu0", "qwen3:8b"),
        ("n01/gpu0", "llama3.3:70b"),
        ("n01/gpu1", "llama3.3:70b"),
        ("n01/gpu1", "gemma3:27b"),
        ("n01/gpu2", "deepseek-r1:32b"),
        ("n02/gpu0", "gpt-oss:120b"),
        ("n02/gpu0", "gpt-oss:120b"),
        ("n02/gpu1", "gpt-oss:120b"),
        ("n02/gpu1", "qwen3:8b"),
    ]
    loads = (
        model_load("llama3.3:70b", at_s, round(wave(1, at_s, 0, 9)), 3, 2),
        model_load("gpt-oss:120b", at_s, round(wave(2, at_s, 0, 6)), 3, 2),
        model_load("qwen3:32b", at_s, 2, 0, 0),
        model_load("deepseek-r1:32b", at_s, 0, 1, 1),
        model_load("qwen3:8b", at_s, 0, 2, 2),
        model_load("nomic-embed-text", at_s, 0, 0, 1),
    )
    return Fleet(
        seq=round(at_s * 2),
        now_s=at_s,
        wall=WALL,
        name="prod-a",
        version="0.1.0",
        nodes=(first, second),
        requests=requests(at_s, places, sum(x.queued for x in loads)),
        gateway=GatewayState(
            address="http://127.0.0.1:8000",
            queued=sum(x.queued for x in loads),
            running=len(places),
            tokens_per_s=412.0,
            requests_total=18_204,
            errors_total=12,
            ttft_p95_s=1.84,
            models=loads,
        ),
        pins=tuple(Pin("llama3.3:70b", "n01", first.devices[index].uuid) for index in (0, 1)),
        operations=(
            Operation("op-7", "load qwen3:32b on n02/gpu2", "running", at_s - 8.2, 0.41, "reading"),
        ),
        alerts=(Alert("warning", "n02/gpu0", "84C, limit 83C: throttled", at_s - 124),),
    )


def list_fleet(at_s: float = 300.0, nodes: int = 8, gpus: int = 8) -> Fleet:
    """A dense fleet: `nodes` x `gpus`, one of them stale."""
    names = [name for name, gib, _, _ in MODELS if gib < 90]
    found = []
    for n in range(nodes):
        held = [
            ()
            if (n + g) % 7 == 6
            else tuple(dict.fromkeys((names[(n * 3 + g) % len(names)], names[(g * 5 + n) % 6])))[
                : 1 + (n + g) % 2
            ]
            for g in range(gpus)
        ]
        loading = {3: ("qwen3:32b", 0.62)} if n == 2 else None
        one = node(f"n{n + 1:02d}", H200, 100 + 16 * n, at_s, held, loading=loading)
        found.append(replace(one, stale=True, age_s=14.0) if n == 4 else one)
    places = [
        (f"{one.name}/{device.label}", engine.loaded[0].name)
        for one in found
        for device, engine in zip(one.devices, one.engines, strict=True)
        if engine.loaded
    ]
    hot = replace(found[0].devices[1], temp_c=86.0)
    found[0] = replace(found[0], devices=(found[0].devices[0], hot, *found[0].devices[2:]))
    base = panes_fleet(at_s)
    return replace(
        base,
        nodes=tuple(found),
        requests=requests(at_s, places[:40], base.gateway.queued),
        operations=(),
        pins=(),
        alerts=(Alert("critical", "n05", "no telemetry: the link is down", at_s - 14),),
    )


def hero_fleet(at_s: float = 300.0) -> Fleet:
    """This machine with one GPU."""
    one = node(
        "local",
        RTX_4090,
        7,
        at_s,
        (("qwen3:8b", "phi4:14b", "nomic-embed-text"),),
        pinned=frozenset({"qwen3:8b"}),
    )
    local = replace(one, kind="local", library=tuple(m for m in LIBRARY if m.size_bytes < 30 * GIB))
    places = [("local/gpu0", "qwen3:8b"), ("local/gpu0", "phi4:14b")]
    loads = (
        replace(model_load("qwen3:8b", at_s, 0, 1, 1), pinned=True),
        model_load("phi4:14b", at_s, 1, 1, 1),
        model_load("nomic-embed-text", at_s, 0, 0, 1),
    )
    return Fleet(
        seq=round(at_s * 2),
        now_s=at_s,
        wall=WALL,
        name="local",
        version="0.1.0",
        nodes=(local,),
        requests=requests(at_s, places, 1),
        gateway=GatewayState(
            address="http://127.0.0.1:8000",
            queued=1,
            running=2,
            tokens_per_s=88.1,
            requests_total=412,
            ttft_p95_s=0.42,
            models=loads,
        ),
        pins=(Pin("qwen3:8b", "local", local.devices[0].uuid),),
    )


def cpu_fleet(at_s: float = 300.0) -> Fleet:
    """This machine without a GPU: one embedded engine on the CPU."""
    device = Device(
        uuid="cpu",
        index=0,
        name="AMD Ryzen 7 7840U",
        vendor="cpu",
        vram_bytes=32 * GIB,
        used_bytes=round(wave(3, at_s, 6, 8) * GIB),
        util_percent=wave(5, at_s, 5, 95),
    )
    small = Model(
        name="smollm2:135m",
        size_bytes=94 * 2**20,
        parameter_size="135M",
        quantization="Q4_K_M",
        path="/usr/lib/smollm2.gguf",
    )
    engine = Engine(
        id="local/embedded-cpu-smollm2-135m",
        node="local",
        kind="embedded",
        state="ready",
        devices=("cpu",),
        address="127.0.0.1:29100",
        pid=4242,
        model="smollm2:135m",
        loaded=(Loaded("smollm2:135m", size_bytes=183 * 2**20, context_length=4096),),
    )
    local = Node(
        name="local",
        state="ready",
        devices=(device,),
        engines=(engine,),
        library=(small,),
        runner="embedded",
        age_s=0.4,
    )
    load = replace(model_load("smollm2:135m", at_s, 0, 1, 1), tokens_per_s=61.0, pinned=False)
    return Fleet(
        seq=round(at_s * 2),
        now_s=at_s,
        wall=WALL,
        name="local",
        nodes=(local,),
        requests=requests(at_s, [("local/cpu", "smollm2:135m")], 0),
        gateway=GatewayState(
            address="http://127.0.0.1:8000",
            running=1,
            tokens_per_s=61.0,
            ttft_p95_s=0.21,
            models=(load,),
        ),
    )


LOG = (
    'time=18:56:01 level=INFO source=server.go:1289 msg="llama runner started in 3.42 seconds"',
    "[GIN] 2026/11/23 - 18:56:04 | 200 |  1.92s | 127.0.0.1 | POST /api/chat",
    'time=18:56:09 level=WARN source=sched.go:642 msg="gpu VRAM did not recover in time"',
    "CUDA error: out of memory at ggml-cuda.cu:88",
)
