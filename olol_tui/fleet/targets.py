"""From the words of a command to the parts of the fleet that it means.

Pure. Whatever is unknown is answered with what exists: the names near it, the devices of
the node, the nodes that do have the model.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from olol_tui.errors import ModelNotFound, PlacementError
from olol_tui.fleet.snapshot import RUNNERS, Device, Engine, EngineKind, Model, Node
from olol_tui.models.names import canonical, same
from olol_tui.placement.fit import Resident, Room


@dataclass(frozen=True, slots=True)
class Target:
    """A model and the place where it is wanted."""

    node: Node
    device: Device
    model: Model
    engine: Engine | None
    """The engine of the device that holds many models; None where a runner is launched."""

    @property
    def name(self) -> str:
        return canonical(self.model.name)

    @property
    def where(self) -> str:
        return f"{self.node.name}/{self.device.label}"

    @property
    def runner(self) -> EngineKind:
        """The kind to launch, when `engine` is None."""
        return self.node.runner or "embedded"

    @property
    def devices(self) -> tuple[str, ...]:
        """UUIDs over which the model will lie."""
        return self.engine.devices if self.engine is not None else (self.device.uuid,)


def find_place(nodes: Iterable[Node], node: str, device: str) -> tuple[Node, Device]:
    """Raises PlacementError naming what exists."""
    known = {one.name: one for one in nodes}
    found = known.get(node)
    if found is None:
        raise PlacementError(
            f"there is no node {node}", hint=f"Nodes: {', '.join(sorted(known)) or 'none'}"
        )
    for candidate in found.devices:
        if device in (candidate.uuid, candidate.label, str(candidate.index)):
            return found, candidate
    labels = ", ".join(candidate.label for candidate in found.devices)
    raise PlacementError(
        f"{node} has no device {device}",
        hint=f"Devices of {node}: {labels}" if labels else f"{node} has not told its devices yet",
    )


def find_target(nodes: Iterable[Node], model: str, node: str, device: str) -> Target:
    """What a Place means.

    Raises:
        PlacementError: no such node or device, or nothing there can run a model.
        ModelNotFound: the node does not have the model.
    """
    nodes = tuple(nodes)
    found, where = find_place(nodes, node, device)
    held = find_model(nodes, model, found)
    engine = multi_engine(found, where)
    if engine is None and where.note:
        raise PlacementError(
            f"{found.name}/{where.label} takes no model: {where.note}",
            hint="Give the GPU another role first.",
        )
    if engine is None and not found.runner:
        raise PlacementError(
            f"{found.name}/{where.label} has no engine", hint=found.error or "See `doctor`."
        )
    return Target(found, where, held, engine)


def find_model(nodes: Iterable[Node], model: str, node: Node) -> Model:
    """The node's model of that name.

    Raises:
        ModelNotFound: saying who has it, or which names are near.
    """
    for held in node.library:
        if same(held.name, model):
            return held
    name = canonical(model)
    elsewhere = sorted(
        one.name for one in nodes if any(same(held.name, model) for held in one.library)
    )
    if elsewhere:
        raise ModelNotFound(
            f"{node.name} does not have {name}", hint=f"These have it: {', '.join(elsewhere)}"
        )
    names = sorted({canonical(held.name) for held in node.library})
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    elif names:
        hint = f"{node.name} has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
    else:
        hint = f"{node.name} holds no model yet."
    raise ModelNotFound(f"model {name!r} not found on {node.name}", hint=hint)


def multi_engine(node: Node, device: Device) -> Engine | None:
    """The engine of the device that loads models on request."""
    return next(
        (
            engine
            for engine in node.engines
            if device.uuid in engine.devices and engine.kind not in RUNNERS
        ),
        None,
    )


def runner_engine(node: Node, device: Device, model: str) -> Engine | None:
    """The runner that serves the model on the device."""
    return next(
        (
            engine
            for engine in node.engines
            if device.uuid in engine.devices
            and engine.kind in RUNNERS
            and engine.model
            and same(engine.model, model)
        ),
        None,
    )


def is_resident(engine: Engine | None, model: str) -> bool:
    return engine is not None and any(same(one.name, model) for one in engine.loaded)


def room_of(target: Target, busy: Callable[[str], frozenset[str]]) -> Room:
    """The memory that the target's engine may use, and what is in it.

    Args:
        busy: canonical names of the models that an engine computes on now, by engine id.
    """
    wanted = set(target.devices)
    devices = [device for device in target.node.devices if device.uuid in wanted]
    totals = [device.vram_bytes for device in devices]
    frees = [device.free_bytes for device in devices]
    residents: list[Resident] = []
    for engine in target.node.engines:
        if not wanted.intersection(engine.devices):
            continue
        running = busy(engine.id)
        residents += [
            Resident(
                name=canonical(loaded.name),
                bytes=loaded.vram_bytes or loaded.size_bytes,
                busy=canonical(loaded.name) in running,
                pinned=loaded.pinned,
                expires_at=loaded.expires_at,
            )
            for loaded in engine.loaded
        ]
    label = "+".join(device.label for device in devices)
    return Room(
        where=f"{target.node.name}/{label}",
        total_bytes=None if None in totals else sum(t for t in totals if t is not None),
        free_bytes=None if None in frees else sum(f for f in frees if f is not None),
        residents=tuple(residents),
        lent_bytes=sum(device.lent_bytes for device in devices),
    )
