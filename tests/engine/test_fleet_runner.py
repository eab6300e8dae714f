"""A real model through controller and agent: one process a model, launched and withdrawn."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from olol_tui.config import ClusterConfig, ModelConfig, NodeConfig
from olol_tui.errors import ModelNotFound, NodeError, PlacementError
from olol_tui.fleet.commands import Place, SetPin, Unload
from olol_tui.fleet.snapshot import GatewayState, Request
from tests.at_hand import needs_embedded
from tests.contract.fleet_rig import Rig, kill, rig

MODEL = "smollm2:135m"
ENGINE = "local/embedded-cpu-smollm2-135m"

pytestmark = [pytest.mark.embedded, needs_embedded]


def cluster(**node: object) -> ClusterConfig:
    config = {"local": True, "engine": "embedded", "num_ctx": 512, **node}
    return ClusterConfig(nodes={"local": NodeConfig.model_validate(config)})


async def connected(fleet: Rig) -> str:
    """The device of the node, once it has told what it has."""
    await fleet.until(
        lambda _: fleet.node("local").state == "ready" and fleet.node("local").library
    )
    device = fleet.node("local").devices[0]
    if device.vendor != "cpu":
        pytest.skip("this machine has a GPU: the embedded engine is for the CPU")
    return device.uuid


async def test_launch_is_idempotent_answers_and_goes_when_touched_with_zero(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, cluster()) as fleet:
        device = await connected(fleet)
        assert fleet.node("local").runner == "embedded"
        launched = fleet.controller.launch(MODEL, "local", device)
        assert launched == ENGINE
        assert fleet.controller.launch("SmolLM2:135M", "local", device) == ENGINE
        await fleet.until(lambda _: fleet.fleet.engine(ENGINE) is not None)
        await fleet.until(lambda _: fleet.engine(ENGINE).state == "ready")
        shown = fleet.engine(ENGINE)
        assert shown.model == MODEL and fleet.loaded(ENGINE) == [MODEL]
        assert shown.loaded[0].expires_at, "idle runners say when they go"
        async with httpx.AsyncClient(base_url=f"http://{shown.address}", timeout=60) as http:
            reply = await http.post(
                "/v1/completions", json={"prompt": "The capital of France is", "max_tokens": 5}
            )
            assert reply.status_code == 200 and reply.json()["choices"][0]["text"].strip()

        running = Request(
            id="r1", state="decode", model=MODEL, dialect="ollama", path="/api/chat",
            client="test", age_s=1.0, engine=ENGINE,
        )  # fmt: skip
        requests = [running]
        fleet.controller.attach_gateway(lambda: (tuple(requests), GatewayState()), lambda _: False)
        fleet.controller.touch(ENGINE, MODEL, 0)
        seq = fleet.fleet.seq
        await fleet.until(lambda f: f.seq > seq + 5)
        assert fleet.engine(ENGINE).state == "ready", "never while a request runs"
        requests.clear()
        await fleet.until(lambda f: f.engine(ENGINE) is None)
        with pytest.raises(ModelNotFound):
            fleet.controller.launch("smollm2:1b", "local", device)
        with pytest.raises((PlacementError, NodeError)):
            fleet.controller.launch(MODEL, "elsewhere", device)


async def test_a_pinned_runner_stays_through_a_kill_and_goes_when_unloaded(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, cluster()) as fleet:
        await connected(fleet)
        operation = await fleet.do(Place(MODEL, "local", "cpu", keep_alive_s=60.0))
        assert "takes" in operation.message
        operation = await fleet.do(Place(MODEL, "local", "cpu"))
        assert "resident already" in operation.message
        before = fleet.engine(ENGINE).pid
        await fleet.do(Place(MODEL, "local", "cpu", num_ctx=1024))
        assert fleet.engine(ENGINE).pid != before, "another context is another process"
        await fleet.do(SetPin(MODEL, "local", "cpu"))
        (resident,) = fleet.engine(ENGINE).loaded
        assert resident.pinned and resident.expires_at == ""
        pid = fleet.engine(ENGINE).pid
        assert pid is not None
        kill(pid)
        await fleet.until(
            lambda _: fleet.engine(ENGINE).state == "ready" and fleet.engine(ENGINE).pid != pid
        )
        operation = await fleet.do(Unload(MODEL, "local", "cpu"))
        assert "pin is removed" in operation.message
        assert fleet.fleet.engine(ENGINE) is None and not fleet.fleet.pins


async def test_a_runner_expires_and_is_adopted_before_that(tmp_path: Path) -> None:
    async with rig(tmp_path, cluster(), keep=True) as first:
        await connected(first)
        await first.do(Place(MODEL, "local", "cpu", keep_alive_s=6.0))
        pid = first.engine(ENGINE).pid
    async with rig(tmp_path, cluster()) as second:
        await connected(second)
        await second.until(lambda _: second.engine(ENGINE).state == "ready")
        assert second.engine(ENGINE).pid == pid
        await second.until(lambda f: f.engine(ENGINE) is None)


async def test_more_context_is_another_process_once_and_not_where_it_does_not_fit(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, cluster(vram_limit="200MiB")) as fleet:
        device = await connected(fleet)
        await fleet.do(Place(MODEL, "local", "cpu"))
        before = fleet.engine(ENGINE).pid

        def has(tokens: int) -> bool:
            engine = fleet.fleet.engine(ENGINE)
            return engine is not None and [one.context_length for one in engine.loaded] == [tokens]

        assert fleet.controller.launch(MODEL, "local", device, num_ctx=1024) == ENGINE
        now = fleet.controller.engine(ENGINE)
        assert now is not None and now.state == "starting", "the old process gets nothing more"
        await fleet.until(lambda _: has(1024))
        grown = fleet.engine(ENGINE).pid
        assert grown != before
        fleet.controller.launch(MODEL, "local", device, num_ctx=512)
        fleet.controller.launch(MODEL, "local", device)
        fleet.controller.launch(MODEL, "local", device, num_ctx=2048)
        await fleet.until(lambda _: fleet.engine(ENGINE).largest_ctx == 1024)
        seq = fleet.fleet.seq
        await fleet.until(lambda f: f.seq > seq + 3)
        assert has(1024) and fleet.engine(ENGINE).pid == grown


async def test_a_file_that_is_no_model_is_said_and_hides_nothing(tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a GGUF" * 100)
    config = cluster().model_copy(update={"models": {"junk:1": ModelConfig(path=str(junk))}})
    async with rig(tmp_path / "state", config) as fleet:
        await connected(fleet)
        assert [model.name for model in fleet.node("local").library] == [MODEL]
        assert "junk.gguf" in fleet.node("local").error
        with pytest.raises(ModelNotFound, match="junk:1"):
            await fleet.controller.submit(Place("junk:1", "local", "cpu"))


async def test_sizes_come_from_the_header_as_soon_as_it_is_read(tmp_path: Path) -> None:
    async with rig(tmp_path, cluster(vram_limit="120MiB")) as fleet:
        await connected(fleet)
        await fleet.until(lambda f: f.nodes[0].library[0].footprint is not None)
        known = fleet.node("local").library[0].footprint
        assert known is not None
        weights = 30 * 2_216_448
        assert weights < known.weights_bytes < 98_362_432
        assert known.kv_at(512) == 30 * 512 * 2 * 3 * 64 * 2
        with pytest.raises(PlacementError, match=r"MiB by its header \(92.* MiB weights, 11.2"):
            await fleet.controller.submit(Place(MODEL, "local", "cpu"))


async def test_what_a_model_takes_and_where_it_fits(tmp_path: Path) -> None:
    """From the real header, with the node's own context where none is asked for."""
    async with rig(tmp_path, cluster()) as fleet:
        await connected(fleet)
        found = await fleet.controller.fit("SmolLM2:135M")
        assert (found.model, found.layers, found.ctx) == (MODEL, 30, 512)
        assert found.parts.weights == 30 * 2_216_448
        assert found.parts.cache == 30 * 512 * 2 * 3 * 64 * 2
        assert [place.where for place in found.places] == ["local/cpu"]
        assert found.places[0].has_file
        longer = await fleet.controller.fit(MODEL, num_ctx=8192, slots=2, cache_type="q8_0")
        assert longer.parts.cache == found.parts.cache * 32 * 17 // 32
        with pytest.raises(PlacementError, match="q8_0"):
            await fleet.controller.fit(MODEL, cache_type="q3")
        with pytest.raises(ModelNotFound):
            await fleet.controller.fit("nobody:1b")
