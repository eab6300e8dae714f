"""A core in another process of this machine, reached over its control socket.

Reads are one stream of snapshots that heals itself; wishes are single calls that fail at
once when nobody answers. Never starts anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import httpx
import msgspec

from olol_tui.errors import LinkError, OlolError
from olol_tui.fleet.commands import Accepted, AnyCommand, encode_command
from olol_tui.fleet.snapshot import Alert, Fleet, decode
from olol_tui.paths import Paths
from olol_tui.unixhttp import UnixTransport

CALL_TIMEOUT_S = 30.0
"""A command is accepted or refused at once; a busy machine may still take a while."""
SILENCE_S = 15.0
"""The core publishes every second; so long without a snapshot is a dead connection."""
_RETRY_FIRST_S = 0.2
_RETRY_MAX_S = 2.0
_HINT = "Start one: olol-tui --serve"


class _Refusal(msgspec.Struct):
    title: str = ""
    message: str = ""
    hint: str = ""


class _Refused(msgspec.Struct):
    error: _Refusal


class _LogLine(msgspec.Struct):
    line: str = ""
    error: str = ""


def find_running(paths: Paths) -> bool:
    """Whether a core of this state directory accepts connections now."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(paths.control_socket))
        except OSError:
            return False
    return True


class RemoteLink:
    """`link.Link` over a control socket; an async context manager.

    Entering fetches the first snapshot, leaving ends the stream. Between the two `fleet`
    is always the latest known: while the core is gone it stays, marked stale and with an
    alert, until the core is back.

    Raises, on entering:
        LinkError: nobody answers at the socket.
    """

    def __init__(self, control_socket: Path) -> None:
        self._socket = control_socket
        self._http = httpx.AsyncClient(
            transport=UnixTransport(control_socket),
            base_url="http://localhost",
            timeout=CALL_TIMEOUT_S,
            trust_env=False,
        )
        self._fleet = Fleet()
        self._connected = False
        self._changed = asyncio.Event()
        """Set, and replaced by a new one, at every snapshot."""
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RemoteLink:
        try:
            await self._fetch()
        except BaseException:
            await self._http.aclose()
            raise
        self._watching = asyncio.create_task(self._watch(), name="watch the core")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._http.aclose()

    @property
    def fleet(self) -> Fleet:
        return self._fleet

    @property
    def embedded(self) -> bool:
        return False

    @property
    def connected(self) -> bool:
        """False while the core is gone and `fleet` is what was last known."""
        return self._connected

    async def changes(self) -> AsyncIterator[Fleet]:
        """The present snapshot, then every new one; slow readers skip to the latest."""
        while True:
            changed = self._changed
            yield self._fleet
            await changed.wait()

    async def submit(self, command: AnyCommand) -> Accepted:
        reply = await self._call("POST", "/olol/v1/commands", encode_command(command))
        return msgspec.json.decode(reply, type=Accepted)

    async def fit(self, model: str, ctx: int | None, slots: int | None, cache_type: str) -> bytes:
        """What a model takes and where it fits: a `placement.report.Report` as JSON."""
        asked = {"model": model, "ctx": ctx or 0, "slots": slots or 0, "cache_type": cache_type}
        return await self._call("GET", f"/olol/v1/fit?{urlencode(asked)}")

    async def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        """Ends when the core ends the stream; LinkError when it is cut."""
        params = {"node": node, "engine": engine, "tail": str(tail), "follow": "1"}
        timeout = httpx.Timeout(CALL_TIMEOUT_S, read=None)
        try:
            async with self._http.stream(
                "GET", "/olol/v1/logs", params=params, timeout=timeout
            ) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread())
                async for lines in _batches(response):
                    for line in lines:
                        entry = msgspec.json.decode(line, type=_LogLine)
                        if entry.error:
                            raise LinkError(entry.error)
                        yield entry.line
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    async def _fetch(self) -> None:
        raw = await self._call("GET", "/olol/v1/fleet")
        try:
            fleet = decode(raw)
        except msgspec.MsgspecError as error:
            raise LinkError(
                f"the core at {self._socket} sends a snapshot this version cannot read: {error}",
                hint="Restart it with the same version of olol-tui as this one.",
            ) from error
        self._publish(fleet, connected=True)

    async def _call(self, method: str, path: str, content: bytes | None = None) -> bytes:
        try:
            response = await self._http.request(
                method, path, content=content, headers={"content-type": "application/json"}
            )
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        if response.status_code != 200:
            raise _refusal(response.status_code, response.content)
        return response.content

    async def _watch(self) -> None:
        """Follow the core for ever; a stream that ends or stalls is opened anew."""
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                async for fleet in self._snapshots():
                    self._publish(fleet, connected=True)
                    retry_s = _RETRY_FIRST_S
                reason = "it closed the stream"
            except (httpx.HTTPError, msgspec.MsgspecError, OlolError) as error:
                reason = str(error) or type(error).__name__
            if self._connected:
                self._publish(_stale(self._fleet, reason), connected=False)
            # Jitter: several consoles must not come back in step.
            await asyncio.sleep(retry_s * random.uniform(0.8, 1.2))
            retry_s = min(retry_s * 2, _RETRY_MAX_S)

    async def _snapshots(self) -> AsyncIterator[Fleet]:
        timeout = httpx.Timeout(CALL_TIMEOUT_S, read=SILENCE_S)
        async with self._http.stream(
            "GET", "/olol/v1/fleet", params={"watch": "1"}, timeout=timeout
        ) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread())
            async for lines in _batches(response):
                yield decode(lines[-1])

    def _publish(self, fleet: Fleet, *, connected: bool) -> None:
        self._fleet, self._connected = fleet, connected
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _lost(self, error: httpx.HTTPError) -> LinkError:
        if isinstance(error, httpx.ConnectError):
            return LinkError(f"no olol-tui answers at {self._socket}", hint=_HINT)
        return LinkError(
            f"the core at {self._socket} broke off: {str(error) or type(error).__name__}",
            hint="See whether it still runs: olol-tui status",
        )


async def _batches(response: httpx.Response) -> AsyncIterator[list[bytes]]:
    """The whole lines of an NDJSON stream, as many together as have arrived."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        if lines := [line for line in lines if line.strip()]:
            yield lines


def _stale(fleet: Fleet, reason: str) -> Fleet:
    alert = Alert(
        severity="critical",
        where="core",
        message=f"connection lost ({reason}); trying again",
        since_s=fleet.now_s,
    )
    nodes = tuple(replace(node, stale=True) for node in fleet.nodes)
    return replace(fleet, nodes=nodes, alerts=(*fleet.alerts, alert))


def _refusal(status: int, body: bytes) -> OlolError:
    """The error of the core again, as the class it was."""
    try:
        told = msgspec.json.decode(body, type=_Refused).error
    except msgspec.MsgspecError:
        text = body[:200].decode(errors="replace").strip()
        return LinkError(f"the core answered {status}: {text or 'nothing'}")
    kinds = {kind.title: kind for kind in OlolError.__subclasses__()}
    kind = kinds.get(told.title, OlolError)
    return kind(told.message, hint=told.hint, title=told.title or None)
