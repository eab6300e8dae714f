"""Carries out the operator's commands on models: place, unload, move, pin.

A command is checked against the snapshot at once: what cannot be is refused with numbers
and with what exists instead. What can be becomes an operation, whose progress and result
everybody sees.
"""

from __future__ import annotations

import logging

from olol_tui.errors import NodeError, PlacementError
from olol_tui.fleet.commands import Move, Place, SetPin, Unload
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.engine_client import DEFAULT_KEEP_ALIVE_S, FOREVER_S
from olol_tui.fleet.operations import Report
from olol_tui.fleet.residency import Residency
from olol_tui.fleet.runners import Runners
from olol_tui.fleet.snapshot import RUNNERS, Device, Engine, Node
from olol_tui.fleet.targets import (
    Target,
    find_place,
    find_target,
    is_resident,
    multi_engine,
    room_of,
    runner_engine,
)
from olol_tui.models.names import canonical
from olol_tui.placement.fit import Fit, estimate, judge, without

log = logging.getLogger("olol.fleet.placing")


class Placer:
    """Turns commands into operations."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._residency = Residency(desk)
        self._runners = Runners(desk)

    @property
    def runners(self) -> Runners:
        return self._runners

    def place(self, command: Place) -> str:
        """Load a model; returns the operation's id.

        Raises:
            PlacementError, ModelNotFound, NodeError: refused at once.
        """
        target = self._target(command.model, command.node, command.device)
        return self._place(
            target,
            title=f"load {target.name} on {target.where}",
            num_ctx=command.num_ctx,
            keep_alive_s=command.keep_alive_s,
        )

    def unload(self, command: Unload) -> str:
        node, device = find_place(self._desk.nodes, command.node, command.device)
        _check_reachable(node)
        engine = self._holder(node, device, command.model)
        name = canonical(command.model)
        was_pinned = self._desk.wishes.unpin(name, node.name, engine.devices)

        async def work(report: Report) -> str:
            gone = await self._drop(report, engine, name)
            return f"{gone}; it was pinned: the pin is removed" if was_pinned else gone

        return self._desk.book.start(
            f"unload {name} from {node.name}/{device.label}", work, key=f"unload {engine.id} {name}"
        )

    def move(self, command: Move) -> str:
        node, device = find_place(self._desk.nodes, command.node, command.device)
        _check_reachable(node)
        source = self._holder(node, device, command.model)
        target = self._target(command.model, command.to_node, command.to_device)
        name = target.name
        if (target.engine is not None and target.engine.id == source.id) or (
            target.engine is None
            and (node.name, device.uuid) == (target.node.name, target.device.uuid)
        ):
            raise PlacementError(
                f"{name} is on {target.where} already", hint="Choose another device to move it to."
            )
        fit = self._check_fit(target, None)
        is_pinned = self._desk.wishes.is_pinned(name, node.name, source.devices)
        keep_alive_s = FOREVER_S if is_pinned else self._desk.leases.keep_alive_s(source.id)

        async def work(report: Report) -> str:
            loaded = await self._load(report, target, fit, num_ctx=None, keep_alive_s=keep_alive_s)
            if is_pinned:
                self._desk.wishes.unpin(name, node.name, source.devices)
                self._desk.wishes.pin(name, target.node.name, target.device.uuid)
            report.say(f"{loaded}; unloading at {node.name}/{device.label}", 0.99)
            return f"{loaded}; {await self._drop(report, source, name)}"

        return self._desk.book.start(
            f"move {name} from {node.name}/{device.label} to {target.where}",
            work,
            key=f"move {source.id} {name}",
        )

    def set_pin(self, command: SetPin) -> str:
        if not command.pinned:
            return self._unpin(command)
        target = self._target(command.model, command.node, command.device)
        self._check_fit(target, None)
        self._desk.wishes.pin(target.name, target.node.name, target.device.uuid)
        return self.hold(target, title=f"pin {target.name} on {target.where}")

    def hold(self, target: Target, *, title: str) -> str:
        """Make a pinned model resident for good; returns the operation's id.

        Raises:
            PlacementError: it does not fit any more.
        """
        return self._place(target, title=title, num_ctx=None, keep_alive_s=FOREVER_S)

    def launch(
        self,
        model: str,
        node: str,
        device: str,
        *,
        num_ctx: int | None,
        keep_alive_s: float | None,
        evict: tuple[str, ...] = (),
    ) -> str:
        """Wish for a runner because requests wait for it; returns its engine id.

        Args:
            evict: canonical names of what leaves the device first.

        Raises:
            PlacementError, ModelNotFound, NodeError: it cannot be.
        """
        target = self._target(model, node, device)
        if target.engine is not None:
            raise PlacementError(f"{target.where} loads models in {target.engine.id} on request")
        engine_id = self._runners.engine_id(target)
        if num_ctx is not None and target.model.context_length:
            # A model has no more than it was trained for.
            num_ctx = min(num_ctx, target.model.context_length)
        if (has_ctx := self._runners.context(engine_id)) is not None:
            largest = self._desk.wishes.largest_ctx(engine_id)
            if num_ctx is None or num_ctx <= has_ctx or (largest is not None and num_ctx > largest):
                return engine_id
            return self._grow(target, engine_id, num_ctx, has_ctx, evict)
        fit = self._check_fit(target, num_ctx, going=evict)
        if not fit.goes:
            # Nobody to wait for: the wish is out before this returns.
            self._runners.wish(target, num_ctx=num_ctx, keep_alive_s=keep_alive_s)
        self._start_place(
            target,
            fit,
            title=f"load {target.name} on {target.where}",
            num_ctx=num_ctx,
            keep_alive_s=keep_alive_s,
        )
        return engine_id

    def _grow(
        self, target: Target, engine_id: str, num_ctx: int, has_ctx: int, evict: tuple[str, ...]
    ) -> str:
        """Another process with more context in the place of an idle runner; none where there is
        no room for so much."""
        try:
            fit = self._check_fit(target, num_ctx, going=evict)
        except PlacementError as error:
            log.info("%s keeps %d tokens of context: %s", engine_id, has_ctx, error)
            self._desk.wishes.limit_ctx(engine_id, has_ctx)
            return engine_id
        if not fit.goes:
            self._runners.wish(target, num_ctx=num_ctx, keep_alive_s=None)
        self._start_place(
            target,
            fit,
            title=f"load {target.name} on {target.where} with {num_ctx:,} tokens of context",
            num_ctx=num_ctx,
            keep_alive_s=None,
        )
        return engine_id

    def _place(
        self, target: Target, *, title: str, num_ctx: int | None, keep_alive_s: float | None
    ) -> str:
        fit = self._check_fit(target, num_ctx)
        return self._start_place(
            target, fit, title=title, num_ctx=num_ctx, keep_alive_s=keep_alive_s
        )

    def _start_place(
        self,
        target: Target,
        fit: Fit,
        *,
        title: str,
        num_ctx: int | None,
        keep_alive_s: float | None,
    ) -> str:
        async def work(report: Report) -> str:
            return await self._load(report, target, fit, num_ctx=num_ctx, keep_alive_s=keep_alive_s)

        # A pin must not join a load that will expire.
        lasting = "held" if keep_alive_s is not None and keep_alive_s < 0 else "kept"
        key = f"{lasting} {target.node.name} {target.devices} {target.name} {num_ctx}"
        return self._desk.book.start(title, work, key=key)

    async def _load(
        self,
        report: Report,
        target: Target,
        fit: Fit,
        *,
        num_ctx: int | None,
        keep_alive_s: float | None,
    ) -> str:
        note = fit.reason if fit.goes else ""
        report.say(note)
        if target.engine is None:
            return await self._runners.start(
                report, target, fit, num_ctx=num_ctx, keep_alive_s=keep_alive_s
            )
        return await self._residency.load(
            report, target, keep_alive_s=keep_alive_s, num_ctx=num_ctx, note=note
        )

    async def _drop(self, report: Report, engine: Engine, name: str) -> str:
        if engine.kind in RUNNERS:
            return await self._runners.stop(report, engine)
        return await self._residency.unload(report, engine.id, name)

    def _unpin(self, command: SetPin) -> str:
        node, device = find_place(self._desk.nodes, command.node, command.device)
        name = canonical(command.model)
        engine = multi_engine(node, device)
        devices = engine.devices if engine is not None else (device.uuid,)
        where = f"{node.name}/{device.label}"
        if not self._desk.wishes.unpin(name, node.name, devices):
            pinned = ", ".join(p.model for p in self._desk.wishes.pins_on(node.name, devices))
            raise PlacementError(
                f"{name} is not pinned on {where}",
                hint=f"Pinned there: {pinned or 'nothing'}",
            )

        async def work(report: Report) -> str:
            """Back to the usual keep-alive: what is not pinned may expire."""
            told = f"unpinned; it goes after {DEFAULT_KEEP_ALIVE_S:.0f} s without requests"
            runner = runner_engine(node, device, name)
            if runner is not None:
                target = find_target(self._desk.nodes, name, node.name, device.uuid)
                self._runners.wish(target, num_ctx=None, keep_alive_s=DEFAULT_KEEP_ALIVE_S)
                return told
            if not is_resident(engine, name):
                return "unpinned"
            target = find_target(self._desk.nodes, name, node.name, device.uuid)
            await self._residency.load(
                report, target, keep_alive_s=DEFAULT_KEEP_ALIVE_S, num_ctx=None
            )
            return told

        return self._desk.book.start(f"unpin {name} on {where}", work)

    def _target(self, model: str, node: str, device: str) -> Target:
        target = find_target(self._desk.nodes, model, node, device)
        _check_reachable(target.node)
        engine = target.engine
        if engine is not None and engine.state == "failed":
            raise PlacementError(
                f"{engine.id} failed: {engine.error}", hint="Restart it when that is mended."
            )
        return target

    def _holder(self, node: Node, device: Device, model: str) -> Engine:
        """The engine on that device where the model is resident.

        Raises:
            PlacementError: saying what is resident there.
        """
        runner = runner_engine(node, device, model)
        if runner is not None:
            return runner
        engines = [e for e in node.engines if device.uuid in e.devices]
        for engine in engines:
            if is_resident(engine, model):
                return engine
        there = ", ".join(canonical(one.name) for e in engines for one in e.loaded)
        raise PlacementError(
            f"{canonical(model)} is not loaded on {node.name}/{device.label}",
            hint=f"Loaded there: {there or 'nothing'}",
        )

    def _check_fit(
        self, target: Target, num_ctx: int | None, *, going: tuple[str, ...] = ()
    ) -> Fit:
        """
        Args:
            going: what leaves in any case.

        Raises:
            PlacementError: the model can never be there.
        """
        context = num_ctx or self._desk.default_ctx(target.node.name)
        slots = target.engine.slots if target.engine is not None else 1
        need = estimate(
            target.model,
            num_ctx=context,
            slots=slots,
            vendor=target.device.vendor,
            measured_bytes=self._desk.measured_bytes(target.model, context),
        )
        room = room_of(target, self._desk.busy)
        if target.engine is None and num_ctx is not None:
            # It takes the place of the process that has it with another context.
            room = without(target.name, room)
        fit = judge(target.name, need, room, going=going)
        if fit.is_refused:
            raise PlacementError(
                fit.reason,
                hint="Choose a bigger device, a smaller quantization or a shorter context.",
            )
        return fit


def _check_reachable(node: Node) -> None:
    if node.state != "ready":
        raise NodeError(
            f"{node.name} is {node.state}: {node.error or 'its agent has not answered yet'}",
            hint="It is retried by itself.",
        )
