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
    over_ssh = desired.plan("h1", NodeConfig(host="h1"), inventory())
    assert "ollama_archive" in over_ssh.error and "pip" not in over_ssh.error
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


def roles_of(plan: desired.Plan) -> list[str]:
    return [plan.roles[gpu.uuid] for gpu in GPUS]


def test_roles_by_index_and_uuid_and_what_is_not_named_keeps_the_default() -> None:
    config = NodeConfig(host="h1", roles={"1": "rpc", "GPU-2": "off"})
    plan = desired.plan("h1", config, inventory("ollama"))
    assert roles_of(plan) == ["ollama", "rpc", "off"]
    assert [spec.id for spec in plan.specs] == ["h1/ollama-gpu0"]
    shown = [plan.show(gpu) for gpu in GPUS]
    assert [gpu.note for gpu in shown] == [
        "",
        "reserved for llama.cpp RPC",
        "switched off: no engine may use it",
    ]
    assert not plan.error and not plan.warning


def test_shared_is_one_engine_over_those_with_that_role() -> None:
    config = NodeConfig(host="h1", roles={"0": "shared", "2": "shared"})
    plan = desired.plan("h1", config, inventory("ollama"))
    assert [(s.id, s.devices) for s in plan.specs] == [
        ("h1/ollama-shared", ("GPU-0", "GPU-2")),
        ("h1/ollama-gpu1", ("GPU-1",)),
    ]
    alone = desired.plan("h1", NodeConfig(host="h1", roles={"1": "shared"}), inventory("ollama"))
    assert [s.id for s in alone.specs] == [f"h1/ollama-gpu{n}" for n in range(3)]


@pytest.mark.parametrize("role", ["off", "rpc"])
def test_a_role_of_one_gpu_leaves_the_specs_of_the_others_as_they_are(role: str) -> None:
    """An agent replaces the process of a spec that changes in any way."""
    before = desired.plan("h1", NodeConfig(host="h1"), inventory("ollama")).specs
    for changed in range(3):
        config = NodeConfig(host="h1", roles={str(changed): role})  # type: ignore[dict-item]
        after = desired.plan("h1", config, inventory("ollama")).specs
        assert after == tuple(s for s in before if s.devices != (f"GPU-{changed}",))


def test_a_wish_is_stronger_than_the_configuration() -> None:
    config = NodeConfig(host="h1", gpus="shared", roles={"0": "off"})
    plan = desired.plan("h1", config, inventory("ollama"), wished={"GPU-0": "ollama"})
    assert roles_of(plan) == ["ollama", "shared", "shared"]
    assert [s.id for s in plan.specs] == ["h1/ollama-shared", "h1/ollama-gpu0"]


def test_runners_are_not_launched_on_reserved_gpus() -> None:
    config = NodeConfig(host="h1", engine="embedded")
    wanted = [launch(device="GPU-0"), launch("qwen3:8b", device="GPU-1")]
    plan = desired.plan("h1", config, inventory("embedded"), wanted, {"GPU-1": "rpc"})
    assert [spec.devices for spec in plan.specs] == [("GPU-0",)]


def test_a_role_for_a_gpu_that_is_not_there_is_said() -> None:
    config = NodeConfig(host="h1", roles={"7": "off", "GPU-9": "rpc", "1": "off"})
    plan = desired.plan("h1", config, inventory("ollama"))
    assert plan.warning.startswith("roles names 7, GPU-9, and this node has 0 (GPU-0), 1 (GPU-1)")
    assert len(plan.specs) == 2


def test_all_gpus_off_is_no_error() -> None:
    config = NodeConfig(host="h1", roles={"0": "off", "1": "off", "2": "off"})
    plan = desired.plan("h1", config, inventory("ollama"))
    assert plan.specs == () and not plan.error


def test_engines_listen_beyond_loopback_only_for_direct_transport() -> None:
    plan = desired.plan("h1", NodeConfig(host="h1"), inventory("ollama"))
    assert {spec.listen for spec in plan.specs} == {""}
    direct = NodeConfig(host="h1", transport="direct")
    assert {s.listen for s in desired.plan("h1", direct, inventory("ollama")).specs} == {"0.0.0.0"}
