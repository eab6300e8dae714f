"""Steps carried out: in order, timed, told as they go, stopped at the first failure.

A run can be cancelled at any await; what it leaves is what the next run goes on from.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace

import httpx

from olol_tui.errors import OlolError
from olol_tui.provision import steps
from olol_tui.provision.archive import Archives
from olol_tui.provision.errors import ProvisionError
from olol_tui.provision.facts import Facts, Ollama
from olol_tui.provision.helper import Helper
from olol_tui.provision.plan import STEPS, Plan, StepName
from olol_tui.provision.shell import Shell
from olol_tui.provision.steps import StepResult, Wishes, Work

log = logging.getLogger("olol.provision")

HANDSHAKES = 4
"""Hosts being connected to at once: more only wait for each other's cryptography."""

Opener = Callable[[], AbstractAsyncContextManager[Shell]]
"""Connects, with the host key verified; closes what it opened."""
Told = Callable[[str, StepResult], None]
"""(node, step): called at every change of a step."""


@dataclass(frozen=True, slots=True)
class Job:
    """One node to provision."""

    node: str
    where: str
    """`ops@gpu1.lan`, for people."""
    open: Opener
    wishes: Wishes
    transport: Callable[[Shell, Facts, str], httpx.AsyncBaseTransport] | None = None
    """The gateway's road to the agent's socket."""
    describe: Callable[[Shell], str] = lambda shell: ""
    """What was reached, and what the connection is like; in place of `where`."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended."""

    node: str
    steps: tuple[StepResult, ...]
    facts: Facts | None = None
    plan: Plan | None = None
    took_s: float = 0.0
    socket: str = ""
    """Where the agent listens."""
    pid: int | None = None
    ollama: Ollama | None = None
    """The one that engines start from by now."""

    @property
    def ok(self) -> bool:
        return all(step.state in ("done", "unchanged", "skipped") for step in self.steps)

    @property
    def changed(self) -> bool:
        return any(step.state == "done" for step in self.steps)

    @property
    def failure(self) -> StepResult | None:
        return next((step for step in self.steps if step.state == "failed"), None)


