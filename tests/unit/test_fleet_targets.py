"""What the words of a command mean, and what is said when they mean nothing."""

from __future__ import annotations

import pytest

from olol_tui.errors import ModelNotFound, PlacementError
from olol_tui.fleet.snapshot import Device, Engine, Loaded, Model, Node
from olol_tui.fleet.targets import find_place, find_target, room_of

GIB = 2**30
GPUS = tuple(
    Device(f"GPU-{n}", n, "RTX", "nvidia", vram_bytes=24 * GIB, used_bytes=n * GIB)
    for n in range(2)
)
SHARED = Engine(
    "n1/ollama-shared",
    "n1",
    "ollama",
    "ready",
    devices=("GPU-0", "GPU-1"),
    loaded=(Loaded("Qwen3:8b", size_bytes=6 * GIB, vram_bytes=6 * GIB, pinned=True),),
)
N1 = Node(
    "n1", "ready", devices=GPUS, engines=(SHARED,), library=(Model("qwen3:8b"), Model("phi4:14b"))
)
N2 = Node(
    "n2",
    "ready",
    devices=(Device("cpu", 0, "EPYC", "cpu"),),
    library=(Model("smollm2:135m", path="/s.gguf"),),
    runner="embedded",
)
NODES = (N1, N2)


@pytest.mark.parametrize("device", ["GPU-1", "gpu1", "1"])
def test_a_device_has_three_names(device: str) -> None:
    assert find_place(NODES, "n1", device)[1].uuid == "GPU-1"


def test_a_target_is_an_engine_of_many_models_or_a_place_for_a_runner() -> None:
    many = find_target(NODES, "QWEN3:8b", "n1", "gpu0")
    assert many.engine is SHARED and many.where == "n1/gpu0" and many.name == "qwen3:8b"
    one = find_target(NODES, "smollm2:135m", "n2", "cpu")
    assert one.engine is None and one.runner == "embedded" and one.devices == ("cpu",)


def test_unknown_names_are_answered_with_near_ones_and_with_who_has_it() -> None:
    with pytest.raises(ModelNotFound) as near:
        find_target(NODES, "qwen3:4b", "n1", "gpu0")
    assert "qwen3:8b" in near.value.hint
    with pytest.raises(ModelNotFound) as elsewhere:
        find_target(NODES, "phi4:14b", "n2", "cpu")
    assert elsewhere.value.hint == "These have it: n1"
    with pytest.raises(ModelNotFound) as nothing:
        find_target((Node("n3", "ready", devices=GPUS),), "x", "n3", "gpu0")
    assert "holds no model" in nothing.value.hint
    with pytest.raises(PlacementError) as node:
        find_place(NODES, "n8", "gpu0")
    assert node.value.hint == "Nodes: n1, n2"
    with pytest.raises(PlacementError) as device:
        find_place(NODES, "n1", "gpu8")
    assert device.value.hint == "Devices of n1: gpu0, gpu1"


def test_a_node_without_engine_says_why() -> None:
    node = Node(
        "n3",
        "ready",
        devices=GPUS,
        library=(Model("a:1"),),
        error="No engine was found: pip install",
    )
    with pytest.raises(PlacementError) as refused:
        find_target((node,), "a:1", "n3", "gpu0")
    assert refused.value.hint == node.error


def test_the_room_of_a_shared_engine_is_all_its_devices() -> None:
    target = find_target(NODES, "phi4:14b", "n1", "gpu0")
    room = room_of(target, lambda _: frozenset({"qwen3:8b"}))
    assert room.where == "n1/gpu0+gpu1"
    assert (room.total_bytes, room.free_bytes) == (48 * GIB, 47 * GIB)
    (resident,) = room.residents
    assert (resident.name, resident.busy, resident.pinned) == ("qwen3:8b", True, True)
    unknown = room_of(find_target(NODES, "smollm2:135m", "n2", "cpu"), lambda _: frozenset())
    assert unknown.total_bytes is None
