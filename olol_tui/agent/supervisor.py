"""The desired engines made so: a keeper each, adoption at start, orphans ended."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import Any, Callable, Iterable

from . import client, logs, proc
from .devices import DeviceSource
from .door import Door
from .engines import Context
from .engines.simulated import stats
from .errors import BadRequest, NotFound
from .keeper import Keeper
from .process import Process
from .records import Record, State
from .site import MARK_STATE, Site
from .spec import Policy, Spec

log = logging.getLogger(__name__)

CPU = "cpu"
"""Every node has it, listed among its devices or not."""


class Supervisor:
    """Runs engines from `start()` to `close()`; they outlive it unless told otherwise."""

    def __init__(
        self,
        state: State,
        policy: Policy,
        source: DeviceSource,
        self_argv: tuple[str, ...],
        changed: Callable[[], None],
    ) -> None:
        self._state = state
        self._policy = policy
        self._source = source
        self._self_argv = self_argv
        self._changed = changed
        self._site = Site(state, policy, self._context, self._status_changed)
        self._door = Door(state.path)
        self._keepers: dict[str, Keeper] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._order: list[str] = []
        self.generation = 0
        self.errors: list[str] = []
        """What went wrong at start, shown in the inventory."""

    # -- life

    async def start(self) -> None:
        """Adopt what runs, start what should, end what should not."""
        try:
            self.generation, desired = self._state.read_desired()
        except BadRequest as error:
            self.errors.append(f"the saved engine list was ignored: {error.message}")
            desired = []
        records = {
            identity: record
            for identity, record in self._state.records().items()
            if record.boot_id == self._site.boot_id
            and proc.is_running(record.pid, record.starttime)
        }
        self._order = [spec.id for spec in desired]
        for spec in desired:
            self._keep(spec, records.pop(spec.id, None))
        for record in records.values():
            self._chore(self._end_orphan(record))
        for identity in self._state.records():
            if identity not in self._keepers and identity not in records:
                self._state.forget(identity)
        self._chore(self._end_strays())
        self._chore(self._rotate())
        self._chore(self._simulate())
        self._chore(self._door.keep())

    async def settled(self, timeout_s: float) -> None:
        """Wait until adopted engines are known to be ready, not longer than that.

        An agent that replaced itself shows nothing before: its engines never stopped.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while any(k.pid and k.status()["state"] == "starting" for k in self._keepers.values()):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.02)

    async def close(self, *, stop_engines: bool) -> None:
        """Leave; with `stop_engines` nothing of ours runs afterwards, nor comes back."""
        if stop_engines:
            self.put(self.generation, [])
            await asyncio.gather(*(k.task for k in list(self._keepers.values())))
            await self._door.shut()
        for chore in list(self._chores):
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await asyncio.gather(*(k.leave() for k in self._keepers.values()))

    # -- wishes

    def put(self, generation: int, specs: list[Spec]) -> None:
        """Make this the desired list.

        Raises:
            BadRequest: a device is unknown; nothing changed.
        """
        known = {str(device.get("uuid")) for device in self._source.inventory()} | {CPU}
        for spec in specs:
            for uuid in spec.devices:
                if uuid not in known:
                    raise BadRequest(
                        f"{spec.id}: there is no device {uuid!r} here",
                        f"this node has {', '.join(sorted(known))}",
                    )
        self._state.write_desired(generation, specs)
        self.generation = generation
        self._order = [spec.id for spec in specs]
        wanted = {spec.id: spec for spec in specs}
        for identity, keeper in self._keepers.items():
            keeper.want(wanted.pop(identity, None))
        for spec in wanted.values():
            self._keep(spec, None)
        self._status_changed()

    def restart(self, identity: str) -> None:
        """Raises NotFound."""
        self._keeper(identity).restart()

    def refresh(self, identity: str) -> None:
        """Raises NotFound."""
        self._keeper(identity).refresh()

    def statuses(self) -> list[dict[str, Any]]:
        """STATUS of every engine, in the order of the desired list, leaving ones last."""
        place = {identity: index for index, identity in enumerate(self._order)}
        keepers = sorted(self._keepers.values(), key=lambda k: place.get(k.id, len(place)))
        return [keeper.status() for keeper in keepers]

    def sessions(self) -> set[int]:
        """Leaders of the engines' sessions: what belongs to us among all processes."""
        return {keeper.pid for keeper in self._keepers.values() if keeper.pid is not None}

    def knows(self, identity: str) -> bool:
        return identity in self._keepers

    def door_problem(self) -> str:
        """Why heads on other nodes are not let in to our workers; "" when they are."""
        return self._door.problem

    # -- parts

    def _status_changed(self) -> None:
        """An engine changed: who may come in follows from where workers listen."""
        self._door.want(
            (key, keeper.claimed_port)
            for keeper in self._keepers.values()
            if keeper.wanted is not None and keeper.claimed_port
            for key in keeper.wanted.permit
        )
        self._changed()

    def _keeper(self, identity: str) -> Keeper:
        try:
            return self._keepers[identity]
        except KeyError:
            raise NotFound(f"there is no engine {identity!r} here") from None

    def _keep(self, spec: Spec, record: Record | None) -> None:
        keeper = Keeper(spec, self._site, record)
        self._keepers[spec.id] = keeper
        keeper.task.add_done_callback(partial(self._gone, keeper))

    def _gone(self, keeper: Keeper, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if self._keepers.get(keeper.id) is keeper:
            del self._keepers[keeper.id]
        again = keeper.wanted
        if error is not None:
            log.error("the keeper of %s failed", keeper.id, exc_info=error)
        elif again is not None:
            self._keep(again, None)
        self._status_changed()

    def _context(self) -> Context:
        devices = {str(d.get("uuid")): d for d in self._source.inventory()}
        cpus = len(os.sched_getaffinity(0))
        return Context(
            devices, self._self_argv, cpus, self._policy, state_dir=str(self._state.path)
        )

    def _chore(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chore_done)

    def _chore_done(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a background task failed", exc_info=error)

    async def _end_orphan(self, record: Record) -> None:
        process = Process.adopt(record.pid, record.starttime, lambda: None)
        if process is not None:
            log.info("%s: no longer wanted, stopping pid %d", record.id, record.pid)
            await process.stop(self._policy.stop_grace_s)
        if record.id not in self._keepers:
            self._state.forget(record.id)

    async def _end_strays(self) -> None:
        """Processes of ours without a record: the agent died between start and record."""
        recorded = {record.pid for record in self._state.records().values()}
        recorded |= self.sessions()
        strays = proc.marked(MARK_STATE, str(self._state.path))
        for session in set(strays.values()) - recorded - {os.getsid(0)}:
            found = proc.stat(session)
            if found is None:
                proc.signal_session(session, 9)
                continue
            process = Process.adopt(session, found.starttime, lambda: None)
            if process is not None:
                log.warning("ending pid %d: an engine without a record", session)
                await process.stop(self._policy.stop_grace_s)

    async def _rotate(self) -> None:
        limits = logs.Limits(self._policy.log_max_bytes, self._policy.log_files)
        loop = asyncio.get_running_loop()
        while True:
            for identity in list(self._keepers):
                path = self._state.log_path(identity)
                try:
                    await loop.run_in_executor(None, logs.rotate, path, limits)
                except OSError as error:
                    log.warning("cannot rotate %s: %s", path, error)
            await asyncio.sleep(self._policy.rotate_s)

    async def _simulate(self) -> None:
        """Let simulated devices show what simulated engines do."""
        while True:
            await asyncio.sleep(self._policy.poll_s)
            ready = [k for k in self._keepers.values() if k.spec.kind == "simulated"]
            # Also with none left: the devices must not show what the last ones did.
            shown = await asyncio.gather(*(_stats_of(keeper) for keeper in ready))
            self._source.set_engine_stats(_present(shown))


def _present(found: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [item for item in found if item is not None]


async def _stats_of(keeper: Keeper) -> dict[str, Any] | None:
    """None for an engine that does not answer: its device is then idle and empty."""
    if not keeper.port:
        return None
    try:
        data = await stats(keeper.port)
    except client.CallError:
        return None
    return {
        "devices": list(keeper.spec.devices),
        "used_bytes": data.get("used_bytes", 0),
        "util_percent": data.get("util_percent", 0.0),
    }
