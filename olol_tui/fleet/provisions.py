"""Provisioning and uninstalling by command: one run a node, its steps shown as they go.

The work is `olol_tui.provision`'s; here it meets the running fleet: over the node's own link,
never beside the session that brings up its agent, followed by the engines and one request
over the road that clients' requests take.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from olol_tui.errors import EngineError, NodeError, OlolError
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.drains import Drains
from olol_tui.fleet.engine_client import EngineClient
from olol_tui.fleet.node_session import NodeSession
from olol_tui.fleet.operations import Report
from olol_tui.fleet.renewal import Renewal
from olol_tui.fleet.snapshot import RUNNERS, Engine, Node, ProvisionStep, StepState

if TYPE_CHECKING:
    from olol_tui.fleet.remote import RemoteRoad
    from olol_tui.provision.plan import StepName
    from olol_tui.provision.runner import Provisioning
    from olol_tui.provision.runner import Report as Run
    from olol_tui.provision.steps import StepResult

log = logging.getLogger("olol.fleet.provisions")

ENGINES_S = 120.0
"""For the engines of a fresh node to answer."""
UNINSTALL_DRAIN_S = 10.0
_LAST = ("engines", "traffic")
"""Our own steps, after those of `provision`."""


class StepFailed(NodeError):
    title = "The node is not ready"


class Provisions:
    def __init__(self, desk: Desk, crew: Crew, drains: Drains, renewal: Renewal) -> None:
        self._desk = desk
        self._crew = crew
        self._drains = drains
        self._renewal = renewal
        self._unfinished: dict[str, Provisioning] = {}
        """What the next Provision of a node goes on from."""
        self._running: dict[str, tuple[str, str]] = {}
        """Node → what is done to it, operation."""

    def provision(self, node: str) -> str:
        """Returns the operation's id.

        Raises:
            PlacementError, NodeError: there is nothing to provision, or something else is done
                to the node.
        """
        session, road = self._remote(node)

        async def work(report: Report) -> str:
            show = _Show(session, report, tail=_LAST)
            async with _Held(road.busy) as busy:
                run = self._unfinished.pop(node, None) or await self._run(node, road)

                def told(_: str, step: StepResult) -> None:
                    show.theirs(run)
                    if step.name == "llama" and step.state == "running" and busy.let_go():
                        # What it builds takes long, and the agent is up: the node may be used.
                        session.try_now()

                run.told = told
                try:
                    done = await run.run()
                finally:
                    if any(step.state in ("failed", "cancelled") for step in run.results):
                        self._unfinished[node] = run
                road.learned(done)
            session.try_now()
            if (failure := done.failure) is not None:
                raise StepFailed(f"{failure.name}: {failure.message}", hint=failure.hint)
            await show.ours("engines", lambda: self._engines(show, node))
            if engines := self._renewal.outdated(node, done.ollama):
                await show.ours("engines", lambda: self._renewed(show, report, engines, road, done))
            await show.ours("traffic", lambda: self._traffic(session))
            changed = [step.name for step in done.steps if step.state == "done"]
            what = f"changed: {', '.join(changed)}" if changed else "nothing had to be changed"
            return f"{node} is ready; {what}"

        return self._start("provision", node, work)

    def uninstall(self, node: str) -> str:
        """Returns the operation's id. Raises as `provision`."""
        session, road = self._remote(node)

        async def work(report: Report) -> str:
            from olol_tui.provision.plan import UNINSTALL_STEPS

            show = _Show(session, report)
            engines = [engine.id for engine in self._node(node).engines]
            with self._desk.wishes.paused(engines):
                await self._drains.engines(report, engines, UNINSTALL_DRAIN_S)
                async with road.busy:
                    run = await self._run(node, road, UNINSTALL_STEPS)
                    run.told = lambda _, __: show.theirs(run)
                    done = await run.run()
                    road.learned(done)
            self._unfinished.pop(node, None)
            if (failure := done.failure) is not None:
                session.try_now()
                raise StepFailed(f"{failure.name}: {failure.message}", hint=failure.hint)
            for launch in self._desk.wishes.launches_on(node):
                self._desk.wishes.drop_launch(launch.engine_id)
            session.forget()
            return done.steps[-1].message

        return self._start("uninstall", node, work)

    def cancel(self, node: str) -> str:
        """Stop what is being done; returns its operation's id.

        Raises:
            NodeError: nothing is.
        """
        _, operation = self._running.get(node, ("", ""))
        if not self._desk.book.cancel(operation):
            raise NodeError(f"nothing is being done to {node}")
        return operation

    def forget(self, node: str) -> None:
        """The node leaves the fleet."""
        self._unfinished.pop(node, None)
        self._desk.book.cancel(self._running.pop(node, ("", ""))[1])

    # -- inside

    def _start(self, verb: str, node: str, work: Callable[[Report], Awaitable[str]]) -> str:
        doing, operation = self._running.get(node, ("", ""))
        if doing != verb and self._desk.book.is_running(operation):
            raise NodeError(
                f"{node} is busy: {doing}", hint="Wait for its end, or cancel it first."
            )
        operation = self._desk.book.start(f"{verb} {node}", work, key=f"{verb} {node}")
        self._running[node] = verb, operation
        return operation

    def _remote(self, node: str) -> tuple[NodeSession, RemoteRoad]:
        session = self._crew.session(node)
        if session.config.local:
            raise NodeError(f"{node} is this machine: there is nothing to install")
        return session, self._crew.remote_road(node)

    async def _run(
        self, node: str, road: RemoteRoad, order: tuple[StepName, ...] | None = None
    ) -> Provisioning:
        from olol_tui.provision.plan import STEPS
        from olol_tui.provision.runner import Provisioning

        job = await asyncio.to_thread(road.job, node)
        return Provisioning(job, self._crew.remotes().kit.archives, order=order or STEPS)

    def _node(self, name: str) -> Node:
        return next(node for node in self._desk.nodes if node.name == name)

    async def _engines(self, show: _Show, node: str) -> tuple[StepState, str, str]:
        """Wait until the engines that the node's roles ask for answer."""

        def check() -> Node | None:
            found = self._node(node)
            if found.state == "failed":
                raise NodeError(found.error, hint=found.hint)
            if found.state != "ready" or found.stale:
                return None
            for engine in found.engines:
                if engine.state == "failed":
                    raise EngineError(f"{engine.id} failed: {engine.error}", hint=_last(engine))
            ready = sum(engine.state == "ready" for engine in found.engines)
            show.say(f"{ready} of {len(found.engines)} answer")
            return found if ready == len(found.engines) else None

        try:
            found = await self._desk.until(check, ENGINES_S)
        except TimeoutError:
            found = self._node(node)
            late = [f"{e.id} is {e.state}" for e in found.engines if e.state != "ready"]
            raise EngineError(
                f"not within {ENGINES_S:.0f} s: {', '.join(late) or found.error or found.state}",
                hint="Their logs tell: l on the screen Nodes.",
            ) from None
        if found.engines:
            return "done", ", ".join(engine.id for engine in found.engines), ""
        if found.runner:
            return "skipped", f"{found.runner} is started when a model is asked for", ""
        return "skipped", found.error or "no GPU has a role that needs one", found.hint

    async def _renewed(
        self, show: _Show, report: Report, engines: list[Engine], road: RemoteRoad, done: Run
    ) -> tuple[StepState, str, str]:
        """Have engines run the release that is installed now, and the old one gone."""
        show.say(f"restarting {len(engines)}, one by one, for the new Ollama")
        told = await self._renewal.renew(report, engines)
        async with road.busy:
            try:
                await road.tidy(done)
            except OlolError as error:
                # The next provisioning does it.
                log.info("%s: the old release stays: %s", road.name, error)
        return "done", told, ""

    async def _traffic(self, session: NodeSession) -> tuple[StepState, str, str]:
        """One request to each engine, over the road that clients' requests take."""
        from olol_tui.ssh.http import DialTransport

        asked = [e for e in self._node(session.name).engines if e.kind not in RUNNERS]
        began_s = time.monotonic()
        for engine in asked:
            transport = DialTransport(session.dial)
            async with EngineClient(transport, f"http://{engine.address}", engine.id) as client:
                await client.version()
        if not asked:
            return "skipped", "there is no engine to ask", ""
        took_ms = (time.monotonic() - began_s) / len(asked) * 1000
        return "done", f"an answer by the gateway's road in {took_ms:.0f} ms", ""


