"""The devices of a fleet, sorted once, on which many models are planned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

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
_LOOPBACK = Link(rtt_s=0.0)
_HEADS_TRIED = 16
"""Heads compared by their links once the fewest devices are known."""
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
        self._room = {
            device: device.free_bytes - self._learned.overhead_bytes(device.vendor)
            for device in devices
        }
        everything = sorted(self._room, key=lambda d: (-self._room[d], d.node, d.label, d.uuid))
        gpus = [device for device in everything if device.vendor != "cpu"]
        # Layers on a CPU are ten times slower: they are planned only where GPUs do not suffice.
        self._pools = [_Pool(pool, self._room) for pool in (gpus, everything) if pool]
        if len(gpus) == len(everything):
            del self._pools[1:]

    def plan(
        self,
        shape: Shape,
        settings: Settings,
        blobs: Collection[str],
    ) -> SplitPlan | Refusal:
        """The split of one model whose file lies on the nodes `blobs`."""
        wanted = need(shape, settings, self._learned)
        costs = [w + kv for w, kv in zip(wanted.weights, wanted.kv, strict=True)]
        ask = _Ask(
            shape, settings, wanted, Layers(costs, wanted.output_bytes + wanted.logits_bytes), blobs
        )
        for pool in self._pools:
            chosen = self._one(pool, ask) or self._node(pool, ask) or self._nodes(pool, ask)
            if chosen is not None:
                return self._write(ask, *chosen)
        return self._refuse(ask)

    def _one(self, pool: _Pool, ask: _Ask) -> _Chosen | None:
        """A single device that holds everything: the fastest, then the tightest."""
        fits = [
            device
            for node in ask.blobs
            for device in pool.by_node.get(node, ())
            if self._room[device] - ask.fixed >= ask.layers.total
        ]
        if not fits:
            return None
        best = min(fits, key=lambda d: (-_speed(d), d.free_bytes, d.node, d.label))
        return "gpu", best, []

    def _node(self, pool: _Pool, ask: _Ask) -> _Chosen | None:
        """The fewest devices of one node; then the fastest."""
        best: tuple[tuple[float, ...], _Chosen] | None = None
        for node in sorted(ask.blobs):
            members = pool.by_node.get(node, ())
            for count in range(2, min(len(members), MAX_DEVICES) + 1):
                if best is not None and count > best[0][0]:
                    break
                if sum(self._rooms(members[:count], ask)) < ask.layers.total:
                    continue
                found = self._heads(members[:count], [], ask)
                if found is not None:
                    rank = (count, -min(_speed(d) for d in members[:count]))
                    if best is None or rank < best[0]:
                        best = rank, ("node", *found)
                    break
        return best[1] if best else None

    def _nodes(self, pool: _Pool, ask: _Ask) -> _Chosen | None:
        """The fewest devices of any nodes; then the fastest links."""
        heads = [pool.by_node[node][0] for node in ask.blobs if node in pool.by_node]
        heads.sort(key=lambda d: (-self._room[d], d.node))
        best: tuple[tuple[float, ...], _Chosen] | None = None
        for head in heads[:_HEADS_TRIED]:
            others = [device for device in pool.order if device is not head]
            for count in range(1, min(len(others), MAX_DEVICES - 1) + 1):
                if best is not None and count > best[0][0]:
                    break
                found = self._near(head, others, count, ask)
                if found is not None:
                    rtt = sum(self._rtt(head.node, d.node) for d in found[1])
                    nodes = len({d.node for d in found[1]})
                    rank = (count, rtt, nodes)
                    if best is None or rank < best[0]:
                        best = rank, ("nodes", *found)
                    break
        return best[1] if best else None

    def _near(
        self, head: SplitDevice, others: Sequence[SplitDevice], count: int, ask: _Ask
    ) -> tuple[SplitDevice, list[SplitDevice]] | None:
        """`count` workers for the head, by the shortest round trips that still suffice."""
        if not self._suffices(head, others[:count], ask):
            return None
        reach = sorted({self._rtt(head.node, device.node) for device in others})
        for limit in reach:
            near = [d for d in others if self._rtt(head.node, d.node) <= limit]
            if len(near) >= count and self._suffices(head, near[:count], ask):
                chosen = self._heads([head], near[:count], ask)
                if chosen is not None:
                    return chosen
        return self._heads([head], others[:count], ask)

    def _suffices(self, head: SplitDevice, others: Sequence[SplitDevice], ask: _Ask) -> bool:
        return sum(self._rooms([head, *others], ask)) >= ask.layers.total

    def _heads(
        self, local: Sequence[SplitDevice], others: Sequence[SplitDevice], ask: _Ask
    ) -> tuple[SplitDevice, list[SplitDevice]] | None:
        """A head among `local` and an order of the rest in which all layers fit."""
        for head in local:
            rest = [d for d in (*others, *local) if d is not head]
            groups = [
                [d for d in rest if not _is_local(d, head)],
                [d for d in rest if _is_local(d, head)],
            ]
            rooms = [self._rooms(group, ask) for group in groups]
            orders, fits = arrange(ask.layers, rooms, self._rooms([head], ask)[0])
            if fits:
                return head, [
                    group[i] for group, order in zip(groups, orders, strict=True) for i in order
                ]
        return None

    def _rooms(self, devices: Iterable[SplitDevice], ask: _Ask) -> list[int]:
        return [max(0, self._room[device] - ask.fixed) for device in devices]

    def _rtt(self, head: str, worker: str) -> float:
        if head == worker:
            return _LOOPBACK.rtt_s
        return self._links.get((head, worker), UNKNOWN_LINK).rtt_s

    def _write(
        self, ask: _Ask, level: Level, head: SplitDevice, others: list[SplitDevice]
    ) -> SplitPlan:
        order = [*others, head]
        counts = balance(ask.layers, self._rooms(order, ask))
        assert counts is not None, "an arrangement that fits can be filled"
        shares: list[Share] = []
        at = 0
        for device, count in zip(order, counts, strict=True):
            is_head = device is head
            if not count and not is_head:
                continue
            weights = sum(ask.need.weights[at : at + count])
            shares.append(
                Share(
                    device=device,
                    is_local=_is_local(device, head),
                    first_layer=at,
                    layers=count,
                    weights_bytes=weights + (ask.need.output_bytes if is_head else 0),
                    kv_bytes=sum(ask.need.kv[at : at + count]),
                    compute_bytes=ask.need.compute_bytes(at, count)
                    + (ask.need.first_bytes if not shares else 0)
                    + (ask.need.logits_bytes if is_head else 0),
                    overhead_bytes=self._learned.overhead_bytes(device.vendor),
                    has_output=is_head,
                    rtt_s=self._rtt(head.node, device.node),
                )
            )
            at += count
        return SplitPlan(
            level=level,
            shares=tuple(shares),
            settings=ask.settings,
            need=ask.need,
            tokens_factor=_tokens_factor(shares),
            reasons=self._reasons(level, head, shares),
        )

    def _reasons(self, level: Level, head: SplitDevice, shares: Sequence[Share]) -> tuple[str, ...]:
        total = format_size(sum(share.total_bytes for share in shares))
        if level == "gpu":
            return (
                f"{head.where} holds all of it: {total} of {format_size(head.free_bytes)} free",
            )
        said = [f"no single device with the file has {total} free"]
        if level == "node":
            said.append(f"{len(shares)} devices of {head.node} are the fewest that hold it")
        else:
            said.append(
                f"no node with the file holds it alone; {len(shares)} devices are the fewest"
            )
            for node in dict.fromkeys(s.device.node for s in shares if s.device.node != head.node):
                link = self._links.get((head.node, node))
                said.append(
                    f"{head.node} to {node}: {link.rtt_s * 1000:.2g} ms a round trip"
                    if link
                    else f"{head.node} to {node}: not measured, 1 ms assumed"
                )
        said.append(f"{head.where} is the head: the file is on {head.node}")
        return tuple(said)

    def _refuse(self, ask: _Ask) -> Refusal:
        order = self._pools[-1].order if self._pools else []
        rooms = [self._room[device] for device in order]
        useful = [room - ask.fixed for room in rooms if room > ask.fixed][:MAX_DEVICES]
        available = sum(useful)
        total = ask.layers.total
        if not any(device.node in ask.blobs for device in order):
            message = "no node that may take layers holds the model's file"
        else:
            message = (
                f"it needs {format_size(total)} beside {format_size(ask.fixed)} of buffers on each "
                f"device; {len(useful)} devices have {format_size(available)} free for it"
            )
        return Refusal(message, total, available)


_Chosen = tuple[Level, SplitDevice, list[SplitDevice]]


class _Pool:
    """Devices by room, whole and by node."""

    __slots__ = ("by_node", "order")

    def __init__(self, order: list[SplitDevice], room: dict[SplitDevice, int]) -> None:
        self.order = order
        self.by_node: dict[str, list[SplitDevice]] = {}
        for device in order:
            self.by_node.setdefault(device.node, []).append(device)


class _Ask:
    """One model to be planned."""

    __slots__ = ("blobs", "fixed", "layers", "need", "settings", "shape")

    def __init__(
        self, shape: Shape, settings: Settings, wanted: Need, layers: Layers, blobs: Collection[str]
    ) -> None:
        self.shape = shape
        self.settings = settings
        self.need = wanted
        self.layers = layers
        self.blobs = blobs
        # Which device is first is known last: each is asked to have the room for it.
        self.fixed = wanted.largest_compute_bytes + wanted.first_bytes
        """Bytes that every device pays beside its layers."""


def _is_local(device: SplitDevice, head: SplitDevice) -> bool:
    """llama-server drives its own GPUs; a CPU takes part only through a worker."""
    return device.node == head.node and device.vendor in ("nvidia", "amd", "unknown")


def _speed(device: SplitDevice) -> float:
    return device.speed_bytes_s or _USUAL_SPEED.get(device.vendor, _OTHER_SPEED)


def _tokens_factor(shares: Sequence[Share]) -> float:
    """A token passes the devices one after another and waits one round trip for each worker."""
    compute_s = sum(share.weights_bytes / _speed(share.device) for share in shares)
    workers = [share for share in shares if not share.is_local]
    waiting_s = sum(share.rtt_s for share in workers)
    if len(shares) == 1:
        return 1.0
    return _WORKER_FACTOR ** len(workers) * compute_s / (compute_s + waiting_s)
