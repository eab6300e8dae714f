"""Queue and policy over engines that exist as events on a heap: a run of minutes in a second.

The code of `routing` is the product's; engines follow the simulated engine's rules (one load
at a time, idle models make room, slots by model, decoding slows with company). For tuning and
for the regression test; the figures that are claimed come from `tests/bench/routing.py`, over
real HTTP.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from olol_tui.agent.simengine.catalogue import SimModel, open_catalogue
from olol_tui.agent.simengine.settings import Settings
from olol_tui.fleet.snapshot import Device, Engine, Fleet, Loaded, Model, Node
from olol_tui.routing.decision import Ask, Policy
from olol_tui.routing.policy import expected
from olol_tui.routing.queue import Queue
from olol_tui.routing.room import WaitingRoom
from olol_tui.routing.roster import Roster
from olol_tui.routing.ticket import Dispatch, Load, Step, Ticket
from tests.bench.workload import Arrival

CHUNKS = 8
"""Tokens decoded in one event."""
SNAPSHOT_S = 1.0
_DRIVER_BYTES = 380 << 20


class Clock:
    """Events in their order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._count), act))

    def run(self, until: Callable[[], bool]) -> None:
        while self._heap and not until():
            self.now_s, _, act = heapq.heappop(self._heap)
            act()


@dataclass(eq=False)
class Job:
    """One request at an engine."""

    model: SimModel
    prompt_tokens: int
    reply_tokens: int
    first: Callable[[], None]
    done: Callable[[], None]
    runner: Runner | None = None


@dataclass(eq=False)
class Runner:
    model: SimModel
    vram_bytes: int
    ready: bool = False
    draining: bool = False
    refs: int = 0
    active: int = 0
    used_s: float = 0.0
    line: deque[Job] = field(default_factory=deque)


class EngineModel:
    """As `agent.simengine.host`, on the clock of the heap."""

    def __init__(self, clock: Clock, settings: Settings, pace: float = 1.0) -> None:
        self.clock, self.settings, self.pace = clock, settings, pace
        self.runners: dict[str, Runner] = {}
        self.pending: deque[Job] = deque()
        self.busy_loading = False
        self.decoding = 0
        self.loads = 0

    def submit(self, job: Job) -> None:
        runner = self.runners.get(job.model.name)
        if runner is not None and runner.ready and not runner.draining:
            self._use(job, runner)
        else:
            self.pending.append(job)
            self._advance()

    def unload(self, name: str) -> None:
        runner = self.runners.get(name)
        if runner is not None and runner.ready and not runner.refs:
            del self.runners[name]

    def _use(self, job: Job, runner: Runner) -> None:
        job.runner = runner
        runner.refs += 1
        runner.used_s = self.clock.now_s
        if job.reply_tokens == 0:
            self._leave(job)
            job.done()
        elif runner.active < self.settings.slots and not runner.line:
            self._start(job)
        else:
            runner.line.append(job)

    def _start(self, job: Job) -> None:
        assert job.runner is not None
        job.runner.active += 1
        rate = self.settings.prefill_rate(job.model.size_bytes, job.model.active_share)
        self.clock.after(job.prompt_tokens / rate / self.pace, lambda: self._decode(job, 0))

    def _decode(self, job: Job, done: int) -> None:
        if done == 0:
            self.decoding += 1
        elif done <= CHUNKS:
            job.first()
        if done >= job.reply_tokens:
            self.decoding -= 1
            assert job.runner is not None
            job.runner.active -= 1
            if job.runner.line:
                self._start(job.runner.line.popleft())
            self._leave(job)
            job.done()
            return
        step = min(CHUNKS, job.reply_tokens - done)
        rate = self.settings.decode_rate(job.model.size_bytes, job.model.active_share)
        crowd = 1 + (self.decoding - 1) * self.settings.slowdown
        self.clock.after(step * crowd / rate / self.pace, lambda: self._decode(job, done + step))

    def _leave(self, job: Job) -> None:
        runner = job.runner
        assert runner is not None
        runner.refs -= 1
        runner.used_s = self.clock.now_s
        if runner.refs == 0 and runner.draining:
            del self.runners[runner.model.name]
        self._advance()

    def _advance(self) -> None:
        for job in list(self.pending):
            runner = self.runners.get(job.model.name)
            if runner is not None and runner.ready and not runner.draining:
                self.pending.remove(job)
                self._use(job, runner)
        while self.pending and not self.busy_loading and self._place(self.pending[0].model):
            pass

    def _place(self, model: SimModel) -> bool:
        if model.name in self.runners:
            return False
        wanted = model.vram_bytes(self.settings.num_ctx, self.settings.slots)
        while True:
            used = sum(r.vram_bytes for r in self.runners.values())
            if used + wanted <= self.settings.vram_bytes:
                break
            idle = [r for r in self.runners.values() if r.ready and not r.refs]
            if not idle:
                busy = [r for r in self.runners.values() if r.ready]
                if busy and not any(r.draining for r in busy):
                    min(busy, key=lambda r: r.used_s).draining = True
                return False
            del self.runners[min(idle, key=lambda r: r.used_s).model.name]
        runner = self.runners[model.name] = Runner(model, wanted)
        self.busy_loading = True
        self.loads += 1
        self.clock.after(
            model.size_bytes / self.settings.load_bytes_s / self.pace, lambda: self._loaded(runner)
        )
        return True

    def _loaded(self, runner: Runner) -> None:
        self.busy_loading = False
        runner.ready = True
        self._advance()


