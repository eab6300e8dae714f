"""From what a session knows to the snapshot's Node. No I/O, no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, cast

from olol_tui.fleet import desired, split_binaries
from olol_tui.fleet.limits import limited
from olol_tui.fleet.overlay import Overlay
from olol_tui.fleet.road import RoadFacts
from olol_tui.fleet.snapshot import (
    HELPERS,
    RUNNERS,
    Device,
    Engine,
    EngineKind,
    Loaded,
    Loading,
    Model,
    Node,
    NodeState,
    ProvisionStep,
)
from olol_tui.fleet.walls import in_our_time
from olol_tui.fleet.wire import Frame, Hello, Holder, Inventory, Spec, Status
from olol_tui.fleet.wishes import Wishes


@dataclass(slots=True)
class NodeFacts:
    """What is known of a node. Only its session writes it; nothing is erased by a lost link."""

    name: str
    kind: Literal["local", "ssh"]
    pool: str
    is_simulated: bool = False
    """It pretends to be a machine of its own: what really runs beside it is not its business."""
    state: NodeState = "connecting"
    link_error: str = ""
    link_hint: str = ""
    steer_error: str = ""
    """Why the agent refused the desired engines."""
    hello: Hello | None = None
    inventory: Inventory | None = None
    models: tuple[Model, ...] = ()
    model_errors: tuple[str, ...] = ()
    plan: desired.Plan = field(default_factory=desired.Plan)
    devices: tuple[Device, ...] = ()
    """As last told, with their roles."""
    frame: Frame | None = None
    frame_at_s: float = 0.0
    clock_ahead_s: float = 0.0
    """Its wall clock minus ours; see `walls`."""
    contact_s: float | None = None
    """Fleet clock at which the agent last said anything."""
    holder: Holder | None = None
    """The other controller that manages the engines; then nothing here is wished for."""
    steps: tuple[ProvisionStep, ...] = ()
    vram_limit: Mapping[str, int] = field(default_factory=dict)
    """Bytes by UUID, index or `""` for every device: what models may take together."""
    binaries: frozenset[str] = frozenset()
    """Kinds whose program the configuration names for this node."""
    refused: dict[str, tuple[Spec, str, float]] = field(default_factory=dict)
    """Launches that the agent refused: spec, reason, shown until (fleet clock)."""

    def can(self, kind: str) -> bool:
        """Whether parts of a split of that kind can run there, and we may start them."""
        if self.inventory is None or self.holder is not None or self.plan.error:
            return False
        return kind in self.binaries or self.inventory.engines.get(kind) is not None

    @property
    def lacks(self) -> str:
        """What the roles of its devices need, and it does not have; empty when there is nothing."""
        lent = [device.label for device in self.devices if device.role == "rpc"]
        if not lent or self.inventory is None or self.is_simulated or self.holder is not None:
            return ""
        if "rpc-server" in self.binaries or self.inventory.engines.get("rpc-server") is not None:
            return ""
        verb = "is" if len(lent) == 1 else "are"
        return f"{', '.join(lent)} {verb} for splits (role rpc), but there is no ggml-rpc-server"

    def show_devices(self) -> None:
        """Look at the devices and their roles anew; not at every view, which are many."""
        frame, inventory = self.frame, self.inventory
        told = frame.devices if frame is not None else inventory.devices if inventory else ()
        self.devices = tuple(self.plan.show(device) for device in told)

    def forget(self) -> None:
        """Nothing of ours is there any more."""
        self.hello = self.inventory = self.frame = self.holder = None
        self.plan = desired.Plan()
        self.models = self.model_errors = self.devices = ()
        self.steer_error = ""
        self.refused.clear()


def build_node(
    facts: NodeFacts,
    now_s: float,
    *,
    road: RoadFacts,
    clock_offset_s: float,
    wishes: Wishes,
    overlay: Overlay,
    expires_at: Callable[[str], str],
    is_silent: bool = False,
) -> Node:
    """The node as readers see it.

    Args:
        expires_at: when a runner's model goes (RFC 3339), "" for never.
        is_silent: nothing has come from the agent for too long.
    """
    frame = facts.frame
    cordoned = wishes.is_cordoned(facts.name)
    statuses = frame.engines if frame is not None else ()
    coming = {} if facts.holder is not None else _coming(facts, wishes)
    engines = [
        _engine(status, facts, cordoned or wishes.is_paused(status.id), clock_offset_s)
        for status in statuses
    ]
    engines = [_replaced(engine, coming.get(engine.id), now_s) for engine in engines]
    if facts.holder is None:
        engines += _expected(facts, coming, {engine.id for engine in engines}, cordoned, now_s)
    helpers = tuple(engine for engine in engines if engine.kind in HELPERS)
    engines = [engine for engine in engines if engine.kind not in HELPERS]
    finished = [
        _with_wishes(overlay.apply(engine, now_s), wishes, expires_at, facts.clock_ahead_s)
        for engine in engines
    ]
    reserved = wishes.splits.reserved_on(facts.name)
    heads = wishes.splits.heads()
    whole = [engine for engine in finished if engine.id not in heads]
    devices = limited(facts.devices, facts.vram_limit, whole, reserved)
    index = {device.uuid: device.index for device in devices}
    finished.sort(key=lambda e: (min((index.get(d, 0) for d in e.devices), default=0), e.id))
    age_s = max(0.0, now_s - facts.frame_at_s) if frame is not None else 0.0
    return Node(
        name=facts.name,
        state=facts.state,
        kind=facts.kind,
        devices=devices,
        engines=tuple(finished),
        helpers=helpers,
        library=desired.usable(facts.models, facts.plan),
        runner=cast(
            Literal["", "llama-server", "embedded"],
            facts.plan.runner or "" if facts.holder is None else "",
        ),
        links=wishes.links.seen_from(facts.name),
        lends=facts.can("rpc-server"),
        heads=facts.can("llama-server"),
        foreign=_foreign(facts, wishes.adopted_on(facts.name)),
        agent_version=facts.hello.version if facts.hello else "",
        age_s=age_s,
        stale=frame is not None and is_silent,
        cpu_percent=frame.cpu_percent if frame else None,
        memory_bytes=_memory_bytes(facts),
        memory_used_bytes=frame.memory_used_bytes if frame else None,
        cordoned=cordoned,
        pool=facts.pool,
        error=_error(facts),
        hint=_hint(facts),
        host=road.host,
        ssh_command=road.ssh_command,
        provisioned=road.provisioned,
        steps=facts.steps,
        question=road.question,
        survives_reboot=road.survives_reboot,
        last_contact_s=facts.contact_s,
        managed_by="" if facts.holder is None else _since(facts.holder, facts.clock_ahead_s),
        draining=wishes.is_draining(facts.name),
        clock_ahead_s=facts.clock_ahead_s,
    )


def _since(holder: Holder, ahead_s: float) -> str:
    """`ops@laptop since 12:03`, in this console's time."""
    moment = datetime.fromtimestamp(holder.since_wall - ahead_s)
    is_today = moment.date() == datetime.now().date()
    return f"{holder.name} since {moment:{'%H:%M' if is_today else '%Y-%m-%d %H:%M'}}"


