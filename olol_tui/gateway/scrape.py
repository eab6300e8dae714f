"""GET /metrics: copied on the loop, written out in a thread, sent as one reply."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from olol_tui import __version__
from olol_tui.gateway import http
from olol_tui.gateway.metrics import Instant
from olol_tui.gateway.port import FleetPort

if TYPE_CHECKING:
    from olol_tui.gateway.exposition import Exposition
    from olol_tui.gateway.gateway import Gateway


class Scrape:
    """Answers the scrapes of one gateway."""

    def __init__(self, gateway: Gateway, fleet: FleetPort) -> None:
        self._gateway = gateway
        self._fleet = fleet
        self._exposition: Exposition | None = None

    def handle(self, connection: http.HttpConnection, request: http.Request) -> None:
        if (key := request.key) is not None and key.models:
            message = f"the API key {key.name} is for some models, and these figures are of all"
            self._gateway.error(connection, request, 403, message)
            return
        connection.handler = self._gateway.api.work(self._answer(connection, request))

    async def _answer(self, connection: http.HttpConnection, request: http.Request) -> None:
        accept = request.headers.get(b"accept", b"").decode("latin-1")
        body, content_type = await asyncio.to_thread(self._render, self._instant(), accept)
        connection.reply(200, body, content_type.encode())

    def _instant(self) -> Instant:
        gateway = self._gateway
        queue = gateway.queue
        models = queue.waiting_models()
        running: dict[str, int] = {}
        for record in gateway.ledger.live.values():
            if record.sent_s is not None and record.state != "queued":
                running[record.model] = running.get(record.model, 0) + 1
        return Instant(
            counted=gateway.metrics.counted(),
            fleet=self._fleet.fleet,
            queued={model: queue.queued_of(model) for model in models},
            running=running,
            connections=gateway.connections,
            draining=gateway.draining,
            unrecorded=gateway.unrecorded,
            prefix_looked=queue.books.prefixes.looked,
            prefix_hits=queue.books.prefixes.hits,
        )

    def _render(self, instant: Instant, accept: str) -> tuple[bytes, str]:
        # Imported here: a gateway that nobody scrapes does not carry prometheus_client.
        from olol_tui.gateway.exposition import Exposition

        if self._exposition is None:
            self._exposition = Exposition(__version__)
        return self._exposition.render(instant, accept)
