"""The gateway's counters and the fleet's telemetry in Prometheus' formats.

prometheus_client does the escaping, the content negotiation (text or OpenMetrics) and the
process's own figures; it is imported at the first scrape and never on a request's path.
`render` reads copies only, so it may run in a thread; there it lets go of the interpreter
again and again, because a thousand lines in one go are 10 ms between two tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    Sample,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from olol_tui.fleet.snapshot import Device, Fleet, Node
from olol_tui.gateway.metrics import Histogram, Instant, Series
from olol_tui.models.names import canonical

_MODEL = ("model",)
_PAIR = ("model", "engine")
_ENGINE = ("engine",)
_GPU = ("node", "gpu")
_HANDFUL = 32
_PAUSE_S = 5e-5


class Exposition:
    """Renders instants. One at a time, in any thread."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._collector = _Collector(version)
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)
        self._lock = threading.Lock()

    def render(self, instant: Instant, accept: str) -> tuple[bytes, str]:
        """(body, content type) in the format that the Accept header prefers."""
        encode, content_type = choose_encoder(accept)
        with self._lock:
            self._collector.instant = instant
            try:
                return encode(self._registry), content_type
            finally:
                self._collector.instant = None


class _Collector(Collector):
    def __init__(self, version: str) -> None:
        self._version = version
        self.instant: Instant | None = None

    def collect(self) -> Iterable[Metric]:
        instant = self.instant
        if instant is None:
            return
        for family in self._families(instant):
            family.samples = _InPieces(family.samples)
            yield family

    def _families(self, instant: Instant) -> Iterator[Metric]:
        yield InfoMetricFamily("olol_build", "Version", value={"version": self._version})
        yield from _requests(instant.counted.series)
        yield from _gateway(instant)
        yield from _engines(instant)
        yield from _nodes(instant.fleet)
        yield from _devices(instant.fleet)


class _InPieces(list[Sample]):
    """Samples that let another thread run between two handfuls of them."""

    def __iter__(self) -> Iterator[Sample]:
        for number, sample in enumerate(super().__iter__()):
            if number % _HANDFUL == _HANDFUL - 1:
                time.sleep(_PAUSE_S)
            yield sample


def _requests(series: dict[tuple[str, str], Series]) -> Iterator[Metric]:
    ends = CounterMetricFamily(
        "olol_requests", "Requests that ended", labels=(*_PAIR, "path", "outcome")
    )
    errors = CounterMetricFamily(
        "olol_request_errors", "Requests that failed, by cause", labels=(*_PAIR, "cause")
    )
    tokens = CounterMetricFamily("olol_tokens", "Tokens", labels=(*_PAIR, "kind"))
    retries = CounterMetricFamily("olol_retries", "Attempts after the first", labels=_PAIR)
    wait = _histogram("olol_queue_wait_seconds", "Arrival to dispatch")
    ttft = _histogram("olol_time_to_first_token_seconds", "Arrival to first byte of the reply")
    gaps = _histogram("olol_inter_token_seconds", "Between two pieces of a streamed reply")
    total = _histogram("olol_request_duration_seconds", "Arrival to last byte")
    for pair, one in series.items():
        time.sleep(_PAUSE_S)
        for (path, outcome), count in one.ends.items():
            ends.add_metric((*pair, path, outcome), count)
        for cause, count in one.errors.items():
            errors.add_metric((*pair, cause), count)
        tokens.add_metric((*pair, "prompt"), one.prompt_tokens)
        tokens.add_metric((*pair, "reply"), one.reply_tokens)
        retries.add_metric(pair, one.retries)
        _add(wait, pair, one.wait)
        _add(ttft, pair, one.ttft)
        _add(gaps, pair, one.gaps)
        _add(total, pair, one.total)
    yield from (ends, errors, tokens, retries, wait, ttft, gaps, total)


