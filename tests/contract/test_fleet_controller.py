"""The controller over a real agent and simulated engines: facts, placement, failures."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest

from olol_tui.config import ClusterConfig, NodeConfig
from olol_tui.errors import ModelNotFound, NodeError, OlolError, PlacementError
from olol_tui.fleet.commands import (
    CancelRequest,
    Move,
    Place,
    RestartEngine,
    SetCordon,
    SetPin,
    Unload,
)
from olol_tui.fleet.snapshot import Fleet, GatewayState, Request
from tests.contract.fleet_rig import agent_pid, kill, lives, rig, simulated_cluster

GPU0, GPU1 = "n1/simulated-gpu0", "n1/simulated-gpu1"


async def test_a_simulated_node_comes_up_with_devices_engines_and_library(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster(gpus=2)) as fleet:
        await fleet.ready()
        node = fleet.node()
        assert [device.label for device in node.devices] == ["gpu0", "gpu1"]
        assert [engine.id for engine in node.engines] == [GPU0, GPU1]
        assert "qwen3:8b" in [model.name for model in node.library]
        assert not node.stale and not node.error and node.agent_version
        assert not [a for a in fleet.fleet.alerts if a.severity == "critical"]
        # Marks of the agent's clock arrive on ours.
        assert abs(node.engines[0].since_s - fleet.fleet.now_s) < 60


async def test_place_loads_the_model_and_tells_what_it_takes(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster(load_bytes_s=4e9)) as fleet:
        await fleet.ready()
        operation = (await fleet.controller.submit(Place("qwen3:8b", "n1", "gpu1"))).operation
        shown = await fleet.until(
            lambda _: any(x.name == "qwen3:8b" for x in fleet.engine(GPU1).loading)
        )
        assert any(o.id == operation and o.state == "running" for o in shown.operations)
        again = (await fleet.controller.submit(Place("qwen3:8b", "n1", "gpu1"))).operation
        assert again == operation, "a second wish for the same joins the first"
        done = await fleet.until(
            lambda f: any(o.id == operation and o.state == "done" for o in f.operations)
        )
        told = next(o for o in done.operations if o.id == operation)
        assert "takes 5.8 GiB" in told.message and "of 24 GiB" in told.message
        assert fleet.loaded(GPU1) == ["qwen3:8b"] and fleet.loaded(GPU0) == []
        assert not fleet.engine(GPU1).loading


async def test_what_cannot_be_is_refused_at_once_and_says_what_exists(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        submit = fleet.controller.submit
        with pytest.raises(PlacementError, match=r"llama3\.3:70b needs about .* 24 GiB when empty"):
            await submit(Place("llama3.3:70b", "n1", "gpu0"))
        with pytest.raises(ModelNotFound) as unknown:
            await submit(Place("qwen3:8", "n1", "gpu0"))
        assert "qwen3:8b" in unknown.value.hint
        with pytest.raises(PlacementError) as no_device:
            await submit(Place("qwen3:8b", "n1", "gpu7"))
        assert "gpu0, gpu1" in no_device.value.hint
        with pytest.raises(PlacementError, match="no node n9") as no_node:
            await submit(Place("qwen3:8b", "n9", "gpu0"))
        assert "n1" in no_node.value.hint
        with pytest.raises(PlacementError, match="not loaded on n1/gpu0"):
            await submit(Unload("qwen3:8b", "n1", "gpu0"))
        with pytest.raises(PlacementError, match="not pinned"):
            await submit(SetPin("qwen3:8b", "n1", "gpu0", pinned=False))
        with pytest.raises(PlacementError, match="no engine"):
            await submit(RestartEngine("n1/nothing"))
        with pytest.raises(OlolError, match="no live request"):
            await submit(CancelRequest("r1"))
        assert not fleet.fleet.operations


async def test_move_loads_the_target_before_it_unloads_the_source(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster(load_bytes_s=1e10)) as fleet:
        await fleet.ready()
        await fleet.do(Place("qwen3:8b", "n1", "gpu0"))
        with pytest.raises(PlacementError, match="already"):
            await fleet.controller.submit(Move("qwen3:8b", "n1", "gpu0", "n1", "gpu0"))
        homeless = []

        def watch(snapshot: Fleet) -> None:
            engines = [snapshot.engine(GPU0), snapshot.engine(GPU1)]
            if not any(x.name == "qwen3:8b" for e in engines if e for x in e.loaded):
                homeless.append(snapshot.seq)

        unsubscribe = fleet.controller.on_change(watch)
        operation = await fleet.do(Move("qwen3:8b", "n1", "gpu0", "n1", "gpu1"))
        unsubscribe()
        assert fleet.loaded(GPU0) == [] and fleet.loaded(GPU1) == ["qwen3:8b"]
        assert not homeless
        assert "freed" in operation.message
        await fleet.do(Unload("qwen3:8b", "n1", "gpu1"))
        assert fleet.loaded(GPU1) == []


async def test_idle_models_that_will_be_evicted_are_named(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster(load_bytes_s=1e10)) as fleet:
        await fleet.ready()
        await fleet.do(Place("gpt-oss:20b", "n1", "gpu0"))
        # The device's own figure must have caught up with the load.
        await fleet.until(lambda _: fleet.used_bytes("gpu0") > 13e9)
        accepted = await fleet.controller.submit(Place("qwen3:32b", "n1", "gpu0"))
        shown = next(o for o in fleet.fleet.operations if o.id == accepted.operation)
        named = await fleet.until(
            lambda f: any(
                "gpt-oss:20b" in o.message and "will go" in o.message for o in f.operations
            )
        )
        assert shown.state == "running" and named
        await fleet.until(lambda _: fleet.loaded("n1/simulated-gpu0") == ["qwen3:32b"])


async def test_a_pin_returns_after_its_engine_was_killed(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        await fleet.do(SetPin("qwen3:8b", "n1", "gpu0"))
        (resident,) = fleet.engine(GPU0).loaded
        assert resident.pinned and resident.expires_at == ""
        assert [(p.model, p.node) for p in fleet.fleet.pins] == [("qwen3:8b", "n1")]
        pid = fleet.engine(GPU0).pid
        assert pid is not None
        kill(pid)
        await fleet.until(lambda _: fleet.engine(GPU0).pid != pid)
        await fleet.until(lambda _: any(x.pinned for x in fleet.engine(GPU0).loaded))
        # A pin may not be pushed out by a load that would need its place.
        await fleet.until(lambda _: fleet.used_bytes("gpu0") > 5e9)
        with pytest.raises(PlacementError, match=r"qwen3:8b .* stays pinned"):
            await fleet.controller.submit(Place("qwen3:32b", "n1", "gpu0"))
        await fleet.do(SetPin("qwen3:8b", "n1", "gpu0", pinned=False))
        assert not fleet.fleet.pins
        (resident,) = fleet.engine(GPU0).loaded
        assert not resident.pinned and resident.expires_at


async def test_a_pin_holds_against_clients_that_unload_or_limit_it(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        await fleet.do(SetPin("llama3.2:3b", "n1", "gpu0"))
        address = f"http://{fleet.engine(GPU0).address}"
        async with httpx.AsyncClient(base_url=address, timeout=30) as engine:
            limit = {"model": "llama3.2:3b", "keep_alive": "3m"}
            assert (await engine.post("/api/generate", json=limit)).status_code == 200
            fleet.controller.kick(GPU0)
            await fleet.until(lambda _: any(x.expires_at for x in fleet.engine(GPU0).loaded))
            await fleet.until(
                lambda _: any(not x.expires_at for x in fleet.engine(GPU0).loaded),
            )
            drop = {"model": "llama3.2:3b", "keep_alive": 0}
            assert (await engine.post("/api/generate", json=drop)).status_code == 200
            fleet.controller.kick(GPU0)
            await fleet.until(lambda _: fleet.loaded(GPU0) == [])
            await fleet.until(lambda _: fleet.loaded(GPU0) == ["llama3.2:3b"])
        assert any(o.title.startswith("restore pinned") for o in fleet.fleet.operations)


async def test_another_context_is_another_load(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        await fleet.do(Place("llama3.2:1b", "n1", "gpu0"))
        operation = await fleet.do(Place("llama3.2:1b", "n1", "gpu0"))
        assert "resident already" in operation.message
        operation = await fleet.do(Place("llama3.2:1b", "n1", "gpu0", num_ctx=8192))
        assert "takes" in operation.message
        assert [x.context_length for x in fleet.engine(GPU0).loaded] == [8192]


async def test_a_moved_pin_is_pinned_there_and_an_unloaded_one_no_more(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        await fleet.do(SetPin("llama3.2:1b", "n1", "gpu0"))
        await fleet.do(Move("llama3.2:1b", "n1", "gpu0", "n1", "gpu1"))
        (pin,) = fleet.fleet.pins
        assert pin.device == fleet.node().devices[1].uuid
        assert [x.pinned for x in fleet.engine(GPU1).loaded] == [True]
        operation = await fleet.do(Unload("llama3.2:1b", "n1", "gpu1"))
        assert "pin is removed" in operation.message
        assert not fleet.fleet.pins and not fleet.engine(GPU1).loaded


async def test_a_killed_agent_is_replaced_and_its_engines_keep_their_pids(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        await fleet.do(Place("qwen3:8b", "n1", "gpu0"))
        pids = [engine.pid for engine in fleet.node().engines]
        forgotten = []

        def watch(snapshot: Fleet) -> None:
            node = snapshot.node("n1")
            if node is None or len(node.engines) != 2 or not node.library or not node.devices:
                forgotten.append(node)

        fleet.controller.on_change(watch)
        before = await agent_pid(fleet)
        kill(before)
        # Its engines take requests without it: nothing is lost but news.
        down = await fleet.until(lambda _: fleet.node("n1").error)
        assert down.nodes[0].state == "ready"
        await fleet.until(lambda _: not fleet.node("n1").error)
        await fleet.ready()
        assert await agent_pid(fleet) != before
        assert [engine.pid for engine in fleet.node().engines] == pids
        await fleet.until(lambda _: fleet.loaded(GPU0) == ["qwen3:8b"])
        assert not forgotten, "a lost agent must not clear what was known"


async def test_a_silent_agent_goes_stale_with_its_values_and_recovers(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        pid = await agent_pid(fleet)
        kill(pid, signal.SIGSTOP)
        try:
            stale = await fleet.until(lambda _: fleet.node("n1").stale)
            node = stale.node("n1")
            assert node is not None and node.age_s > 0.6
            assert all(device.used_bytes is not None for device in node.devices)
            assert any("no telemetry" in alert.message for alert in stale.alerts)
        finally:
            kill(pid, signal.SIGCONT)
        await fleet.until(lambda _: not fleet.node("n1").stale)
        assert await agent_pid(fleet) == pid


async def test_a_closed_controller_leaves_engines_for_the_next_one(tmp_path: Path) -> None:
    config = simulated_cluster()
    async with rig(tmp_path, config, keep=True) as first:
        await first.ready()
        await first.do(SetPin("llama3.2:3b", "n1", "gpu1"))
        await first.do(SetCordon("n1"))
        assert all(engine.cordoned for engine in first.node().engines)
        pids = [engine.pid for engine in first.node().engines]
        agent = await agent_pid(first)
    async with rig(tmp_path, config) as second:
        await second.ready()
        assert [engine.pid for engine in second.node().engines] == pids
        assert await agent_pid(second) == agent
        assert second.node().cordoned and second.engine(GPU0).cordoned
        await second.until(lambda _: any(x.pinned for x in second.engine(GPU1).loaded))
        await second.do(SetCordon("n1", cordoned=False))
        assert not second.node().cordoned
    assert not any(lives(pid) for pid in [*pids, agent] if pid is not None)


async def test_an_agent_with_other_simulated_devices_is_replaced(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster(gpus=1), keep=True) as first:
        await first.ready()
        agent = await agent_pid(first)
        engine = first.engine(GPU0).pid
    async with rig(tmp_path, simulated_cluster(gpus=3)) as second:
        await second.ready()
        assert len(second.node().devices) == len(second.node().engines) == 3
        assert engine is not None
        assert not lives(agent) and not lives(engine)


async def test_restart_gives_the_engine_a_new_process(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        before = fleet.engine(GPU0).pid
        operation = await fleet.do(RestartEngine(GPU0))
        assert fleet.engine(GPU0).pid not in (None, before)
        assert str(fleet.engine(GPU0).pid) in operation.message


async def test_logs_come_with_their_tail(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        async with asyncio.timeout(20):
            async for line in fleet.controller.logs("n1", GPU0, tail=50):
                assert isinstance(line, str) and line
                break
        with pytest.raises(PlacementError):
            fleet.controller.logs("n9", "")


async def test_the_gateways_part_is_in_every_snapshot(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        cancelled = []
        request = Request(
            id="r1",
            state="decode",
            model="qwen3:8b",
            dialect="ollama",
            path="/api/chat",
            client="127.0.0.1",
            age_s=1.0,
            engine=GPU0,
        )

        def cancel(request_id: str) -> bool:
            cancelled.append(request_id)
            return True

        fleet.controller.attach_gateway(lambda: ((request,), GatewayState(running=1)), cancel)
        await fleet.until(lambda f: f.requests == (request,) and f.gateway.running == 1)
        await fleet.do(CancelRequest("r1"))
        assert cancelled == ["r1"]


async def test_a_node_that_fails_leaves_the_others_working(tmp_path: Path) -> None:
    config = ClusterConfig(
        nodes={**simulated_cluster().nodes, "far": NodeConfig(host="127.0.0.1", port=1)}
    )
    async with rig(tmp_path, config) as fleet:
        await fleet.until(
            lambda _: (
                fleet.node("far").state == "failed"
                and fleet.node("n1").state == "ready"
                and all(e.state == "ready" for e in fleet.node("n1").engines)
            )
        )
        assert "127.0.0.1 port 1: connection refused" in fleet.node("far").error
        assert fleet.node("far").host == "127.0.0.1:1"
        assert any(a.where == "far" and a.severity == "critical" for a in fleet.fleet.alerts)
        with pytest.raises((NodeError, PlacementError)):
            await fleet.controller.submit(Place("qwen3:8b", "far", "gpu0"))
        await fleet.do(Place("llama3.2:1b", "n1", "gpu0"))
