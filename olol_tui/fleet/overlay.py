"""Facts about engines that the controller knows before the agent tells them.

Loads that it drives itself, and lists of resident models that it has just asked for: shown
at once, and dropped when telemetry must have caught up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from olol_tui.fleet.snapshot import Engine, Loaded, Loading
from olol_tui.models.names import canonical, same

FRESH_FOR_S = 2.0
"""Agents ask engines once a second: after two, telemetry is at least as new."""
GUESS_MAX = 0.97


@dataclass(frozen=True, slots=True)
class _Mark:
    """A load that the controller drives."""

    name: str
    started_s: float
    expected_s: float

    def progress(self, now_s: float) -> float:
        """A guess from the expected time: it never claims to be done."""
        return min(GUESS_MAX, max(0.0, now_s - self.started_s) / max(self.expected_s, 0.1))


class Overlay:
    def __init__(self, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._loading: dict[str, dict[str, _Mark]] = {}
        self._fresh: dict[str, tuple[float, tuple[Loaded, ...]]] = {}

    @contextmanager
    def loading(self, engine_id: str, model: str, expected_s: float) -> Iterator[None]:
        """Several loads of one model may overlap: the first one's mark stays."""
        name = canonical(model)
        marks = self._loading.setdefault(engine_id, {})
        mine = _Mark(name=name, started_s=self._clock(), expected_s=expected_s)
        marks.setdefault(name, mine)
        self._changed()
        try:
            yield
        finally:
            if marks.get(name) is mine:
                del marks[name]
            self._changed()

    def learned(self, engine_id: str, loaded: tuple[Loaded, ...]) -> None:
        self._fresh[engine_id] = (self._clock() + FRESH_FOR_S, loaded)
        self._changed()

    def apply(self, engine: Engine, now_s: float) -> Engine:
        """The engine with what is known better."""
        loaded = engine.loaded
        fresh = self._fresh.get(engine.id)
        if fresh is not None:
            if now_s < fresh[0] and engine.state == "ready":
                loaded = fresh[1]
            else:
                del self._fresh[engine.id]
        loading = engine.loading + tuple(
            Loading(mark.name, mark.started_s, mark.progress(now_s))
            for mark in self._loading.get(engine.id, {}).values()
            if not any(same(known.name, mark.name) for known in engine.loading)
            and not any(same(known.name, mark.name) for known in loaded)
        )
        if loaded is engine.loaded and loading == engine.loading:
            return engine
        return replace(engine, loaded=loaded, loading=loading)