def _gateway(instant: Instant) -> Iterator[Metric]:
    counted = instant.counted
    queued = GaugeMetricFamily("olol_queue_depth", "Requests that wait", labels=_MODEL)
    running = GaugeMetricFamily("olol_requests_running", "Requests in an engine", labels=_MODEL)
    for model, count in instant.queued.items():
        queued.add_metric((model,), count)
    for model, count in instant.running.items():
        running.add_metric((model,), count)
    refusals = CounterMetricFamily(
        "olol_refusals",
        "Answered with an error before it was queued",
        labels=("dialect", "status"),
    )
    for (dialect, status), count in counted.refusals.items():
        refusals.add_metric((dialect, str(status)), count)
    lag = HistogramMetricFamily("olol_loop_lag_seconds", "How late the event loop runs a timer")
    _add(lag, (), counted.lag)
    yield from (queued, running, refusals, lag)
    again = CounterMetricFamily(
        "olol_retry_decisions", "Requests that lost their engine, by what followed", labels=("why",)
    )
    for why, count in counted.retries.items():
        again.add_metric((why,), count)
    replays = CounterMetricFamily(
        "olol_replays", "Streams that lost their engine and went on elsewhere", labels=("outcome",)
    )
    for outcome, count in counted.replays.items():
        replays.add_metric((outcome,), count)
    yield from (again, replays)
    yield CounterMetricFamily(
        "olol_prefix_lookups", "Long prompts sent to an engine", value=instant.prefix_looked
    )
    yield CounterMetricFamily(
        "olol_prefix_hits",
        "Of them, to an engine that had served their beginning",
        value=instant.prefix_hits,
    )
    yield GaugeMetricFamily(
        "olol_client_connections", "Open connections of clients", value=instant.connections
    )
    yield GaugeMetricFamily("olol_draining", "1 while it takes no new requests", instant.draining)
    yield CounterMetricFamily(
        "olol_unrecorded_requests", "Ended requests without a record", value=instant.unrecorded
    )


def _engines(instant: Instant) -> Iterator[Metric]:
    counted = instant.counted
    loads = CounterMetricFamily(
        "olol_loads", "Loads that requests caused", labels=(*_PAIR, "result")
    )
    for key, count in counted.loads.items():
        loads.add_metric(key, count)
    load_time = HistogramMetricFamily("olol_load_seconds", "Time of a load", labels=_MODEL)
    for model, histogram in counted.load_time.items():
        _add(load_time, (model,), histogram)
    unloads = CounterMetricFamily(
        "olol_unloads", "Models that left a living engine: evicted, expired, unloaded", labels=_PAIR
    )
    for pair, count in counted.unloads.items():
        unloads.add_metric(pair, count)
    failures = CounterMetricFamily(
        "olol_engine_failures", "Requests it broke, by cause", labels=("engine", "cause")
    )
    for broken, count in counted.failures.items():
        failures.add_metric(broken, count)
    ejections = CounterMetricFamily("olol_ejections", "Times it was left alone", labels=_ENGINE)
    for engine, count in counted.ejections.items():
        ejections.add_metric((engine,), count)
    yield from (loads, load_time, unloads, failures, ejections)
    up = GaugeMetricFamily("olol_engine_up", "1 when ready", labels=("node", "engine", "kind"))
    slots = GaugeMetricFamily("olol_engine_slots", "Requests of one model at once", labels=_ENGINE)
    restarts = CounterMetricFamily("olol_engine_restarts", "Restarts", labels=_ENGINE)
    resident = GaugeMetricFamily("olol_model_resident_bytes", "Size of a replica", labels=_PAIR)
    on_gpu = GaugeMetricFamily("olol_model_vram_bytes", "Of it, on the GPU", labels=_PAIR)
    for node in instant.fleet.nodes:
        for one in node.engines:
            up.add_metric((node.name, one.id, one.kind), one.state == "ready" and not node.stale)
            slots.add_metric((one.id,), one.slots)
            restarts.add_metric((one.id,), one.restarts)
            for loaded in one.loaded:
                pair = (canonical(loaded.name), one.id)
                resident.add_metric(pair, loaded.size_bytes)
                on_gpu.add_metric(pair, loaded.vram_bytes)
    yield from (up, slots, restarts, resident, on_gpu)


