"""Launches and withdraws runners: engines whose process serves exactly one model.

Loading a model is to wish for its engine, unloading is to wish no more; agents make it so.
Makes room first where a new one needs it, by withdrawing idle runners that nobody pinned.
"""

from __future__ import annotations

from olol_tui.errors import EngineError, NodeError
from olol_tui.fleet import desired
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.engine_client import DEFAULT_KEEP_ALIVE_S
from olol_tui.fleet.operations import Report
from olol_tui.fleet.snapshot import Engine
from olol_tui.fleet.targets import Target, runner_engine
from olol_tui.fleet.wishes import Launch
from olol_tui.placement.fit import Fit
from olol_tui.units import format_size

START_TIMEOUT_S = 900.0
"""As agents give a runner that reads a huge model."""
STOP_TIMEOUT_S = 60.0


class Runners:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def engine_id(self, target: Target) -> str:
        """The id that the target's runner has or will have."""
        wishes = self._desk.wishes
        launch = wishes.find_launch(target.name, target.node.name, target.device.uuid)
        if launch is not None:
            return launch.engine_id
        taken = wishes.launches_on(target.node.name)
        return desired.engine_for(
            target.node.name, target.runner, target.device, target.name, taken
        )

    def wish(self, target: Target, *, num_ctx: int | None, keep_alive_s: float | None) -> str:
        """Wish for the runner, without making room; returns its engine id.

        None keeps what an existing wish says.
        """
        engine_id = self.engine_id(target)
        wishes, leases = self._desk.wishes, self._desk.leases
        before = wishes.launch_of(engine_id)
        if keep_alive_s is None:
            known = leases.keep_alive_s(engine_id)
            keep_alive_s = DEFAULT_KEEP_ALIVE_S if known is None else known
        launch = Launch(
            engine_id=engine_id,
            node=target.node.name,
            kind=target.runner,
            device=target.device.uuid,
            model=target.name,
            path=target.model.path,
            chat_template=target.model.chat_template,
            num_ctx=num_ctx or (before.num_ctx if before else None),
            keep_alive_s=keep_alive_s,
        )
        leases.hold(engine_id, keep_alive_s)
        if launch != before:
            wishes.add_launch(launch)
            self._desk.member(target.node.name).replan()
        return engine_id

    def withdraw(self, engine_id: str) -> None:
        """Wish for the runner no more."""
        launch = self._desk.wishes.drop_launch(engine_id)
        self._desk.leases.drop(engine_id)
        if launch is not None:
            self._desk.member(launch.node).replan()

    async def start(
        self,
        report: Report,
        target: Target,
        fit: Fit,
        *,
        num_ctx: int | None,
        keep_alive_s: float | None,
    ) -> str:
        """Make room, wish, and wait until it is ready; returns what changed.

        Raises:
            EngineError: it failed, with its last words.
        """
        await self._make_room(report, target, fit)
        engine_id = self.engine_id(target)
        existing = self._desk.engine(engine_id)
        spec_before = self._wish_for_process(engine_id)
        self.wish(target, num_ctx=num_ctx, keep_alive_s=keep_alive_s)
        replaced_pid = None
        if existing is not None and spec_before not in (None, self._wish_for_process(engine_id)):
            # Another context: the agent replaces the process that is ready now.
            replaced_pid = existing.pid
        elif existing is not None and existing.state == "ready":
            return f"{target.name} was resident already"
        old_failure_s = None
        if existing is not None and existing.state == "failed":
            old_failure_s = existing.since_s
            await self._desk.member(target.node.name).restart(engine_id)
        started_s = self._desk.now_s()

        def check() -> Engine | None:
            engine = self._desk.engine(engine_id)
            if engine is None:
                raise NodeError(f"{engine_id} was withdrawn before it was ready")
            if replaced_pid is not None and engine.pid == replaced_pid:
                return None
            if engine.state == "ready":
                return engine
            if engine.state == "failed" and not _same_moment(engine.since_s, old_failure_s):
                raise EngineError(f"{engine_id} failed: {engine.error}{_last_line(engine)}")
            progress = engine.loading[0].progress if engine.loading else None
            waiting = f"{engine.error}; tries again" if engine.state == "backoff" else ""
            report.say(waiting, progress)
            return None

        try:
            engine = await self._desk.until(check, START_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(f"{engine_id} was not ready within {START_TIMEOUT_S:.0f} s") from None
        size = sum(one.size_bytes for one in engine.loaded) or target.model.size_bytes
        elapsed_s = self._desk.now_s() - started_s
        return f"{target.name} takes {format_size(size)}; {elapsed_s:.1f} s"

    def _wish_for_process(self, engine_id: str) -> tuple[object, ...] | None:
        """What of a wish its process depends on: if that changes, there will be another one."""
        launch = self._desk.wishes.launch_of(engine_id)
        if launch is None:
            return None
        return launch.path, launch.chat_template, launch.num_ctx, launch.kind, launch.device

    async def stop(self, report: Report, engine: Engine) -> str:
        """Withdraw a runner and wait until its process is gone."""
        freed = sum(one.vram_bytes or one.size_bytes for one in engine.loaded)
        self.withdraw(engine.id)
        await self._gone(report, engine.id)
        return f"{engine.model} is gone, {format_size(freed)} freed"

    async def _make_room(self, report: Report, target: Target, fit: Fit) -> None:
        for name in fit.goes:
            victim = runner_engine(target.node, target.device, name)
            if victim is None or name in self._desk.busy(victim.id):
                # A busy one is not shot: the newcomer starts beside it and may have to retry.
                continue
            report.say(f"{fit.reason}; stopping {victim.id}")
            self.withdraw(victim.id)
            await self._gone(report, victim.id)

    async def _gone(self, report: Report, engine_id: str) -> None:
        def check() -> bool | None:
            engine = self._desk.engine(engine_id)
            return True if engine is None or engine.state == "stopped" else None

        try:
            await self._desk.until(check, STOP_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(
                f"{engine_id} has not ended within {STOP_TIMEOUT_S:.0f} s",
                hint="Its node may be out of reach; it ends when the node is back.",
            ) from None


def _same_moment(mark_s: float, other_s: float | None) -> bool:
    """Marks of a node's clock move a little with every frame that refines the mapping."""
    return other_s is not None and abs(mark_s - other_s) < 0.5


def _last_line(engine: Engine) -> str:
    line = next((one.strip() for one in reversed(engine.log_tail) if one.strip()), "")
    return f"; last log line: {line}" if line else ""
