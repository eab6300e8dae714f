"""Where each model can run, read off one Fleet.

Pure. Built once per snapshot and shared by every decision until the next one; a model's seats
are worked out when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from olol_tui.fleet.snapshot import (
    RUNNERS,
    Device,
    Engine,
    Fleet,
    Loaded,
    Model,
    Node,
    SplitRule,
)
from olol_tui.models.footprint import Footprint
from olol_tui.models.names import canonical
from olol_tui.routing.splitting import with_split

NO_ENGINE = frozenset({"rpc", "off"})
"""Roles of devices that take no model by themselves."""
_BY_FILE = frozenset({"ollama", "endpoint"})
"""Names of one file are one model to them: a copy of what is loaded is loaded."""
ROAD_MARK = "!"
"""Between node and address in `way_to`: neither holds it."""
USUAL_CTX = 4096
"""Tokens that an engine gives a model when nobody asks: a load for less would be a reload for
the next client."""
_OVERHEAD_BYTES = 320 * 1024 * 1024
"""CUDA context and buffers of one model, the low end of what llama.cpp logs."""
_CPU_OVERHEAD_BYTES = 96 * 1024 * 1024
"""The same where there is no CUDA."""
_KV_SHARE = 1.15
"""Weights to weights + KV cache at the usual context; the memory model refines it."""


class Resident(NamedTuple):
    """Another model in the memory that a seat would use."""

    name: str
    """Canonical."""
    size_bytes: int
    key: str
    """Of the seat where it is."""
    slots: int
    pinned: bool = False
    expires_at: str = ""
    """RFC 3339; empty for never."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One place where one model runs or could run."""

    key: str
    """Engine id; for a runner that is not there yet `node/device uuid`."""
    engine: str
    """Empty while the engine has to be launched first."""
    node: str
    device: str
    where: str
    """`node/gpu0` for people."""
    address: str
    kind: str
    slots: int
    warm: bool
    """The model is resident: a request can start at once."""
    loading: bool
    context_length: int | None
    size_bytes: int
    need_bytes: int
    vram_bytes: int | None
    free_bytes: int | None
    is_guess: bool = True
    """`need_bytes` is guessed from the file's size, not computed from its header."""
    lent_bytes: int = 0
    """Of the device, what splits have, loaded or about to be."""
    residents: tuple[Resident, ...] = ()
    """What else is in that memory: unless pinned it may be evicted."""
    memory: str = ""
    """What all seats in the same memory have in common: the runners of a device. Empty for an
    engine that has its memory to itself."""
    longest_context: int | None = None
    """What the model was trained for: asking for more gives no more."""
    refused: str = ""
    """Why it takes no request now: cordoned, stopped, lost. Empty when it may."""
    dead: bool = False
    """Refused, and it will not come back by itself."""
    incarnation: str = ""
    """Changes when the engine is restarted: a new process gets a new chance."""
    spread: bool = False
    """A split over several devices even where one would do."""
    share: float = 1.0
    """Of the traffic that it would get otherwise: less while it begins again after a failure."""

    @property
    def room(self) -> str:
        """The key of its memory."""
        return self.memory or self.key

    @property
    def fits(self) -> bool | None:
        """Whether the model fits the empty device; None where the size is unknown."""
        if self.vram_bytes is None or not self.size_bytes:
            return None
        return self.need_bytes <= self.vram_bytes


def need_bytes(
    size_bytes: int, vendor: str = "", footprint: Footprint | None = None, slots: int = 1
) -> int:
    """Memory that a model will take, by its header; guessed from its file's size where that is
    not known: weights with an everyday KV cache."""
    if footprint is not None:
        return footprint.total_at(USUAL_CTX, vendor, slots)
    overhead = _CPU_OVERHEAD_BYTES if vendor == "cpu" else _OVERHEAD_BYTES
    return int(size_bytes * _KV_SHARE) + overhead if size_bytes else 0


