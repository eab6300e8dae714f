"""What a model takes on one device, in a handful of numbers made from its header.

A shape has an entry for each layer; a snapshot of the fleet holds hundreds of models. This is
what is left of a shape when the model lies on one device.
"""

from __future__ import annotations

from dataclasses import dataclass

from olol_tui.models.learned import Learned
from olol_tui.models.memory import Settings, need
from olol_tui.models.shape import Shape

_USUAL_CTX = 4096


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, at `ctx` tokens of context."""

    weights_bytes: int
    kv_bytes: int
    """KV cache of one slot."""
    compute_bytes: int
    """Buffers for intermediate results."""
    ctx: int
    token_bytes: int
    """KV cache of a slot for each further token; layers that look back only so far have their
    whole window."""
    compute_token_bytes: int
    host_bytes: int = 0
    """In main memory, mapped from the file: on a node without GPU that is the same memory."""

    def kv_at(self, ctx: int, slots: int = 1) -> int:
        return max(0, self.kv_bytes + (ctx - self.ctx) * self.token_bytes) * slots

    def compute_at(self, ctx: int) -> int:
        return max(0, self.compute_bytes + (ctx - self.ctx) * self.compute_token_bytes)

    def total_at(self, ctx: int, vendor: str, slots: int = 1) -> int:
        """With what the process takes beside its buffers."""
        host = self.host_bytes if vendor == "cpu" else 0
        parts = self.weights_bytes + self.kv_at(ctx, slots) + self.compute_at(ctx) + host
        return parts + Learned().overhead_bytes(vendor)


def footprint(shape: Shape) -> Footprint:
    """The footprint of a model of this shape."""
    usual, more = need(shape, Settings(_USUAL_CTX)), need(shape, Settings(2 * _USUAL_CTX))
    return Footprint(
        weights_bytes=usual.weights_bytes,
        kv_bytes=usual.kv_bytes,
        compute_bytes=usual.most_compute_bytes,
        ctx=_USUAL_CTX,
        token_bytes=(more.kv_bytes - usual.kv_bytes) // _USUAL_CTX,
        compute_token_bytes=(more.most_compute_bytes - usual.most_compute_bytes) // _USUAL_CTX,
        # A tied embedding is the output too, and mapped only once.
        host_bytes=0 if shape.is_tied else usual.embedding_bytes,
    )
