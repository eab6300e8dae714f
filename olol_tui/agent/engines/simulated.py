"""A simulated engine: an Ollama-compatible process whose GPU exists on paper only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import client
from ..errors import EngineError
from ..spec import Spec
from .base import Context, EngineKind, Launch
from .ollama import ps, version


class Simulated(EngineKind):
    name = "simulated"

    def launch(self, spec: Spec, port: int, context: Context, *, plain: bool = False) -> Launch:
        if "simulated" not in context.vendors(spec) and spec.devices:
            raise EngineError(
                "a simulated engine needs simulated devices",
                "start the agent with --simulated",
            )
        vram = sum(int(context.devices[uuid].get("vram_bytes") or 0) for uuid in spec.devices)
        config: dict[str, Any] = {"slots": spec.slots, "num_ctx": spec.num_ctx}
        if vram:
            config["vram_bytes"] = vram
        if context.state_dir:
            config["store"] = store_path(context.state_dir)
        config.update(spec.simulated)
        argv = (
            *context.self_argv,
            "sim-engine",
            "--port",
            str(port),
            "--id",
            spec.id,
            "--config",
            json.dumps(config, sort_keys=True),
            *(("--host", spec.bind) if spec.listen else ()),
            *spec.args,
        )
        return Launch(argv, {**context.environ, **spec.env})

    async def ready(self, spec: Spec, port: int) -> str | None:
        return await version(port)

    async def loaded(self, spec: Spec, port: int, timeout_s: float) -> list[dict[str, Any]]:
        return await ps(port, timeout_s)


def store_path(state_dir: str) -> str:
    """The store that all simulated engines of a node share."""
    return str(Path(state_dir, "simulated-store"))


async def stats(port: int) -> dict[str, Any]:
    """What the engine does now, for the simulated devices to show.

    Raises:
        client.CallError: no usable answer.
    """
    reply = await client.call(port, "/sim/stats", timeout_s=2.0)
    data = reply.json()
    if reply.status != 200 or not isinstance(data, dict):
        raise client.CallError(f"/sim/stats answered {reply.status}")
    return data
