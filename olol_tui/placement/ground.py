"""The devices of a fleet, sorted once, on which many models are planned."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from heapq import heappush, heappushpop
from itertools import accumulate
from operator import add

from olol_tui.models.learned import Learned
from olol_tui.models.memory import Need, Settings, need
from olol_tui.models.shape import Shape
from olol_tui.placement.partition import Layers, arrange, balance
from olol_tui.placement.shares import (
    MAX_DEVICES,
    Level,
    Link,
    Links,
    Refusal,
    Share,
    SplitDevice,
    SplitPlan,
)
from olol_tui.units import format_size

UNKNOWN_LINK = Link(rtt_s=0.001)
_HEADS_TRIED = 8
"""Heads that are compared, those with most room first."""
_FEW, _HEADS_TRIED_OF_MANY = 4, 4
"""Splits over more devices than `_FEW` are compared for fewer heads."""
_SLACK_PARTS = 50
_USUAL_SPEED = {"nvidia": 400e9, "amd": 350e9, "cpu": 15e9}
"""Bytes of weights read per second while decoding, when nobody has measured."""
_OTHER_SPEED = 200e9
_WORKER_FACTOR = 0.93
"""Tokens/s kept for each worker on loopback: measured 0.93, 0.90 and 0.79 for 1, 2 and 3."""


class Ground:
    """Plans splits for one instant of the fleet.

    Args:
        devices: all that may take layers.
        links: measured roads between nodes by (head, worker).
        learned: what engines took against what was estimated.
    """

    def __init__(
        self,
        devices: Iterable[SplitDevice],
        links: Links | None = None,
        learned: Learned | None = None,
    ) -> None:
        self._links = links or {}
        self._learned = learned or Learned()
        seats = sorted(
            (_Seat(d, d.free_bytes - self._learned.overhead_bytes(d.vendor)) for d in devices),
            key=lambda seat: (-seat.room, seat.device.node, seat.device.label, seat.device.uuid),
        )
        gpus = [seat for seat in seats if seat.device.vendor != "cpu"]
        # Layers on a CPU are ten times slower: they are planned only where GPUs do not suffice.
        pools = [gpus] if len(gpus) == len(seats) else [gpus, seats]
        self._pools = [_Pool(pool, self._links) for pool in pools if pool]

    def plan(self, shape: Shape, settings: Settings, blobs: Collection[str]) -> SplitPlan | Refusal:
        """The split of one model whose file lies on the nodes `blobs`."""
        ask = _Ask(need(shape, settings, self._learned), need(shape, settings), settings, blobs)
        for pool in self._pools:
            chosen = _one(pool, ask) or _node(pool, ask) or _nodes(pool, ask)
            if chosen is not None:
                return self._write(ask, *chosen)
        return self._refuse(ask)

    def _write(self, ask: _Ask, level: Level, head: _Seat, others: list[_Seat]) -> SplitPlan:
        order = [*others, head]
        counts = balance(ask.layers, [ask.room(seat) for seat in order])
        if counts is None:
            raise AssertionError("an arrangement that fits can be filled")
        shares: list[Share] = []
        at = 0
        for seat, count in zip(order, counts, strict=True):
            is_head = seat is head
            if count or is_head:
                shares.append(self._share(ask, seat, head, at, count, is_first=not shares))
            at += count
        return SplitPlan(
            level=level,
            shares=tuple(shares),
            settings=ask.settings,
            need=ask.need,
            tokens_factor=_tokens_factor(shares),
        )

    def _share(
        self, ask: _Ask, seat: _Seat, head: _Seat, at: int, count: int, *, is_first: bool
    ) -> Share:
        is_head = seat is head
        wanted = ask.need
        compute, uncorrected = (
            one.compute_bytes(at, count)
            + (one.first_bytes if is_first else 0)
            + (one.logits_bytes if is_head else 0)
            for one in (wanted, ask.bare)
        )
        is_near = seat.device.node == head.device.node
        link = self._links.get((head.device.node, seat.device.node))
        return Share(
            device=seat.device,
            is_local=_is_local(seat, head),
            first_layer=at,
            layers=count,
            weights_bytes=sum(wanted.weights[at : at + count])
            + (wanted.output_bytes if is_head else 0),
            kv_bytes=sum(wanted.kv[at : at + count]),
            compute_bytes=compute,
            overhead_bytes=self._learned.overhead_bytes(seat.device.vendor),
            has_output=is_head,
            rtt_s=0.0 if is_near else (link or UNKNOWN_LINK).rtt_s,
            is_measured=is_near or link is not None,
            bytes_s=None if link is None else link.bytes_s,
            wait_s=0.0 if is_near else (link or UNKNOWN_LINK).token_s,
            uncorrected_bytes=uncorrected,
        )

    def _refuse(self, ask: _Ask) -> Refusal:
        seats = self._pools[-1].seats if self._pools else []
        rooms = [room for seat in seats[:MAX_DEVICES] if (room := ask.room(seat)) > 0]
        available, total = sum(rooms), ask.layers.total
        holders = [seat for seat in seats if seat.device.node in ask.blobs]
        if not holders:
            return Refusal(
                "no device of a node that holds the model's file may take layers", total, available
            )
        best = holders[0].device
        devices = "1 device has" if len(rooms) == 1 else f"{len(rooms)} devices have"
        said = [
            f"of the nodes that hold the file {best.where} has most: {format_size(best.free_bytes)}"
        ]
        if len(seats) > MAX_DEVICES:
            said.append(f"a split takes {MAX_DEVICES} devices at most")
        message = (
            f"it needs {format_size(total)}, and on each device {format_size(ask.fixed)} of "
            f"buffers beside what a process takes; {devices} {format_size(available)} for it"
        )
        if total <= available:
            # Enough in all, but not in whole layers, or not where the output layer must lie.
            largest = max(b - a for a, b in zip(ask.layers.sums, ask.layers.sums[1:], strict=False))
            said.append(
                f"layers are whole: the largest takes {format_size(largest)}, the output layer "
                f"{format_size(ask.layers.tail)} on a node that holds the file"
            )
        return Refusal(message, total, available, tuple(said))


class _Seat:
    """A device with the bytes it can give to buffers."""

    __slots__ = ("device", "room", "speed")

    def __init__(self, device: SplitDevice, room: int) -> None:
        self.device = device
        self.room = room
        usual = _USUAL_SPEED.get(device.vendor, _OTHER_SPEED)
        self.speed = device.speed_bytes_s or usual


class _Pool:
    """Seats by room, the most first: all, and by node."""

    def __init__(self, seats: list[_Seat], links: Links) -> None:
        self.seats = seats
        self.by_node: dict[str, list[_Seat]] = {}
        for seat in seats:
            self.by_node.setdefault(seat.device.node, []).append(seat)
        self.sums = list(accumulate((seat.room for seat in seats), initial=0))
        """Room of the first n seats; negative rooms come last."""
        self._totals = [
            (-sum(seat.room for seat in members), node) for node, members in self.by_node.items()
        ]
        self._links = links
        self._near: dict[str, list[tuple[float, int, str]]] = {}

    def trip(self, head: str, node: str) -> float:
        """Seconds that a token waits for the way from a head's node to another and back."""
        if head == node:
            return 0.0
        return self._links.get((head, node), UNKNOWN_LINK).token_s

    def near(self, head: str) -> list[tuple[float, int, str]]:
        """Nodes by round trip from a head's node, itself first, then those with most room."""
        found = self._near.get(head)
        if found is None:
            trip = self.trip
            found = self._near[head] = sorted(
                (trip(head, node), total, node) for total, node in self._totals
            )
        return found


