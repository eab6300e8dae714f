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
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Awaitable, Callable, TypeVar

from . import client, logs, ports, proc
from .engines import Context, EngineKind, kind_of
from .errors import EngineError
from .process import Process
from .records import Record, State
from .spec import Policy, Spec

log = logging.getLogger(__name__)

_PORT_TRIES = 5
_SILENT_POLLS = 3
"""Unanswered polls after which a ready engine is said not to answer."""

MARK_STATE = "OLOL_AGENT_STATE"
"""Environment of every engine: whose it is, also when its record was never written."""
MARK_ENGINE = "OLOL_ENGINE"

_T = TypeVar("_T")


class Site:
    """What all keepers of an agent share."""

    def __init__(
        self,
        state: State,
        policy: Policy,
        context: Callable[[], Context],
        changed: Callable[[], None],
    ) -> None:
        self.state = state
        self.policy = policy
        self.context = context
        self.changed = changed
        self.boot_id = proc.boot_id()
        self.ports: dict[int, str] = {}
        """Ports given to engines, whether they listen yet or not."""

    def claim_port(self, identity: str, prefer: int, avoid: set[int]) -> int:
        taken = {port for port, owner in self.ports.items() if owner != identity}
        self.free_port(identity)
        port = ports.choose(str(self.state.path), taken | avoid, prefer)
        self.ports[port] = identity
        return port

    def free_port(self, identity: str) -> None:
        for port in [p for p, owner in self.ports.items() if owner == identity]:
            del self.ports[port]


class _Woken(Exception):
    """The process ended or a wish arrived while something was awaited."""


