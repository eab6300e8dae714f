"""What the gateway lets the fleet's commands do to requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import GatewayState, Request

View = Callable[[], tuple[tuple[Request, ...], GatewayState]]
Cancel = Callable[[str], bool]
"""(request): ends a live one; False when there is none of that id."""
Reroute = Callable[[str, str, str], None]
"""(request, to, away): sends a queued one to an engine or node, or away from one; raises
OlolError when that cannot be."""


def no_view() -> tuple[tuple[Request, ...], GatewayState]:
    return (), GatewayState()


def no_cancel(request: str) -> bool:
    return False


def no_reroute(request: str, to: str, away: str) -> None:
    raise OlolError("there is no gateway", title="The request cannot be sent elsewhere")


@dataclass(slots=True)
class LiveRequests:
    """Of the gateway that is attached; without one there are none."""

    view: View = no_view
    cancel: Cancel = no_cancel
    reroute: Reroute = no_reroute

    def attach(self, view: View, cancel: Cancel, reroute: Reroute) -> None:
        self.view, self.cancel, self.reroute = view, cancel, reroute