class _Ask:
    """One model to be planned."""

    __slots__ = ("bare", "blobs", "fixed", "layers", "need", "settings")

    def __init__(
        self, wanted: Need, bare: Need, settings: Settings, blobs: Collection[str]
    ) -> None:
        self.need = wanted
        self.bare = bare
        """The same with no correction."""
        self.settings = settings
        self.blobs = blobs
        tail = wanted.output_bytes + wanted.logits_bytes
        self.layers = Layers(list(map(add, wanted.weights, wanted.kv)), tail)
        # Which device is first is known last: each is asked to have the room for it.
        self.fixed = wanted.largest_compute_bytes + wanted.first_bytes

    def room(self, seat: _Seat) -> int:
        """Bytes that the device can give to layers."""
        return max(0, seat.room - self.fixed)

    def suffices(self, room_bytes: int, count: int) -> bool:
        """Whether so much room on `count` devices is enough, could layers be cut at will."""
        return room_bytes - count * self.fixed >= self.layers.total


_Chosen = tuple[Level, _Seat, list[_Seat]]


def _one(pool: _Pool, ask: _Ask) -> _Chosen | None:
    """A single device that holds everything: the fastest, then the tightest."""
    wanted = ask.layers.total + ask.fixed
    best: _Seat | None = None
    for node in ask.blobs:
        for seat in pool.by_node.get(node, ()):
            if seat.room < wanted:
                break
            if best is None or _rank(seat) < _rank(best):
                best = seat
    return ("gpu", best, []) if best else None


def _rank(seat: _Seat) -> tuple[float, int, str, str]:
    return -seat.speed, seat.room, seat.device.node, seat.device.label


def _node(pool: _Pool, ask: _Ask) -> _Chosen | None:
    """The fewest devices of one node; then the fastest."""
    best: tuple[tuple[float, ...], _Chosen] | None = None
    for node in sorted(ask.blobs):
        seats = pool.by_node.get(node, ())
        room = seats[0].room if seats else 0
        for count in range(2, min(len(seats), MAX_DEVICES) + 1):
            room += seats[count - 1].room
            if best is not None and count > best[0][0]:
                break
            if not ask.suffices(room, count):
                continue
            members = seats[:count]
            found = _arranged(members, members, ask)
            if found is not None:
                rank = (count, -min(seat.speed for seat in members))
                if best is None or rank < best[0]:
                    best = rank, ("node", *found)
                break
    return best[1] if best else None


