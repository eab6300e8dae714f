"""One split as readers of the fleet see it: what was planned beside what its head logged. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from olol_tui.fleet.link_book import LinkBook
from olol_tui.fleet.snapshot import Buffer, Engine, Layout, Split, SplitPart
from olol_tui.fleet.split_run import Run
from olol_tui.fleet.split_stage import Stage
from olol_tui.fleet.split_wish import PartWish, Ports, SplitWish
from olol_tui.models.learned import Learned, Observed, learn_load

TOLERANCE_SHARE = 0.01
TOLERANCE_BYTES = 128 * 1024
"""Logs give MiB with two digits, and some backends pad each tensor."""
_WORKER_BASE_BYTES = 8 * 2**20
"""Of a worker's process that holds nothing."""


def split_of(
    split_id: str,
    run: Run,
    wish: SplitWish | None,
    engines: Mapping[str, Engine],
    ports: Ports,
    links: LinkBook,
) -> Split:
    """A split as a whole; without a wish it is being planned, or has failed."""
    return Split(
        id=split_id,
        model=run.model,
        state=run.state,
        node=wish.node if wish else "",
        engine=wish.engine if wish else "",
        parts=parts_of(wish, engines, ports, run.now, links) if wish else (),
        num_ctx=wish.num_ctx if wish else 0,
        largest_ctx=run.largest_ctx,
        since_s=run.since_s,
        tokens_factor=wish.tokens_factor if wish else 1.0,
        restarts=run.restarts,
        restart_s=run.restart_s,
        reason=wish.reason if wish else "",
        error=run.error,
        log_tail=run.log_tail,
    )


def parts_of(
    wish: SplitWish,
    engines: Mapping[str, Engine],
    ports: Ports,
    now: Stage | None,
    links: LinkBook,
) -> tuple[SplitPart, ...]:
    """The parts with their state, their progress while loading, and their real sizes."""
    head = engines.get(wish.engine)
    layout = head.layout if head is not None else None
    own = _own_buffers(layout)
    parts = []
    for part in wish.parts:
        worker = engines.get(part.worker) if part.worker else head
        if part.worker:
            buffer = _buffer(layout, part, ports)
        else:
            buffer = next(own, None)
        state = now.states.get(part.worker) if now is not None and part.worker else None
        link = links.of(wish.node, part.node)
        parts.append(
            SplitPart(
                node=part.node,
                device=part.device,
                label=part.label,
                layers=part.layers,
                has_output=part.has_output,
                planned_bytes=part.planned_bytes,
                planned_weights_bytes=part.weights_bytes,
                planned_kv_bytes=part.kv_bytes,
                engine=part.worker,
                road="" if not part.worker else "loopback" if part.way is None else part.way.road,
                rtt_s=link.rtt_s,
                bytes_s=link.bytes_s,
                state=state or (worker.state if worker is not None else "starting"),
                progress=None if buffer is not None else _progress(part, worker),
                real_layers=None if buffer is None else _layers(part, buffer),
                weights_bytes=None if buffer is None else buffer.weights_bytes,
                kv_bytes=None if buffer is None else buffer.kv_bytes,
                compute_bytes=None if buffer is None else buffer.compute_bytes,
            )
        )
    return tuple(parts)


def note_speeds(wish: SplitWish, engines: Mapping[str, Engine], links: LinkBook) -> None:
    """How fast the weights travel, by whoever carries them."""
    for part in wish.parts:
        forward = engines.get(part.forward) if part.forward else None
        if forward is not None and forward.carries_bytes_s is not None:
            links.note(wish.node, part.node, bytes_s=forward.carries_bytes_s)


def lessons(
    before: Learned, wish: SplitWish, layout: Layout, ports: Ports, vendors: Mapping[str, str]
) -> Learned:
    """What is known of buffers after this head has said in its log what it took.

    Args:
        vendors: of devices, by UUID.
    """
    own = _own_buffers(layout)
    observed = []
    for part in wish.parts:
        buffer = _buffer(layout, part, ports) if part.worker else next(own, None)
        if buffer is not None:
            vendor = vendors.get(part.device, "unknown")
            observed.append(
                Observed(wish.architecture, vendor, part.buffers_bytes, buffer.compute_bytes)
            )
    return learn_load(before, wish.load, observed) if wish.load else before


def _buffer(layout: Layout | None, part: PartWish, ports: Ports) -> Buffer | None:
    if layout is None or part.worker not in ports.ways:
        return None
    end = f":{ports.ways[part.worker]}"
    return next((one for one in layout.buffers if one.device.endswith(end)), None)


def _own_buffers(layout: Layout | None) -> Iterator[Buffer]:
    """The head's own GPUs, in their order."""
    found = layout.buffers if layout is not None else ()
    return iter([one for one in found if ":" not in one.device and "CPU" not in one.device])


def _layers(part: PartWish, buffer: Buffer) -> int | None:
    """As planned where the log's sizes are those of the plan's layers; else nobody knows."""
    pairs = ((buffer.weights_bytes, part.weights_bytes), (buffer.kv_bytes, part.kv_bytes))
    close = all(
        abs(real - planned) <= max(TOLERANCE_BYTES, TOLERANCE_SHARE * planned)
        for real, planned in pairs
    )
    return part.layers if close else None


def _progress(part: PartWish, worker: Engine | None) -> float | None:
    held = worker.resident_bytes if worker is not None else None
    if held is None or not part.weights_bytes:
        return None
    return min(1.0, max(0, held - _WORKER_BASE_BYTES) / part.weights_bytes)
