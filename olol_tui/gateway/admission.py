"""From a parsed inference request to a ticket in the queue, or to the reason why not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from olol_tui.gateway import asking, bodies, http
from olol_tui.gateway.dialects import errors, keepalive, llama
from olol_tui.gateway.events import EventExchange
from olol_tui.gateway.exchange import Exchange
from olol_tui.gateway.inflate import inflate
from olol_tui.gateway.keys import Key
from olol_tui.gateway.message import RETRY_AFTER, retry_after
from olol_tui.gateway.routes import Inference
from olol_tui.gateway.terms import terms_of
from olol_tui.gateway.times import rfc3339
from olol_tui.models.names import canonical, is_cloud
from olol_tui.routing.ticket import Terms

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

BUSY = "server busy, please try again.  maximum pending requests exceeded"
"""Ollama's own sentence, two spaces included: clients match on it."""


class Admission:
    """The inference routes of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def infer(
        self, connection: http.HttpConnection, request: http.Request, route: Inference
    ) -> None:
        """Queue a request for an engine, or answer why it is not."""
        gateway = self._gateway
        try:
            if route.reader is None:
                found = bodies.read(request.body)
            elif b"content-encoding" in request.headers:
                work = self._inflate(connection, request, route)
                connection.handler = gateway.api.work(work)
                return
            else:
                found = route.reader(request)
            raw = found.keep_alive
            keep_alive_s = keepalive.parse(msgspec.json.decode(raw)) if raw else None
            model = canonical(found.model)
            terms = terms_of(request.headers, request.key, connection.peer, gateway.now)
            refusal = self._refusal(route, found.model, model, request.key, terms)
            if refusal is not None:
                gateway.error(connection, request, *refusal)
                return
            if route.check is not None:
                route.check(route.path, request.body)
            if found.format and route.dialect == "ollama":
                found.check_format()
            kind = EventExchange if route.events else Exchange
            exchange = kind(gateway, connection, request, route, found, model, keep_alive_s, terms)
            if exchange.record.key_id and request.key is not None:
                gateway.gate.began(request.key)
        except bodies.BadBody as bad:
            gateway.error(connection, request, 400, bad.message)
            return
        except errors.BadRequest as bad:
            gateway.error(connection, request, bad.status, bad.message)
            return
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # Fields that were left unparsed: only looking into them tells.
            gateway.error(connection, request, 400, f"invalid JSON: {error}")
            return
        if keep_alive_s == 0 and exchange.is_load:
            self._unload(exchange)
            return
        if terms.deadline_s is not None and self._is_too_late(exchange):
            return
        connection.handler = exchange
        gateway.dispatcher.admit(exchange)

    def _is_too_late(self, exchange: Exchange) -> bool:
        """Refuses a request that is sure to miss its deadline."""
        gateway = self._gateway
        wait_s = gateway.queue.outlook.hopeless_s(exchange.ticket, gateway.roster, gateway.now())
        if wait_s is None:
            return False
        exchange.record.cause = "deadline"
        message = f"its deadline cannot be met: about {wait_s:.1f} s in the queue"
        exchange.refuse(504, f"{exchange.model}: {message}")
        return True

    async def _inflate(
        self, connection: http.HttpConnection, request: http.Request, route: Inference
    ) -> None:
        """Go on with a compressed body once it is read."""
        gateway = self._gateway
        encoding = request.headers.pop(b"content-encoding")
        try:
            request.body = await inflate(encoding, request.body, gateway.limits.body_bytes)
        except errors.BadRequest as bad:
            gateway.error(connection, request, bad.status, bad.message)
            return
        if connection.active is request:
            self.infer(connection, request, route)

    def _refusal(
        self, route: Inference, name: str, model: str, key: Key | None, terms: Terms
    ) -> tuple[int, str, bytes] | tuple[int, str] | None:
        gateway = self._gateway
        if key is not None and not key.may_use(model):
            return 403, f"the API key {key.name} may not use the model {name}"
        if is_cloud(name):
            return 403, f"cloud models are disabled: {name!r} would leave this cluster"
        if not gateway.roster.models(model):
            if route.task == "embed":
                return 404, f'model "{name}" not found, try pulling it first'
            return 404, errors.model_not_found(name)
        if gateway.draining:
            return 503, "the gateway is shutting down", RETRY_AFTER
        queue = gateway.queue
        if queue.room.is_full_for(model, batch=terms.batch):
            return 503, BUSY, retry_after(queue.outlook.room_after_s(gateway.roster))
        if key is None:
            return None
        if key.id and queue.room.is_full_for_flow(key.id):
            message = (
                f"the API key {key.name} has {queue.room.queued_by(key.id)} requests in the "
                "queue, which is its limit"
            )
            later_s = queue.outlook.room_after_s(gateway.roster, model, key.id)
            return 429, message, retry_after(later_s)
        return gateway.gate.refusal(key)

    def _unload(self, exchange: Exchange) -> None:
        """`keep_alive: 0` without a prompt: drop the model everywhere it is resident."""
        if (key := exchange.key) is not None and not key.may("admin"):
            message = f"the API key {key.name} lacks the scope 'admin' to unload a model of others"
            exchange.refuse(403, message)
            return
        connection = exchange.connection
        if connection is not None:
            connection.handler = self._gateway.api.work(self._drop(exchange, connection))

    async def _drop(self, exchange: Exchange, connection: http.HttpConnection) -> None:
        gateway, record = self._gateway, exchange.record
        try:
            await gateway.residents.unload(exchange.model)
        except asking.Lost as lost:
            exchange.refuse(502, f"{exchange.model} may still be loaded: {lost}")
            return
        except asyncio.CancelledError:
            gateway.ledger.close(record, "cancelled", 499, "the client left")
            gateway.ended(exchange)
            raise
        body = llama.load_reply(exchange.route.path, exchange.fields.model, "unload", rfc3339())
        connection.reply(200, body, http.NDJSON if record.stream else http.JSON)
        gateway.ledger.close(record, "done", 200)
        gateway.ended(exchange)
