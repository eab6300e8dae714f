"""Whole layers over devices in a fixed order: pure arithmetic of a split.

A device takes a run of layers; the last one also takes the output layer. `cost` is the
memory of each layer, `rooms` the bytes that each device can give to layers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_EXACT_DEVICES = 5
"""Of a group; up to here every order is tried when the simple one fails: 32 subsets."""
_BALANCE_STEPS = 12
"""Halvings of the search for an even load: 1/4096 of a device."""


class Layers:
    """Layer costs with their running sums."""

    __slots__ = ("count", "sums", "tail", "total")

    def __init__(self, costs: Sequence[int], tail: int) -> None:
        self.sums = list(accumulate(costs, initial=0))
        self.count = len(costs)
        self.tail = tail
        """Bytes of the output layer."""
        self.total = self.sums[-1] + tail

    def reach(self, start: int, room: float) -> int:
        """The layer after the last one that fits, when a device begins at `start`."""
        return max(start, bisect_right(self.sums, self.sums[start] + room) - 1)

    def fits_end(self, start: int, room: float) -> bool:
        return self.sums[-1] - self.sums[start] + self.tail <= room


def fill(layers: Layers, rooms: Sequence[float]) -> tuple[int, ...] | None:
    """Layers of each device when each takes what it can; None when that is not enough."""
    counts = []
    at = 0
    for room in rooms[:-1]:
        after = layers.reach(at, room)
        counts.append(after - at)
        at = after
    if not layers.fits_end(at, rooms[-1]):
        return None
    return (*counts, layers.count - at)


def balance(layers: Layers, rooms: Sequence[int]) -> tuple[int, ...] | None:
    """As `fill`, with the fullest device as empty as whole layers allow."""
    best = fill(layers, rooms)
    if best is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(_BALANCE_STEPS):
        middle = (low + high) / 2
        found = fill(layers, [room * middle for room in rooms])
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def arrange(
    layers: Layers, groups: Sequence[Sequence[int]], last: int
) -> tuple[list[list[int]], bool]:
    """An order of the devices inside each group in which all layers fit.

    Layers differ in size, so the order can decide. Devices of an earlier group come first;
    `last` is the room of the device with the output layer.

    Returns:
        Indices of each group in order, and whether it fits.
    """
    plain = [sorted(range(len(rooms)), key=lambda i: -rooms[i]) for rooms in groups]
    flat = [groups[g][i] for g, order in enumerate(plain) for i in order]
    if fill(layers, [*flat, last]) is not None:
        return plain, True
    if sum(flat) + last < layers.total:
        return plain, False
    is_small = max(map(len, groups), default=0) <= _EXACT_DEVICES
    step = _furthest if is_small else _least_waste
    at = 0
    orders = []
    for rooms in groups:
        at, order = step(layers, at, rooms)
        orders.append(order)
    return orders, layers.fits_end(at, last)


def _least_waste(layers: Layers, start: int, rooms: Sequence[int]) -> tuple[int, list[int]]:
    """The order in which each next device is the one that its layers fill best."""
    left = list(range(len(rooms)))
    order: list[int] = []
    sums = layers.sums
    while left:
        best, best_end, best_waste = left[0], start, None
        for index in left:
            end = layers.reach(start, rooms[index])
            waste = sums[start] + rooms[index] - sums[end]
            if best_waste is None or waste < best_waste:
                best, best_end, best_waste = index, end, waste
        left.remove(best)
        order.append(best)
        start = best_end
    return start, order


def _furthest(layers: Layers, start: int, rooms: Sequence[int]) -> tuple[int, list[int]]:
    """The order of devices that covers the most layers from `start`, over all subsets."""
    reached = [start] * (1 << len(rooms))
    came_by = [-1] * (1 << len(rooms))
    for taken in range(1 << len(rooms)):
        for index, room in enumerate(rooms):
            after = taken | 1 << index
            if after == taken:
                continue
            end = layers.reach(reached[taken], room)
            if came_by[after] < 0 or end > reached[after]:
                reached[after], came_by[after] = end, index
    order: list[int] = []
    taken = (1 << len(rooms)) - 1
    while taken:
        order.append(came_by[taken])
        taken &= ~(1 << came_by[taken])
    return reached[-1], order[::-1]
