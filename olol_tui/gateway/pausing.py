"""Operators' routes on models and on what waits for them: pause, resume, send elsewhere.

Each is a command to the fleet, as from the console: there it is kept, and shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from olol_tui.errors import ModelNotFound, OlolError
from olol_tui.fleet.commands import AnyCommand, PauseModel, RerouteRequest
from olol_tui.gateway import http
from olol_tui.models.names import canonical

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

MODELS = "/olol/v1/models/"


class _Way(msgspec.Struct, forbid_unknown_fields=True):
    """Where to; `engine` and `node` are two words for one thing, whichever is at hand."""

    engine: str = ""
    node: str = ""
    away: str = ""


class Pausing:
    """Routes under `/olol/v1/models`, and `/olol/v1/requests/{id}/reroute`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def model(self, connection: http.HttpConnection, request: http.Request) -> None:
        """POST /olol/v1/models/{name}/pause and /resume."""
        name, _, verb = request.path.removeprefix(MODELS).rpartition("/")
        if not name or verb not in ("pause", "resume"):
            self._gateway.error(connection, request, 404, f"{request.path}: no such path")
            return
        paused = verb == "pause"
        done: dict[str, object] = {"model": canonical(name), "paused": paused}
        self._command(connection, request, PauseModel(name, paused), done)

    def reroute(self, connection: http.HttpConnection, request: http.Request, id: str) -> None:
        """POST /olol/v1/requests/{id}/reroute."""
        try:
            way = msgspec.json.decode(request.body or b"{}", type=_Way)
        except msgspec.MsgspecError as error:
            self._gateway.error(connection, request, 400, f"the body is not valid: {error}")
            return
        to = way.engine or way.node
        if bool(way.engine) + bool(way.node) + bool(way.away) > 1:
            message = "expected one of engine, node and away"
            self._gateway.error(connection, request, 400, message)
            return
        done: dict[str, object] = {"id": id, "to": to, "away": way.away}
        self._command(connection, request, RerouteRequest(id, to, way.away), done)

    def _command(
        self,
        connection: http.HttpConnection,
        request: http.Request,
        command: AnyCommand,
        done: dict[str, object],
    ) -> None:
        connection.handler = self._gateway.api.work(
            self._submit(connection, request, command, done)
        )

    async def _submit(
        self,
        connection: http.HttpConnection,
        request: http.Request,
        command: AnyCommand,
        done: dict[str, object],
    ) -> None:
        try:
            await self._gateway.fleet.submit(command)
        except ModelNotFound as error:
            self._gateway.error(connection, request, 404, error.message)
        except OlolError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._gateway.error(connection, request, 409, f"{error.message}{hint}")
        else:
            connection.reply(200, msgspec.json.encode(done))
