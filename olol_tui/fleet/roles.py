"""Changes what a GPU is for, without touching its neighbours.

The engines that must go for it take no new work first and finish what they compute; every
other engine keeps its process, because its spec stays as it is.
"""

from __future__ import annotations

from olol_tui.fleet import desired
from olol_tui.fleet.changeover import pids_of, settled
from olol_tui.fleet.commands import SetRole
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.drains import Drains
from olol_tui.fleet.operations import Report
from olol_tui.fleet.snapshot import Role
from olol_tui.fleet.targets import find_place


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
                pids = pids_of(self._desk, going)
                wishes.set_role(command.node, device.uuid, kept)
                session.replan()
                coming = [spec.id for spec in after.specs if spec not in before.specs]
                await settled(
                    self._desk, report, command.node, going=going, coming=coming, pids=pids
                )
            return _outcome(where, role, going, coming) + cut

        return self._desk.book.start(f"{where} as {role}", work, key=f"role {where}")


def _outcome(where: str, role: Role, going: list[str], coming: list[str]) -> str:
    told = {
        "rpc": f"{where} is {desired.NOTES['rpc']}",
        "off": f"{where} is switched off",
        "shared": f"{where} shares an engine",
    }.get(role, f"{where} has an engine of its own")
    changed = [f"{one} ended" for one in going if one not in coming]
    changed += [f"{one} runs" for one in coming]
    return "; ".join([told, *changed])
