"""`POST /v1/messages/count_tokens`: counted by an engine that can, estimated otherwise.

It takes no slot and loads nothing: agents ask it before every step of theirs, and must not
wait behind the replies they are about to ask for. llama-server counts exactly, with the
model's own template; Ollama has no such route and estimates by length, as is done here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.gateway import http
from olol_tui.gateway.asking import Lost, ask
from olol_tui.gateway.dialects import anthropic, errors
from olol_tui.models.names import canonical, is_cloud

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

log = logging.getLogger("olol.gateway")

_COUNT_S = 10.0
_ESTIMATED = b"X-Olol-Estimated: 1\r\n"


async def count_tokens(
    gateway: Gateway, connection: http.HttpConnection, request: http.Request
) -> None:
    """Answer one such request."""
    try:
        name = anthropic.check_count(request.body)
        refusal = _refusal(gateway, request, name)
        if refusal is not None:
            gateway.error(connection, request, *refusal)
            return
        if not await _counted(gateway, connection, request, canonical(name)):
            tokens = anthropic.estimate(request.body)
            body = msgspec.json.encode({"input_tokens": tokens})
            connection.reply(200, body, http.JSON, _ESTIMATED)
    except errors.BadRequest as bad:
        gateway.error(connection, request, bad.status, bad.message)


def _refusal(gateway: Gateway, request: http.Request, name: str) -> tuple[int, str] | None:
    model = canonical(name)
    if request.key is not None and not request.key.may_use(model):
        return 403, f"the API key {request.key.name} may not use the model {name}"
    if is_cloud(name):
        return 403, f"cloud models are disabled: {name!r} would leave this cluster"
    if not gateway.roster.models(model):
        return 404, errors.model_not_found(name)
    return None


async def _counted(
    gateway: Gateway, connection: http.HttpConnection, request: http.Request, model: str
) -> bool:
    """Whether an engine counted; what it says against the request is an answer too."""
    for seat in gateway.roster.seats(model):
        if seat.kind not in RUNNERS or not seat.warm or seat.refused or not seat.address:
            continue
        try:
            reply = await ask(
                gateway.pool, seat.address, "POST", anthropic.COUNT_TOKENS, request.body,
                timeout_s=_COUNT_S,
            )  # fmt: skip
        except Lost as lost:
            log.warning("count", extra={"where": seat.where, "reason": str(lost)})
            continue
        if reply.status == 200:
            connection.reply(200, reply.body)
            return True
        if reply.status < 500:
            message = errors.upstream_message(reply.body)
            gateway.error(connection, request, reply.status, message)
            return True
    return False
