"""Which engines a node should run."""

from __future__ import annotations

import msgspec
import pytest

from olol_tui.config import NodeConfig, SimulatedConfig
from olol_tui.fleet import desired
from olol_tui.fleet.snapshot import Device, Model
from olol_tui.fleet.wire import Installed, Inventory, Spec
from olol_tui.fleet.wishes import Launch

GPUS = tuple(Device(f"GPU-{n}", n, "RTX", "nvidia", vram_bytes=24 << 30) for n in range(3))
CPU = (Device("cpu", 0, "EPYC", "cpu", vram_bytes=64 << 30),)


def inventory(*kinds: str, devices: tuple[Device, ...] = GPUS) -> Inventory:
    return Inventory(devices=devices, engines={kind: Installed() for kind in kinds})


def launch(model: str = "smollm2:135m", device: str = "cpu", kind: str = "embedded") -> Launch:
    return Launch(
        engine_id=f"local/{kind}-{device}-{model}",
        node="local",
        kind="embedded" if kind == "embedded" else "llama-server",
        device=device,
        model=model,
        path="/models/x.gguf",
        chat_template="chatml",
    )


@pytest.mark.parametrize(
    ("installed", "kind"),
    [
        (("ollama", "embedded"), "ollama"),
        (("embedded",), "embedded"),
        (("embedded", "llama-server"), "embedded"),
    ],
)
def test_auto_prefers_ollama_then_embedded(installed: tuple[str, ...], kind: str) -> None:
    assert desired.choose_kind(NodeConfig(local=True), inventory(*installed)).kind == kind


def test_a_node_without_an_engine_says_how_to_get_one() -> None:
    plan = desired.plan("local", NodeConfig(local=True), inventory())
    assert not plan.specs
    assert "olol-tui[embedded]" in plan.error and "ollama.com/download" in plan.error
    plan = desired.plan("local", NodeConfig(local=True), inventory("llama-server"))
    assert 'engine = "llama-server"' in plan.error
    plan = desired.plan("local", NodeConfig(local=True, engine="ollama"), inventory("embedded"))
    assert plan.error.startswith("Ollama was not found")


def test_one_ollama_a_gpu_and_one_of_them_prunes() -> None:
    plan = desired.plan("n1", NodeConfig(local=True, num_ctx=8192), inventory("ollama"))
    assert [spec.id for spec in plan.specs] == [f"n1/ollama-gpu{n}" for n in range(3)]
    assert [spec.devices for spec in plan.specs] == [("GPU-0",), ("GPU-1",), ("GPU-2",)]
    assert [spec.prune for spec in plan.specs] == [True, False, False]
    assert {spec.num_ctx for spec in plan.specs} == {8192}
    assert len(plan.reasons) == 3 and plan.runner is None


def test_shared_is_one_engine_over_all_gpus_and_cpu_is_one_engine() -> None:
    shared = desired.plan("n1", NodeConfig(local=True, gpus="shared"), inventory("ollama"))
    assert [(s.id, s.devices) for s in shared.specs] == [
        ("n1/ollama-shared", ("GPU-0", "GPU-1", "GPU-2"))
    ]
    cpu = desired.plan("n1", NodeConfig(local=True), inventory("ollama", devices=CPU))
    assert [(s.id, s.devices) for s in cpu.specs] == [("n1/ollama-cpu", ("cpu",))]


def test_a_gpu_whose_sensor_fails_keeps_its_engine() -> None:
    lost = (GPUS[0], Device("GPU-1", 1, "RTX", "nvidia", error="NVML does not answer"))
    plan = desired.plan("n1", NodeConfig(local=True), inventory("ollama", devices=lost))
    assert len(plan.specs) == 2


def test_simulated_rates_and_slots_reach_the_engine() -> None:
    config = NodeConfig(
        local=True, engine="simulated", simulated=SimulatedConfig(slots=3, decode_tps=50.0)
    )
    (first, *_) = desired.plan("n1", config, inventory("simulated")).specs
    assert first.slots == 3
    assert first.simulated == {"num_ctx": 4096, "decode_tps": 50.0}


def test_runner_nodes_run_what_was_launched_on_devices_they_have() -> None:
    config = NodeConfig(local=True, slots=2)
    gone = launch("qwen3:8b", device="GPU-9")
    other_kind = launch("qwen3:4b", kind="llama-server")
    plan = desired.plan(
        "local", config, inventory("embedded", devices=CPU), [launch(), gone, other_kind]
    )
    (spec,) = plan.specs
    assert plan.runner == "embedded"
    assert spec.id == launch().engine_id and spec.slots == 2 and spec.num_ctx == 4096
    assert spec.model is not None
    assert (spec.model.path, spec.model.chat_template) == ("/models/x.gguf", "chatml")


def test_engine_ids_are_readable_and_never_shared_by_two_models() -> None:
    device = CPU[0]
    assert (
        desired.engine_for("local", "embedded", device, "SmolLM2:135M")
        == "local/embedded-cpu-smollm2-135m"
    )
    first = desired.engine_for("local", "embedded", device, "a-b:c")
    taken = [
        Launch(
            engine_id=first, node="local", kind="embedded", device="cpu", model="a-b:c", path="/x"
        )
    ]
    second = desired.engine_for("local", "embedded", device, "a:b-c", taken)
    assert second.startswith(first) and second != first
    assert desired.engine_for("local", "embedded", device, "a-b:c", taken) == first


def test_a_library_is_what_the_engines_can_load() -> None:
    stored, loose = Model("qwen3:8b"), Model("smollm2:135m", path="/m.gguf")
    ollama = desired.plan("n1", NodeConfig(local=True), inventory("ollama"))
    embedded = desired.plan("n1", NodeConfig(local=True), inventory("embedded"))
    assert desired.usable([stored, loose], ollama) == (stored,)
    assert desired.usable([stored, loose], embedded) == (loose,)


def test_models_dir_is_a_store_for_ollama_and_a_directory_for_runners() -> None:
    files = [("m:1", "/m.gguf", "")]
    ollama = NodeConfig(local=True, engine="ollama", models_dir="/store")
    runner = NodeConfig(local=True, engine="embedded", models_dir="/gguf")
    named = [{"name": "m:1", "path": "/m.gguf", "chat_template": ""}]
    assert desired.library_request("n", ollama, files, "/user") == (named, ["/user"], "/store")
    assert desired.library_request("n", runner, files, "") == (named, ["/gguf"], "")


def test_unset_fields_are_left_to_the_agent() -> None:
    body = msgspec.json.decode(msgspec.json.encode(Spec("n/e", "ollama", ("GPU-0",))))
    assert body == {"id": "n/e", "kind": "ollama", "devices": ["GPU-0"]}
