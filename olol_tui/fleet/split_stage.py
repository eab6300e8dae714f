"""How far a split is, and what its nodes should run next.

Pure. Workers come first, then the forwards that lead to them, then the head that is told
their addresses. What was once known stays told: a worker that is being restarted comes back
on its port, and the head must not be replaced because of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from olol_tui.fleet.snapshot import Engine, EngineState, SplitState
from olol_tui.fleet.split_wish import PartWish, Ports, SplitWish
from olol_tui.fleet.wire import Chain, ForwardTo, RunnerModel, Spec

EVERYWHERE = "0.0.0.0"
_WORST: tuple[EngineState, ...] = ("failed", "backoff", "stopping", "stopped", "starting", "ready")


@dataclass(frozen=True, slots=True)
class Stage:
    """What a split comes to at one moment."""

    state: SplitState
    specs: Mapping[str, tuple[Spec, ...]]
    """By node."""
    relays: Mapping[str, tuple[str, int]]
    """Worker id → (its node, its port): to be led to from the head's node through us."""
    states: Mapping[str, EngineState]
    """Of each worker with the road to it, by worker id."""
    error: str = ""
    log_tail: tuple[str, ...] = ()


def stage(
    wish: SplitWish,
    engines: Mapping[str, Engine],
    ports: Ports,
    relayed: Mapping[str, int],
) -> Stage:
    """Look at what there is and say what should be.

    Args:
        engines: everything that runs, helpers included, by id.
        ports: remembered between looks, and updated here.
        relayed: ports on the head's node that lead to workers through us, by worker id.
    """
    specs: dict[str, list[Spec]] = {node: [] for node in wish.nodes}
    relays: dict[str, tuple[str, int]] = {}
    states: dict[str, EngineState] = {}
    remote = [part for part in wish.parts if part.worker]
    for part in remote:
        specs[part.node].append(_worker(wish, part))
        _learn(part, engines, ports)
        states[part.worker] = _state_of(engines.get(part.worker))
    for part in remote:
        port = ports.workers.get(part.worker)
        if port is None:
            continue
        if part.way is None or part.way.road == "direct":
            ports.ways[part.worker] = port
        elif part.way.road == "relay":
            relays[part.worker] = (part.node, port)
            if part.worker in relayed:
                ports.ways[part.worker] = relayed[part.worker]
            else:
                states[part.worker] = _worse(states[part.worker], "starting")
        else:
            specs[wish.node].append(_forward(part, port))
            states[part.worker] = _worse(states[part.worker], _state_of(engines.get(part.forward)))
    error, tail = _trouble(wish, engines)
    if not error and (error := _builds_differ(ports)):
        return Stage("failed", _frozen(specs), relays, states, error)
    if any(part.worker not in ports.ways for part in remote):
        worst = _worst(states.values())
        state: SplitState = "failed" if worst == "failed" else "starting"
        return Stage(state, _frozen(specs), relays, states, error, tail)
    specs[wish.node].append(_head(wish, ports))
    head = engines.get(wish.engine)
    if _worst(states.values()) == "failed":
        return Stage("failed", _frozen(specs), relays, states, error, tail)
    return Stage(_state(head, wish, states), _frozen(specs), relays, states, error, tail)


def _state(head: Engine | None, wish: SplitWish, states: Mapping[str, EngineState]) -> SplitState:
    if head is not None and any(one.context_length != wish.num_ctx for one in head.loaded):
        return "loading"  # its agent has not heard of another context yet
    match None if head is None else head.state:
        case "ready":
            return "ready" if all(one == "ready" for one in states.values()) else "backoff"
        case None | "starting":
            return "loading"
        case "backoff":
            return "backoff"
        case "failed":
            return "failed"
        case _:
            return "stopping"


def _worker(wish: SplitWish, part: PartWish) -> Spec:
    way = part.way
    return Spec(
        id=part.worker,
        kind="rpc-server",
        devices=(part.device,),
        binary=part.binary,
        cache_bytes=part.weights_bytes,
        listen=EVERYWHERE if way is not None and way.road == "direct" else "",
        permit=(wish.head_key,) if way is not None and way.road == "ssh" else (),
    )


def _forward(part: PartWish, port: int) -> Spec:
    way = part.way
    assert way is not None, "only a worker elsewhere needs a forward"
    return Spec(
        id=part.forward,
        kind="forward",
        devices=(),
        forward=ForwardTo(way.host, way.user, way.port, port, way.host_key),
    )


def _head(wish: SplitWish, ports: Ports) -> Spec:
    workers = [part for part in wish.parts if part.worker]
    builds = {build for build in ports.builds.values() if build}
    return Spec(
        id=wish.engine,
        kind="llama-server",
        devices=tuple(part.device for part in wish.parts if not part.worker),
        slots=wish.slots,
        num_ctx=wish.num_ctx,
        binary=wish.binary,
        args=wish.args,
        listen=EVERYWHERE if wish.is_direct else "",
        model=RunnerModel(name=wish.model, path=wish.path, chat_template=wish.chat_template),
        chain=Chain(
            workers=tuple(f"{_host(part)}:{ports.ways[part.worker]}" for part in workers),
            layers=tuple(part.layers + part.has_output for part in wish.parts),
            build=builds.pop() if builds else "",
        ),
    )


def _host(part: PartWish) -> str:
    way = part.way
    return way.host if way is not None and way.road == "direct" else "127.0.0.1"


def _learn(part: PartWish, engines: Mapping[str, Engine], ports: Ports) -> None:
    worker = engines.get(part.worker)
    if worker is not None and worker.state == "ready" and worker.address:
        ports.workers[part.worker] = int(worker.address.rpartition(":")[2])
        # `RPC 7.0.0, 0.6.0 (build 1, commit a)`: an adopted one may not have said.
        build = worker.version.partition(", ")[2]
        if build:
            ports.builds[part.worker] = build
    forward = engines.get(part.forward) if part.forward else None
    if forward is not None and forward.state == "ready" and forward.address:
        ports.ways[part.worker] = int(forward.address.rpartition(":")[2])


def _builds_differ(ports: Ports) -> str:
    if len(set(ports.builds.values())) < 2:
        return ""
    told = ", ".join(f"{worker}: {build}" for worker, build in sorted(ports.builds.items()))
    return f"the workers are different builds of llama.cpp ({told})"


def _trouble(wish: SplitWish, engines: Mapping[str, Engine]) -> tuple[str, tuple[str, ...]]:
    """What is wrong first in the order of causes: a worker, the road there, the head."""
    for engine_id in (*wish.helpers, wish.engine):
        engine = engines.get(engine_id)
        if engine is not None and engine.state in ("backoff", "failed"):
            return f"{engine_id}: {engine.error}", engine.log_tail
    return "", ()


def _state_of(engine: Engine | None) -> EngineState:
    return "starting" if engine is None else engine.state


def _worse(one: EngineState, other: EngineState) -> EngineState:
    return min(one, other, key=_WORST.index)


def _worst(states: Iterable[EngineState]) -> EngineState:
    return min(states, key=_WORST.index, default="ready")


def _frozen(specs: Mapping[str, list[Spec]]) -> dict[str, tuple[Spec, ...]]:
    return {node: tuple(found) for node, found in specs.items()}