def _foreign(facts: NodeFacts, adopted: tuple[str, ...]) -> tuple[str, ...]:
    """Without those that we use."""
    return tuple(url for url in _found(facts) if url not in adopted)


def _found(facts: NodeFacts) -> tuple[str, ...]:
    if facts.is_simulated:
        return ()
    if facts.frame is not None:
        return facts.frame.foreign
    return tuple(one.url for one in facts.inventory.foreign) if facts.inventory else ()


def _memory_bytes(facts: NodeFacts) -> int | None:
    if facts.frame is not None and facts.frame.memory_bytes is not None:
        return facts.frame.memory_bytes
    return facts.inventory.memory_bytes if facts.inventory is not None else None


def _error(facts: NodeFacts) -> str:
    """The most useful sentence: without a link nothing else matters."""
    inventory_errors = facts.inventory.errors if facts.inventory else ()
    return (
        facts.link_error
        or facts.plan.error
        or facts.steer_error
        or "; ".join(filter(None, (facts.plan.warning, facts.lacks)))
        or "; ".join(inventory_errors)
        or "; ".join(facts.model_errors)
    )


def _hint(facts: NodeFacts) -> str:
    """What to do about `_error`, where it is known."""
    if facts.link_error:
        return facts.link_hint
    if facts.plan.error or facts.steer_error or not facts.lacks:
        return ""
    is_here = facts.kind == "local"
    return split_binaries.HOW_TO_GET_HERE if is_here else split_binaries.HOW_TO_GET


