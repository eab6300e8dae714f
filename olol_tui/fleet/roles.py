"""Changes what a GPU is for, without touching its neighbours.

The engines that must go for it take no new work first and finish what they compute; every
other engine keeps its process, because its spec stays as it is.
"""

from __future__ import annotations

from olol_tui.errors import EngineError
from olol_tui.fleet import desired
from olol_tui.fleet.commands import SetRole
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.drains import Drains
from olol_tui.fleet.operations import Report
from olol_tui.fleet.snapshot import Role
from olol_tui.fleet.targets import find_place

SETTLE_S = 120.0
"""For old engines to end and new ones to answer."""


class Roles:
    def __init__(self, desk: Desk, crew: Crew, drains: Drains) -> None:
        self._desk = desk
        self._crew = crew
        self._drains = drains

    def set(self, command: SetRole) -> str:
        """Returns the operation's id.

        Raises:
            PlacementError: there is no such node or device.
        """
        session = self._crew.session(command.node)
        _, device = find_place(self._desk.nodes, command.node, command.device)
        role: Role = command.role or desired.role_of(session.config, device)
        # What the configuration says needs no wish beside it.
        kept: Role = "" if role == desired.role_of(session.config, device) else role
        where = f"{command.node}/{device.label}"
        if device.role == role:
            self._desk.wishes.set_role(command.node, device.uuid, kept)
            return self._desk.book.note(f"{where} as {role}", f"{where} is {role} already")

        async def work(report: Report) -> str:
            wishes = self._desk.wishes
            before = session.planned()
            after = session.planned({**wishes.roles_on(command.node), device.uuid: role})
            going = [spec.id for spec in before.specs if spec not in after.specs]
            with wishes.paused(going):
                cut = await self._drains.engines(report, going)
                wishes.set_role(command.node, device.uuid, kept)
                session.replan()
                coming = [spec.id for spec in after.specs if spec not in before.specs]
                await self._settled(report, command.node, going, coming)
            return _outcome(where, role, going, coming) + cut

        return self._desk.book.start(f"{where} as {role}", work, key=f"role {where}")

    async def _settled(
        self, report: Report, node: str, going: list[str], coming: list[str]
    ) -> None:
        pids = {one: self._pid(one) for one in going if one in coming}

        def check() -> bool | None:
            leaving = [one for one in going if one not in coming and self._lives(one)]
            if leaving:
                report.say(f"stops {', '.join(leaving)}")
                return None
            for one in coming:
                engine = self._desk.engine(one)
                if engine is not None and engine.state == "failed":
                    raise EngineError(f"{one} failed: {engine.error}")
                is_old = engine is not None and one in pids and engine.pid == pids[one]
                if engine is None or engine.state != "ready" or is_old:
                    report.say(f"starts {one}")
                    return None
            return True

        try:
            await self._desk.until(check, SETTLE_S)
        except TimeoutError:
            raise EngineError(
                f"the engines of {node} have not changed within {SETTLE_S:.0f} s",
                hint="The role is kept; it is carried out when the node answers.",
            ) from None

    def _pid(self, engine_id: str) -> int | None:
        engine = self._desk.engine(engine_id)
        return None if engine is None else engine.pid

    def _lives(self, engine_id: str) -> bool:
        engine = self._desk.engine(engine_id)
        return engine is not None and engine.state != "stopped"


def _outcome(where: str, role: Role, going: list[str], coming: list[str]) -> str:
    told = {
        "rpc": f"{where} is {desired.NOTES['rpc']}",
        "off": f"{where} is switched off",
        "shared": f"{where} shares an engine",
    }.get(role, f"{where} has an engine of its own")
    changed = [f"{one} ended" for one in going if one not in coming]
    changed += [f"{one} runs" for one in coming]
    return "; ".join([told, *changed])
