"""`cluster.toml` while everything runs: edited by commands, taken up again when it changes.

What is not valid is said and changes nothing: the fleet goes on as it was.
"""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from olol_tui.config import ClusterConfig, load
from olol_tui.errors import ConfigError, OlolError

log = logging.getLogger("olol.fleet.config")

LOOK_EVERY_S = 1.0
_Stamp = tuple[int, int, int]


class ClusterFile:
    """Args:
    path: the file; need not exist.
    present: the configuration that is in force.
    apply: follow another one.
    """

    def __init__(
        self,
        path: Path,
        present: Callable[[], ClusterConfig],
        apply: Callable[[ClusterConfig], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._path = path
        self._present = present
        self._apply = apply
        self._changed = changed
        self._stamp = _stamp(path)
        self._editing = asyncio.Lock()
        self.problem = ""
        """Why the file as it is now is not followed."""

    async def keep(self) -> None:
        """Follow the file for ever; a fleet that is made up has none."""
        while self._is_from_file():
            await asyncio.sleep(LOOK_EVERY_S)
            if _stamp(self._path) != self._stamp:
                async with self._editing:
                    await self._follow()

    async def add_node(self, name: str, fields: Mapping[str, Any]) -> None:
        """Write a node down and take it up.

        Raises:
            ConfigError: the name is taken, or something is not valid; nothing was changed.
        """
        from olol_tui.config.edit import add_nodes

        async with self._editing:
            self._check_ours()
            nodes: dict[str, Mapping[str, Any]] = {name: fields}
            if await asyncio.to_thread(self._leaves_local_unsaid):
                # Without a node the file means this machine: it is to stay beside the new one.
                nodes = {"local": {"local": True}, **nodes}
            await asyncio.to_thread(add_nodes, self._path, nodes)
            await self._follow()

    async def remove_node(self, name: str) -> None:
        """Raises ConfigError: the file does not name it."""
        from olol_tui.config.edit import remove_nodes

        async with self._editing:
            self._check_ours()
            await asyncio.to_thread(remove_nodes, self._path, [name])
            await self._follow()

    async def _follow(self) -> None:
        self._stamp = _stamp(self._path)
        try:
            config = await asyncio.to_thread(load, self._path)
        except ConfigError as error:
            log.error("%s", error)
            self.problem = error.message
            self._changed()
            return
        self.problem = ""
        now = self._present()
        log.info("%s is taken up", self._path)
        # What the gateway listens on holds until the next start; the command line may say more.
        await self._apply(config.model_copy(update={"gateway": now.gateway}))

    def _check_ours(self) -> None:
        if not self._is_from_file():
            raise OlolError(
                "this fleet is made up by the program and not read from a file",
                hint="Nodes are added to a fleet of olol-tui or olol-tui --serve.",
                title="The nodes cannot be changed",
            )

    def _is_from_file(self) -> bool:
        """Or could be: nothing is configured, and there is no file yet."""
        present = self._present()
        return present.source is not None or present.nodes == ClusterConfig().nodes

    def _leaves_local_unsaid(self) -> bool:
        try:
            return not tomllib.loads(self._path.read_text("utf-8-sig")).get("nodes")
        except (OSError, ValueError):
            return True  # No file yet, or one that the editor will refuse in its own words.


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
