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

IDLE_TIMEOUT_S = 120.0
"""For requests that began while a model was chosen to make room."""
START_TIMEOUT_S = 900.0
"""As agents give a runner that reads a huge model."""
STOP_TIMEOUT_S = 60.0


class Runners:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._served: dict[str, Launch] = {}
        """By engine id, the latest wish with which it got ready."""

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
        launch = self._launch(target, num_ctx, keep_alive_s)
        self._wish(launch)
        return launch.engine_id

    def _launch(self, target: Target, num_ctx: int | None, keep_alive_s: float | None) -> Launch:
        engine_id = self.engine_id(target)
        before = self._desk.wishes.launch_of(engine_id)
        if keep_alive_s is None:
            known = self._desk.leases.keep_alive_s(engine_id)
            keep_alive_s = DEFAULT_KEEP_ALIVE_S if known is None else known
        return Launch(
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

    def _wish(self, launch: Launch) -> None:
        self._desk.leases.hold(launch.engine_id, launch.keep_alive_s)
        if launch != self._desk.wishes.launch_of(launch.engine_id):
            self._desk.wishes.add_launch(launch)
            self._desk.member(launch.node).replan()

    def context(self, engine_id: str) -> int | None:
        """Tokens that the runner has or will have; None when it is not wished for."""
        launch = self._desk.wishes.launch_of(engine_id)
        return None if launch is None else self._context(launch)

    def _context(self, launch: Launch) -> int:
        return launch.num_ctx or self._desk.default_ctx(launch.node)

    def withdraw(self, engine_id: str) -> None:
        """Wish for the runner no more."""
        self._served.pop(engine_id, None)
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

        One that was to get more context and cannot have it goes back to what it had.

        Raises:
            EngineError: it failed, with its last words.
        """
        launch = self._launch(target, num_ctx, keep_alive_s)
        engine_id = launch.engine_id
        wished = self._desk.wishes.launch_of(engine_id)
        existing = self._desk.engine(engine_id)
        started_s = self._desk.now_s()
        with self._desk.wishes.announced(launch):
            await self._make_room(report, target, fit)
        self._wish(launch)
        replaced_pid = None
        if existing is not None and wished is not None and _process(wished) != _process(launch):
            # Another context: the agent replaces the process that is ready now.
            replaced_pid = existing.pid
        elif existing is not None and existing.state == "ready":
            return f"{target.name} was resident already"
        had = self._served.get(engine_id)
        grows = had is not None and self._context(had) < self._context(launch)
        try:
            engine = await self._ready(report, target, existing, replaced_pid, grows=grows)
        except EngineError:
            if had is not None and grows and self._desk.wishes.launch_of(engine_id) == launch:
                self._wish(had)
                self._desk.wishes.limit_ctx(engine_id, self._context(had))
            raise
        self._served[engine_id] = launch
        size = sum(one.size_bytes for one in engine.loaded) or target.model.size_bytes
        elapsed_s = self._desk.now_s() - started_s
        return f"{target.name} takes {format_size(size)}; {elapsed_s:.1f} s"

    async def _ready(
        self,
        report: Report,
        target: Target,
        existing: Engine | None,
        replaced_pid: int | None,
        *,
        grows: bool,
    ) -> Engine:
        """Wait until it answers.

        Args:
            existing: what was there before.
            replaced_pid: of the process that has to go.
            grows: it was ready with less context: its first failure says that more is too much.
        """
        engine_id = self.engine_id(target)
        old_failure_s = None
        if existing is not None and existing.state == "failed":
            old_failure_s = existing.since_s
            await self._desk.member(target.node.name).restart(engine_id)

        def check() -> Engine | None:
            engine = self._desk.engine(engine_id)
            if engine is None:
                raise NodeError(f"{engine_id} was withdrawn before it was ready")
            if replaced_pid is not None and engine.pid == replaced_pid:
                return None
            if engine.state == "ready":
                return engine
            has_failed = engine.state == "failed" or (grows and engine.state == "backoff")
            if has_failed and not _same_moment(engine.since_s, old_failure_s):
                raise EngineError(f"{engine_id} failed: {engine.error}{_last_line(engine)}")
            progress = engine.loading[0].progress if engine.loading else None
            waiting = f"{engine.error}; tries again" if engine.state == "backoff" else ""
            report.say(waiting, progress)
            return None

        try:
            return await self._desk.until(check, START_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(f"{engine_id} was not ready within {START_TIMEOUT_S:.0f} s") from None

    async def stop(self, report: Report, engine: Engine) -> str:
        """Withdraw a runner and wait until its process is gone."""
        freed = sum(one.vram_bytes or one.size_bytes for one in engine.loaded)
        self.withdraw(engine.id)
        await self._gone(report, engine.id)
        return f"{engine.model} is gone, {format_size(freed)} freed"

    async def _make_room(self, report: Report, target: Target, fit: Fit) -> None:
        """Stop what has to go, as soon as nobody computes on it."""
        found = (runner_engine(target.node, target.device, name) for name in fit.goes)
        victims = [engine.id for engine in found if engine is not None]
        if not victims:
            return

        def idle() -> bool | None:
            running = sorted({name for one in victims for name in self._desk.busy(one)})
            if running:
                report.say(f"{fit.reason}; waits until {', '.join(running)} is idle")
            return None if running else True

        with self._desk.wishes.paused(victims):
            # From here on nothing new is sent there, and what was sent is known.
            self._desk.publish()
            try:
                await self._desk.until(idle, IDLE_TIMEOUT_S)
            except TimeoutError:
                raise EngineError(
                    f"{', '.join(victims)} had work for {IDLE_TIMEOUT_S:.0f} s and was not stopped"
                ) from None
            for victim in victims:
                report.say(f"{fit.reason}; stopping {victim}")
                self.withdraw(victim)
            for victim in victims:
                await self._gone(report, victim)

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


def _process(launch: Launch) -> tuple[object, ...]:
    """What of a wish its process depends on: if that changes, there will be another one."""
    return launch.path, launch.chat_template, launch.num_ctx, launch.kind, launch.device


def _same_moment(mark_s: float, other_s: float | None) -> bool:
    """Marks of a node's clock move a little with every frame that refines the mapping."""
    return other_s is not None and abs(mark_s - other_s) < 0.5


def _last_line(engine: Engine) -> str:
    line = next((one.strip() for one in reversed(engine.log_tail) if one.strip()), "")
    return f"; last log line: {line}" if line else ""
