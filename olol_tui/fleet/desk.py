"""What the parts that carry out commands share: the controller, seen from below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from olol_tui.fleet.leases import Leases
from olol_tui.fleet.member import Member
from olol_tui.fleet.operations import OperationBook
from olol_tui.fleet.snapshot import Engine, Model, Node, Request
from olol_tui.fleet.wishes import Wishes

T = TypeVar("T")


class Desk(Protocol):
    @property
    def nodes(self) -> tuple[Node, ...]:
        """Built now from what the members know."""
        ...

    @property
    def wishes(self) -> Wishes: ...

    @property
    def leases(self) -> Leases: ...

    @property
    def book(self) -> OperationBook: ...

    @property
    def running(self) -> tuple[Request, ...]:
        """Requests that an engine computes on now, as the gateway tells them."""
        ...

    def now_s(self) -> float:
        """The fleet clock."""
        ...

    def member(self, node: str) -> Member:
        """Raises PlacementError for a node that does not exist."""
        ...

    def engine(self, engine_id: str) -> Engine | None: ...

    def busy(self, engine_id: str) -> frozenset[str]:
        """Canonical names of the models that the engine computes on now."""
        ...

    def default_ctx(self, node: str) -> int:
        """Tokens of context of a slot, unless asked otherwise."""
        ...

    def measured_bytes(self, model: Model, num_ctx: int) -> int | None:
        """What an engine of the fleet reported for this model and context."""
        ...

    def publish(self) -> None:
        """A snapshot of all this now, not soon: who reads it acts on it before this returns."""
        ...

    async def until(self, check: Callable[[], T | None], timeout_s: float) -> T:
        """The first result of `check` that is not None, asked again after every change.

        Raises:
            TimeoutError: none within `timeout_s`.
        """
        ...
