"""When a model is to lie on several devices, as a seat beside all others. Pure.

A split that exists is the seat of its head. One that does not, or is on its way, is a seat of
its own, so that the policy weighs it like any load and says why it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from olol_tui.fleet.snapshot import Fleet, Model, Node, Split, SplitRule

if TYPE_CHECKING:
    from olol_tui.routing.roster import Seat

KIND = "split"
"""Of a seat that is launched as a split."""


PATIENCE_S = 60.0
"""A split that is down for so long is waited for no more."""


def split_id(model: str) -> str:
    """Args: model: canonical."""
    return f"split/{model}"


def with_split(
    model: str,
    entries: Sequence[tuple[Node, Model]],
    seats: list[Seat],
    fleet: Fleet,
    make: type[Seat],
    rule: SplitRule | None = None,
) -> list[Seat]:
    """The seats of a model, with a split where it may or must be one.

    Args:
        entries: every node that holds the model.
        make: what a seat is; the roster's own class.
        rule: what this request wants, whatever the model's rule is.
    """
    rule = rule or fleet.split_rules.get(model, "auto")
    split = fleet.split(split_id(model))
    if split is None:
        if rule == "never" or not _possible(entries, fleet):
            return seats
        if rule == "auto" and any(seat.fits is not False for seat in seats):
            return seats
    head = split.engine if split is not None else ""
    others = [seat for seat in seats if not head or seat.engine != head]
    if rule == "never":
        return others
    if rule == "always":
        others = []
    elif split is not None and split.state != "failed":
        # It is there because these are too small: none of them is the way around its repair.
        others = [seat for seat in others if seat.fits is not False]
    elif split is not None:
        # An Ollama may still take it, partly on the CPU; a runner is launched where it fits.
        others = [seat for seat in others if seat.fits is not False or seat.engine]
    heads = [seat for seat in seats if head and seat.engine == head and not seat.refused]
    if split is not None and split.largest_ctx is not None:
        heads = [replace(seat, longest_context=split.largest_ctx) for seat in heads]
    size = max((entry.size_bytes for _, entry in entries), default=0)
    own = make(
        key=head or split_id(model),
        engine=head,
        node=split.node if split is not None else "",
        device="",
        where="several devices",
        address="",
        kind=KIND,
        slots=1,
        warm=False,
        loading=split is not None,
        context_length=None,
        size_bytes=size,
        need_bytes=size,
        vram_bytes=None,
        free_bytes=None,
        refused=_refusal(split, fleet.now_s),
        dead=split is not None and split.state == "failed",
        incarnation=split_id(model),
        spread=rule == "always",
    )
    return [*(heads or [own]), *others]


def _refusal(split: Split | None, now_s: float) -> str:
    """Why nobody should wait for it; empty while it is on its way."""
    if split is None:
        return ""
    waits_long = split.state == "backoff" and now_s - split.since_s > PATIENCE_S
    return split.error if split.state == "failed" or waits_long else ""


def _possible(entries: Sequence[tuple[Node, Model]], fleet: Fleet) -> bool:
    """Some node with the file can be the head, and something can be lent to it."""
    heads = any(node.heads and node.state == "ready" and not node.cordoned for node, _ in entries)
    return heads and any(node.lends and node.state == "ready" for node in fleet.nodes)
