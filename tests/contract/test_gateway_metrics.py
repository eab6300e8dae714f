"""GET /metrics: what was counted, read back with Prometheus' own parser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from olol_tui.fleet.snapshot import Loaded
from olol_tui.gateway import metrics
from tests.contract.gateway_rig import engine_node, eventually, gateway_over
from tests.contract.sim_process import sim_engine

MODEL = "llama3.2:3b"
FAST = {"load_bytes_s": 1e12, "decode_tps": 200.0, "prefill_tps": 1e5}
ENGINE = "n1/simulated-gpu0"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def ask(tokens: int = 5) -> dict[str, object]:
    return {"model": MODEL, "prompt": "hi", "options": {"num_predict": tokens}}


async def scrape(client: httpx.AsyncClient) -> Samples:
    reply = await client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The one sample of that name whose labels hold these."""
    found = [
        v for (n, have), v in samples.items() if n == name and labels.items() <= dict(have).items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


async def test_a_request_is_counted_by_model_and_engine() -> None:
    async with sim_engine(**FAST) as engine:
        await engine.load(MODEL)
        node = engine_node("n1", engine.address, MODEL)
        async with gateway_over(node) as (_, _, client):
            assert (await client.post("/api/generate", json=ask(5))).status_code == 200
            assert (await client.post("/api/generate", json={"model": "none"})).status_code == 404
            samples = await scrape(client)
    at = {"model": MODEL, "engine": ENGINE}
    assert value(samples, "olol_requests_total", path="/api/generate", outcome="done", **at) == 1
    assert value(samples, "olol_tokens_total", kind="reply", **at) == 5
    assert value(samples, "olol_tokens_total", kind="prompt", **at) >= 1
    for name in ("queue_wait", "time_to_first_token", "request_duration"):
        assert value(samples, f"olol_{name}_seconds_count", **at) == 1
        assert value(samples, f"olol_{name}_seconds_bucket", le="+Inf", **at) == 1
    # Five tokens and the last line are at most six pieces; some may have arrived together.
    assert 1 <= value(samples, "olol_inter_token_seconds_count", **at) <= 5
    assert value(samples, "olol_inter_token_seconds_sum", **at) > 0
    assert value(samples, "olol_refusals_total", dialect="ollama", status="404") == 1
    assert value(samples, "olol_engine_up", engine=ENGINE) == 1
    assert value(samples, "process_resident_memory_bytes") > 1e6


async def test_telemetry_is_what_the_snapshot_says_and_nothing_else() -> None:
    fresh = engine_node("n1", "127.0.0.1:9", MODEL)
    gpu = replace(fresh.devices[0], util_percent=50.0, temp_c=61.0, throttle=("power",))
    fresh = replace(fresh, devices=(gpu,))
    stale = replace(engine_node("n2", "127.0.0.1:9", MODEL), stale=True, age_s=40.0)
    async with gateway_over(fresh, stale) as (_, _, client):
        samples = await scrape(client)
    gpu0 = {"node": "n1", "gpu": "gpu0"}
    assert value(samples, "olol_gpu_utilization_ratio", **gpu0) == 0.5
    assert value(samples, "olol_gpu_temperature_celsius", **gpu0) == 61
    assert value(samples, "olol_gpu_throttled", reason="power", **gpu0) == 1
    assert value(samples, "olol_gpu_info", uuid="GPU-n1", **gpu0) == 1
    names = {(name, dict(labels).get("node")) for name, labels in samples}
    assert ("olol_gpu_power_watts", "n1") not in names, "a device that does not say draws no 0 W"
    assert ("olol_gpu_memory_bytes", "n2") not in names, "old figures must not look like new ones"
    assert value(samples, "olol_node_telemetry_age_seconds", node="n2") == 40
    assert value(samples, "olol_engine_up", node="n2") == 0


async def test_a_lost_engine_and_an_evicted_model_are_counted() -> None:
    async with sim_engine(**FAST) as engine:
        await engine.load(MODEL)
        await engine.fault(fault="cut", after_tokens=2)
        node = engine_node("n1", engine.address, MODEL, "qwen3:8b")
        async with gateway_over(node) as (gateway, fleet, client):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/api/generate", json=ask(9))
            gateway.metrics.look(fleet.fleet)
            one = replace(node.engines[0], loaded=(Loaded("qwen3:8b"),))
            gateway.metrics.look(replace(fleet.fleet, nodes=(replace(node, engines=(one,)),)))
            samples = await scrape(client)
    assert value(samples, "olol_request_errors_total", cause="engine_lost") == 1
    assert value(samples, "olol_engine_failures_total", engine=ENGINE, cause="engine_lost") == 1
    assert value(samples, "olol_unloads_total", model=MODEL, engine=ENGINE) == 1


async def test_a_load_that_a_request_caused_is_timed() -> None:
    async with sim_engine(**FAST) as engine:
        node = engine_node("n1", engine.address, MODEL, warm=False)
        async with gateway_over(node) as (_, _, client):
            assert (await client.post("/api/generate", json=ask(1))).status_code == 200
            samples = await scrape(client)
    assert value(samples, "olol_loads_total", model=MODEL, engine=ENGINE, result="done") == 1
    assert value(samples, "olol_load_seconds_count", model=MODEL) == 1


async def test_openmetrics_is_spoken_too_and_the_loop_is_watched() -> None:
    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (gateway, _, client):
        await eventually(lambda: sum(gateway.metrics.lag.counts) >= 1)
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        reply = await client.get("/metrics", headers=accept)
        assert reply.headers["content-type"].startswith("application/openmetrics-text")
        names = {family.name for family in openmetrics(reply.text)}
        assert {"olol_loop_lag_seconds", "olol_requests", "olol_build"} <= names


def test_series_are_bounded() -> None:
    """Launched runners come and go for months; each has an id of its own."""
    counted = metrics.Metrics()
    for number in range(metrics.MAX_SERIES + 50):
        counted.series("m", f"e{number}").retries += 1
    series = counted.counted().series
    assert len(series) == metrics.MAX_SERIES + 1
    assert series[metrics.OTHER, metrics.OTHER].retries == 50


async def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    text = (Path(__file__).parents[2] / "docs/grafana/olol-tui.json").read_text()
    dashboard = json.loads(text)
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
    queries += [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    assert len(queries) > 30
    async with sim_engine(**FAST) as engine:
        node = engine_node("n1", engine.address, MODEL, warm=False)
        gpu = replace(node.devices[0], throttle=("power",))
        async with gateway_over(replace(node, devices=(gpu,))) as (gateway, _, client):
            await client.post("/api/generate", json=ask(2))
            await client.post("/api/generate", json={"model": "none"})
            gateway.metrics.engine_failed(ENGINE, "engine_lost", ejected=True)
            shown = (await client.get("/metrics")).text
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", shown, re.MULTILINE):
        names |= (
            {f"{name}_{end}" for end in ("bucket", "sum", "count")}
            if kind == "histogram"
            else {name}
        )
    labels = {"le", "cause", *re.findall(r"[{,]([a-z]+)=", shown)}
    for query in queries:
        asked = set(re.findall(r"\b(?:olol|process)_[a-z_]+\b", query))
        assert asked, query
        assert asked <= names, query
        by = {
            one.strip()
            for group in re.findall(r"by \(([^)]*)\)", query)
            for one in group.split(",")
        }
        assert by | set(re.findall(r"[{,] ?([a-z]+)=~?", query)) <= labels, query
