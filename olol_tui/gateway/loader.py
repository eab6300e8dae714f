"""Makes models resident because requests wait for them.

The load is ours, not the client's: an Ollama aborts a load when the client that caused it
leaves, and others may be waiting for the same model by then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import RUNNERS, Fleet, Split
from olol_tui.gateway import upstream
from olol_tui.gateway.dialects import errors
from olol_tui.gateway.metrics import Metrics
from olol_tui.gateway.port import FleetPort
from olol_tui.models.names import canonical
from olol_tui.routing import splitting
from olol_tui.routing.queue import Queue
from olol_tui.routing.roster import USUAL_CTX, Roster, Seat
from olol_tui.routing.ticket import Load

log = logging.getLogger("olol.gateway.loader")

RESIDENT_FOR_S = 5.0
"""How long our own knowledge of a load outweighs snapshots that do not show it yet."""
GONE_FOR_S = 3.0
"""How long our own knowledge of an unload does."""

Failed = Callable[[str, int, str], None]
"""(model, status, message): its waiting requests cannot be served by that load."""
Lost = Callable[[Seat, str, str, str], None]
"""(seat, model, reason, cause): its engine broke off."""


class _EngineLoad:
    """One load of an engine that holds many models: what must go first, then the model.

    An upstream.Receiver of one call after the other.
    """

    def __init__(self, loader: Loader, seat: Seat, model: str, started_s: float) -> None:
        self._loader = loader
        self.seat = seat
        self.model = model
        self.started_s = started_s
        self.lost = ""
        """Why there was no answer, if there was none."""
        self.calls: list[bytes] = []
        """What is still to be sent, the load itself last."""
        self._status = 0
        self._parts: list[bytes] = []

    def up_head(self, status: int, content_type: bytes) -> None:
        self._status = status

    def up_data(self, data: bytes, final: bool) -> None:
        self._parts.append(data)

    def up_end(self) -> None:
        body = b"".join(self._parts)
        self._parts = []
        if self.calls:
            # An unload that failed is no reason: the engine evicts by itself then.
            self._loader.send(self)
        else:
            self._loader.ended(self, self._status, body)

    def up_lost(self, reason: str) -> None:
        self.lost = message = f"{self.seat.where} was lost while it loaded {self.model}: {reason}"
        self._loader.ended(self, 500, errors.error_body("ollama", 500, message))


class Loader:
    """Carries out the queue's Load steps and reports how they ended."""

    def __init__(
        self,
        fleet: FleetPort,
        pool: upstream.UpstreamPool,
        queue: Queue,
        now: Callable[[], float],
        changed: Callable[[str], None],
        failed: Failed,
        lost: Lost,
        metrics: Metrics,
    ) -> None:
        self._fleet = fleet
        self._pool = pool
        self._queue = queue
        self._now = now
        self._changed = changed
        self._failed = failed
        self._lost = lost
        self._metrics = metrics
        self._launches: dict[tuple[str, str], tuple[str, float]] = {}
        """(seat key, model) → (engine id, started)."""
        self._calls: dict[_EngineLoad, upstream.Call] = {}
        self.resident: dict[tuple[str, str], float] = {}
        """(engine id, model) → until when we vouch for it."""
        self.gone: dict[tuple[str, str], float] = {}
        """(engine id, model) that we unloaded → until when that outweighs snapshots."""

    def roster(self, fleet: Fleet) -> Roster:
        """The seats of a snapshot, with what we did since."""
        return Roster(fleet, self.resident, self.gone)

    def start(self, step: Load, roster: Roster) -> None:
        seat, model = step.seat, step.model
        name = next((m.name for n, m in roster.models(model) if n.name == seat.node), model)
        log.info("load", extra={"model": model, "where": seat.where})
        if seat.kind == splitting.KIND or seat.kind in RUNNERS:
            for victim in step.decision.evict:
                self._say_evicted(victim, seat, model)
            self._launch(seat, model, name, step)
            return
        load = _EngineLoad(self, seat, model, self._now())
        for victim in step.decision.evict:
            self._say_evicted(victim, seat, model)
            self.gone[seat.engine, victim] = self._now() + GONE_FOR_S
            self.resident.pop((seat.engine, victim), None)
            unload: dict[str, object] = {"model": victim, "stream": False, "keep_alive": 0}
            load.calls.append(_request(seat, victim, unload, roster))
        body: dict[str, object] = {"model": name, "stream": False}
        # What is loaded with less than usual shows that this engine gives less unasked.
        unasked = min(USUAL_CTX, USUAL_CTX if seat.context_length is None else seat.context_length)
        if step.num_ctx is not None and step.num_ctx > unasked:
            body["options"] = {"num_ctx": step.num_ctx}
        load.calls.append(_request(seat, model, body, roster))
        self.send(load)

    def send(self, load: _EngineLoad) -> None:
        """The next call of a load."""
        self._calls[load] = self._pool.call(load.seat.address, load.calls.pop(0), load)

    def dropped(self, engine_id: str, model: str) -> None:
        """The engine was asked to drop a model: we vouch for it no more."""
        self.resident.pop((engine_id, model), None)

    def _say_evicted(self, victim: str, seat: Seat, model: str) -> None:
        log.info("evict", extra={"model": victim, "where": seat.where, "for": model})

    def _launch(self, seat: Seat, model: str, name: str, step: Load) -> None:
        num_ctx = step.num_ctx
        try:
            split = self._fleet.fleet.split_of(seat.engine)
            if seat.kind == splitting.KIND or split is not None:
                engine = self._fleet.launch_split(name, num_ctx=num_ctx, spread=seat.spread)
            else:
                engine = self._fleet.launch(
                    name, seat.node, seat.device, num_ctx=num_ctx, evict=step.decision.evict
                )
        except OlolError as error:
            self._queue.load_ended(seat.key, model)
            if seat.warm:
                # It serves as it is. Asked again with the next snapshot, and not at once.
                log.warning("not loaded anew: %s", error, extra={"model": model})
                return
            self._failed(model, 500, str(error))
            return
        self._launches[seat.key, model] = (engine, self._now())

    def ended(self, load: _EngineLoad, status: int, body: bytes) -> None:
        """An engine answered a load request."""
        self._calls.pop(load, None)
        seat, model = load.seat, load.model
        now = self._now()
        self._queue.load_ended(seat.key, model, now if status == 200 else None)
        self.gone.pop((seat.engine, model), None)
        self._metrics.loaded(model, seat.engine, now - load.started_s, ok=status == 200)
        if status == 200:
            self._queue.speeds.loaded(seat.node, seat.size_bytes, now - load.started_s)
            self._queue.ejection.succeeded(seat.key, now, load.started_s)
            self.resident[seat.engine, model] = now + RESIDENT_FOR_S
            self._fleet.kick(seat.engine)
            self._changed(model)
            return
        log.warning("load failed", extra={"model": model, "where": seat.where, "status": status})
        if load.lost:
            # What an engine says about a model it cannot load is no failure of the engine.
            self._lost(seat, model, load.lost, "load_lost")
        self._failed(model, status, errors.upstream_message(body))

    def observe(self, fleet: Fleet, now_s: float) -> None:
        """A new snapshot: which launches ended, which of our claims has it confirmed."""
        for (key, model), (engine_id, started_s) in list(self._launches.items()):
            engine = fleet.engine(engine_id)
            if (split := fleet.split(engine_id)) is not None:
                self._observe_split(split, key, model, now_s - started_s)
                continue
            if engine is None:
                # Not in the list yet, or withdrawn by an operator before it was up.
                if now_s - started_s > RESIDENT_FOR_S:
                    self._forget(key, model)
                continue
            if engine.state == "ready":
                self._forget(key, model, now_s)
                self._metrics.loaded(model, engine_id, now_s - started_s, ok=True)
                size = sum(x.size_bytes for x in engine.loaded)
                self._queue.speeds.loaded(engine.node, size, now_s - started_s)
            elif engine.state == "failed":
                self._forget(key, model)
                self._metrics.loaded(model, engine_id, now_s - started_s, ok=False)
                reason = engine.error or (engine.log_tail[-1] if engine.log_tail else "it exited")
                self._failed(model, 500, f"{engine.id} failed to load {model}: {reason}")
        for (engine_id, model), until_s in list(self.resident.items()):
            engine = fleet.engine(engine_id)
            shown = engine is not None and any(canonical(x.name) == model for x in engine.loaded)
            gone = engine is None or engine.state != "ready"
            if shown or gone or until_s < now_s:
                del self.resident[engine_id, model]
        for (engine_id, model), until_s in list(self.gone.items()):
            engine = fleet.engine(engine_id)
            shown = engine is not None and any(canonical(x.name) == model for x in engine.loaded)
            if not shown or until_s < now_s:
                del self.gone[engine_id, model]

    def _observe_split(self, split: Split, key: str, model: str, took_s: float) -> None:
        if split.state == "ready":
            self._forget(key, model, self._now())
            self._metrics.loaded(model, split.engine, took_s, ok=True)
        elif split.state == "failed":
            self._forget(key, model)
            self._metrics.loaded(model, split.engine, took_s, ok=False)
            self._failed(model, 500, split.error)

    def _forget(self, key: str, model: str, now_s: float | None = None) -> None:
        self._launches.pop((key, model), None)
        self._queue.load_ended(key, model, now_s)


def _request(seat: Seat, model: str, body: dict[str, object], roster: Roster) -> bytes:
    """A request without a prompt: it loads, or unloads with `keep_alive` 0."""
    entry = next((m for n, m in roster.models(model) if n.name == seat.node), None)
    path = "/api/generate"
    if entry is not None:
        body["model"] = entry.name
        if "embedding" in entry.capabilities and "completion" not in entry.capabilities:
            path = "/api/embed"
            body["input"] = []
    raw = msgspec.json.encode(body)
    return upstream.head("POST", seat.address, path, len(raw), "application/json") + raw