class Roster:
    """Seats by model for one snapshot.

    Args:
        fleet: the snapshot.
        resident: (engine id, canonical model) that the gateway loaded itself and that this
            snapshot may not show yet.
        gone: those that it unloaded itself and that this snapshot may still show.
    """

    __slots__ = ("_gone", "_names", "_replicas", "_resident", "_seats", "fleet")

    def __init__(
        self,
        fleet: Fleet,
        resident: Mapping[tuple[str, str], float],
        gone: Container[tuple[str, str]] = frozenset(),
    ) -> None:
        self.fleet = fleet
        self._resident = resident
        self._gone = gone
        self._replicas: dict[str, int] | None = None
        self._seats: dict[str, tuple[Seat, ...]] = {}
        self._names: dict[str, list[tuple[Node, Model]]] | None = None

    def seats(self, model: str, distributed: bool | None = None) -> tuple[Seat, ...]:
        """All seats of a canonical model name; empty when nobody has it.

        Args:
            distributed: only a split, or none; None: as the model's rule says.
        """
        if distributed is not None:
            rule: SplitRule = "always" if distributed else "never"
            entries, seats = self.models(model), self._find(model)
            return tuple(with_split(model, entries, seats, self.fleet, Seat, rule))
        found = self._seats.get(model)
        if found is None:
            entries, seats = self.models(model), self._find(model)
            found = tuple(with_split(model, entries, seats, self.fleet, Seat))
            self._seats[model] = found
        return found

    def replicas(self, model: str) -> int:
        """In how many engines that serve it is resident."""
        if self._replicas is None:
            self._replicas = {}
            for node in self.fleet.nodes:
                if _node_refusal(node):
                    continue
                for engine in node.engines:
                    if engine.state == "ready" and not engine.cordoned:
                        for name in self._names_on(engine):
                            self._replicas[name] = self._replicas.get(name, 0) + 1
        return self._replicas.get(model, 0)

    def size_bytes(self, model: str, node: str) -> int:
        """Of the model's file on a node, 0 where it is not known."""
        return next((m.size_bytes for n, m in self.models(model) if n.name == node), 0)

    def _names_on(self, engine: Engine) -> set[str]:
        """Canonical names of what is resident, by the snapshot and by what we did since."""
        names = {canonical(x.name) for x in engine.loaded}
        if self._resident:
            names |= {model for at, model in self._resident if at == engine.id}
        if self._gone:
            names -= {model for model in names if (engine.id, model) in self._gone}
        return names

    def models(self, model: str) -> list[tuple[Node, Model]]:
        """Every node whose library holds the model, with its entry."""
        if self._names is None:
            self._names = {}
            for node in self.fleet.nodes:
                for entry in node.library:
                    self._names.setdefault(canonical(entry.name), []).append((node, entry))
        return self._names.get(model, [])

    def _find(self, model: str) -> list[Seat]:
        seats: list[Seat] = []
        for node, entry in self.models(model):
            devices = {device.uuid: device for device in node.devices}
            launched: set[str] = set()
            for engine in node.engines:
                if engine.kind in RUNNERS:
                    if canonical(engine.model) == model:
                        launched.update(engine.devices)
                        seats.append(self._seat(node, engine, devices, model, entry))
                elif engine.kind != "rpc-server":
                    seats.append(self._seat(node, engine, devices, model, entry))
            if node.runner and entry.path:
                seats += [
                    self._launchable(node, device, entry)
                    for device in node.devices
                    if device.uuid not in launched and device.role not in NO_ENGINE
                ]
        return seats

    def _seat(
        self, node: Node, engine: Engine, devices: dict[str, Device], model: str, entry: Model
    ) -> Seat:
        is_runner = engine.kind in RUNNERS
        names = self._names_on(engine)
        loaded = next((x for x in engine.loaded if canonical(x.name) == model), None)
        if loaded is None and entry.digest and engine.kind in _BY_FILE:
            loaded = next((x for x in engine.loaded if x.digest == entry.digest), None)
        twin = "" if loaded is None else canonical(loaded.name)
        starting = is_runner and engine.state == "starting" and not _node_refusal(node)
        warm = (model in names or twin in names) and not starting
        owned = [devices[uuid] for uuid in engine.devices if uuid in devices]
        free = [device.free_bytes for device in owned]
        total = [device.vram_bytes for device in owned]
        residents = {canonical(x.name): x for x in engine.loaded}
        # What we did since the snapshot was taken is not in its free memory yet.
        unseen = sum(
            need_bytes(self.size_bytes(name, node.name)) for name in names if name not in residents
        )
        left = sum(_bytes(x) for name, x in residents.items() if name not in names)
        # Nor is what its engine has loaded since the devices were read.
        held = sum(_bytes(x) for x in residents.values())
        device = engine.devices[0] if engine.devices else ""
        return Seat(
            key=engine.id,
            engine=engine.id,
            node=node.name,
            device=device,
            where=_where(node, owned),
            address=way_to(node, engine),
            kind=engine.kind,
            slots=max(1, engine.slots),
            warm=warm,
            loading=starting or any(canonical(x.name) == model for x in engine.loading),
            context_length=loaded.context_length if loaded else None,
            size_bytes=entry.size_bytes,
            need_bytes=need_bytes(
                entry.size_bytes, owned[0].vendor if owned else "", entry.footprint, engine.slots
            ),
            is_guess=entry.footprint is None,
            vram_bytes=_total(total),
            free_bytes=_less(_least(_total(free), _less(_total(total), held)), unseen - left),
            lent_bytes=sum(device.lent_bytes for device in owned),
            residents=self._beside(node, device, model)
            if is_runner
            else tuple(
                _resident(engine, residents[name])
                if name in residents
                else Resident(
                    name, need_bytes(self.size_bytes(name, node.name)), engine.id, engine.slots
                )
                for name in sorted(names)
                if name not in (model, twin)
            ),
            memory=_memory(node, device) if is_runner else "",
            longest_context=entry.context_length
            if engine.largest_ctx is None
            else engine.largest_ctx,
            refused="" if starting else _refusal(node, engine),
            dead=engine.state == "failed" or node.state == "failed",
            incarnation=f"{engine.id}#{engine.pid}",
        )

    def _beside(self, node: Node, device: str, model: str) -> tuple[Resident, ...]:
        """The runners of other models on a device."""
        return tuple(
            _resident(engine, one)
            for engine in _runners(node, device)
            if engine.state == "ready" and canonical(engine.model) != model
            for one in engine.loaded
        )

    def _launchable(self, node: Node, device: Device, entry: Model) -> Seat:
        key = _memory(node, device.uuid)
        # What only begins to load is not in the device's used memory yet.
        coming = sum(
            need_bytes(self.size_bytes(canonical(engine.model), node.name), device.vendor)
            for engine in _runners(node, device.uuid)
            if engine.state == "starting" and not engine.loaded
        )
        return Seat(
            key=key,
            engine="",
            node=node.name,
            device=device.uuid,
            where=f"{node.name}/{device.label}",
            address="",
            kind=node.runner,
            slots=1,
            warm=False,
            loading=False,
            context_length=None,
            size_bytes=entry.size_bytes,
            need_bytes=need_bytes(entry.size_bytes, device.vendor, entry.footprint),
            is_guess=entry.footprint is None,
            vram_bytes=device.vram_bytes,
            free_bytes=_less(device.free_bytes, coming),
            lent_bytes=device.lent_bytes,
            residents=self._beside(node, device.uuid, canonical(entry.name)),
            memory=key,
            refused=_node_refusal(node),
            dead=node.state == "failed",
            incarnation=key,
        )