@dataclass
class Provisioning:
    """The runs of one job. After a failure, `run` again goes on from the failed step."""

    job: Job
    archives: Archives
    told: Told = lambda node, step: None
    approve: Callable[[str, Facts, Plan], Awaitable[bool]] | None = None
    """Asked once the plan is known, before anything is changed."""
    handshakes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(HANDSHAKES))
    machines: dict[tuple[str, str, int, str], str] = field(default_factory=dict)
    """Machines of this batch by identity: two names of one would fight over its agent."""
    order: tuple[StepName, ...] = STEPS

    def __post_init__(self) -> None:
        if self.job.wishes.wanted.llama is None:
            self.order = tuple(name for name in self.order if name != "llama")
        self._results = {name: StepResult(name) for name in self.order}
        self._work: Work | None = None
        self._ended: set[StepName] = set()

    @property
    def results(self) -> tuple[StepResult, ...]:
        return tuple(self._results.values())

    async def run(self, *, dry_run: bool = False) -> Report:
        """Do what is left to do. Does not raise for what can go wrong on a node.

        Args:
            dry_run: stop when it is known what would be done.
        """
        started_s = time.monotonic()
        self._ended = {name for name, step in self._results.items() if step.state in _ENDED_WELL}
        for name in self.order:
            if name not in self._ended or name in _ALWAYS:
                self._tell(StepResult(name))
        try:
            await self._connected(dry_run=dry_run)
        except _Failed:
            pass
        except asyncio.CancelledError:
            self._cancelled()
            raise
        work = self._work
        return Report(
            self.job.node,
            self.results,
            work.facts if work else None,
            work.plan if work else None,
            time.monotonic() - started_s,
            work.socket if work else "",
            work.pid if work else None,
            work.ollama if work else None,
        )

    async def _connected(self, *, dry_run: bool) -> None:
        began_s = time.monotonic()
        self._tell(StepResult("connect", "running", self.job.where))
        async with AsyncExitStack() as stack:
            try:
                async with self.handshakes:
                    shell = await stack.enter_async_context(self.job.open())
            except OlolError as error:
                self._fail("connect", began_s, error)
                raise _Failed from error
            took_s = time.monotonic() - began_s
            said = self.job.describe(shell) or self.job.where
            self._tell(StepResult("connect", "unchanged", said, took_s=took_s))
            await self._carry_out(shell, dry_run=dry_run)

    async def _carry_out(self, shell: Shell, *, dry_run: bool) -> None:
        job = self.job
        road = job.transport
        helper = Helper(shell)
        self._work = work = Work(
            shell,
            helper,
            job.wishes,
            self.archives,
            self._progress,
            None if road is None else lambda socket: road(shell, work.known, socket),
            by_word="engine" in self.order,
            dry_run=dry_run,
        )
        try:
            await self._steps(work, dry_run=dry_run)
        finally:
            await helper.close()

    async def _steps(self, work: Work, *, dry_run: bool) -> None:
        for name in self.order:
            if name == "connect" or self._is_settled(name, work):
                continue
            await self._step(name, work)
            if name == "facts" and "remove" not in self.order:
                if dry_run or not await self._go_on(work):
                    return
            elif name == "remove" and dry_run:
                return

    def _is_settled(self, name: StepName, work: Work) -> bool:
        """Whether a step ended well in an earlier run, and by the facts of now it still has."""
        if name not in self._ended or name in _ALWAYS:
            return False
        planned = [step for step in work.plan.steps if step.name == name] if work.plan else []
        return all(step.action != "do" for step in planned)

    async def _go_on(self, work: Work) -> bool:
        assert work.facts is not None
        assert work.plan is not None
        other = self.machines.setdefault(work.facts.same_machine, self.job.node)
        if other != self.job.node:
            error = ProvisionError(
                f"this is the same machine and user as {other}",
                hint=f"Take one of the names out: olol-tui node remove {self.job.node}",
            )
            self._fail("facts", time.monotonic(), error)
            raise _Failed
        if self.approve is None or not work.plan.changes or work.plan.refusal is not None:
            return True
        return await self.approve(self.job.node, work.facts, work.plan)

    async def _step(self, name: StepName, work: Work) -> None:
        began_s = time.monotonic()
        work.log.clear()
        self._tell(StepResult(name, "running"))
        try:
            outcome = await steps.STEP_WORK[name](work)
        except OlolError as error:
            self._fail(name, began_s, error, work.log)
            raise _Failed from error
        except Exception as error:
            log.exception("%s: step %s", self.job.node, name)
            unexpected = ProvisionError(f"unexpected failure: {error!r}")
            self._fail(name, began_s, unexpected, work.log)
            raise _Failed from error
        state: steps.State = "done" if outcome.changed else "unchanged"
        self._tell(
            StepResult(
                name,
                "skipped" if outcome.skipped else state,
                outcome.message,
                outcome.hint,
                time.monotonic() - began_s,
                log=(*work.log, *outcome.log),
            )
        )

    def _fail(
        self, name: StepName, began_s: float, error: OlolError, log_lines: Iterable[str] = ()
    ) -> None:
        took_s = time.monotonic() - began_s
        text = f"{error.title}: {error.message}"
        log.warning("%s: %s: %s", self.job.node, name, text)
        lines = tuple(log_lines)
        self._tell(StepResult(name, "failed", text, error.hint, took_s, log=lines))

    def _progress(self, message: str, progress: float | None) -> None:
        running = next((s for s in self._results.values() if s.state == "running"), None)
        if running is not None:
            self._tell(replace(running, message=message, progress=progress))

    def _cancelled(self) -> None:
        for step in self.results:
            if step.state == "running":
                self._tell(replace(step, state="cancelled", progress=None))

    def _tell(self, step: StepResult) -> None:
        self._results[step.name] = step
        self.told(self.job.node, step)


_ENDED_WELL = ("done", "unchanged", "skipped")
_ALWAYS = ("connect", "facts")
"""Had anew in every run: what was learnt before may be old."""


class _Failed(Exception):
    """A step failed and has been told: nothing after it is tried."""


async def run_all(
    jobs: Iterable[Job],
    archives: Archives,
    *,
    told: Told = lambda node, step: None,
    dry_run: bool = False,
    order: tuple[StepName, ...] = STEPS,
) -> list[Report]:
    """Many nodes at once, four handshakes in flight; one's failure is its own.

    Args:
        order: `STEPS` provisions, `UNINSTALL_STEPS` takes off again.
    """
    handshakes = asyncio.Semaphore(HANDSHAKES)
    machines: dict[tuple[str, str, int, str], str] = {}
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(
                Provisioning(
                    job,
                    archives,
                    told=told,
                    handshakes=handshakes,
                    machines=machines,
                    order=order,
                ).run(dry_run=dry_run)
            )
            for job in jobs
        ]
    return [task.result() for task in running]
