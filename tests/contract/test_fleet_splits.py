"""A split through controller and agent, with stand-ins for llama.cpp: made, mended, adopted."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest

from olol_tui.config import ClusterConfig, ModelConfig, NodeConfig
from olol_tui.errors import PlacementError
from olol_tui.fleet.commands import Unload
from olol_tui.fleet.snapshot import Engine, Split
from olol_tui.models.store_layers import StoreLayers
from tests.contract.fake_llama import VERSION, install
from tests.contract.fleet_rig import Rig, kill, lives, rig
from tests.contract.gguf_files import ALIGNMENT, LLAMA, header

MODEL = "tiny:1b"
SPLIT = f"split/{MODEL}"
WORKER = "local/rpc-server-cpu-tiny-1b"


@pytest.fixture
def config(tmp_path: Path) -> Iterator[ClusterConfig]:
    tensors = {
        "token_embd.weight": ((64, 32), 0),
        "blk.0.attn_q.weight": ((64, 64), 0),
        "blk.1.attn_q.weight": ((64, 64), 0),
        "output_norm.weight": ((64,), 0),
    }
    path = tmp_path / "tiny.gguf"
    data = header(LLAMA, tensors)
    path.write_bytes(data + bytes(-len(data) % ALIGNMENT + 4 * (64 * 32 + 2 * 64 * 64 + 64)))
    binary = str(install(tmp_path / "llama"))
    node = {"local": True, "engine": "llama-server", "binary": binary, "num_ctx": 512}
    yield ClusterConfig(
        nodes={"local": NodeConfig.model_validate(node)},
        models={MODEL: ModelConfig(path=str(path), split="always")},
    )


async def connected(fleet: Rig) -> None:
    await fleet.until(
        lambda _: fleet.node("local").state == "ready" and fleet.node("local").library
    )
    if fleet.node("local").devices[0].vendor != "cpu":
        pytest.skip("this machine has a GPU: its head would need no worker")
    assert fleet.node("local").lends and fleet.node("local").heads


def helper(fleet: Rig, engine_id: str) -> Engine:
    return next(engine for engine in fleet.node("local").helpers if engine.id == engine_id)


async def beginning(fleet: Rig, engine_id: str) -> list[str]:
    """The first lines of an engine's log."""
    async with aclosing(
        cast(AsyncGenerator[str], fleet.controller.logs("local", engine_id))
    ) as log:
        return [await anext(log) for _ in range(4)]


async def ready(fleet: Rig) -> Split:
    def there(found: object) -> bool:
        split = fleet.fleet.split(SPLIT)
        assert split is None or split.state != "failed", split
        return split is not None and split.state == "ready"

    await fleet.until(there)
    split = fleet.fleet.split(SPLIT)
    assert split is not None
    return split


async def test_a_split_is_made_mended_and_given_back(tmp_path: Path, config: ClusterConfig) -> None:
    async with rig(tmp_path / "state", config) as fleet:
        await connected(fleet)
        assert fleet.fleet.split_rules == {MODEL: "always"}
        foreseen = await fleet.controller.fit(MODEL)
        assert [(one.where, one.layers, one.is_worker) for one in foreseen.shares] == [
            ("local/cpu", 2, True)
        ]
        assert not fleet.fleet.splits, "asking changes nothing"
        assert fleet.controller.launch_split(MODEL) == SPLIT
        assert fleet.controller.launch_split("Tiny:1B") == SPLIT
        split = await ready(fleet)
        (part,) = split.parts
        assert (part.engine, part.road, part.layers, part.has_output) == (
            WORKER,
            "loopback",
            2,
            True,
        )
        worker, head = helper(fleet, WORKER), fleet.engine(split.engine)
        assert worker.version == f"RPC 7.0.0, {VERSION}" and head.version == VERSION
        assert part.weights_bytes == part.kv_bytes == 2**20, "as the head's log has it"
        assert part.real_layers is None, "which is not what was planned"
        assert head.model == MODEL and [one.name for one in head.loaded] == [MODEL]
        lines = await beginning(fleet, split.engine)
        assert any("--tensor-split 3" in line and worker.address in line for line in lines), lines
        assert worker.pid is not None and head.pid is not None
        kill(worker.pid)
        await fleet.until(
            lambda _: (again := fleet.fleet.split(SPLIT)) is not None and again.restarts == 1
        )
        mended = await ready(fleet)
        assert mended.restart_s is not None and mended.restart_s < 30
        assert not lives(head.pid), "a head does not outlive its worker"
        pids = helper(fleet, WORKER).pid, fleet.engine(split.engine).pid
        await fleet.do(Unload(MODEL, "local", "cpu"))
        await fleet.until(lambda f: not f.splits and not f.nodes[0].helpers)
        await fleet.until(lambda _: not any(pid and lives(pid) for pid in pids))