class _Held:
    """A lock that may be let go before the end of its block."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self._is_held = False

    async def __aenter__(self) -> _Held:
        await self._lock.acquire()
        self._is_held = True
        return self

    def let_go(self) -> bool:
        """Whether it was held until now."""
        was_held, self._is_held = self._is_held, False
        if was_held:
            self._lock.release()
        return was_held

    async def __aexit__(self, *_: object) -> None:
        self.let_go()


class _Show:
    """The steps of a run in the snapshot, and the present one as the operation's message."""

    def __init__(self, session: NodeSession, report: Report, tail: tuple[str, ...] = ()) -> None:
        self._session = session
        self._report = report
        self._theirs: tuple[ProvisionStep, ...] = ()
        self._ours = {name: ProvisionStep(name) for name in tail}
        self._present = ""

    def theirs(self, run: Provisioning) -> None:
        """A step of `provision` changed."""
        self._theirs = tuple(
            ProvisionStep(
                name=step.name,
                state=step.state,
                took_s=None if step.state in ("waiting", "running") else step.took_s,
                message=step.message,
                hint=step.hint,
                progress=step.progress,
                log=step.log,
            )
            for step in run.results
        )
        self._publish()

    def say(self, message: str) -> None:
        """The present step of ours tells how far it is."""
        step = self._ours[self._present]
        if step.message != message:
            self._ours[self._present] = ProvisionStep(step.name, "running", message=message)
            self._publish()

    async def ours(
        self, name: str, work: Callable[[], Awaitable[tuple[StepState, str, str]]]
    ) -> None:
        """Do one of our own steps: `work` returns its state, message and hint."""
        began_s = time.monotonic()
        self._present = name
        self._end(ProvisionStep(name, "running"))
        state: StepState = "cancelled"
        message = hint = ""
        try:
            state, message, hint = await work()
        except OlolError as error:
            state, message, hint = "failed", str(error), error.hint
            raise StepFailed(f"{name}: {message}", hint=hint) from error
        finally:
            took_s = time.monotonic() - began_s
            self._end(ProvisionStep(name, state, took_s, message, hint))

    def _end(self, step: ProvisionStep) -> None:
        self._ours[step.name] = step
        self._publish()

    def _publish(self) -> None:
        steps = (*self._theirs, *self._ours.values())
        self._session.show_steps(steps)
        for step in steps:
            if step.state == "running":
                text = f"{step.name}: {step.message}" if step.message else step.name
                self._report.say(text, step.progress)


def _last(engine: Engine) -> str:
    line = next((one.strip() for one in reversed(engine.log_tail) if one.strip()), "")
    return f"Last log line: {line}" if line else ""
