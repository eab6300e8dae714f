"""The demonstration through the whole real path."""

from __future__ import annotations

import asyncio
from pathlib import Path

from olol_tui.core import Core
from olol_tui.demo import DemoOptions
from olol_tui.demo_fleet import demo_config
from olol_tui.fleet.snapshot import Fleet
from olol_tui.paths import Paths


async def test_clients_are_served_by_simulated_engines_and_end_with_the_core(
    tmp_path: Path,
) -> None:
    config = demo_config(nodes=1, gpus=2, host="127.0.0.1", port=0)
    options = DemoOptions(per_gpu_per_s=4, seed=5)
    clients: set[str] = set()
    models: set[str] = set()

    def enough(fleet: Fleet) -> bool:
        clients.update(request.client.rsplit(":", 1)[0] for request in fleet.requests)
        models.update(request.model for request in fleet.requests)
        served = [r for r in fleet.requests if r.state == "done"]
        return fleet.gateway.requests_total >= 12 and bool(served) and len(models) >= 2

    async with Core(config, Paths.resolve(tmp_path), demo=options, stop_engines=True) as core:
        async with asyncio.timeout(90):
            async for fleet in core.changes():
                if enough(fleet):
                    break
    assert len(clients) >= 2
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
