"""What the gateway needs of the controller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from olol_tui.fleet.commands import Accepted, AnyCommand
from olol_tui.fleet.live_requests import Cancel, Reroute, View
from olol_tui.fleet.snapshot import Fleet
from olol_tui.models.store_layers import StoreLayers
from olol_tui.placement.report import Report


class FleetPort(Protocol):
    @property
    def fleet(self) -> Fleet: ...

    def on_change(self, callback: Callable[[Fleet], None]) -> Callable[[], None]: ...

    def attach_gateway(self, view: View, cancel: Cancel, reroute: Reroute) -> None: ...

    def launch(
        self,
        model: str,
        node: str,
        device_uuid: str,
        *,
        num_ctx: int | None = None,
        keep_alive_s: float | None = None,
        evict: tuple[str, ...] = (),
    ) -> str: ...

    def launch_split(
        self,
        model: str,
        *,
        num_ctx: int | None = None,
        keep_alive_s: float | None = None,
        spread: bool = False,
    ) -> str: ...

    def split_layers(self, engine_id: str) -> StoreLayers | None:
        """What the store adds to requests for this head of a split; None where nothing."""
        ...

    def touch(self, engine_id: str, model: str, keep_alive_s: float | None) -> None: ...

    def poke(self) -> None: ...

    def kick(self, engine_id: str) -> None: ...

    async def refresh(self, engine_id: str) -> None:
        """Learn now what an engine has loaded; the fleet shows it afterwards.

        Raises:
            OlolError: it does not say.
        """
        ...

    async def survey(self, node: str) -> None:
        """Learn now what a node's store holds; the fleet shows it afterwards.

        Raises:
            OlolError: it does not say.
        """
        ...

    async def fit(self, model: str, **how: Any) -> Report:
        """What a model takes, where it fits and how it would be split; see `Planning.fit`.

        Raises:
            OlolError: nobody has it, or nobody says what it is made of.
        """
        ...

    async def submit(self, command: AnyCommand) -> Accepted: ...

    def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]: ...
