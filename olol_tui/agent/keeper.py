"""One engine kept as its spec says: a task that starts, watches, restarts and stops it.

    starting → ready → (exit) → backoff → starting …      five crashes in five minutes → failed
    any state → (spec changed, removed, or restart asked) → stopping → starting, or gone

The task wakes on events (process exit, a new wish) and on its own timers; nothing else
touches the process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from . import client, logs, ports, proc
from .backoff import Backoff
from .engines import EngineKind, NotYet, Unsupported, kind_of
from .errors import EngineError
from .process import Process
from .records import Record
from .site import ANNOUNCE, MARK_ENGINE, MARK_STATE, Site
from .spec import Spec
from .vigil import SILENT_POLLS, Vigil
from .waker import Waker, Woken

log = logging.getLogger(__name__)

_PORT_TRIES = 5


class Keeper:
    """Keeps one engine until its spec is taken away."""

    def __init__(self, spec: Spec, site: Site, record: Record | None = None) -> None:
        self._spec: Spec | None = spec
        self._site = site
        self._kind: EngineKind = kind_of(spec.kind)
        self._running: Spec = spec
        self._process: Process | None = None
        self._record = record
        self._waker = Waker(self._check)
        self._restart_asked = False
        self._plain = False
        self._port = record.port if record else 0
        self._bad_ports: set[int] = set()
        self._version = record.version if record else ""
        self._backoff = Backoff(site.policy)
        self._ready_at: float | None = None
        self._loaded: list[dict[str, Any]] = []
        self._vigil: Vigil | None = None
        self._state = "starting"
        self._since_mono = self._started_mono = time.monotonic()
        self._retry_at: float | None = None
        self._error = ""
        self._log_tail: list[str] = []
        self._restarts = record.restarts if record else 0
        if record is not None:
            self._adopt(record)
        self.task = asyncio.ensure_future(self._run())

    # -- what others may ask

    @property
    def id(self) -> str:
        return self._running.id

    @property
    def spec(self) -> Spec:
        return self._running

    @property
    def wanted(self) -> Spec | None:
        """What should run; after the task ended: what was wanted again too late."""
        return self._spec

    @property
    def port(self) -> int:
        """Where it answers; 0 until it is ready."""
        return self._port if self._state == "ready" else 0

    @property
    def claimed_port(self) -> int:
        """Where it answers or will; 0 before its first start."""
        return self._port

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and not process.exited else None

    def want(self, spec: Spec | None) -> None:
        """Set the wish: another spec replaces the process, None ends it."""
        current = self._spec
        if current is not None and spec is not None and current.digest == spec.digest:
            self._spec = spec  # what the process does not depend on may differ
            return
        self._spec = spec
        self._waker.wake()

    def restart(self) -> None:
        """Start afresh now, whatever the state; forgets past crashes."""
        self._restart_asked = True
        self._waker.wake()

    def refresh(self) -> None:
        """Look now at what is loaded instead of at the next beat."""
        self._waker.wake()

    async def leave(self) -> None:
        """End the task and leave the process running for the next agent."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self._process is not None:
            self._process.release()

    def status(self) -> dict[str, Any]:
        """The engine as the console sees it."""
        spec = self._running
        loading = []
        if self._kind.runner and self._state == "starting" and spec.model is not None:
            mark = {"name": spec.model.name, "started_mono": self._started_mono, "progress": None}
            loading.append(mark)
        retry_at = self._retry_at
        return {
            "id": spec.id,
            "kind": spec.kind,
            "state": self._state,
            "devices": list(spec.devices),
            "address": f"127.0.0.1:{self._port}" if self._port and self.pid else "",
            "pid": self.pid,
            "version": self._version,
            "slots": spec.slots,
            "model": spec.model.name if spec.model else "",
            "loaded": list(self._loaded),
            "loading": loading,
            "restarts": self._restarts,
            "since_mono": self._since_mono,
            "retry_in_s": None if retry_at is None else max(0.0, retry_at - time.monotonic()),
            "error": self._error,
            "log_tail": list(self._log_tail),
            **self._kind.tells(self.pid),
            **(self._vigil.tells() if self._vigil and self._state == "ready" else {}),
        }

    # -- the task

    async def _run(self) -> None:
        while self._spec is not None:
            try:
                await self._turn()
            except Exception as error:
                # A full disk or a defect here must not leave an engine without a keeper,
                # nor start it again and again.
                log.exception("%s: supervision failed", self.id)
                await self._end()
                self._fail(f"supervision failed: {error}")
                await self._until_wished()
        self._site.free_port(self.id)

    async def _turn(self) -> None:
        """Have a process, follow it until something happens, and deal with that."""
        if self._process is None and not await self._launch():
            return
        with suppress(Woken):
            await self._watch()
        process = self._process
        if process is None:
            return
        if process.exited and not self._wished():
            self._died(process)
            await self._pause()
        else:
            self._set("stopping")
            log.info("%s: stopping pid %d", self.id, process.pid)
            await self._end()
            if self._restart_asked:
                self._forgive()

    def _wished(self) -> bool:
        """Whether the process should be replaced or ended."""
        spec = self._spec
        return self._restart_asked or spec is None or spec.digest != self._running.digest

    async def _launch(self) -> bool:
        """Start the process; False when it could not be (then it waited for a wish)."""
        spec = self._spec
        if spec is None:
            return False
        if spec.digest != self._running.digest:
            self._plain = False
        self._restart_asked = False
        self._running, self._kind = spec, kind_of(spec.kind)
        self._started_mono = time.monotonic()
        self._loaded, self._log_tail = [], []
        self._ready_at = None
        self._set("starting", self._error)
        state = self._site.state
        try:
            port = self._site.claim_port(spec.id, self._port, self._bad_ports)
            launch = await self._site.prepare(self._kind, spec, port, self._plain)
            path = state.log_path(spec.id)
            self._site.announce(path, launch.argv)
            env = {**launch.env, MARK_STATE: str(state.path), MARK_ENGINE: spec.id}
            process = Process.start(
                launch.argv, env, path, state.path, self._waker.wake, launch.ignores_sigpipe
            )
        except NotYet as error:
            log.info("%s: %s", spec.id, error.message)
            self._retry_at = time.monotonic() + self._site.policy.backoff_first_s
            self._set("backoff", error.message)
            await self._pause()
            return False
        except EngineError as error:
            self._fail(f"{error.message}; {error.hint}" if error.hint else error.message)
            await self._until_wished()
            return False
        self._port, self._process, self._version = port, process, launch.version
        self._record = Record(
            id=spec.id,
            pid=process.pid,
            starttime=process.starttime,
            boot_id=self._site.boot_id,
            port=port,
            spec_digest=spec.digest,
            argv=list(launch.argv),
            log=str(path),
            started_wall=time.time(),
            version=launch.version,
            restarts=self._restarts,
        )
        state.write(self._record)
        log.info("%s: started as pid %d on port %d", spec.id, process.pid, port)
        self._site.changed()
        return True

    def _adopt(self, record: Record) -> None:
        self._process = Process.adopt(record.pid, record.starttime, self._waker.wake)
        if self._process is not None:
            self._site.hold_port(record.id, record.port)
            # Another spec than it was started with: replace it, orderly.
            self._restart_asked = record.spec_digest != self._running.digest
            log.info("%s: adopted pid %d on port %d", record.id, record.pid, record.port)

    async def _watch(self) -> None:
        """Follow a started process until an event ends it; always leaves by Woken."""
        policy, process = self._site.policy, self._process
        if process is None:
            return
        while not await self._answers(process):
            timeout_s = self._kind.start_timeout_s(policy)
            if time.monotonic() - self._started_mono > timeout_s:
                await process.stop(self._kind.stop_grace_s(policy))
                self._error = f"did not answer within {timeout_s:g} s of its start"
                raise Woken
            await self._sleep(policy.ready_probe_s)
        self._ready_at = time.monotonic()
        self._bad_ports.clear()
        state = self._site.state
        vigil = Vigil(self._kind, self._running, self._port, policy, process.pid, state)
        self._vigil = vigil
        await vigil.begin()
        while True:
            try:
                loaded = await self._waker.race(vigil.look())
            except client.CallError as error:
                if vigil.silent == SILENT_POLLS:
                    self._set(self._state, f"does not answer: {error}")
            else:
                self._seen(loaded)
            if vigil.verdict:
                # What it computes for clients is lost already: they hear so when it ends.
                self._error = f"did not move: {vigil.verdict}"
                process.kill()
                await self._until_gone(process)
            await self._sleep(policy.poll_s)

    async def _until_gone(self, process: Process) -> None:
        while not process.exited:
            await self._waker.until(None)
        raise Woken

    async def _answers(self, process: Process) -> bool:
        """Whether the engine, and nobody else on its port, is ready."""
        try:
            version = await self._waker.race(self._kind.ready(self._running, self._port))
        except client.CallError:
            return False
        except Unsupported as error:
            if self._plain:
                raise EngineError(str(error)) from error
            log.warning("%s: %s: starting it without", self.id, error)
            self._plain = self._restart_asked = True
            raise Woken from error
        ours = proc.session_listens(process.pid, self._port)
        if ours is False:
            log.warning("%s: port %d belongs to another program", self.id, self._port)
            self._bad_ports.add(self._port)
            self._restart_asked = True
            raise Woken
        if version is None or ours is None:
            return False
        if version and version != self._version and self._record is not None:
            self._version = version
            self._record = replace(self._record, version=version)
            self._site.state.write(self._record)
        return True

    def _seen(self, loaded: list[dict[str, Any]]) -> None:
        # Every request moves `expires_at`: that alone is not worth a frame of its own.
        told = [{**m, "expires_at": ""} for m in loaded]
        changed = told != [{**m, "expires_at": ""} for m in self._loaded]
        self._loaded = loaded
        if self._state != "ready" or changed or self._error:
            self._set("ready")

    def _died(self, process: Process) -> None:
        """Account for a process that ended by itself."""
        policy, now = self._site.policy, time.monotonic()
        process.sweep()
        self._process = None
        self._loaded = []
        self._site.state.forget(self.id)
        taken = self._ready_at is None and not ports.is_free(self._port)
        if taken and len(self._bad_ports) < _PORT_TRIES:
            log.warning("%s: port %d was taken, trying another", self.id, self._port)
            self._bad_ports.add(self._port)
            self._retry_at = now
            return
        self._restarts += 1
        tail = logs.tail(self._site.state.log_path(self.id), policy.log_tail_lines)
        reason = self._error if self._error.startswith("did not") else ""
        reason = reason or proc.describe_exit(process.returncode)
        last = next((x for x in reversed(tail) if x.strip() and not x.startswith(ANNOUNCE)), "")
        error = f"{reason}: {last.strip()}" if last else reason
        log.warning("%s: %s", self.id, error)
        delay_s = self._backoff.crashed(now, self._ready_at)
        if delay_s is None and self._kind.never_gives_up:
            delay_s = policy.backoff_ceiling_s
        if delay_s is None:
            self._fail(f"crashed {self._backoff.crashes} times: {error}", tail)
            return
        self._log_tail = tail
        self._retry_at = now + delay_s
        self._set("backoff", error)

    async def _pause(self) -> None:
        """Wait out the back-off, or for ever when it failed; a wish ends both."""
        retry_at = self._retry_at
        if self._state == "failed":
            await self._until_wished()
        elif retry_at is not None:
            while not self._wished() and time.monotonic() < retry_at:
                await self._waker.until(retry_at - time.monotonic())
        if self._restart_asked:
            self._forgive()
        self._retry_at = None

    async def _until_wished(self) -> None:
        while not self._wished():
            await self._waker.until(None)
        self._forgive()

    def _forgive(self) -> None:
        self._backoff.forgive()
        self._error = ""

    async def _end(self) -> None:
        process = self._process
        if process is not None:
            await process.stop(self._kind.stop_grace_s(self._site.policy))
        self._process = None
        self._loaded = []
        self._site.state.forget(self.id)

    def _fail(self, error: str, tail: list[str] | None = None) -> None:
        self._log_tail = tail or []
        self._retry_at = None
        log.error("%s: %s", self.id, error)
        self._set("failed", error)

    def _set(self, state: str, error: str = "") -> None:
        if state != self._state:
            self._since_mono = time.monotonic()
        self._state, self._error = state, error
        self._site.changed()

    async def _sleep(self, seconds: float) -> None:
        """Raises Woken when the process ended or must be replaced."""
        await self._waker.until(seconds)
        self._check()

    def _check(self) -> None:
        process = self._process
        if process is None or process.exited or self._wished():
            raise Woken
