"""The metrics and the dashboard as a real Prometheus has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from olol_tui.gateway.gateway import Gateway
from tests.contract.gateway_rig import HandFleet, engine_node, eventually, gateway_over
from tests.contract.sim_process import SimEngine, sim_engine

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus on PATH (Debian: prometheus)"
)
WARM, COLD = "llama3.2:3b", "llama3.2:1b"
DASHBOARD = Path(__file__).parents[2] / "docs/grafana/olol-tui.json"
FAST = {"load_bytes_s": 5e9, "decode_tps": 200.0, "prefill_tps": 1e5}
SCRAPE_S = 0.5


@contextlib.asynccontextmanager
async def prometheus(directory: Path, target: str) -> AsyncIterator[httpx.AsyncClient]:
    """One that scrapes the target; a client of its API."""
    config = directory / "prometheus.yml"
    address = target.removeprefix("http://")
    config.write_text(
        f"global: {{scrape_interval: {int(SCRAPE_S * 1000)}ms, scrape_timeout: {int(SCRAPE_S * 1000)}ms}}\n"
        f"scrape_configs: [{{job_name: olol-tui, static_configs: [{{targets: ['{address}']}}]}}]\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (directory / "prometheus.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=log,
        stderr=log,
    )
    log.close()
    base = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base, timeout=30, trust_env=False) as client:
            async with asyncio.timeout(60):
                while True:
                    assert process.returncode is None, (directory / "prometheus.log").read_text()
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get("/-/ready")).status_code == 200:
                            break
                    await asyncio.sleep(0.1)
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def ask(client: httpx.AsyncClient, model: str = WARM, **body: Any) -> int:
    asked = {"model": model, "prompt": "hi", "options": {"num_predict": 4}, **body}
    return (await client.post("/api/generate", json=asked)).status_code


async def a_bad_day(
    gateway: Gateway,
    fleet: HandFleet,
    client: httpx.AsyncClient,
    engine: SimEngine,
    other: SimEngine,
) -> None:
    """Whatever the dashboard has a panel for, once: good, refused, failed, retried, loaded."""
    await asyncio.gather(*(ask(client) for _ in range(6)))
    assert await ask(client, COLD) == 200
    assert await ask(client, "none") == 404
    await engine.fault(fault="500", count=6)
    await asyncio.gather(*(ask(client) for _ in range(6)))
    await engine.fault(fault="none")
    for one in (engine, other):
        await one.fault(fault="cut", after_tokens=1, count=1)
    for _ in range(2):
        with contextlib.suppress(httpx.RemoteProtocolError):
            await ask(client)
    for one in (engine, other):
        await one.fault(fault="none")
    gateway.metrics.engine_failed("n1/simulated-gpu0", "engine_lost", ejected=True)
    one, two = fleet.fleet.nodes
    crashed = replace(two.engines[0], restarts=1, loaded=())
    fleet.publish(nodes=(one, replace(two, engines=(crashed,))))
    await asyncio.sleep(1.2)
    fleet.publish(nodes=(one, two))


async def answered(client: httpx.AsyncClient, query: str) -> list[dict[str, Any]]:
    reply = (await client.get("/api/v1/query", params={"query": query})).json()
    assert reply["status"] == "success", (query, reply)
    assert not reply.get("warnings"), (query, reply)
    found: list[dict[str, Any]] = reply["data"]["result"]
    return found


async def test_a_real_prometheus_scrapes_it_and_answers_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = {
        target["expr"]: panel["title"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    async with sim_engine(**FAST) as bad, sim_engine(**FAST) as good:
        await bad.load(WARM)
        await good.load(WARM)
        nodes = [
            engine_node(name, engine.address, WARM, slots=2)
            for name, engine in (("n1", bad), ("n2", good))
        ]
        cold = engine_node("n2", good.address, COLD, warm=False).library
        busy = {"util_percent": 50.0, "temp_c": 61.0, "power_w": 200.0, "throttle": ("power",)}
        nodes = [
            replace(
                node,
                devices=(replace(node.devices[0], **busy),),
                library=(*node.library, *cold),
                cpu_percent=12.0,
            )
            for node in nodes
        ]
        async with (
            gateway_over(*nodes) as (gateway, fleet, client),
            prometheus(tmp_path, gateway.address) as server,
        ):

            async def scraped() -> bool:
                return bool(await answered(server, "up == 1"))

            async with asyncio.timeout(30):
                while not await scraped():
                    await asyncio.sleep(0.1)
            await a_bad_day(gateway, fleet, client, bad, good)
            await asyncio.sleep(3 * SCRAPE_S)
            # Counters that came to be in the first half are seen to rise in the second.
            await a_bad_day(gateway, fleet, client, bad, good)
            # And some that wait and run while it is asked.
            long = {"num_predict": 4000}
            live = [asyncio.create_task(ask(client, options=long)) for _ in range(8)]
            await eventually(lambda: gateway.queue.running and gateway.queue.queued)
            await asyncio.sleep(3 * SCRAPE_S)

            empty = []
            for query, title in queries.items():
                asked = re.sub(r"\$\{?(model|node)\}?", ".*", query)
                asked = asked.replace("$__rate_interval", "1m")
                series = await answered(server, asked)
                values = [float(one["value"][1]) for one in series]
                if all(math.isnan(value) for value in values):
                    empty.append(f"{title}: {query}")
            for task in live:
                task.cancel()
            assert not empty, "\n".join(empty)
            for variable in dashboard["templating"]["list"]:
                match = re.fullmatch(
                    r"label_values\((\w+), (\w+)\)", variable.get("definition", "")
                )
                if match:
                    path, params = f"/api/v1/label/{match[2]}/values", {"match[]": match[1]}
                    assert (await server.get(path, params=params)).json()["data"]

            (target,) = (await server.get("/api/v1/targets")).json()["data"]["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            if (promtool := shutil.which("promtool")) is not None:
                text = (await client.get("/metrics")).content
                done = await asyncio.to_thread(
                    subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True
                )
                assert done.returncode == 0, done.stderr.decode()
