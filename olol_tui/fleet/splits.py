"""Models over several devices: made when they are asked for, kept, mended, given back.

A split is desired state of the nodes concerned. Agents keep its parts alive by themselves;
what is done here is what no single node can know: the order in which parts start, that a node
is gone and others must do, that a model is idle and its devices are wanted back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from olol_tui.errors import EngineError, OlolError, PlacementError
from olol_tui.fleet.commands import Unload
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.operations import Report
from olol_tui.fleet.relays import Relays
from olol_tui.fleet.runners import Runners
from olol_tui.fleet.snapshot import Engine, Node, Split, SplitRule
from olol_tui.fleet.split_eviction import Eviction
from olol_tui.fleet.split_planning import Draft, Planning
from olol_tui.fleet.split_run import Run
from olol_tui.fleet.split_stage import stage
from olol_tui.fleet.split_view import lessons, note_speeds, split_of
from olol_tui.fleet.split_wish import Ports, SplitWish, Way, replace_way, split_id
from olol_tui.models.names import canonical, same
from olol_tui.models.store_layers import StoreLayers
from olol_tui.placement.report import Report as FitReport

log = logging.getLogger("olol.fleet.splits")

LOAD_TIMEOUT_S = 1800.0
"""Tensors of a huge model travel a slow network the first time."""
LOST_GRACE_S = 3.0
"""A node that is lost for so long is planned around."""
REPLAN_EVERY_S = 10.0
REFUSED_SHOWN_S, CRASHED_SHOWN_S = 30.0, 600.0
"""A split that fits nowhere, or whose parts crash each time, is not tried again before."""
_FORWARD_TRIES = 2
"""A first forward that fails so often leads nowhere: through us, then."""


class Splits:
    """One per controller. `look` is called whenever the fleet changed; `changed` calls for it."""

    def __init__(
        self, desk: Desk, crew: Crew, runners: Runners, changed: Callable[[], None]
    ) -> None:
        self._desk = desk
        self._crew = crew
        self._eviction = Eviction(desk, runners)
        self._planning = Planning(crew, desk.wishes, lambda: desk.nodes, desk.busy)
        self._relays = Relays(crew, changed)
        self._runs: dict[str, Run] = {}

    # -- asked for

    async def fit(self, model: str, **how: Any) -> FitReport:
        """What it takes and where it fits, changing nothing; see `Planning.fit`."""
        return await self._planning.fit(model, **how)

    def launch(
        self,
        model: str,
        *,
        num_ctx: int | None = None,
        keep_alive_s: float | None = None,
        spread: bool = False,
    ) -> str:
        """Ask that this model is split over devices; returns the split's id. Its progress and
        its failure show in the fleet.

        Args:
            spread: over several devices even where one would do.

        Raises:
            PlacementError: it failed just now.
        """
        split = split_id(model)
        run = self._runs.get(split)
        if (wish := self._desk.wishes.splits.get(split)) is not None:
            if run is not None and num_ctx is not None and num_ctx > wish.num_ctx:
                self._grow(wish, run, num_ctx)
            return split
        if run is not None and run.state == "failed":
            raise PlacementError(run.error)
        keep = self._crew.config.split.keep_alive_s if keep_alive_s is None else keep_alive_s
        name = canonical(model)
        if run is None:
            self._runs[split] = Run(name, self._desk.now_s(), num_ctx=num_ctx, is_spread=spread)
        self._start(split, name, num_ctx, keep, spread)
        return split

    def retry(self, model: str) -> str:
        """Try one again that failed, as it was asked for; the operation's id.

        Raises:
            PlacementError: there is none.
        """
        split, name = split_id(model), canonical(model)
        run = self._runs.get(split)
        if run is None or run.state != "failed":
            raise PlacementError(f"{name} has no split that failed")
        again = Run(name, self._desk.now_s(), num_ctx=run.num_ctx, is_spread=run.is_spread)
        self._runs[split] = again
        keep_alive_s = self._crew.config.split.keep_alive_s
        return self._start(split, name, run.num_ctx, keep_alive_s, run.is_spread)

    def _start(self, split: str, name: str, num_ctx: int | None, keep: float, spread: bool) -> str:
        """Returns the operation's id."""

        async def work(report: Report) -> str:
            try:
                return await self._make(report, name, num_ctx, keep, spread)
            except Exception as error:
                # Also one that nobody expected: whoever waits must hear that it is over.
                self._fail(split, str(error) if isinstance(error, OlolError) else repr(error))
                raise

        return self._desk.book.start(f"split {name}", work, key=split)

    def _grow(self, wish: SplitWish, run: Run, num_ctx: int) -> None:
        """Plan a split anew because a client wants more context than it has."""
        if run.largest_ctx is not None and num_ctx > run.largest_ctx:
            return
        key = f"{wish.id} again"
        if self._desk.book.running(key) is not None:
            return  # asked again when that is done
        run.grows(self._desk.now_s())

        async def work(report: Report) -> str:
            try:
                draft = await self._planning.draft(
                    wish.model, num_ctx=num_ctx, keep_alive_s=wish.keep_alive_s
                )
                if self._desk.wishes.splits.get(wish.id) != wish:
                    return "it is not wished for any more"
                await self._apply(report, draft, before=wish)
            except PlacementError:
                run.largest_ctx = wish.num_ctx
                raise
            finally:
                run.is_growing = False
            return await self._ready(report, draft.wish)

        title = f"split {canonical(wish.model)} with {num_ctx:,} tokens of context"
        self._desk.book.start(title, work, key=key)

    def withdraw(self, split: str) -> None:
        """Wish for it no more: its devices are given back."""
        wish = self._desk.wishes.splits.drop(split)
        run = self._runs.get(split)
        if run is not None and run.state != "failed":
            del self._runs[split]
        self._relays.drop(split)
        if wish is not None:
            self._desk.leases.drop(wish.engine)
            self._tell(wish.nodes)

    def owner_of(self, engine_id: str) -> str | None:
        """The split whose head that engine is."""
        return next((w.id for w in self._desk.wishes.splits if w.engine == engine_id), None)

    def layers(self, engine_id: str) -> StoreLayers | None:
        """What the store adds to requests, for a head whose model comes from one."""
        for wish in self._desk.wishes.splits:
            if wish.engine == engine_id and wish.layers:
                return wish.layers
        return None

    def unload(self, command: Unload) -> str | None:
        """Give up a split of this model with a part on that device; the operation's id, or None
        where there is none."""
        for wish in self._desk.wishes.splits:
            if same(wish.model, command.model) and any(
                part.node == command.node and command.device in (part.device, part.label)
                for part in wish.parts
            ):
                self.withdraw(wish.id)
                name = canonical(wish.model)
                return self._desk.book.note(
                    f"unload {name} from {len(wish.parts)} devices", "its devices are given back"
                )
        return None

    async def aclose(self) -> None:
        await self._relays.aclose()

    # -- shown

    def rules(self) -> dict[str, SplitRule]:
        models = self._crew.config.models.items()
        return {name: model.split for name, model in models if model.split != "auto"}

    def view(self, now_s: float) -> tuple[Split, ...]:
        engines = self._engines()
        shown = []
        for split, run in list(self._runs.items()):
            wish = self._desk.wishes.splits.get(split)
            if wish is None and run.state == "failed" and now_s - run.since_s > run.shown_s:
                del self._runs[split]
                continue
            ports = self._desk.wishes.splits.ports(split) if wish else Ports()
            shown.append(split_of(split, run, wish, engines, ports, self._desk.wishes.links))
        return tuple(shown)

    # -- kept

    def look(self, now_s: float) -> None:
        """Something changed, or a second has passed: take every split one step further."""
        wishes = self._desk.wishes
        if next(iter(wishes.splits), None) is None:
            return
        engines = self._engines()
        nodes = {node.name: node for node in self._desk.nodes}
        for wish in wishes.splits:
            run = self._runs.setdefault(
                wish.id, Run(canonical(wish.model), now_s, state="starting")
            )
            if reason := wishes.splits.refusal(wish.id):
                self._fail(wish.id, reason)
                continue
            self._desk.leases.hold_once(wish.engine, wish.keep_alive_s)
            relayed = self._relays.ports(wish.id)
            ports = wishes.splits.ports(wish.id)
            before = msgspec.json.encode(ports)
            run.now = now = stage(wish, engines, ports, relayed)
            wishes.splits.set_loaded(wish.id, now.state == "ready")
            if msgspec.json.encode(ports) != before:
                wishes.splits.note_ports()
            self._relays.want(wish.id, wish.node, now.relays)
            self._tell(wishes.splits.set_specs(wish.id, now.specs))
            lost = sorted(name for name in wish.nodes if _is_lost(nodes.get(name)))
            if lost:
                self._around(wish, run, lost, now_s)
                continue
            run.lost_since_s = None
            if any(nodes[name].state != "ready" for name in wish.nodes):
                continue  # nobody knows yet
            if now.state == "failed":
                self._fail(wish.id, now.error, now.log_tail, CRASHED_SHOWN_S)
                continue
            if run.is_growing:
                continue
            run.becomes(now.state, now_s)
            run.error, run.log_tail = now.error, now.log_tail
            self._learn(wish, run, engines)
            note_speeds(wish, engines, wishes.links)
            self._detour(wish, engines)

    def _learn(self, wish: SplitWish, run: Run, engines: dict[str, Engine]) -> None:
        """Once at each load: what its head logged makes the next plan better."""
        head = engines.get(wish.engine)
        if run.state != "ready" or run.has_told or head is None or head.layout is None:
            return
        run.has_told = True
        vendors = {device.uuid: device.vendor for n in self._desk.nodes for device in n.devices}
        ports = self._desk.wishes.splits.ports(wish.id)
        wishes = self._desk.wishes
        wishes.learned = lessons(wishes.learned, wish, head.layout, ports, vendors)

    def _around(self, wish: SplitWish, run: Run, lost: list[str], now_s: float) -> None:
        """Nodes of the split are gone: wait a moment, then plan it without them."""
        run.error = f"{' and '.join(lost)} {'is' if len(lost) == 1 else 'are'} lost"
        run.becomes("backoff", now_s)
        if run.lost_since_s is None:
            run.lost_since_s = now_s
        if now_s - run.lost_since_s < LOST_GRACE_S or now_s - run.replanned_s < REPLAN_EVERY_S:
            return
        run.replanned_s = now_s

        async def work(report: Report) -> str:
            try:
                draft = await self._planning.draft(
                    wish.model, num_ctx=wish.num_ctx, keep_alive_s=wish.keep_alive_s, without=lost
                )
            except OlolError as error:
                if not run.was_ready and self._desk.wishes.splits.get(wish.id) == wish:
                    # Nobody had it yet: who waits for it is told, and nothing of it stays.
                    self._fail(wish.id, f"{run.error} while it was loading, and now {error}")
                raise
            if self._desk.wishes.splits.get(wish.id) != wish:
                return "it is not wished for any more"
            await self._apply(report, draft, before=wish)
            return await self._ready(report, draft.wish)

        self._desk.book.start(
            f"split {canonical(wish.model)} without {', '.join(lost)}", work, key=f"{wish.id} again"
        )

    def _detour(self, wish: SplitWish, engines: dict[str, Engine]) -> None:
        """A forward that never led anywhere: these nodes do not reach each other."""
        for part in wish.parts:
            forward = engines.get(part.forward) if part.forward else None
            if forward is None or part.worker in self._desk.wishes.splits.ports(wish.id).ways:
                continue
            if forward.state == "backoff" and forward.restarts >= _FORWARD_TRIES:
                log.warning(
                    "%s does not reach %s (%s): through this console",
                    wish.node,
                    part.node,
                    forward.error,
                )
                self._desk.wishes.splits.add(replace_way(wish, part, Way("relay")))
                return

    def _fail(
        self,
        split: str,
        error: str,
        log_tail: tuple[str, ...] = (),
        shown_s: float = REFUSED_SHOWN_S,
    ) -> None:
        """It cannot be: its devices go back, the reason stays for a while."""
        run = self._runs.get(split)
        if run is None:
            return
        log.warning("%s: %s", split, error)
        if run.state == "failed":
            return  # who waited for it hears of it later
        run.becomes("failed", self._desk.now_s())
        run.error, run.log_tail, run.shown_s = error, log_tail, shown_s
        self.withdraw(split)

    # -- made

    async def _make(
        self, report: Report, name: str, num_ctx: int | None, keep_alive_s: float, spread: bool
    ) -> str:
        report.say("planning")
        draft = await self._planning.draft(
            name, num_ctx=num_ctx, keep_alive_s=keep_alive_s, spread=spread
        )
        await self._apply(report, draft, before=None)
        return await self._ready(report, draft.wish)

    async def _apply(self, report: Report, draft: Draft, before: SplitWish | None) -> None:
        """Make room, then wish for it."""
        wish = draft.wish
        with self._desk.wishes.splits.promised(wish):
            for victim in draft.victims:
                await self._eviction.evict(report, victim)
        if before is not None:
            if before.engine != wish.engine:
                self._desk.leases.drop(before.engine)
            ports = self._desk.wishes.splits.ports(wish.id)
            kept = {part.worker for part in wish.parts}
            ports.workers = {k: v for k, v in ports.workers.items() if k in kept}
            ports.builds = {k: v for k, v in ports.builds.items() if k in kept}
            ports.ways = {}
            self._relays.drop(wish.id)
        self._desk.leases.hold(wish.engine, wish.keep_alive_s)
        self._desk.wishes.splits.add(wish)
        self.look(self._desk.now_s())

    async def _ready(self, report: Report, wish: SplitWish) -> str:
        """Wait until it answers; returns where it lies.

        Raises:
            EngineError: it failed, with its last words.
        """
        began_s = self._desk.now_s()

        def check() -> Run | None:
            run = self._runs.get(wish.id)
            if run is None:
                raise EngineError(f"{wish.id} was withdrawn before it was ready")
            if run.state == "failed":
                raise EngineError(run.error)
            report.say(run.error or run.state)
            return run if run.state == "ready" else None

        try:
            await self._desk.until(check, LOAD_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(f"not ready within {LOAD_TIMEOUT_S:.0f} s") from None
        places = ", ".join(f"{p.layers} on {p.node}/{p.label}" for p in wish.parts)
        elapsed_s = self._desk.now_s() - began_s
        return f"layers: {places}; the head is on {wish.node}; {elapsed_s:.1f} s"

    # -- inside

    def _engines(self) -> dict[str, Engine]:
        return {
            engine.id: engine
            for node in self._desk.nodes
            for engine in (*node.engines, *node.helpers)
        }

    def _tell(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            if name in self._crew.config.nodes:
                self._desk.member(name).replan()


def _is_lost(node: Node | None) -> bool:
    return node is None or node.state in ("lost", "failed")
