"""The gateway's part of a snapshot: its requests and its totals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from olol_tui.fleet.snapshot import GatewayState, ModelLoad, Request
from olol_tui.models.names import canonical

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway


def view(gateway: Gateway) -> tuple[tuple[Request, ...], GatewayState]:
    """Requests and totals, as of now."""
    ledger, queue = gateway.ledger, gateway.queue
    paused = queue.room.paused
    resident: dict[str, int] = {}
    pinned: set[str] = set()
    for node in gateway.roster.fleet.nodes:
        for engine in node.engines:
            for loaded in engine.loaded:
                name = canonical(loaded.name)
                resident[name] = resident.get(name, 0) + 1
                if loaded.pinned:
                    pinned.add(name)
    names = dict.fromkeys([*resident, *queue.waiting_models(), *ledger.models(), *paused])
    loads: list[ModelLoad] = []
    total_rate = 0.0
    for name in names:
        requests_s, tokens_s = ledger.rates(name)
        total_rate += tokens_s
        p50, p95 = ledger.ttft(name)
        loads.append(
            ModelLoad(
                model=name,
                queued=queue.queued_of(name),
                running=queue.running_of(name),
                replicas=resident.get(name, 0),
                requests_per_s=requests_s,
                tokens_per_s=tokens_s,
                ttft_p50_s=p50,
                ttft_p95_s=p95,
                pinned=name in pinned,
                loading=queue.loading(name),
                paused=name in paused,
            )
        )
    state = GatewayState(
        address=gateway.address,
        queued=queue.queued,
        running=queue.running,
        tokens_per_s=total_rate,
        requests_total=ledger.total,
        errors_total=ledger.errors,
        ttft_p95_s=ledger.ttft()[1],
        models=tuple(loads),
        draining=gateway.draining,
    )
    return ledger.views(gateway.dispatcher.places()), state
