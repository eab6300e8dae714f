"""Learns what the models of one node take, from the headers of their files.

After a survey has listed them, one after the other and without haste: until then their sizes
are guessed from their files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from olol_tui.errors import NodeError
from olol_tui.fleet.agent_client import AgentUnreachable
from olol_tui.fleet.node_view import NodeFacts
from olol_tui.fleet.snapshot import Model
from olol_tui.models.footprint import Footprint, footprint
from olol_tui.models.shape import ShapeError, shape_of

log = logging.getLogger("olol.fleet.footprints")

Ask = Callable[[Model], Awaitable[dict[str, Any]]]
_Key = tuple[str, str, int]


class Footprints:
    """Keeps `facts.models` with what is known of them. Args: changed: something was learned."""

    def __init__(self, facts: NodeFacts, changed: Callable[[], None]) -> None:
        self._facts = facts
        self._changed = changed
        self._known: dict[_Key, Footprint | None] = {}
        """None where the header does not say."""
        self._listed = asyncio.Event()

    def list(self, models: Iterable[Model]) -> None:
        """These are the models; those that are not known are asked for."""
        self._facts.models = tuple(map(self._marked, models))
        self._listed.set()

    async def learn(self, ask: Ask) -> None:
        """Ask for what is not known, after each survey; for as long as the node is visited."""
        while True:
            await self._listed.wait()
            self._listed.clear()
            unknown = [model for model in self._facts.models if self._is_unknown(model)]
            try:
                for model in unknown:
                    self._known[_key(model)] = await _read(ask, model)
                    self._facts.models = tuple(map(self._marked, self._facts.models))
                    self._changed()
            except AgentUnreachable as error:
                # Whoever listens to it notices too; what is left is asked after the next survey.
                log.debug("%s: %s", self._facts.name, error)

    def _is_unknown(self, model: Model) -> bool:
        # Simulated models have no files.
        is_file = model.format == "gguf" and not self._facts.is_simulated
        return is_file and _key(model) not in self._known

    def _marked(self, model: Model) -> Model:
        found = self._known.get(_key(model))
        return model if found is None else replace(model, footprint=found)


async def _read(ask: Ask, model: Model) -> Footprint | None:
    try:
        return footprint(shape_of(await ask(model)))
    except AgentUnreachable:
        raise
    except (NodeError, ShapeError) as error:
        log.debug("%s: its size is guessed: %s", model.name, error)
        return None


def _key(model: Model) -> _Key:
    return model.name, model.digest, model.size_bytes
