"""Fleets made up for pictures and tests: panes, a long list, one GPU, no GPU.

Every snapshot is a function of the second it is asked for, so pictures are the same on
every machine. It is data for the screen only; `olol-tui demo` runs the real path.
"""

from __future__ import annotations

from dataclasses import replace

from olol_tui.console.sample_parts import (
    GIB,
    H200,
    LIBRARY,
    MODELS,
    RTX_4090,
    WALL,
    model_load,
    node,
    requests,
    wave,
)
from olol_tui.fleet.snapshot import (
    Alert,
    Device,
    Engine,
    Fleet,
    GatewayState,
    Loaded,
    Model,
    Node,
    Operation,
    Pin,
    Split,
    SplitPart,
)


def _at_rest(device: Device) -> Device:
    return replace(device, util_percent=0.0, power_w=74.0, temp_c=39.0, used_bytes=GIB // 2)


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
        devices=(hot, *second.devices[1:3], _at_rest(second.devices[3])),
        engines=(*second.engines[:3], broken),
    )
    places = [
        ("n01/gpu0", "llama3.3:70b"),
        ("n01/gpu0", "qwen3:8b"),
        ("n01/gpu0", "llama3.3:70b"),
        ("n01/gpu1", "llama3.3:70b"),
        ("n01/gpu1", "llama3.3:70b"),
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


def split_fleet(at_s: float = 300.0) -> Fleet:
    """The same two nodes, with one model over three GPUs."""
    base = panes_fleet(at_s)
    name, layers = "llama3.1:405b", 126

    def part(node: Node, index: int, count: int, gib: int, *, head: bool = False) -> SplitPart:
        device = node.devices[index]
        return SplitPart(
            node=node.name,
            device=device.uuid,
            label=device.label,
            layers=count,
            has_output=head,
            planned_bytes=gib * GIB,
            engine="" if head else f"{node.name}/rpc-{device.label}",
            road="" if head else "loopback" if node.name == "n01" else "ssh",
            state="ready",
            real_layers=count,
            weights_bytes=(gib - 5) * GIB,
            kv_bytes=4 * GIB,
            compute_bytes=GIB // 2,
        )

    first, second = base.nodes
    parts = (part(second, 3, 42, 90), part(first, 2, 42, 90), part(first, 3, 42, 93, head=True))
    split = Split(
        id=f"split/{name}",
        model=name,
        state="ready",
        node="n01",
        engine=f"n01/split-{name}",
        parts=parts,
        num_ctx=8192,
        since_s=at_s - 340,
        tokens_factor=0.71,
        reason=f"{layers} layers fit no GPU alone; three are the fewest",
    )
    taken = {(p.node, p.device): p.real_bytes or 0 for p in parts}

    def filled(node: Node) -> Node:
        freed = {uuid for host, uuid in taken if host == node.name}
        engines = tuple(
            replace(e, loaded=()) if freed & set(e.devices) else e for e in node.engines
        )
        devices = tuple(
            replace(d, used_bytes=taken[node.name, d.uuid] + GIB) if d.uuid in freed else d
            for d in node.devices
        )
        return replace(node, devices=devices, engines=engines)

    return replace(base, nodes=(filled(first), filled(second)), splits=(split,), operations=())


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
