"""What a key that is for some models may know of the fleet: those models, and no others.

Pure: a snapshot in, a smaller one out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from olol_tui.fleet.snapshot import RUNNERS, Engine, Fleet, Node
from olol_tui.gateway.keys import Key
from olol_tui.models.names import canonical


class Sight:
    """`of` for each key; the latest answers are kept, as lists are asked for again and again."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None
        self._seen: dict[tuple[str, ...], Fleet] = {}

    def of(self, fleet: Fleet, key: Key | None) -> Fleet:
        """The fleet as this key may see it."""
        if key is None or not key.models:
            return fleet
        if fleet is not self._fleet:
            self._fleet = fleet
            self._seen.clear()
        seen = self._seen.get(key.models)
        if seen is None:
            seen = self._seen[key.models] = _seen(fleet, lambda n: key.may_use(canonical(n)))
        return seen


def _seen(fleet: Fleet, may: Callable[[str], bool]) -> Fleet:
    return replace(
        fleet,
        nodes=tuple(_node(node, may) for node in fleet.nodes),
        requests=tuple(one for one in fleet.requests if may(one.model)),
        gateway=replace(
            fleet.gateway, models=tuple(one for one in fleet.gateway.models if may(one.model))
        ),
        splits=tuple(one for one in fleet.splits if may(one.model)),
        split_rules={name: rule for name, rule in fleet.split_rules.items() if may(name)},
        pins=tuple(one for one in fleet.pins if may(one.model)),
        paused=tuple(name for name in fleet.paused if may(name)),
        # They are told in sentences that name models.
        operations=(),
        alerts=(),
    )


def _node(node: Node, may: Callable[[str], bool]) -> Node:
    engines = (engine for engine in node.engines if engine.kind not in RUNNERS or may(engine.model))
    return replace(
        node,
        library=tuple(model for model in node.library if may(model.name)),
        engines=tuple(_engine(engine, may) for engine in engines),
    )


def _engine(engine: Engine, may: Callable[[str], bool]) -> Engine:
    return replace(
        engine,
        loaded=tuple(one for one in engine.loaded if may(one.name)),
        loading=tuple(one for one in engine.loading if may(one.name)),
    )