def _engine(status: Status, facts: NodeFacts, cordoned: bool, offset_s: float) -> Engine:
    return Engine(
        id=status.id,
        node=facts.name,
        kind=status.kind,
        state="stopping" if _is_unwanted(status.id, facts) else status.state,
        devices=status.devices,
        address=status.address,
        pid=status.pid,
        version=status.version,
        slots=status.slots,
        model=status.model,
        loaded=status.loaded,
        loading=status.loading_at(offset_s),
        restarts=status.restarts,
        since_s=status.since_mono + offset_s,
        retry_in_s=status.retry_in_s,
        error=status.error,
        log_tail=status.log_tail,
        cordoned=cordoned,
        layout=status.layout,
        resident_bytes=status.resident_bytes,
        carries_bytes_s=status.carries_bytes_s,
    )


def _is_unwanted(engine_id: str, facts: NodeFacts) -> bool:
    """Withdrawn, though its agent may not have heard: nothing may be sent there any more."""
    if facts.inventory is None or facts.plan.error or facts.holder is not None:
        return False
    return all(spec.id != engine_id for spec in facts.plan.specs)


@dataclass(frozen=True, slots=True)
class _Coming:
    """An engine as it will be."""

    kind: EngineKind
    devices: tuple[str, ...]
    slots: int = 1
    model: str = ""
    num_ctx: int | None = None


def _coming(facts: NodeFacts, wishes: Wishes) -> dict[str, _Coming]:
    """What is desired, and what will be as soon as there is room for it; by id."""
    found = {
        spec.id: _Coming(
            spec.kind,
            spec.devices,
            spec.slots or 1,
            spec.model.name if spec.model else "",
            # Splits keep their own order of things.
            spec.num_ctx if wishes.launch_of(spec.id) else None,
        )
        for spec in facts.plan.specs
    }
    for launch in wishes.announced_on(facts.name):
        found[launch.engine_id] = _Coming(
            launch.kind, (launch.device,), 1, launch.model, launch.num_ctx
        )
    return found


def _replaced(engine: Engine, coming: _Coming | None, now_s: float) -> Engine:
    """A runner that is about to be started anew with another context: its agent may not have
    heard, but nothing may be sent to the old process any more."""
    if coming is None or coming.num_ctx is None or engine.state != "ready":
        return engine
    if all(one.context_length in (None, coming.num_ctx) for one in engine.loaded):
        return engine
    loading = (Loading(coming.model, started_s=now_s),)
    return replace(engine, state="starting", loaded=(), loading=loading)


def _expected(
    facts: NodeFacts,
    coming: Mapping[str, _Coming],
    reported: set[str],
    cordoned: bool,
    now_s: float,
) -> list[Engine]:
    """Engines that are desired and not reported yet, and launches that were refused."""
    engines = [
        Engine(
            id=engine_id,
            node=facts.name,
            kind=one.kind,
            state="starting",
            devices=one.devices,
            slots=one.slots,
            model=one.model,
            loading=(Loading(one.model, started_s=now_s),) if one.model else (),
            since_s=now_s,
            cordoned=cordoned,
        )
        for engine_id, one in coming.items()
        if engine_id not in reported
    ]
    for engine_id, (spec, reason, until_s) in list(facts.refused.items()):
        if until_s <= now_s or engine_id in coming or engine_id in reported:
            del facts.refused[engine_id]
            continue
        engines.append(
            Engine(
                id=engine_id,
                node=facts.name,
                kind=spec.kind,
                state="failed",
                devices=spec.devices,
                model=spec.model.name if spec.model else "",
                since_s=until_s,
                error=reason,
                cordoned=cordoned,
            )
        )
    return engines


def _with_wishes(
    engine: Engine, wishes: Wishes, expires_at: Callable[[str], str], ahead_s: float
) -> Engine:
    """Marks pinned models, and when a model will go, by our clock."""
    if not engine.loaded:
        return engine
    if (largest := wishes.largest_ctx(engine.id)) is not None:
        engine = replace(engine, largest_ctx=largest)
    marked: list[Loaded] = []
    for loaded in engine.loaded:
        pinned = wishes.is_pinned(loaded.name, engine.node, engine.devices)
        told = in_our_time(loaded.expires_at, ahead_s)
        expiry = expires_at(engine.id) if engine.kind in RUNNERS else told
        if pinned == loaded.pinned and expiry == loaded.expires_at:
            marked.append(loaded)
        else:
            marked.append(replace(loaded, pinned=pinned, expires_at=expiry))
    return replace(engine, loaded=tuple(marked))
