"""The gateway as the control socket shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from olol_tui.gateway import http
from olol_tui.gateway.gate import OPERATOR

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway


class ControlApp:
    """Every route, and those that change things too. Implements http.App."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.streamed = gateway.streamed
        self.spooled = gateway.spooled
        self.opened = gateway.opened
        self.closed = gateway.closed
        self.refuse = gateway.refuse

    @property
    def limits(self) -> http.Limits:
        return self._gateway.limits

    def refusal(
        self, connection: http.HttpConnection, request: http.Request
    ) -> tuple[int, str, bytes] | None:
        """Nobody is kept out: whoever opens this socket owns the state directory."""
        request.key = OPERATOR
        return None

    def handle(self, connection: http.HttpConnection, request: http.Request) -> None:
        if not self._gateway.api.control(connection, request):
            self._gateway.handle(connection, request)
