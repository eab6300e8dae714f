"""What models really took, as engines reported it: better than any estimate."""

from __future__ import annotations

from collections.abc import Iterable

from olol_tui.fleet.snapshot import Model, Node
from olol_tui.models.names import canonical


class MeasuredSizes:
    """Bytes by model, digest and context, learned from every snapshot."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[str, str, int], int] = {}

    def learn(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            for engine in node.engines:
                for one in engine.loaded:
                    if one.size_bytes and one.context_length:
                        key = (canonical(one.name), one.digest, one.context_length)
                        self._bytes[key] = one.size_bytes

    def of(self, model: Model, num_ctx: int) -> int | None:
        return self._bytes.get((canonical(model.name), model.digest, num_ctx))
