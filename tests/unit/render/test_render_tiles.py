"""State of a device: which fault wins, what its line says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from olol_tui.fleet.snapshot import (
    Alert,
    Device,
    Engine,
    Fleet,
    Loaded,
    Loading,
    Node,
    Pin,
    Request,
)
from olol_tui.render.summary import notices
from olol_tui.render.tiles import GLYPHS, Tile, build_tiles

GPU = Device("GPU-1", 0, "NVIDIA H200", "nvidia", vram_bytes=100, used_bytes=40, util_percent=50.0)
ENGINE = Engine(
    "n1/ollama-gpu0", "n1", "ollama", "ready", ("GPU-1",), loaded=(Loaded("qwen3:8b", "", 30, 30),)
)


def tile(*, device: Device = GPU, engine: Engine = ENGINE, **node: Any) -> Tile:
    return build_tiles(fleet(device=device, engine=engine, **node))[0]


def fleet(*, device: Device = GPU, engine: Engine = ENGINE, **node: Any) -> Fleet:
    settings = {"state": "ready", "devices": (device,), "engines": (engine,)} | node
    return Fleet(now_s=100.0, nodes=(Node("n1", **settings),))


def test_a_working_gpu_is_ok_and_an_unused_one_idle() -> None:
    assert tile().state == "ok"
    assert tile(device=replace(GPU, util_percent=0.0)).state == "idle"


@pytest.mark.parametrize(
    ("changes", "state", "note"),
    [
        ({"state": "lost", "error": "no route to host"}, "lost", "no route to host"),
        ({"stale": True, "age_s": 14.0}, "stale", "no telemetry for 14s"),
        ({"cordoned": True}, "cordoned", "cordoned"),
        ({"device": replace(GPU, error="fell off the bus")}, "crit", "fell off the bus"),
        (
            {"device": replace(GPU, temp_c=84.0, temp_limit_c=83.0)},
            "warn",
            "84C, limit 83C",
        ),
        ({"device": replace(GPU, throttle=("power",))}, "warn", "throttled: power"),
        (
            {"engine": replace(ENGINE, loaded=(Loaded("qwen3:8b", "", 30, 15),))},
            "warn",
            "qwen3:8b: 50% on the CPU",
        ),
        (
            {"engine": replace(ENGINE, loading=(Loading("phi4:14b", 90.0, 0.4),))},
            "loading",
            "",
        ),
        (
            {"engine": replace(ENGINE, state="failed", error="exit 1", log_tail=("bad model",))},
            "crit",
            "failed: exit 1",
        ),
        (
            {"engine": replace(ENGINE, state="backoff", error="exit 1", retry_in_s=4.0)},
            "warn",
            "exited, retry in 4s: exit 1",
        ),
    ],
)
def test_what_is_wrong_has_a_state_and_a_sentence(
    changes: dict[str, Any], state: str, note: str
) -> None:
    found = tile(**changes)
    assert (found.state, found.note) == (state, note)
    assert found.state in GLYPHS


def test_the_worse_fault_wins() -> None:
    """A failed engine on a hot GPU of a stale node: the engine is what to look at."""
    broken = replace(ENGINE, state="failed", error="exit 1", log_tail=("first", "bad model"))
    hot = replace(GPU, temp_c=90.0, temp_limit_c=83.0)
    found = tile(engine=broken, device=hot, stale=True)
    assert found.state == "crit"
    assert found.log == "bad model"
    assert found.dimmed


def test_spill_is_no_fault_on_a_cpu() -> None:
    cpu = Device("cpu", 0, "CPU", "cpu", vram_bytes=100, used_bytes=20, util_percent=1.0)
    found = tile(device=cpu, engine=replace(ENGINE, devices=("cpu",)))
    assert found.state == "idle"
    assert found.memory_word == "ram"
    assert found.label == "n1/cpu"


def test_requests_and_pins_belong_to_their_device() -> None:
    running = Request("r1", "decode", "qwen3:8b", "ollama", "/api/chat", "c", 1.0, where="n1/gpu0")
    ended = replace(running, id="r2", state="done")
    base = fleet()
    pinned = replace(base, requests=(running, ended), pins=(Pin("QWEN3:8b", "n1", "GPU-1"),))
    found = build_tiles(pinned)[0]
    assert found.requests == 1
    assert found.residents[0].pinned


def test_a_node_without_devices_is_a_tile_of_its_own() -> None:
    endpoint = Node("old-box", "ready", kind="endpoint", engines=(replace(ENGINE, devices=()),))
    found = build_tiles(Fleet(nodes=(endpoint,)))
    assert [t.label for t in found] == ["old-box"]
    assert found[0].residents[0].name == "qwen3:8b"


def test_notices_name_every_fault_once() -> None:
    broken = replace(ENGINE, state="failed", error="exit 1", log_tail=("bad model",), since_s=95.0)
    base = fleet(engine=broken, device=replace(GPU, error="lost"))
    found = notices(base, build_tiles(base))
    assert [(n.where, n.message, n.detail) for n in found] == [
        ("n1/ollama-gpu0", "failed: exit 1", "bad model"),
        ("n1/gpu0", "lost", ""),
    ]
    told = replace(
        base,
        alerts=(
            Alert("critical", "n1/ollama-gpu0", "failed: exit 1; last log line: bad model", 90.0),
            Alert("warning", "n1/gpu0", "hot", 90.0),
        ),
    )
    found = notices(told, build_tiles(told))
    assert [(n.where, n.message, n.detail) for n in found] == [
        ("n1/ollama-gpu0", "failed: exit 1", "bad model"),
        ("n1/gpu0", "hot", ""),
    ]
