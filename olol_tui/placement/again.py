"""A model that was split before goes where it was, when that is about as good. Pure.

Its workers have its tensors on their disks: on other nodes all of them would travel again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from olol_tui.placement.shares import Refusal, SplitDevice, SplitPlan

_AS_GOOD = 0.95
"""Of the speed of the best plan, what the former places must give."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model lay."""

    head: str
    """Node of the head."""
    devices: tuple[tuple[str, str], ...]
    """(node, UUID)."""


def plan_again(
    plan: Callable[[Sequence[SplitDevice]], SplitPlan | Refusal],
    devices: Sequence[SplitDevice],
    before: Place | None,
) -> SplitPlan | Refusal:
    """The plan on these devices, or one on the former ones alone if it takes no more of them
    and is as fast."""
    found = plan(devices)
    if before is None or isinstance(found, Refusal) or len(found.shares) == 1:
        return found
    there = [
        replace(one, has_blob=one.has_blob and one.node == before.head)
        for one in devices
        if (one.node, one.uuid) in before.devices
    ]
    again = plan(there)
    if isinstance(again, Refusal) or len(again.shares) > len(found.shares):
        return found
    return again if again.tokens_factor >= _AS_GOOD * found.tokens_factor else found