def _memory(node: Node, device: str) -> str:
    return f"{node.name}/{device}"


def _runners(node: Node, device: str) -> Iterator[Engine]:
    return (e for e in node.engines if e.kind in RUNNERS and device in e.devices)


def _bytes(loaded: Loaded) -> int:
    return loaded.vram_bytes or loaded.size_bytes


def _resident(engine: Engine, loaded: Loaded) -> Resident:
    return Resident(
        canonical(loaded.name),
        _bytes(loaded),
        engine.id,
        engine.slots,
        loaded.pinned,
        loaded.expires_at,
    )


def way_to(node: Node, engine: Engine) -> str:
    """The engine's address with the node whose road leads there: `h1!127.0.0.1:41000`.

    On this machine and for endpoints the address alone is enough.
    """
    if not engine.address or node.kind != "ssh":
        return engine.address
    return f"{node.name}{ROAD_MARK}{engine.address}"


def _where(node: Node, devices: list[Device]) -> str:
    if not devices:
        return node.name
    return f"{node.name}/{'+'.join(device.label for device in devices)}"


def _total(values: list[int | None]) -> int | None:
    if not values or any(value is None for value in values):
        return None
    return sum(value for value in values if value is not None)


def _least(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else min(a, b)


def _less(free: int | None, taken: int) -> int | None:
    return None if free is None else max(0, free - taken)


def _node_refusal(node: Node) -> str:
    if node.cordoned:
        return "the node is cordoned"
    if node.state != "ready":
        return f"the node is {node.state}" + (f": {node.error}" if node.error else "")
    return ""


def _refusal(node: Node, engine: Engine) -> str:
    if reason := _node_refusal(node):
        return reason
    if engine.cordoned:
        return "the engine is cordoned"
    if engine.state != "ready":
        return f"the engine is {engine.state}" + (f": {engine.error}" if engine.error else "")
    if engine.error:
        # It runs, and its agent gets no answer from it: stopped, or stuck in its driver.
        return f"the engine {engine.error}"
    return "" if engine.address else "the engine has no address yet"