def _nodes(pool: _Pool, ask: _Ask) -> _Chosen | None:
    """The fewest devices of any nodes; then the fastest links."""
    heads = [seat for node in ask.blobs for seat in pool.by_node.get(node, ())]
    heads.sort(key=lambda seat: (-seat.room, seat.device.node, seat.device.label))
    ranks = {seat: index for index, seat in enumerate(pool.seats[:MAX_DEVICES])}
    for count in range(2, min(len(pool.seats), MAX_DEVICES) + 1):
        best: tuple[tuple[float, ...], _Chosen] | None = None
        for head in heads[: _HEADS_TRIED if count <= _FEW else _HEADS_TRIED_OF_MANY]:
            is_among = ranks.get(head, count) < count
            room = pool.sums[count] if is_among else pool.sums[count - 1] + head.room
            if not ask.suffices(room, count):
                break
            # No other devices do where the largest do not.
            others = [seat for seat in pool.seats[:count] if seat is not head][: count - 1]
            largest = _arranged([head], others, ask)
            if largest is None:
                continue
            found = _near(pool, head, count, ask) or largest
            rank = _far(pool, *found)
            if best is None or rank < best[0]:
                best = rank, ("nodes", *found)
        if best is not None:
            return best[1]
    return None


def _far(pool: _Pool, head: _Seat, others: Sequence[_Seat]) -> tuple[float, int]:
    """What a token waits on its ways, and nodes that it visits."""
    return (
        sum(pool.trip(head.device.node, seat.device.node) for seat in others),
        len({seat.device.node for seat in others}),
    )


def _near(pool: _Pool, head: _Seat, count: int, ask: _Ask) -> tuple[_Seat, list[_Seat]] | None:
    """`count` devices with this head, from as near as suffices."""
    rooms: list[tuple[int, int, _Seat]] = []
    total, serial = 0, 0
    enough = ask.layers.total + count * ask.fixed - head.room
    for _, _, node in pool.near(head.device.node):
        for seat in pool.by_node[node]:
            if seat is head:
                continue
            serial -= 1
            entry = (seat.room, serial, seat)
            if len(rooms) < count - 1:
                heappush(rooms, entry)
                total += seat.room
            elif seat.room > rooms[0][0]:
                total += seat.room - heappushpop(rooms, entry)[0]
            else:
                break
        if len(rooms) == count - 1 and total >= enough:
            chosen = [seat for _, _, seat in rooms]
            nearer = _come_closer(pool, head, chosen, total + head.room, ask)
            found = _arranged([head], nearer, ask) or _arranged([head], chosen, ask)
            if found is not None:
                return found
            # Whole layers need some slack: it is tried again when there is clearly more room.
            enough = total + ask.layers.total // _SLACK_PARTS
    return None


def _come_closer(
    pool: _Pool, head: _Seat, chosen: list[_Seat], room: int, ask: _Ask
) -> list[_Seat]:
    """Devices of the head's own node in place of far ones, as long as the room suffices."""
    own = [s for s in pool.by_node[head.device.node] if s is not head and s not in chosen]
    kept = [seat for seat in chosen if seat.device.node == head.device.node]
    far = [seat for seat in chosen if seat.device.node != head.device.node]
    far.sort(key=lambda seat: seat.room)
    for seat in far:
        spare = room - seat.room - len(chosen) * ask.fixed - ask.fixed
        place = bisect_left([-s.room for s in own], -(ask.layers.total - spare) + 1)
        if own and place > 0:
            taken = own.pop(0)
            kept.append(taken)
            room += taken.room - seat.room
        else:
            kept.append(seat)
    return kept


def _arranged(
    heads: Sequence[_Seat], members: Sequence[_Seat], ask: _Ask
) -> tuple[_Seat, list[_Seat]] | None:
    """A head and an order of the other members in which all layers fit."""
    for head in heads:
        groups: list[list[_Seat]] = [[], []]
        for seat in members:
            if seat is not head:
                groups[_is_local(seat, head)].append(seat)
        rooms = [[ask.room(seat) for seat in group] for group in groups]
        orders, fits = arrange(ask.layers, rooms, ask.room(head))
        if fits:
            return head, [
                group[i] for group, order in zip(groups, orders, strict=True) for i in order
            ]
    return None


def _is_local(seat: _Seat, head: _Seat) -> bool:
    """llama-server drives its own GPUs; a CPU takes part only through a worker."""
    return seat.device.node == head.device.node and seat.device.vendor in (
        "nvidia",
        "amd",
        "unknown",
    )


def _tokens_factor(shares: Sequence[Share]) -> float:
    """A token passes the devices one after another and waits a round trip for each worker."""
    if len(shares) == 1:
        return 1.0
    compute_s = sum(
        share.weights_bytes
        / (share.device.speed_bytes_s or _USUAL_SPEED.get(share.device.vendor, _OTHER_SPEED))
        for share in shares
    )
    workers = [share for share in shares if not share.is_local]
    waiting_s = sum(share.wait_s for share in workers)
    return _WORKER_FACTOR ** len(workers) * compute_s / (compute_s + waiting_s)