async def test_more_context_is_planned_anew_and_what_does_not_fit_is_remembered(
    tmp_path: Path, config: ClusterConfig
) -> None:
    async with rig(tmp_path / "state", config) as fleet:
        await connected(fleet)
        fleet.controller.launch_split(MODEL, num_ctx=512)
        split = await ready(fleet)
        before = fleet.engine(split.engine).pid
        fleet.controller.launch_split(MODEL, num_ctx=256)
        assert fleet.fleet.split(SPLIT) == split, "it has that much"
        fleet.controller.launch_split(MODEL, num_ctx=1024)
        await fleet.until(
            lambda f: (s := f.split(SPLIT)) is not None and s.num_ctx == 1024 and s.state == "ready"
        )
        assert fleet.engine(split.engine).pid != before
        assert [one.context_length for one in fleet.engine(split.engine).loaded] == [1024]

        def refused(_: object) -> bool:
            # As the gateway does: asked again until it is there or refused.
            fleet.controller.launch_split(MODEL, num_ctx=2**24)
            split = fleet.fleet.split(SPLIT)
            return split is not None and split.largest_ctx == 1024

        await fleet.until(refused)
        again = await ready(fleet)
        assert again.num_ctx == 1024 and again.restarts == 0
        assert any("fits nowhere" in one.message for one in fleet.fleet.operations)


def ollama_store(root: Path, weights: Path) -> Path:
    """A store that holds the model with a system prompt and parameters of its own."""
    blobs = root / "blobs"
    blobs.mkdir(parents=True)

    def blob(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(content)
        return f"sha256:{digest}"

    kinds = {
        "model": weights.read_bytes(),
        "system": b"Be brief.",
        "params": b'{"temperature": 0.6, "stop": ["<|end|>"]}',
    }
    layers = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": blob(raw), "size": len(raw)}
        for kind, raw in kinds.items()
    ]
    config = blob(b'{"model_format": "gguf", "model_family": "llama"}')
    manifest = root / "manifests/registry.ollama.ai/library/tiny/1b"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": layers, "config": {"digest": config, "size": 1}}))
    return root


async def test_a_model_of_an_ollama_store_is_split_with_what_belongs_to_it(
    tmp_path: Path, config: ClusterConfig
) -> None:
    weights = Path(config.models[MODEL].path)
    store = ollama_store(tmp_path / "store", weights)
    idle = tmp_path / "ollama"
    idle.write_text("#!/bin/sh\nexec sleep 600\n")
    idle.chmod(0o755)
    node = {
        "local": True,
        "engine": "ollama",
        "binary": str(idle),
        "models_dir": str(store),
        "num_ctx": 512,
        "llama_server": config.nodes["local"].binary,
    }
    beside = ClusterConfig(
        nodes={"local": NodeConfig.model_validate(node)},
        models={MODEL: ModelConfig(split="always")},
    )
    async with rig(tmp_path / "state", beside) as fleet:
        await connected(fleet)
        (model,) = fleet.node("local").library
        assert (model.name, model.path) == (MODEL, "")
        fleet.controller.launch_split(MODEL)
        split = await ready(fleet)
        lines = await beginning(fleet, split.engine)
        assert any(str(store / "blobs" / "sha256-") in line for line in lines), lines
        assert fleet.controller.split_layers(split.engine) == StoreLayers(
            "Be brief.", {"temperature": 0.6, "stop": ["<|end|>"]}
        )
        kinds = {engine.kind for engine in fleet.node("local").engines}
        assert kinds == {"ollama", "llama-server"}


async def test_the_next_controller_finds_it_as_it_is(tmp_path: Path, config: ClusterConfig) -> None:
    async with rig(tmp_path / "state", config, keep=True) as first:
        await connected(first)
        first.controller.launch_split(MODEL)
        split = await ready(first)
        pids = helper(first, WORKER).pid, first.engine(split.engine).pid
    async with rig(tmp_path / "state", config) as second:
        split = await ready(second)
        assert (helper(second, WORKER).pid, second.engine(split.engine).pid) == pids


async def test_what_cannot_be_is_said_and_leaves_nothing(
    tmp_path: Path, config: ClusterConfig
) -> None:
    async with rig(tmp_path / "state", config) as fleet:
        await connected(fleet)
        Path(config.models[MODEL].path).unlink()
        fleet.controller.launch_split(MODEL)
        await fleet.until(
            lambda f: (split := f.split(SPLIT)) is not None and split.state == "failed"
        )
        split = fleet.fleet.split(SPLIT)
        assert split is not None and "tiny.gguf" in split.error
        with pytest.raises(PlacementError, match=r"tiny\.gguf"):
            fleet.controller.launch_split(MODEL)
        await fleet.until(lambda f: not f.nodes[0].helpers)


async def test_a_frozen_worker_is_ended_once_its_head_is_gone(
    tmp_path: Path, config: ClusterConfig
) -> None:
    async with rig(tmp_path / "state", config) as fleet:
        await connected(fleet)
        fleet.controller.launch_split(MODEL)
        split = await ready(fleet)
        frozen, head = helper(fleet, WORKER).pid, fleet.engine(split.engine).pid
        assert frozen is not None and head is not None
        kill(frozen, signal.SIGSTOP)
        kill(head)
        await fleet.until(lambda _: helper(fleet, WORKER).pid not in (None, frozen))
        assert not lives(frozen)
        await ready(fleet)
