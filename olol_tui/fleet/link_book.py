"""How far nodes are from each other, and how fast: what was measured of each pair. Pure.

Round trips are measured when a split is planned. Speeds cost nothing extra: the weights of a
split are on their way to its workers anyway, and whoever carries them counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from olol_tui.fleet.snapshot import NodeLink
from olol_tui.placement.shares import Link

_NEWS = 0.05
"""A figure that is off by less than this share is no news, and not written to disk."""


class SeenLink(msgspec.Struct, frozen=True):
    """From the node of a head to the node of a worker."""

    head: str
    worker: str
    rtt_s: float | None = None
    bytes_s: float | None = None


class LinkBook:
    """`changed` is called after every change that is worth keeping."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._links: dict[tuple[str, str], SeenLink] = {}

    def note(
        self, head: str, worker: str, *, rtt_s: float | None = None, bytes_s: float | None = None
    ) -> None:
        """What was measured now replaces what was known."""
        before = self._links.get((head, worker), SeenLink(head, worker))
        after = SeenLink(head, worker, _newer(before.rtt_s, rtt_s), _newer(before.bytes_s, bytes_s))
        if after != before:
            self._links[head, worker] = after
            self._changed()

    def of(self, head: str, worker: str) -> SeenLink:
        return self._links.get((head, worker), SeenLink(head, worker))

    def seen_from(self, node: str) -> tuple[NodeLink, ...]:
        """What is known of the ways from a node, by the other's name."""
        return tuple(
            NodeLink(one.worker, one.rtt_s, one.bytes_s)
            for (head, _), one in sorted(self._links.items())
            if head == node
        )

    def links(self, pairs: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], Link]:
        """For a plan: of these pairs those whose round trip is known.

        A speed that was only seen the other way round counts for both: else a way that nobody
        has measured would look better than one that is known.
        """
        found = {}
        for pair in pairs:
            one = self._links.get(pair)
            if one is not None and one.rtt_s is not None:
                speed = one.bytes_s or self.of(one.worker, one.head).bytes_s
                found[pair] = Link(one.rtt_s, speed)
        return found

    def forget_node(self, node: str) -> None:
        self._links = {pair: one for pair, one in self._links.items() if node not in pair}

    def kept(self) -> tuple[SeenLink, ...]:
        return tuple(self._links.values())

    def adopt(self, kept: Iterable[SeenLink]) -> None:
        self._links = {(one.head, one.worker): one for one in kept}


def _newer(before: float | None, now: float | None) -> float | None:
    if now is None or (before is not None and abs(now - before) <= _NEWS * before):
        return before
    return now