@dataclass
class Outcome:
    """What a run came to. Seconds."""

    ttft_s: list[float]
    makespan_s: float
    loads: int

    def p(self, share: float) -> float:
        ordered = sorted(self.ttft_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class FleetModel:
    """A gateway's queue over `len(paces)` one-GPU nodes, without a socket."""

    def __init__(
        self,
        policy: Policy = expected,
        *,
        paces: tuple[float, ...] = (1.0,) * 8,
        slots: int = 2,
        load_bytes_s: float = 2e9,
        speedup: float = 1.0,
    ) -> None:
        self.clock = Clock()
        self.catalogue = open_catalogue(None)
        self.speedup = speedup
        settings = {"slots": slots, "load_bytes_s": load_bytes_s, "speedup": speedup}
        self.engines = [EngineModel(self.clock, Settings(settings), pace) for pace in paces]
        self.queue = Queue(
            room=WaitingRoom(max_queued=10**6, max_per_flow=10**6), policy_of=lambda _: policy
        )
        self.slots = slots
        self.resident: dict[tuple[str, str], float] = {}
        self.gone: dict[tuple[str, str], float] = {}
        self.roster = self._look()
        self._left = 0

    def run(self, arrivals: list[Arrival]) -> Outcome:
        """Serve all of them; the fleet stays as it is afterwards, for a second pass."""
        started_s = self.clock.now_s
        ttft: list[float] = []
        self._left = len(arrivals)
        loads = sum(engine.loads for engine in self.engines)
        for one in arrivals:
            at_s = one.at_s / self.speedup
            self.clock.after(at_s, lambda one=one: self._arrive(one, ttft))  # type: ignore[misc]
        self.clock.after(0.0, self._beat)
        self.clock.run(lambda: self._left == 0)
        made = sum(engine.loads for engine in self.engines) - loads
        taken_s = (self.clock.now_s - started_s) * self.speedup
        return Outcome([one * self.speedup for one in ttft], taken_s, made)

    def _arrive(self, one: Arrival, ttft: list[float]) -> None:
        ask = Ask(one.model, one.prompt_tokens)
        ticket = Ticket(ask, (one, ttft), self.clock.now_s)
        self._do(self.queue.submit(ticket, self.roster, self.clock.now_s))

    def _beat(self) -> None:
        if self._left:
            self._snapshot()
            self.clock.after(SNAPSHOT_S, self._beat)

    def _snapshot(self) -> None:
        now = self.clock.now_s
        self.resident = {k: v for k, v in self.resident.items() if v > now}
        self.gone = {k: v for k, v in self.gone.items() if v > now}
        self.roster = self._look()
        self._do(self.queue.pump_all(self.roster, now))

    def _do(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, Dispatch):
                self._dispatch(step)
            elif isinstance(step, Load):
                self._load(step)

    def _dispatch(self, step: Dispatch) -> None:
        ticket, seat = step.ticket, step.seat
        one, ttft = ticket.owner
        sent_s = self.clock.now_s

        def first() -> None:
            ttft.append(self.clock.now_s - ticket.enqueued_s)

        def done() -> None:
            self._left -= 1
            engine = self._engine(seat.key)
            rate = engine.settings.decode_rate(
                self.catalogue[one.model].size_bytes, self.catalogue[one.model].active_share
            )
            self.queue.speeds.served(
                seat.key,
                one.model,
                service_s=self.clock.now_s - sent_s,
                prefill_tps=engine.pace
                * engine.settings.prefill_rate(self.catalogue[one.model].size_bytes, 1.0),
                decode_tps=rate * engine.pace,
            )
            self.queue.release(ticket, self.clock.now_s)
            self._do(self.queue.pump(one.model, self.roster, self.clock.now_s, freed=True))

        model = self.catalogue[one.model]
        self._engine(seat.key).submit(Job(model, one.prompt_tokens, one.reply_tokens, first, done))

    def _load(self, step: Load) -> None:
        seat, began_s = step.seat, self.clock.now_s
        engine = self._engine(seat.key)
        for victim in step.decision.evict:
            engine.unload(victim)
            self.gone[seat.key, victim] = began_s + 3.0
            self.resident.pop((seat.key, victim), None)

        def done() -> None:
            now = self.clock.now_s
            self.queue.load_ended(seat.key, step.model, now)
            self.queue.speeds.loaded(seat.node, seat.size_bytes, now - began_s)
            self.gone.pop((seat.key, step.model), None)
            self.resident[seat.key, step.model] = now + 5.0
            self._snapshot()

        engine.submit(Job(self.catalogue[step.model], 0, 0, lambda: None, done))

    def _engine(self, key: str) -> EngineModel:
        return self.engines[int(key.split("/")[0][1:])]

    def _look(self) -> Roster:
        library = tuple(
            Model(m.name, size_bytes=m.size_bytes, context_length=m.context_length)
            for m in self.catalogue.values()
        )
        nodes = []
        for index, engine in enumerate(self.engines):
            used = sum(r.vram_bytes for r in engine.runners.values()) + _DRIVER_BYTES
            device = Device(
                f"G{index}",
                0,
                "SIM",
                "simulated",
                vram_bytes=engine.settings.vram_bytes,
                used_bytes=used,
            )
            loaded = tuple(
                Loaded(r.model.name, size_bytes=r.vram_bytes, vram_bytes=r.vram_bytes)
                for r in engine.runners.values()
                if r.ready
            )
            one = Engine(
                f"n{index}/sim",
                f"n{index}",
                "simulated",
                "ready",
                (f"G{index}",),
                address="127.0.0.1:1",
                pid=1,
                slots=self.slots,
                loaded=loaded,
            )
            nodes.append(
                Node(f"n{index}", "ready", devices=(device,), engines=(one,), library=library)
            )
        return Roster(Fleet(nodes=tuple(nodes)), self.resident, self.gone)
