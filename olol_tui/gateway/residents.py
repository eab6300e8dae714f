"""What engines that hold many models have loaded, where a snapshot may be behind the requests.

Snapshots learn it once a second. Somebody who runs a model, or stops one, and asks in the next
moment what is loaded would see it as it was before: such an engine is asked first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import Engine, Loaded, Node
from olol_tui.gateway.asking import Lost, ask
from olol_tui.gateway.dialects import errors
from olol_tui.gateway.dialects.aggregate import unix_seconds
from olol_tui.gateway.stores import keeps_models
from olol_tui.models.names import canonical
from olol_tui.routing.roster import way_to

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

log = logging.getLogger("olol.gateway.residents")

SETTLE_S = 2.0
"""An engine that does not say in this time is shown as it was last seen."""
UNLOAD_S = 15.0


class Residents:
    """Of one gateway: which engines have changed since they were last asked, and the way to drop
    a model."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._changed: dict[str, int] = {}
        """Engine id → which change was its last; without those that have been asked since."""
        self._changes = itertools.count()

    def changed(self, engine_id: str) -> None:
        """A request has loaded or dropped a model there, or has set how long it stays."""
        self._changed[engine_id] = next(self._changes)

    def unsettled(self) -> frozenset[str]:
        """Engines of which the snapshot may show what is over: also those with a model past its
        time, which goes in the moment when nobody uses it."""
        now = time.time()
        leaving = (
            engine.id
            for node in self._gateway.fleet.fleet.nodes
            for engine in node.engines
            if keeps_models(engine) and any(_is_over(one, now) for one in engine.loaded)
        )
        return frozenset(self._changed).union(leaving)

    async def settle(self, engines: Iterable[str]) -> None:
        """Let the snapshot show what these engines hold now."""
        await asyncio.gather(*(self._settle(one) for one in engines))

    async def _settle(self, engine_id: str) -> None:
        change = self._changed.get(engine_id)
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._gateway.fleet.refresh(engine_id)
        except (OlolError, TimeoutError) as error:
            # A dead engine is reported by its agent.
            log.warning("residents unknown", extra={"engine": engine_id, "reason": str(error)})
        if change is not None and self._changed.get(engine_id) == change:
            del self._changed[engine_id]

    async def unload(self, model: str) -> None:
        """Drop a model wherever it is resident and not pinned.

        An Ollama is asked although another name of the model is shown as loaded there: names
        that are made of one file share what is loaded, and only the engine knows which do.

        Raises:
            Lost: an engine gave no answer, or refused.
        """
        asked = []
        for node in self._gateway.fleet.fleet.nodes:
            entry = next((one for one in node.library if canonical(one.name) == model), None)
            digest = entry.digest if entry is not None else ""
            for engine in node.engines:
                mine = [
                    one
                    for one in engine.loaded
                    if canonical(one.name) == model or (digest and one.digest == digest)
                ]
                if any(one.pinned for one in mine):
                    continue
                if not keeps_models(engine):
                    if mine:
                        self._gateway.fleet.touch(engine.id, engine.model, 0.0)
                elif engine.state == "ready" and engine.address and (mine or entry is not None):
                    name = entry.name if entry is not None else model
                    asked.append(self._drop(node, engine, name))
        failed = [one for one in await asyncio.gather(*asked) if one]
        if failed:
            raise Lost("; ".join(failed))

    async def _drop(self, node: Node, engine: Engine, model: str) -> str:
        """Why it failed; empty when the engine has taken it."""
        body = msgspec.json.encode({"model": model, "keep_alive": 0, "stream": False})
        pool, way = self._gateway.pool, way_to(node, engine)
        try:
            reply = await ask(pool, way, "POST", "/api/generate", body, timeout_s=UNLOAD_S)
        except Lost as lost:
            return f"{engine.id}: {lost}"
        finally:
            self.changed(engine.id)
            self._gateway.fleet.kick(engine.id)
        if reply.status in (200, 404):
            self._gateway.loader.dropped(engine.id, canonical(model))
            return ""
        return f"{engine.id}: {errors.upstream_message(reply.body)}"


def _is_over(loaded: Loaded, now: float) -> bool:
    return bool(loaded.expires_at) and unix_seconds(loaded.expires_at) <= now
