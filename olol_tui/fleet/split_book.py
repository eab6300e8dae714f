"""Which splits should exist, and what that makes of each node. Pure; part of the wishes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from olol_tui.fleet.limits import Reserved
from olol_tui.fleet.split_wish import KeptSplit, Ports, SplitWish
from olol_tui.fleet.wire import Spec
from olol_tui.placement.again import Place

__all__ = ["KeptSplit", "SplitBook"]

_MOST_PLACES = 256
"""Of models that were split once; the latest are remembered."""


class SplitBook:
    """`changed` is called after every change that is worth keeping."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._wishes: dict[str, SplitWish] = {}
        self._ports: dict[str, Ports] = {}
        self._specs: dict[str, Mapping[str, tuple[Spec, ...]]] = {}
        self._refusals: dict[str, str] = {}
        self._loaded: set[str] = set()
        self._promised: dict[str, SplitWish] = {}
        self._places: dict[str, Place] = {}

    def __iter__(self) -> Iterator[SplitWish]:
        return iter(tuple(self._wishes.values()))

    def get(self, split_id: str) -> SplitWish | None:
        return self._wishes.get(split_id)

    def add(self, wish: SplitWish) -> None:
        devices = tuple((part.node, part.device) for part in wish.parts)
        self._places.pop(wish.id, None)
        self._places[wish.id] = Place(wish.node, devices)
        for oldest in list(self._places)[:-_MOST_PLACES]:
            del self._places[oldest]
        if self._wishes.get(wish.id) != wish:
            self._wishes[wish.id] = wish
            self._changed()

    def drop(self, split_id: str) -> SplitWish | None:
        for kept in (self._specs, self._ports, self._refusals):
            kept.pop(split_id, None)
        self._loaded.discard(split_id)
        wish = self._wishes.pop(split_id, None)
        if wish is not None:
            self._changed()
        return wish

    def place(self, split_id: str) -> Place | None:
        """Where it was wished for last."""
        return self._places.get(split_id)

    def ports(self, split_id: str) -> Ports:
        """To be changed in place; `note_ports` afterwards."""
        return self._ports.setdefault(split_id, Ports())

    def note_ports(self) -> None:
        """Ports of a split changed."""
        self._changed()

    # -- what nodes should run

    def set_specs(self, split_id: str, specs: Mapping[str, tuple[Spec, ...]]) -> set[str]:
        """What the nodes should run of a split now; returns those for which that is new."""
        before = self._specs.get(split_id, {})
        self._specs[split_id] = specs
        return {node for node in {*before, *specs} if before.get(node, ()) != specs.get(node, ())}

    def specs_on(self, node: str) -> tuple[Spec, ...]:
        return tuple(spec for specs in self._specs.values() for spec in specs.get(node, ()))

    def refuse_spec(self, engine_id: str, reason: str) -> bool:
        """An agent does not take a part of a split: nothing of that split is told any more.

        Returns:
            Whether it is a part of one.
        """
        for split, specs in self._specs.items():
            if any(spec.id == engine_id for found in specs.values() for spec in found):
                self._specs[split] = {}
                self._refusals[split] = reason
                self._changed()
                return True
        return False

    def refusal(self, split_id: str) -> str:
        """Why an agent refused a part of it; empty when none did."""
        return self._refusals.get(split_id, "")

    def set_loaded(self, split_id: str, is_loaded: bool) -> None:
        """Whether its parts hold what was planned for them; not kept over a restart."""
        if is_loaded:
            self._loaded.add(split_id)
        else:
            self._loaded.discard(split_id)

    def reserved_on(self, node: str) -> Mapping[str, Reserved]:
        """What splits have of each device, by UUID."""
        taken: dict[str, Reserved] = {}
        for wish in {**self._promised, **self._wishes}.values():
            for part in wish.parts:
                if part.node == node:
                    before = taken.get(part.device, Reserved())
                    coming = 0 if wish.id in self._loaded else part.planned_bytes
                    taken[part.device] = Reserved(
                        before.total_bytes + part.planned_bytes, before.coming_bytes + coming
                    )
        return taken

    @contextmanager
    def promised(self, wish: SplitWish) -> Iterator[None]:
        """Room is being made for this split: nobody else may take it meanwhile."""
        self._promised[wish.id] = wish
        self._changed()
        try:
            yield
        finally:
            del self._promised[wish.id]
            self._changed()

    def heads(self) -> frozenset[str]:
        """Ids of the engines that head a split."""
        return frozenset(wish.engine for wish in self._wishes.values())

    # -- kept over restarts

    def kept(self) -> tuple[KeptSplit, ...]:
        return tuple(KeptSplit(wish, self.ports(wish.id)) for wish in self)

    @property
    def places(self) -> Mapping[str, Place]:
        """Where each split was wished for last."""
        return self._places

    def adopt(self, kept: Iterable[KeptSplit], places: Mapping[str, Place]) -> None:
        self._places = dict(places)
        for one in kept:
            self._wishes[one.wish.id] = one.wish
            self._ports[one.wish.id] = one.ports
