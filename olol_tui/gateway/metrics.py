"""What the gateway counts, in plain lists.

An observation stands between two tokens: it is one bisect and one addition (0.1 µs), where a
labelled child of prometheus_client takes a lock and several calls. `gateway.exposition` turns
the lists into Prometheus' format when somebody scrapes, off the event loop.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from olol_tui.fleet.snapshot import Fleet
from olol_tui.gateway.records import Record
from olol_tui.models.names import canonical

TIME_BOUNDS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0,
    640.0,
)  # fmt: skip
"""Waits, first tokens, whole requests, loads: from a warm engine to a cold giant."""
GAP_BOUNDS_S = (
    0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
"""Between two pieces of a stream: from 500 tokens/s to a stall."""
LAG_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
LAG_EVERY_S = 0.25
MAX_SERIES = 2000
"""(model, engine) pairs that are told apart; launched engines come and go for months."""
OTHER = "other"


class Histogram:
    """Counts by bucket; the last one has no upper bound."""

    __slots__ = ("bounds", "counts", "sum_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_s += seconds

    def copy(self) -> Histogram:
        twin = Histogram(self.bounds)
        twin.counts = self.counts.copy()
        twin.sum_s = self.sum_s
        return twin


class Series:
    """Everything that is counted of one model on one engine."""

    __slots__ = (
        "ends", "errors", "gaps", "prompt_tokens", "reply_tokens", "retries", "total", "ttft",
        "wait",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ends: dict[tuple[str, str], int] = {}
        """(path, outcome) → requests."""
        self.errors: dict[str, int] = {}
        """Cause → requests."""
        self.wait = Histogram(TIME_BOUNDS_S)
        self.ttft = Histogram(TIME_BOUNDS_S)
        self.total = Histogram(TIME_BOUNDS_S)
        self.gaps = Histogram(GAP_BOUNDS_S)
        self.prompt_tokens = 0
        self.reply_tokens = 0
        self.retries = 0

    def copy(self) -> Series:
        twin = Series()
        twin.ends = self.ends.copy()
        twin.errors = self.errors.copy()
        twin.wait, twin.ttft = self.wait.copy(), self.ttft.copy()
        twin.total, twin.gaps = self.total.copy(), self.gaps.copy()
        twin.prompt_tokens, twin.reply_tokens = self.prompt_tokens, self.reply_tokens
        twin.retries = self.retries
        return twin


@dataclass(slots=True)
class Counted:
    """All of it at one instant, for a reader in another thread."""

    series: dict[tuple[str, str], Series]
    refusals: dict[tuple[str, int], int]
    loads: dict[tuple[str, str, str], int]
    load_time: dict[str, Histogram]
    unloads: dict[tuple[str, str], int]
    failures: dict[tuple[str, str], int]
    ejections: dict[str, int]
    retries: dict[str, int]
    replays: dict[str, int]
    lag: Histogram


@dataclass(frozen=True, slots=True)
class Instant:
    """What one scrape shows."""

    counted: Counted
    fleet: Fleet
    queued: dict[str, int]
    """By model; a model that nobody waits for is absent."""
    running: dict[str, int]
    connections: int
    draining: bool
    unrecorded: int
    """Ended requests that were too many a second to keep a record of each."""
    prefix_looked: int = 0
    """Requests with a long prompt that went to an engine."""
    prefix_hits: int = 0
    """Of them, to one that had served the beginning of the prompt."""


@dataclass(slots=True)
class Metrics:
    """The counters of one gateway. Used on its loop alone."""

    _series: dict[tuple[str, str], Series] = field(default_factory=dict)
    _refusals: dict[tuple[str, int], int] = field(default_factory=dict)
    _loads: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _load_time: dict[str, Histogram] = field(default_factory=dict)
    _unloads: dict[tuple[str, str], int] = field(default_factory=dict)
    _failures: dict[tuple[str, str], int] = field(default_factory=dict)
    """(engine, cause) → requests."""
    _retries: dict[str, int] = field(default_factory=dict)
    _replays: dict[str, int] = field(default_factory=dict)
    _ejections: dict[str, int] = field(default_factory=dict)
    _resident: dict[tuple[str, int | None], frozenset[str]] = field(default_factory=dict)
    """(engine id, pid) → canonical names, as of the last look."""
    lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS_S))

    def series(self, model: str, engine: str) -> Series:
        found = self._series.get((model, engine))
        if found is None:
            if len(self._series) >= MAX_SERIES:
                model = engine = OTHER
                if (found := self._series.get((OTHER, OTHER))) is not None:
                    return found
            found = self._series[model, engine] = Series()
        return found

    def ended(self, record: Record) -> None:
        """A request is over, one way or another."""
        series = self.series(record.model, record.engine)
        end = (record.path, record.state)
        series.ends[end] = series.ends.get(end, 0) + 1
        arrived_s, first_s, ended_s = record.arrived_s, record.first_s, record.ended_s
        # Spelled out: three calls of `observe` would be a third of what counting costs.
        if record.sent_s is not None:
            seconds, one = record.sent_s - arrived_s, series.wait
            one.counts[bisect_left(TIME_BOUNDS_S, seconds)] += 1
            one.sum_s += seconds
        if ended_s is not None:
            seconds, one = ended_s - arrived_s, series.total
            one.counts[bisect_left(TIME_BOUNDS_S, seconds)] += 1
            one.sum_s += seconds
            if first_s is not None:
                # The pieces themselves were counted as they came.
                series.gaps.sum_s += ended_s - first_s
                seconds, one = first_s - arrived_s, series.ttft
                one.counts[bisect_left(TIME_BOUNDS_S, seconds)] += 1
                one.sum_s += seconds
        series.reply_tokens += record.tokens
        if record.prompt_tokens is not None:
            series.prompt_tokens += record.prompt_tokens
        if record.retries:
            series.retries += record.retries
        if cause := record.cause:
            series.errors[cause] = series.errors.get(cause, 0) + 1

    def refused(self, dialect: str, status: int) -> None:
        """Answered with an error before it became a request: unknown model, no key, busy."""
        key = (dialect, status)
        self._refusals[key] = self._refusals.get(key, 0) + 1

    def loaded(self, model: str, engine: str, seconds: float, *, ok: bool) -> None:
        key = (model, engine, "done" if ok else "failed")
        self._loads[key] = self._loads.get(key, 0) + 1
        if ok:
            found = self._load_time.setdefault(model, Histogram(TIME_BOUNDS_S))
            found.observe(seconds)

    def engine_failed(self, engine: str, cause: str, *, ejected: bool) -> None:
        key = (engine, cause)
        self._failures[key] = self._failures.get(key, 0) + 1
        if ejected:
            self._ejections[engine] = self._ejections.get(engine, 0) + 1

    def retried(self, outcome: str) -> None:
        """A request that lost its engine: tried again and why, or `denied` by the budget."""
        self._retries[outcome] = self._retries.get(outcome, 0) + 1

    def replayed(self, outcome: str) -> None:
        """A stream that went on elsewhere: `done`, `differed` or `failed`."""
        self._replays[outcome] = self._replays.get(outcome, 0) + 1

    def look(self, fleet: Fleet) -> None:
        """Notice models that left an engine while its process lived: evicted, expired, unloaded."""
        resident: dict[tuple[str, int | None], frozenset[str]] = {}
        for node in fleet.nodes:
            for engine in node.engines:
                if engine.state == "ready":
                    names = frozenset(canonical(x.name) for x in engine.loaded)
                    resident[engine.id, engine.pid] = names
        for key, names in self._resident.items():
            for model in names - resident.get(key, names):
                left = (model, key[0])
                self._unloads[left] = self._unloads.get(left, 0) + 1
        self._resident = resident

    def counted(self) -> Counted:
        """A copy that no longer changes."""
        return Counted(
            series={key: series.copy() for key, series in self._series.items()},
            refusals=self._refusals.copy(),
            loads=self._loads.copy(),
            load_time={key: one.copy() for key, one in self._load_time.items()},
            unloads=self._unloads.copy(),
            failures=self._failures.copy(),
            ejections=self._ejections.copy(),
            retries=self._retries.copy(),
            replays=self._replays.copy(),
            lag=self.lag.copy(),
        )


class LagClock:
    """Measures how late the event loop is: what every token waits on top of its own work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, observe: Callable[[float], None]) -> None:
        self._loop = loop
        self._observe = observe
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due_s = self._loop.time() + LAG_EVERY_S
        self._timer = self._loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        self._observe(max(0.0, self._loop.time() - self._due_s))
        self.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
