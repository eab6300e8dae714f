"""`cluster.toml` while everything runs: edited by commands, taken up again when it changes.

What is not valid is said and changes nothing: everything goes on as it was. A file is valid as
a whole or not at all: the fleet does not follow its half while the gateway refuses the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from olol_tui.config import ClusterConfig, FieldProblem, GatewayConfig, at_field, parse
from olol_tui.errors import ConfigError, OlolError

log = logging.getLogger("olol.fleet.config")

LOOK_EVERY_S = 1.0
SETTLED_S = 0.15
"""An editor may write in several steps: a file that changes is left alone for so long."""
_Stamp = tuple[int, int, int]
Prepare = Callable[[GatewayConfig], Callable[[], tuple[str, ...]]]
"""Checks that a gateway can be so, raising FieldProblem or ConfigError, and returns what makes
it so. That returns the fields that hold from the next start only."""


class ClusterFile:
    """Args:
    path: the file; need not exist.
    present: the configuration that is in force.
    apply: follow another one.
    changed: what this tells of the file changed.
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
        self._prepare: Prepare | None = None
        self._stamp = _stamp(path)
        self._editing = asyncio.Lock()
        self._look = asyncio.Event()
        self.problem = ""
        """Why the file as it is now is not followed."""
        self.notices: tuple[str, ...] = ()
        """What of it holds from the next start only."""

    def attach(self, prepare: Prepare) -> None:
        """The gateway follows the file too."""
        self._prepare = prepare

    def reread(self) -> None:
        """Take the file up now, also where it looks as before."""
        self._stamp = None
        self._look.set()

    async def keep(self) -> None:
        """Follow the file for ever; a fleet that is made up has none."""
        while self._is_from_file():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._look.wait()
            asked = self._look.is_set()
            self._look.clear()
            if _stamp(self._path) != self._stamp or asked:
                async with self._editing:
                    await self._settled()
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

    async def _settled(self) -> None:
        """Return when nobody writes the file: half of a file may be valid, and mean little."""
        stamp = _stamp(self._path)
        while True:
            await asyncio.sleep(SETTLED_S)
            now = _stamp(self._path)
            if now == stamp:
                return
            stamp = now

    async def _follow(self) -> None:
        self._stamp = _stamp(self._path)
        try:
            raw = await asyncio.to_thread(self._read)
            if raw is None:
                return
            config = parse(raw, self._path)
            given = self._present().given
            # What the command line said goes before the file, at every reading of it.
            gateway = config.gateway.model_copy(update=given)
            try:
                settle = self._prepare(gateway) if self._prepare is not None else _nothing
            except FieldProblem as problem:
                raise at_field(self._path, raw, problem) from problem
        except ConfigError as error:
            if error.message != self.problem:
                log.error("not followed: %s", error, extra={"file": str(self._path)})
            self.problem = error.message
            self._changed()
            return
        log.info("%s is taken up", self._path)
        self.problem = ""
        self.notices = settle()
        await self._apply(config.model_copy(update={"gateway": gateway, "given": given}))
        self._changed()

    def _read(self) -> bytes | None:
        """None: there was none, and there is none.

        Raises:
            ConfigError: it is not there any more, or cannot be read.
        """
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            if self._present().source is None:
                return None
            # Without a file everything would be default: nobody means that by a slip.
            raise ConfigError(f"{self._path} is gone; what it said last holds on") from None
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from error

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


def _nothing() -> tuple[str, ...]:
    return ()


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