def _nodes(fleet: Fleet) -> Iterator[Metric]:
    label = ("node",)
    up = GaugeMetricFamily("olol_node_up", "1 while its telemetry is fresh", labels=label)
    age = GaugeMetricFamily("olol_node_telemetry_age_seconds", "Since its last", labels=label)
    cpu = GaugeMetricFamily("olol_node_cpu_ratio", "CPU in use, 0 to 1", labels=label)
    memory = GaugeMetricFamily("olol_node_memory_bytes", "RAM", labels=label)
    used = GaugeMetricFamily("olol_node_memory_used_bytes", "RAM in use", labels=label)
    for node in fleet.nodes:
        at = (node.name,)
        up.add_metric(at, node.state == "ready" and not node.stale)
        age.add_metric(at, node.age_s)
        if not node.stale:
            _some(cpu, at, node.cpu_percent, 0.01)
            _some(memory, at, node.memory_bytes)
            _some(used, at, node.memory_used_bytes)
    yield from (up, age, cpu, memory, used)


def _devices(fleet: Fleet) -> Iterator[Metric]:
    info = InfoMetricFamily("olol_gpu", "What it is", labels=_GPU)
    rows = [
        (_gpu("utilization_ratio", "Utilisation, 0 to 1"), "util_percent", 0.01),
        (_gpu("memory_bytes", "Memory"), "vram_bytes", 1.0),
        (_gpu("memory_used_bytes", "Memory in use"), "used_bytes", 1.0),
        (_gpu("temperature_celsius", "Temperature"), "temp_c", 1.0),
        (_gpu("temperature_limit_celsius", "Where it slows down"), "temp_limit_c", 1.0),
        (_gpu("power_watts", "Power"), "power_w", 1.0),
        (_gpu("power_limit_watts", "Limit of its power"), "power_limit_w", 1.0),
        (_gpu("clock_hertz", "Clock"), "clock_mhz", 1e6),
        (_gpu("ecc_errors", "Uncorrected memory errors"), "ecc_errors", 1.0),
        (_gpu("pcie_receive_bytes_per_second", "PCIe, in"), "pcie_rx_bytes_s", 1.0),
        (_gpu("pcie_transmit_bytes_per_second", "PCIe, out"), "pcie_tx_bytes_s", 1.0),
    ]
    throttle = GaugeMetricFamily("olol_gpu_throttled", "1 while slowed", labels=(*_GPU, "reason"))
    for node, device in _fresh(fleet):
        at = (node.name, device.label)
        info.add_metric(
            at, {"uuid": device.uuid, "model_name": device.name, "vendor": device.vendor}
        )
        for family, name, factor in rows:
            _some(family, at, getattr(device, name), factor)
        for reason in device.throttle:
            throttle.add_metric((*at, reason), 1)
    yield info
    yield from (family for family, _, _ in rows)
    yield throttle


def _fresh(fleet: Fleet) -> Iterator[tuple[Node, Device]]:
    """Devices whose figures are of now: an old temperature must not look like one."""
    for node in fleet.nodes:
        if not node.stale:
            for device in node.devices:
                yield node, device


def _gpu(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"olol_gpu_{name}", text, labels=_GPU)


def _some(
    family: GaugeMetricFamily, labels: tuple[str, ...], value: float | None, factor: float = 1.0
) -> None:
    """Absent stays absent: a device that does not say its power does not draw 0 W."""
    if value is not None:
        family.add_metric(labels, value * factor)


def _histogram(name: str, text: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, labels=_PAIR)


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], one: Histogram) -> None:
    names = (*(f"{bound:g}" for bound in one.bounds), "+Inf")
    family.add_metric(
        labels, list(zip(names, accumulate(one.counts), strict=True)), sum_value=one.sum_s
    )
