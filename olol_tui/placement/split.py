"""Which devices hold which layers of a model that one GPU may not hold.

Pure: sizes, devices and links in; a plan with its reasons, or a refusal with numbers, out.
One GPU comes before the GPUs of one node, those before several nodes; then the fewest
devices, then the fastest links. A split buys memory, not speed.
"""

from __future__ import annotations

from collections.abc import Sequence

from olol_tui.models.learned import Learned
from olol_tui.models.memory import Settings
from olol_tui.models.shape import Shape
from olol_tui.placement.ground import Ground
from olol_tui.placement.shares import (
    Level,
    Link,
    Links,
    Refusal,
    Share,
    SplitDevice,
    SplitPlan,
)

__all__ = [
    "Ground",
    "Level",
    "Link",
    "Links",
    "Refusal",
    "Share",
    "SplitDevice",
    "SplitPlan",
    "plan",
]


def plan(
    shape: Shape,
    devices: Sequence[SplitDevice],
    *,
    ctx: int,
    slots: int = 1,
    cache_type: str = "f16",
    links: Links | None = None,
    learned: Learned | None = None,
) -> SplitPlan | Refusal:
    """The split that a model would get on these devices.

    Args:
        ctx: tokens of one slot.
        links: round trips by (head's node, worker's node); unknown ones count as 1 ms.
        learned: what engines logged against what was estimated.

    Raises:
        ValueError: the cache type is not known.
    """
    settings = Settings(ctx=ctx, slots=slots, cache_type=cache_type)
    blobs = frozenset(device.node for device in devices if device.has_blob)
    return Ground(devices, links, learned).plan(shape, settings, blobs)