class Keeper:
    """Keeps one engine until its spec is taken away."""

    def __init__(self, spec: Spec, site: Site, record: Record | None = None) -> None:
        self._spec: Spec | None = spec
        self._site = site
        self._kind: EngineKind = kind_of(spec.kind)
        self._running: Spec = spec
        self._process: Process | None = None
        self._wake = asyncio.Event()
        self._restart_asked = False
        self._port = record.port if record else 0
        self._bad_ports: set[int] = set()
        self._version = record.version if record else ""
        self._crashes: deque[float] = deque()
        self._delay_s = site.policy.backoff_first_s
        self._ready_at: float | None = None
        self._loaded: list[dict[str, Any]] = []
        self._state = "starting"
        self._since_mono = time.monotonic()
        self._started_mono = self._since_mono
        self._retry_at: float | None = None
        self._error = ""
        self._log_tail: list[str] = []
        self.restarts = record.restarts if record else 0
        if record is not None:
            self._adopt(record)
        self.task = asyncio.ensure_future(self._run())

    # -- what others may ask

    @property
    def id(self) -> str:
        return self._running.id

    @property
    def port(self) -> int:
        """Where it answers; 0 until it is ready."""
        return self._port if self._state == "ready" else 0

    @property
    def spec(self) -> Spec:
        return self._running

    @property
    def wanted(self) -> Spec | None:
        """What should run; not None after the task ended: it was wanted again too late."""
        return self._spec

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and not process.exited else None

    def want(self, spec: Spec | None) -> None:
        """Set the wish: another spec replaces the process, None ends it."""
        current = self._spec
        if current is not None and spec is not None and current.digest == spec.digest:
            return
        self._spec = spec
        self._wake.set()

    def restart(self) -> None:
        """Start afresh now, whatever the state; forgets past crashes."""
        self._restart_asked = True
        self._wake.set()

    def refresh(self) -> None:
        """Look now at what is loaded instead of at the next beat."""
        self._wake.set()

    async def leave(self) -> None:
        """End the task and leave the process running for the next agent."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self._process is not None:
            self._process.release()

    def status(self) -> dict[str, Any]:
        """STATUS of the contract."""
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
            "restarts": self.restarts,
            "since_mono": self._since_mono,
            "retry_in_s": None if retry_at is None else max(0.0, retry_at - time.monotonic()),
            "error": self._error,
            "log_tail": list(self._log_tail),
        }

    # -- the task

    async def _run(self) -> None:
        while self._spec is not None:
            if self._process is None and not await self._launch():
                continue
            with suppress(_Woken):
                await self._watch()
            process = self._process
            if process is None:
                continue
            if process.exited and not self._wished():
                self._died(process)
                await self._pause()
            else:
                await self._stop(process)
        self._site.state.forget(self.id)
        self._site.free_port(self.id)

    def _wished(self) -> bool:
        """Whether the process should be replaced or ended."""
        spec = self._spec
        return self._restart_asked or spec is None or spec.digest != self._running.digest

    async def _launch(self) -> bool:
        """Start the process; False when it could not be (then it waited for a wish)."""
        spec = self._spec
        if spec is None:
            return False
        self._restart_asked = False
        self._running, self._kind = spec, kind_of(spec.kind)
        self._started_mono = time.monotonic()
        self._loaded, self._log_tail = [], []
        self._ready_at = None
        self._set("starting", self._error)
        state = self._site.state
        try:
            port = self._site.claim_port(spec.id, self._port, self._bad_ports)
            launch = self._kind.launch(spec, port, self._site.context())
            path = state.log_path(spec.id)
            _announce(path, launch.argv)
            env = {**launch.env, MARK_STATE: str(state.path), MARK_ENGINE: spec.id}
            process = Process.start(launch.argv, env, path, state.path, self._wake.set)
        except EngineError as error:
            self._fail(f"{error.message}; {error.hint}" if error.hint else error.message)
            await self._until_wished()
            return False
        self._port, self._process, self._version = port, process, launch.version
        self._write_record(list(launch.argv))
        log.info("%s: started as pid %d on port %d", spec.id, process.pid, port)
        self._site.changed()
        return True

    def _adopt(self, record: Record) -> None:
        self._process = Process.adopt(record.pid, record.starttime, self._wake.set)
        if self._process is not None:
            self._site.ports[record.port] = record.id
            # Another spec than it was started with: replace it, orderly.
            self._restart_asked = record.spec_digest != self._running.digest
            log.info("%s: adopted pid %d on port %d", record.id, record.pid, record.port)

    async def _watch(self) -> None:
        """Follow a started process until an event ends it; always leaves by _Woken."""
        policy, process = self._site.policy, self._process
        if process is None:
            return
        deadline = self._started_mono + self._kind.start_timeout_s(policy)
        while not await self._answers(process):
            if time.monotonic() > deadline:
                timeout_s = self._kind.start_timeout_s(policy)
                self._error = f"did not answer within {timeout_s:g} s of its start"
                await process.stop(policy.stop_grace_s)
                raise _Woken
            await self._sleep(policy.ready_probe_s)
        self._ready_at = time.monotonic()
        self._bad_ports.clear()
        silent = 0
        while True:
            try:
                loaded = await self._race(self._kind.loaded(self._running, self._port))
            except client.CallError as error:
                silent += 1
                if silent == _SILENT_POLLS:
                    self._set(self._state, f"does not answer: {error}")
            else:
                silent = 0
                self._seen(loaded)
            await self._sleep(policy.poll_s)

    async def _answers(self, process: Process) -> bool:
        """Whether the engine, and nobody else on its port, is ready."""
        try:
            version = await self._race(self._kind.ready(self._port))
        except client.CallError:
            return False
        ours = proc.session_listens(process.pid, self._port)
        if ours is False:
            log.warning("%s: port %d belongs to another program", self.id, self._port)
            self._bad_ports.add(self._port)
            self._restart_asked = True
            raise _Woken
        if version is None or ours is None:
            return False
        if version and version != self._version:
            self._version = version
            self._write_record(None)
        return True

    def _seen(self, loaded: list[dict[str, Any]]) -> None:
        self._crash_free()
        if self._state != "ready":
            self._loaded = loaded
            self._set("ready")
        elif loaded != self._loaded or self._error:
            self._loaded, self._error = loaded, ""
            self._site.changed()

    def _crash_free(self) -> None:
        """After a healthy while the next crash is the first again."""
        healthy_s = self._site.policy.healthy_after_s
        if self._ready_at is not None and time.monotonic() - self._ready_at >= healthy_s:
            self._delay_s = self._site.policy.backoff_first_s

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
        self.restarts += 1
        tail = logs.tail(self._site.state.log_path(self.id), policy.log_tail_lines)
        reason = self._error if self._error.startswith("did not") else ""
        reason = reason or proc.describe_exit(process.returncode)
        words = [line for line in tail if not line.startswith(_ANNOUNCE)]
        error = f"{reason}: {words[-1].strip()}" if words else reason
        log.warning("%s: %s", self.id, error)
        self._crash_free()
        self._crashes.append(now)
        while self._crashes and now - self._crashes[0] > policy.crash_window_s:
            self._crashes.popleft()
        self._log_tail = tail
        if len(self._crashes) >= policy.crash_limit:
            self._fail(f"crashed {len(self._crashes)} times: {error}", tail)
            return
        self._retry_at = now + self._delay_s
        self._delay_s = min(policy.backoff_max_s, self._delay_s * 2)
        self._set("backoff", error)

    async def _pause(self) -> None:
        """Wait out the back-off, or for ever when it failed; a wish ends both."""
        retry_at = self._retry_at
        if self._state == "failed":
            await self._until_wished()
        elif retry_at is not None:
            while not self._wished():
                left_s = retry_at - time.monotonic()
                if left_s <= 0:
                    break
                await self._until_wake(left_s)
        if self._restart_asked:
            self._forgive()
        self._retry_at = None

    async def _until_wished(self) -> None:
        while not self._wished():
            await self._until_wake(None)
        self._forgive()

    def _forgive(self) -> None:
        self._crashes.clear()
        self._delay_s = self._site.policy.backoff_first_s
        self._error = ""

    async def _stop(self, process: Process) -> None:
        self._set("stopping")
        log.info("%s: stopping pid %d", self.id, process.pid)
        await process.stop(self._site.policy.stop_grace_s)
        self._process = None
        self._loaded = []
        self._site.state.forget(self.id)
        if self._restart_asked:
            self._forgive()

    def _fail(self, error: str, tail: list[str] | None = None) -> None:
        self._log_tail = tail or []
        self._retry_at = None
        log.error("%s: %s", self.id, error)
        self._set("failed", error)

    # -- small parts

    def _set(self, state: str, error: str = "") -> None:
        if state != self._state:
            self._since_mono = time.monotonic()
        self._state, self._error = state, error
        self._site.changed()

    def _write_record(self, argv: list[str] | None) -> None:
        process = self._process
        if process is None:
            return
        known = self._site.state.records().get(self.id) if argv is None else None
        self._site.state.write(
            Record(
                id=self.id,
                pid=process.pid,
                starttime=process.starttime,
                boot_id=self._site.boot_id,
                port=self._port,
                spec_digest=self._running.digest,
                argv=argv if argv is not None else (known.argv if known else []),
                log=str(self._site.state.log_path(self.id)),
                started_wall=known.started_wall if known else time.time(),
                version=self._version,
                restarts=self.restarts,
            )
        )

    async def _until_wake(self, timeout_s: float | None) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        except asyncio.TimeoutError:
            return
        self._wake.clear()

    async def _sleep(self, seconds: float) -> None:
        """Raises _Woken when the process ended or must be replaced."""
        await self._until_wake(seconds)
        self._check()

    def _check(self) -> None:
        process = self._process
        if process is None or process.exited or self._wished():
            raise _Woken

    async def _race(self, call: Awaitable[_T]) -> _T:
        """The result of a call to the engine, or _Woken as soon as that became pointless."""
        task = asyncio.ensure_future(call)
        try:
            while not task.done():
                wake = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait({task, wake}, return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                self._wake.clear()
                self._check()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


_ANNOUNCE = "olol-agent: "


def _announce(path: Path, argv: tuple[str, ...]) -> None:
    """Mark a start in the engine's log, so that crashes can be told apart."""
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{_ANNOUNCE}{stamp} starting {' '.join(argv)[:500]}\n")
