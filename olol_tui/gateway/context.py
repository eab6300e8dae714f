"""Keeps a model's context as it is loaded: an Ollama reloads a model for any other `num_ctx`.

Two clients that ask for 2,048 and 4,096 tokens would have it loaded again at every turn.
"""

from __future__ import annotations

import msgspec

from olol_tui.gateway.bodies import RouteBody
from olol_tui.routing.roster import USUAL_CTX, Seat

_BODY = msgspec.json.Decoder(dict[str, msgspec.Raw])


def kept(body: bytes, fields: RouteBody, wanted: int | None, seat: Seat) -> bytes:
    """The body for an engine that has the model with `seat.context_length` tokens.

    Unchanged when that is what it would get anyway; a wish for more was settled before, by a
    load.

    Args:
        wanted: `num_ctx` of the request, None when it does not say.
    """
    loaded = seat.context_length
    if loaded is None or wanted == loaded or (wanted is None and loaded <= USUAL_CTX):
        return body
    if wanted is not None and wanted > loaded:
        return body
    parts = _BODY.decode(body)
    options = msgspec.json.decode(fields.options) if bytes(fields.options).strip() else None
    parts["options"] = msgspec.Raw(msgspec.json.encode({**(options or {}), "num_ctx": loaded}))
    return msgspec.json.encode(parts)
