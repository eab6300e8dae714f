"""Keeps the fleet known and as wished: one Controller for a whole cluster.

Life: entering starts one task that owns everything else (a TaskGroup of node sessions,
endpoint sessions, operations, the publisher, the writer of wishes); closing cancels it and
waits. Facts come up from the sessions and are published as one frozen Fleet, once a tick
and soon after every change. Wishes go down: `submit` and `launch`.

Everything runs on one event loop and no method is to be called from another thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import olol_tui
from olol_tui.config import ClusterConfig
from olol_tui.fleet.alerts import AlertBook
from olol_tui.fleet.cluster_file import ClusterFile
from olol_tui.fleet.commands import Accepted, AnyCommand
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.identity import load as load_identity
from olol_tui.fleet.leases import Leases
from olol_tui.fleet.live_requests import Cancel, LiveRequests, Reroute, View, no_reroute
from olol_tui.fleet.maintenance import Maintenance
from olol_tui.fleet.member import Member
from olol_tui.fleet.operations import OperationBook
from olol_tui.fleet.orders import Orders
from olol_tui.fleet.placing import Placer
from olol_tui.fleet.publisher import Publisher
from olol_tui.fleet.questions import Questions
from olol_tui.fleet.reload import Reload
from olol_tui.fleet.road import Factory
from olol_tui.fleet.sizes import MeasuredSizes
from olol_tui.fleet.snapshot import (
    RUNNERS,
    Alert,
    Engine,
    Fleet,
    Model,
    Node,
    Request,
)
from olol_tui.fleet.splits import Splits
from olol_tui.fleet.upkeep import Upkeep
from olol_tui.fleet.wishes import Wishes, WishesFile
from olol_tui.models.names import canonical
from olol_tui.models.store_layers import StoreLayers
from olol_tui.paths import Paths
from olol_tui.placement.report import Report

log = logging.getLogger("olol.fleet")

_BUSY_STATES = frozenset({"dispatched", "prefill", "decode"})
_ENDPOINT_CTX = 4096
_T = TypeVar("_T")


class Controller:
    """An async context manager.

    Args:
        clock: the fleet clock, seconds, monotonic.
        tick_s: time between snapshots when nothing changes; also the beat of telemetry.

    Leaving it keeps agents and engines running, for the next controller to adopt;
    `close(stop_engines=True)` before that stops them.
    """

    def __init__(
        self,
        config: ClusterConfig,
        paths: Paths,
        clock: Callable[[], float] = time.monotonic,
        *,
        tick_s: float = 1.0,
    ) -> None:
        self._clock = clock
        self._wishes = Wishes(self._wishes_changed)
        self._wishes_file = WishesFile(paths.state_dir / "wishes.json", self._wishes)
        self._leases = Leases()
        self._alerts = AlertBook()
        self._publisher = Publisher(self._snapshot, tick_s=tick_s)
        self._book = OperationBook(clock, self._publisher.poke)
        self._questions = Questions(self._node_changed)
        self._crew = Crew(
            config,
            paths,
            wishes=self._wishes,
            identity=load_identity(paths.state_dir / "controller-id"),
            questions=self._questions,
            clock=clock,
            changed=self._node_changed,
            expires_at=lambda engine_id: self._leases.expires_at(engine_id, clock()),
            beat_s=tick_s,
        )
        self._file = ClusterFile(
            config.source or paths.config_file,
            present=lambda: self._crew.config,
            apply=lambda config: self._reload.apply(config),
            changed=self._node_changed,
        )
        self._nodes: tuple[Node, ...] | None = None
        self._alerted: tuple[Node, ...] | None = None
        self._alert_list: tuple[Alert, ...] = ()
        self._sizes = MeasuredSizes()
        self._placer = Placer(self)
        self._splits = Splits(self, self._crew, self._placer.runners, self._node_changed)
        self._upkeep = Upkeep(self, self._placer, self._splits, tick_s=tick_s)
        self._maintenance = Maintenance(self)
        self._reload = Reload(self, self._crew)
        self._live = LiveRequests()
        self._orders = Orders(
            self,
            self._crew,
            reload=self._reload,
            placer=self._placer,
            splits=self._splits,
            maintenance=self._maintenance,
            questions=self._questions,
            file=self._file,
            live=self._live,
        )
        self._requests: tuple[Request, ...] = ()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._fleet_seq = 0

    async def __aenter__(self) -> Controller:
        await asyncio.to_thread(self._wishes_file.load)
        # What was adopted is only known now.
        await self._crew.apply(self._crew.config)
        for member in self._crew:
            for launch in self._wishes.launches_on(member.name):
                self._leases.hold(launch.engine_id, launch.keep_alive_s)
        self._splits.look(self._clock())  # before any agent is told what is wished for
        self._publisher.publish()
        started = asyncio.Event()
        self._task = asyncio.create_task(self._run(started), name="fleet controller")
        await started.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, *, stop_engines: bool = False) -> None:
        """End all tasks; a second call does nothing.

        Args:
            stop_engines: stop engines and agents of this machine. Those of other machines go
                on: they are there for more than this console, and `Uninstall` ends them.
        """
        if self._task is None:
            return
        task, self._task = self._task, None
        await self._crew.release(keep_local=stop_engines)
        self._stop.set()
        try:
            await task
            if stop_engines:
                await self._crew.shut_down_local()
        finally:
            self._publisher.close()
            await self._splits.aclose()
            await self._crew.aclose()

    # -- reading

    @property
    def fleet(self) -> Fleet:
        """The latest snapshot."""
        return self._publisher.fleet

    def changes(self) -> AsyncIterator[Fleet]:
        """The present snapshot, then every new one; slow readers skip to the latest.

        Ends when the controller closes.
        """
        return self._publisher.changes()

    def on_change(self, callback: Callable[[Fleet], None]) -> Callable[[], None]:
        """Call back with every new snapshot, on the loop; returns the unsubscription."""
        return self._publisher.on_change(callback)

    def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        """Log lines of an engine ("": of the agent), the last `tail` first, then live.

        Raises:
            PlacementError: no such node.
            NodeError: (while iterating) the node cannot tell.
        """
        return self.member(node).logs(engine, tail)

    # -- the gateway's side

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """A stream to an engine behind a node's road: `gateway.upstream.Dial` for addresses that
        hold ROAD_MARK.

        Raises OSError: it cannot be opened.
        """
        return await self._crew.dial(address, factory)

    def attach_gateway(self, view: View, cancel: Cancel, reroute: Reroute = no_reroute) -> None:
        """Take requests and gateway figures of each snapshot from `view`."""
        self._live.attach(view, cancel, reroute)
        self.poke()

    @property
    def file(self) -> ClusterFile:
        return self._file

    def poke(self) -> None:
        """Publish soon: the gateway's part changed."""
        self._publisher.poke()

    def kick(self, engine_id: str) -> None:
        """Refresh what this engine has loaded, now."""
        engine = self.engine(engine_id)
        if engine is not None and engine.kind not in RUNNERS and engine.address:
            self._maintenance.refresh_soon(engine)

    async def refresh(self, engine_id: str) -> None:
        """Learn now what an engine has loaded; the next snapshot shows it.

        Raises:
            OlolError: it does not say.
        """
        engine = self.engine(engine_id)
        if engine is not None and engine.kind not in RUNNERS and engine.address:
            await self.member(engine.node).refresh(engine)
            self.publish()

    async def survey(self, node: str) -> None:
        """Learn now what a node's store holds; the next snapshot shows it.

        Raises:
            OlolError: there is no such node, or it does not say.
        """
        await self.member(node).survey()
        self.publish()

    def touch(self, engine_id: str, model: str, keep_alive_s: float | None) -> None:
        """A request for a runner's model ended: its expiry counts from now."""
        self._leases.touch(engine_id, keep_alive_s, self._clock())
        if keep_alive_s == 0:
            self._upkeep.hurry()
            self.poke()

    def launch(
        self,
        model: str,
        node: str,
        device_uuid: str,
        *,
        num_ctx: int | None = None,
        keep_alive_s: float | None = None,
        evict: tuple[str, ...] = (),
    ) -> str:
        """Ask that a runner for this library model exists; returns the id it has or will have.

        Args:
            evict: canonical names of what leaves the device first.

        Raises:
            ModelNotFound, PlacementError, NodeError: it cannot be.
        """
        return self._placer.launch(
            model, node, device_uuid, num_ctx=num_ctx, keep_alive_s=keep_alive_s, evict=evict
        )

    def launch_split(self, model: str, **how: Any) -> str:
        """Ask that this model is split over devices; see `Splits.launch`."""
        return self._splits.launch(model, **how)

    def split_layers(self, engine_id: str) -> StoreLayers | None:
        return self._splits.layers(engine_id)

    async def fit(self, model: str, **how: Any) -> Report:
        return await self._splits.fit(model, **how)

    # -- the operator's side

    async def submit(self, command: AnyCommand) -> Accepted:
        """Take a command; its progress is an Operation of the Fleet.

        Raises:
            OlolError: refused at once, with the reason.
        """
        log.info("command", extra={"submitted": repr(command)})
        operation = await self._orders.take(command)
        # Whoever submitted looks for its operation next.
        self.publish()
        return Accepted(operation)

    # -- Desk: what the parts that carry out commands need

    @property
    def nodes(self) -> tuple[Node, ...]:
        if self._nodes is None:
            now_s = self._clock()
            self._nodes = tuple(member.view(now_s) for member in self._crew)
            self._sizes.learn(self._nodes)
        return self._nodes

    @property
    def wishes(self) -> Wishes:
        return self._wishes

    @property
    def leases(self) -> Leases:
        return self._leases

    @property
    def book(self) -> OperationBook:
        return self._book

    def now_s(self) -> float:
        return self._clock()

    def member(self, node: str) -> Member:
        return self._crew.member(node)

    def engine(self, engine_id: str) -> Engine | None:
        return next((e for node in self.nodes for e in node.engines if e.id == engine_id), None)

    @property
    def running(self) -> tuple[Request, ...]:
        return tuple(request for request in self._requests if request.state in _BUSY_STATES)

    def busy(self, engine_id: str) -> frozenset[str]:
        return frozenset(
            canonical(request.model) for request in self.running if request.engine == engine_id
        )

    def default_ctx(self, node: str) -> int:
        config = self._crew.config.nodes.get(node)
        return config.num_ctx if config is not None else _ENDPOINT_CTX

    def measured_bytes(self, model: Model, num_ctx: int) -> int | None:
        return self._sizes.of(model, num_ctx)

    def publish(self) -> None:
        self._publisher.publish(is_tick=False)

    async def until(self, check: Callable[[], _T | None], timeout_s: float) -> _T:
        return await self._publisher.until(check, timeout_s)

    # -- inside

    async def _run(self, started: asyncio.Event) -> None:
        """Owns every task of the controller; ends when `_stop` is set."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._book.open(tasks)
                self._maintenance.open(tasks)
                self._crew.open(tasks)
                tasks.create_task(self._file.keep(), name="cluster file")
                tasks.create_task(self._publisher.run(), name="publisher")
                tasks.create_task(self._wishes_file.keep(), name="wishes")
                started.set()
                await self._stop.wait()
                raise _Closing
        except* _Closing:
            pass
        finally:
            started.set()
            await asyncio.shield(self._wishes_file.store())

    def _wishes_changed(self) -> None:
        self._wishes_file.dirty.set()
        self._node_changed()

    def _node_changed(self) -> None:
        self._nodes = None
        self._publisher.poke()

    def _snapshot(self, is_tick: bool) -> Fleet:
        """Build the next Fleet. Ages grow, so a tick looks at every member anew."""
        now_s = self._clock()
        if is_tick:
            self._nodes = None
        self._requests, gateway = self._live.view()
        is_running = self._task is not None and not self._stop.is_set()
        if is_running:
            self._upkeep.look(now_s)
        nodes, splits = self.nodes, self._splits.view(now_s)
        if nodes is not self._alerted:
            self._alerted = nodes
            told = (self._file.problem, self._questions.open, self._file.notices, splits)
            self._alert_list = self._alerts.update(nodes, now_s, *told)
        self._fleet_seq += 1
        return Fleet(
            seq=self._fleet_seq,
            now_s=now_s,
            wall=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            name=self._crew.config.name,
            version=olol_tui.__version__,
            nodes=nodes,
            requests=self._requests,
            gateway=gateway,
            splits=splits,
            split_rules=self._splits.rules(),
            pins=self._wishes.pins,
            paused=self._wishes.paused_models,
            operations=self._book.view(now_s),
            alerts=self._alert_list,
            passphrase=self._questions.open,
        )


class _Closing(Exception):
    """Ends the TaskGroup from within: cancels what still runs."""
