"""How long a prompt is, and by which marks its beginning is known again.

An image in a prompt is megabytes of base64 and a thousand tokens. Taken as text it would hide
the conversation around it; so it counts as what it costs, and is known by its checksum. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from olol_tui.gateway.bodies import RouteBody
from olol_tui.gateway.skeleton import HOLE_BYTES, MEDIA_WEIGHT, Skeleton
from olol_tui.gateway.spool import Spool
from olol_tui.routing import prefix

_LOOKED_AT = prefix.MAX_BLOCKS * prefix.BLOCK_BYTES


class Prompt(NamedTuple):
    weight: int
    """Bytes of text by which its tokens may be estimated."""
    marks: tuple[int, ...]
    """See `routing.prefix`."""


def measure(fields: RouteBody, size: int, spool: Spool | None) -> Prompt:
    """
    Args:
        size: of the body, or of the skeleton of one that lies in a spool.
    """
    raw = fields.conversation
    if spool is not None:
        text = spool.named(bytes(memoryview(raw)[:_LOOKED_AT])) if raw else b""
        return Prompt(spool.weight, prefix.marks(memoryview(text)))
    if size <= HOLE_BYTES:
        short = size < prefix.LEAST_BYTES
        return Prompt(size, () if short else prefix.marks(memoryview(raw)))
    weight = size
    if fields.images:
        beside = bytes(fields.images)
        weight = size - len(beside) + beside.count(b'"') // 2 * MEDIA_WEIGHT
    whole = bytes(raw)
    if b'"image' not in whole and b"data:image" not in whole:
        return Prompt(weight, prefix.marks(memoryview(whole)))
    skeleton = Skeleton()
    for at in range(0, len(whole), HOLE_BYTES):
        # A string within one piece stays, however long.
        skeleton.feed(whole[at : at + HOLE_BYTES])
    text = skeleton.named(skeleton.finish(), whole)
    weight += skeleton.size + skeleton.weight - len(whole)
    return Prompt(weight, prefix.marks(memoryview(text)))
