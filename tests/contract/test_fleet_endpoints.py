"""An Ollama that somebody else runs: polled, used, never managed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from olol_tui.config import ClusterConfig, EndpointConfig, NodeConfig, SimulatedConfig
from olol_tui.errors import NodeError, PlacementError
from olol_tui.fleet.commands import Place, RestartEngine, SetPin, Unload
from tests.contract.fleet_rig import rig
from tests.contract.sim_process import SimEngine, sim_engine

ENGINE = "old-box/endpoint"


def cluster(at: str, vram: int | None = None) -> ClusterConfig:
    one_gpu = NodeConfig(local=True, engine="simulated", simulated=SimulatedConfig(gpus=1))
    return ClusterConfig(
        nodes={"n1": one_gpu},
        endpoints={"old-box": EndpointConfig(url=at, slots=3, vram=vram)},
    )


def url(engine: SimEngine) -> str:
    return f"http://{engine.address}"


async def test_an_endpoint_is_shown_and_loads_and_unloads(tmp_path: Path) -> None:
    async with (
        sim_engine(vram_bytes=24 << 30, load_bytes_s=1e11) as engine,
        rig(tmp_path, cluster(url(engine), vram=24 << 30)) as fleet,
    ):
        await fleet.until(lambda _: fleet.node("old-box").state == "ready")
        node = fleet.node("old-box")
        assert node.kind == "endpoint"
        assert "qwen3:8b" in [model.name for model in node.library]
        shown = fleet.engine(ENGINE)
        assert (shown.state, shown.slots) == ("ready", 3)
        assert shown.address == engine.address and shown.version
        embedding = next(m for m in node.library if m.name.startswith("nomic"))
        assert embedding.capabilities == ("embedding",)

        await fleet.do(Place("nomic-embed-text", "old-box", "gpu0"))
        await fleet.do(SetPin("qwen3:8b", "old-box", "gpu0"))
        assert sorted(fleet.loaded(ENGINE)) == ["nomic-embed-text:latest", "qwen3:8b"]
        assert {x.name: x.pinned for x in fleet.engine(ENGINE).loaded}["qwen3:8b"]
        assert fleet.used_bytes("gpu0", "old-box") > 5e9
        await fleet.do(Unload("nomic-embed-text", "old-box", "gpu0"))
        assert fleet.loaded(ENGINE) == ["qwen3:8b"]

        with pytest.raises(PlacementError, match="somebody else"):
            await fleet.controller.submit(RestartEngine(ENGINE))
        with pytest.raises(NodeError, match="somebody else"):
            async for _ in fleet.controller.logs("old-box", ENGINE):
                pass


async def test_somebody_elses_load_is_seen(tmp_path: Path) -> None:
    async with (
        sim_engine(load_bytes_s=1e11) as engine,
        rig(tmp_path, cluster(url(engine))) as fleet,
    ):
        await fleet.until(lambda _: fleet.node("old-box").state == "ready")
        await engine.load("llama3.2:1b")
        fleet.controller.kick(ENGINE)
        await fleet.until(lambda _: fleet.loaded(ENGINE) == ["llama3.2:1b"])


async def test_a_dead_endpoint_is_lost_with_what_it_had(tmp_path: Path) -> None:
    async with (
        sim_engine(load_bytes_s=1e11) as engine,
        rig(tmp_path, cluster(url(engine))) as fleet,
    ):
        await fleet.until(lambda _: fleet.node("old-box").state == "ready")
        engine.process.kill()
        await fleet.until(lambda _: fleet.node("old-box").state == "lost")
        shown = fleet.engine(ENGINE)
        assert shown.state == "backoff" and shown.retry_in_s is not None and shown.error
        assert fleet.node("old-box").library
        assert any(a.where == "old-box" and a.severity == "critical" for a in fleet.fleet.alerts)
        await fleet.until(lambda _: fleet.node("n1").state == "ready")


async def test_an_endpoint_that_was_never_there_is_failed(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with rig(tmp_path, cluster(nobody)) as fleet:
            await fleet.until(lambda _: fleet.node("old-box").state == "failed")
            assert "does not answer" in fleet.node("old-box").error
