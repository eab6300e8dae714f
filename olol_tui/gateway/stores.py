"""Which stores the fleet has, and which of them keeps what a client is sending.

Several Ollama engines of a node share one store: the first that is ready speaks for it, always
the same one, because two that pull one blob into one store undo each other's work. Every
endpoint is a store of its own. Engines that serve one file have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from olol_tui.fleet.snapshot import RUNNERS, Engine, EngineKind, Fleet, Node
from olol_tui.models.names import canonical
from olol_tui.routing.roster import way_to

REMEMBERED_S = 3600.0
"""As long as Ollama itself keeps a blob that belongs to no model yet."""
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Store:
    """One store that can be asked now."""

    node: str
    engine: str
    address: str
    kind: EngineKind
    models: frozenset[str]
    """Canonical names."""
    cordoned: bool
    foreign: bool
    """Somebody else's: an endpoint."""


@dataclass(frozen=True, slots=True)
class Stores:
    """All stores of one snapshot."""

    ready: tuple[Store, ...]
    lost: tuple[tuple[str, str, frozenset[str]], ...]
    """(node, why it cannot be asked now, what it held when last seen)."""

    def on(self, node: str) -> Store | None:
        return next((store for store in self.ready if store.node == node), None)

    def having(self, model: str) -> list[Store]:
        """Those that hold a model, by its canonical name."""
        return [store for store in self.ready if model in store.models]

    def lost_with(self, model: str) -> list[tuple[str, str]]:
        return [(node, why) for node, why, models in self.lost if model in models]

    @property
    def growing(self) -> list[Store]:
        """Those that take something new: not where an operator wants to be left alone."""
        return [store for store in self.ready if not store.cordoned]

    @property
    def default(self) -> Store | None:
        """Where something new goes that only one store gets: rather our own than others'."""
        return min(self.growing, key=lambda store: store.foreign, default=None)


def stores_of(fleet: Fleet) -> Stores:
    """The stores of a snapshot."""
    ready: list[Store] = []
    lost: list[tuple[str, str, frozenset[str]]] = []
    for node in fleet.nodes:
        keepers = [engine for engine in node.engines if keeps_models(engine)]
        if not keepers:
            continue
        models = frozenset(canonical(model.name) for model in node.library)
        speaker = next((e for e in keepers if e.state == "ready" and e.address), None)
        if node.state != "ready":
            lost.append((node.name, f"the node is {node.state}", models))
        elif speaker is None:
            state = keepers[0].state
            why = "its engine has no address yet" if state == "ready" else f"its engine is {state}"
            lost.append((node.name, why, models))
        else:
            ready.append(_store(node, speaker, models))
    return Stores(tuple(ready), tuple(lost))


def keeps_models(engine: Engine) -> bool:
    """It loads what its node's store has, whatever a request names."""
    return engine.kind not in RUNNERS and engine.kind != "rpc-server"


def _store(node: Node, speaker: Engine, models: frozenset[str]) -> Store:
    return Store(
        node=node.name,
        engine=speaker.id,
        address=way_to(node, speaker),
        kind=speaker.kind,
        models=models,
        cordoned=node.cordoned,
        foreign=node.kind == "endpoint",
    )


class Uploads:
    """Remembers which store got a blob, and which store a client sends its blobs to.

    A model is made of several blobs that must lie in one store, and nothing in an upload says
    which model it is for: so all that one client sends within the hour goes to one store.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nodes: dict[str, tuple[str, float]] = {}
        """By digest, and by `client …`: node, until when."""

    def remember(self, store: Store, digest: str, client: str) -> None:
        until_s = self._clock() + REMEMBERED_S
        for key in (digest, f"client {client}"):
            self._nodes.pop(key, None)
            self._nodes[key] = (store.node, until_s)
        while len(self._nodes) > _KEPT:
            del self._nodes[next(iter(self._nodes))]

    def store_for(self, stores: Stores, digest: str, client: str) -> Store | None:
        """The store that has or shall have a blob; None: nothing is remembered."""
        return self._known(stores, digest) or self._known(stores, f"client {client}")

    def store_of(self, stores: Stores, digests: Iterable[str], client: str) -> Store | None:
        """Where a model is made of these blobs; None: nothing is remembered."""
        for digest in digests:
            if store := self._known(stores, digest):
                return store
        return self._known(stores, f"client {client}")

    def _known(self, stores: Stores, key: str) -> Store | None:
        node, until_s = self._nodes.get(key, ("", 0.0))
        return stores.on(node) if until_s > self._clock() else None
