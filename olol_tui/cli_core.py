"""What commands that need no core ask of one, and tell it, where one runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from olol_tui.errors import LinkError, OlolError

if TYPE_CHECKING:
    from olol_tui.fleet.snapshot import Fleet
    from olol_tui.paths import Paths

log = logging.getLogger("olol.cli")


async def fleet_now(paths: Paths) -> Fleet | None:
    """What the running core knows; None without one."""
    from olol_tui.remote import RemoteLink

    try:
        async with RemoteLink(paths.control_socket) as link:
            return link.fleet
    except LinkError:
        return None


async def told_ready(paths: Paths, nodes: list[str]) -> None:
    """Have a running core look at these nodes now: at bare ones it looks seldom by itself."""
    from olol_tui.fleet.commands import Reconnect
    from olol_tui.remote import RemoteLink, find_running

    if not find_running(paths):
        return
    try:
        async with RemoteLink(paths.control_socket) as link:
            known = {node.name: node for node in link.fleet.nodes}
            for name in nodes:
                if name in known and known[name].state != "ready":
                    await link.submit(Reconnect(name))
    except OlolError as error:
        # Nothing that was done depends on it: the core finds out by itself.
        log.info("the core was not told: %s", error)
