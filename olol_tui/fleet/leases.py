"""When an idle runner goes: the keep-alive of engines that serve one model per process.

Follows Ollama: a request without keep_alive leaves the model's own as it was, the time
counts from the end of the last request, and nothing expires while a request runs. Pure: the
clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from olol_tui.fleet.snapshot import RUNNERS, Engine


@dataclass(slots=True)
class _Lease:
    keep_alive_s: float
    idle_since_s: float | None = None
    """None while busy, starting, or not yet seen."""


class Leases:
    """One lease for each runner, by engine id."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}

    def hold(self, engine_id: str, keep_alive_s: float) -> None:
        """A runner was asked for; its time counts from when it is ready."""
        self._leases.setdefault(engine_id, _Lease(keep_alive_s)).keep_alive_s = keep_alive_s

    def hold_once(self, engine_id: str, keep_alive_s: float) -> None:
        """As `hold`, unless it is held already: a request may have asked for another time."""
        self._leases.setdefault(engine_id, _Lease(keep_alive_s))

    def touch(self, engine_id: str, keep_alive_s: float | None, now_s: float) -> None:
        """A request ended. None keeps the keep-alive it has."""
        lease = self._leases.get(engine_id)
        if lease is None:
            return
        if keep_alive_s is not None:
            lease.keep_alive_s = keep_alive_s
        lease.idle_since_s = now_s

    def drop(self, engine_id: str) -> None:
        self._leases.pop(engine_id, None)

    def keep_alive_s(self, engine_id: str) -> float | None:
        lease = self._leases.get(engine_id)
        return lease.keep_alive_s if lease else None

    def expired(
        self,
        engines: Iterable[Engine],
        *,
        is_busy: Callable[[str], bool],
        is_pinned: Callable[[Engine], bool],
        now_s: float,
    ) -> list[str]:
        """Runners whose time is over.

        A failed one counts as idle: it goes too, and the next request tries afresh.
        """
        over: list[str] = []
        for engine in engines:
            lease = self._leases.get(engine.id)
            if lease is None or engine.kind not in RUNNERS:
                continue
            if engine.state not in ("ready", "failed") or is_busy(engine.id) or is_pinned(engine):
                lease.idle_since_s = None
                continue
            if lease.idle_since_s is None:
                lease.idle_since_s = now_s
            if 0 <= lease.keep_alive_s <= now_s - lease.idle_since_s:
                over.append(engine.id)
        return over

    def expires_at(self, engine_id: str, now_s: float) -> str:
        """RFC 3339; "" for never and for what is not known to be idle."""
        lease = self._leases.get(engine_id)
        if lease is None or lease.keep_alive_s < 0:
            return ""
        idle_since_s = now_s if lease.idle_since_s is None else lease.idle_since_s
        left_s = max(0.0, idle_since_s + lease.keep_alive_s - now_s)
        moment = datetime.now(UTC) + timedelta(seconds=left_s)
        return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
