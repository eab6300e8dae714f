"""What is remembered of each request: never its prompt or its reply.

The ledger holds the live ones and a bounded tail of finished ones, counts what ended, and
keeps short windows per model from which the console's rates and percentiles come.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from olol_tui.fleet.snapshot import Request, RequestState
from olol_tui.routing.decision import Decision
from olol_tui.routing.outlook import Place
from olol_tui.routing.ticket import PLAIN, Terms

Dialect = Literal["ollama", "openai", "anthropic"]
_WINDOW_S = 10.0
_KEPT = 100
_LIVE_SHOWN = 200
"""Of the live requests, how many a snapshot lists: the oldest. All are counted."""
_FINAL_FOR_S = 2.0


class Record(msgspec.Struct, eq=False):
    """One client call, as it goes. Times are loop seconds."""

    id: str
    model: str
    dialect: Dialect
    path: str
    client: str
    """Name of the key, else the peer's address."""
    arrived_s: float
    stream: bool
    key_id: str = ""
    terms: Terms = PLAIN
    state: RequestState = "queued"
    engine: str = ""
    where: str = ""
    sent_s: float | None = None
    first_s: float | None = None
    ended_s: float | None = None
    prompt_tokens: int | None = None
    tokens: int = 0
    decode_tps: float | None = None
    status: int | None = None
    error: str = ""
    cause: str = ""
    """Of a failed or cancelled one, in a word that can be counted."""
    why: Decision | None = None
    retries: int = 0
    replays: int = 0
    """Of the retries, how many began after the client had a part of the reply."""
    tried: tuple[str, ...] = ()
    """What went wrong before, one sentence a try."""
    method: str = "POST"
    _final: Request | None = None
    _final_s: float = 0.0

    def view(self, now_s: float, place: Place | None = None) -> Request:
        """For the snapshot. Of a finished one only the age changes: it is built anew rarely,
        because a snapshot holds hundreds of them and stands between two tokens."""
        if self._final is not None and now_s - self._final_s < _FINAL_FOR_S:
            return self._final
        request = self._build(now_s, place)
        if self.ended_s is not None:
            self._final, self._final_s = request, now_s
        return request

    def _build(self, now_s: float, place: Place | None) -> Request:
        first, ended, due_s = self.first_s, self.ended_s, self.terms.deadline_s
        rate = self.decode_tps
        if rate is None and first is not None:
            span = (now_s if ended is None else ended) - first
            rate = self.tokens / span if span > 0 and self.tokens > 1 else None
        return Request(
            id=self.id,
            state=self.state,
            model=self.model,
            dialect=self.dialect,
            path=self.path,
            client=self.client,
            age_s=now_s - self.arrived_s,
            engine=self.engine,
            where=self.where,
            wait_s=None if self.sent_s is None else self.sent_s - self.arrived_s,
            ttft_s=None if first is None else first - self.arrived_s,
            total_s=None if ended is None else ended - self.arrived_s,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
            tokens_per_s=rate,
            status=self.status,
            error=self.error,
            why=self.why.text if self.why is not None else "",
            stream=self.stream,
            priority="batch" if self.terms.batch else "interactive",
            position=None if place is None else place.position,
            expected_s=None if place is None else place.wait_s,
            deadline_s=None if due_s is None or self.state != "queued" else due_s - now_s,
        )


@dataclass(slots=True)
class _ModelWindow:
    ended: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=512))
    """(loop seconds, reply tokens)."""
    ttft: deque[float] = field(default_factory=lambda: deque(maxlen=128))


class Ledger:
    """All records of a gateway."""

    def __init__(
        self, clock: Callable[[], float], ended: Callable[[Record], None] | None = None
    ) -> None:
        self._clock = clock
        self._ended = ended
        self._count = 0
        self.live: dict[str, Record] = {}
        self.finished: deque[Record] = deque(maxlen=_KEPT)
        self.errors = 0
        self._models: dict[str, _ModelWindow] = {}

    @property
    def total(self) -> int:
        return self._count

    def new_id(self) -> str:
        self._count += 1
        return f"r{self._count}"

    def open(
        self,
        model: str,
        dialect: Dialect,
        path: str,
        client: str,
        stream: bool,
        key_id: str = "",
        terms: Terms = PLAIN,
    ) -> Record:
        request_id, now = self.new_id(), self._clock()
        record = Record(request_id, model, dialect, path, client, now, stream, key_id, terms)
        self.live[request_id] = record
        return record

    def close(
        self, record: Record, state: RequestState, status: int | None, error: str = ""
    ) -> None:
        """The request ended. Idempotent: the first end counts."""
        if self.live.pop(record.id, None) is None:
            return
        now = record.ended_s = self._clock()
        record.state = state
        record.status = status
        record.error = error
        self.finished.append(record)
        if state == "done":
            record.cause = ""
        elif not record.cause:
            record.cause = _cause(state, status)
        if state == "failed":
            self.errors += 1
        window = self._models.get(record.model)
        if window is None:
            window = self._models[record.model] = _ModelWindow()
        window.ended.append((now, record.tokens))
        if record.first_s is not None and state == "done":
            window.ttft.append(record.first_s - record.arrived_s)
        if self._ended is not None:
            self._ended(record)

    def views(self, places: Mapping[str, Place]) -> tuple[Request, ...]:
        """Finished ones first, then the live ones, newest last.

        Args:
            places: by id, of those that wait.
        """
        now = self._clock()
        live = itertools.islice(self.live.values(), _LIVE_SHOWN)
        ended = [record.view(now) for record in self.finished]
        return (*ended, *(record.view(now, places.get(record.id)) for record in live))

    def rates(self, model: str) -> tuple[float, float]:
        """(requests/s, tokens/s) of a model over the last seconds, live tokens included."""
        now = self._clock()
        window = self._models.get(model)
        recent = [x for x in window.ended if now - x[0] <= _WINDOW_S] if window else []
        tokens = float(sum(count for _, count in recent))
        for record in self.live.values():
            if record.model == model and record.first_s is not None:
                share = min(1.0, _WINDOW_S / max(now - record.first_s, 1e-3))
                tokens += record.tokens * share
        return len(recent) / _WINDOW_S, tokens / _WINDOW_S

    def ttft(self, model: str | None = None) -> tuple[float | None, float | None]:
        """(p50, p95) in seconds over the recent requests of a model, or of all."""
        if model is not None:
            window = self._models.get(model)
            values = sorted(window.ttft) if window else []
        else:
            values = sorted(v for w in self._models.values() for v in w.ttft)
        if not values:
            return None, None
        return values[len(values) // 2], values[min(len(values) - 1, int(len(values) * 0.95))]

    def models(self) -> list[str]:
        return list(self._models)


def _cause(state: RequestState, status: int | None) -> str:
    """For an end that nobody put more exactly."""
    if state == "cancelled":
        return "cancelled"
    if status == 503:
        return "unavailable"
    return "bad_request" if status is not None and 400 <= status < 500 else "engine_error"
