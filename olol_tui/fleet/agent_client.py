"""Talks to one agent: HTTP/1.1 with JSON over whatever road leads to its UNIX socket.

The road hands in an httpx transport (a UNIX socket here, an SSH channel for other
machines). A client is cheap: one per connection attempt. Every failure of the road is
`AgentUnreachable`; every refusal of the agent is a `NodeError` in the agent's own words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from olol_tui.errors import NodeError
from olol_tui.fleet.wire import (
    PROTOCOL,
    Engines,
    Frame,
    Generation,
    Hello,
    Holder,
    Inventory,
    LogLine,
    MeshKey,
    Models,
    Refusal,
    RoundTrips,
    Spec,
)

CALL_TIMEOUT_S = 10.0
INVENTORY_TIMEOUT_S = 30.0
"""Looking for engines runs their `--version`; reading a store opens every GGUF header."""
SILENCE_S = 10.0
"""A telemetry stream that beats every second and says nothing for so long is dead."""

_NOT_FOUND = 404
_T = TypeVar("_T")


class AgentUnreachable(NodeError):
    title = "The agent does not answer"


class HeldByOther(NodeError):
    """Another controller manages this node: it is read-only for us."""

    title = "The node is managed by another console"

    def __init__(self, node: str, holder: Holder, hint: str) -> None:
        super().__init__(f"{node} is managed by {holder.name}", hint=hint)
        self.holder = holder


class AgentClient:
    """One agent over one transport; an async context manager that closes it.

    Args:
        headers: who we are to the agent; see `identity`. Without them nothing can be changed
            while somebody manages the node.

    Raises, from every method:
        AgentUnreachable: the road is broken or the agent is silent.
        HeldByOther: another controller manages the engines.
        NodeError: the agent refused, with its reason.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        node: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._node = node
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://agent", timeout=CALL_TIMEOUT_S, headers=headers
        )

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def hello(self, timeout_s: float = CALL_TIMEOUT_S) -> Hello:
        hello = await self._call("GET", "/v1/hello", Hello, timeout_s=timeout_s)
        if hello.protocol != PROTOCOL:
            raise NodeError(
                f"the agent of {self._node} speaks protocol {hello.protocol}, "
                f"this program speaks {PROTOCOL}",
                hint="Use the same version of olol-tui that started the agent.",
            )
        return hello

    async def inventory(self) -> Inventory:
        return await self._call("GET", "/v1/inventory", Inventory, timeout_s=INVENTORY_TIMEOUT_S)

    async def models(
        self, files: Iterable[dict[str, str]], dirs: Iterable[str], store: str
    ) -> Models:
        """What the node can serve: the given files and directories, and its stores."""
        ask = {"files": list(files), "dirs": list(dirs), "store": store}
        return await self._call(
            "POST", "/v1/models", Models, body=ask, timeout_s=INVENTORY_TIMEOUT_S
        )

    async def shape(self, *, path: str = "", name: str = "", store: str = "") -> dict[str, Any]:
        """Facts of a GGUF's header, by its path or by a name in Ollama's store.

        For `models.shape.shape_of`; `layers` holds the paths of what belongs to the model.
        """
        ask = {"path": path, "name": name, "store": store}
        return await self._call("POST", "/v1/shape", dict, body=ask, timeout_s=INVENTORY_TIMEOUT_S)

    async def round_trips(self, targets: list[tuple[str, int]]) -> list[float | None]:
        """Seconds from the node to each host and port; None where it gets no answer."""
        body = {"targets": [{"host": host, "port": port} for host, port in targets]}
        reply = await self._call(
            "POST", "/v1/mesh/rtt", RoundTrips, body=body, timeout_s=INVENTORY_TIMEOUT_S
        )
        return list(reply.seconds)

    async def mesh_key(self) -> str:
        """The public key with which heads on this node reach workers elsewhere.

        Raises:
            NodeError: it cannot be made there.
        """
        reply = await self._call("POST", "/v1/mesh/key", MeshKey, timeout_s=INVENTORY_TIMEOUT_S)
        return reply.public_key

    async def engines(self) -> Engines:
        return await self._call("GET", "/v1/engines", Engines)

    async def put_engines(self, generation: int, specs: Iterable[Spec]) -> int:
        """Make the whole desired list so; returns the generation the agent then works on."""
        wanted = {"generation": generation, "engines": [_spec_body(spec) for spec in specs]}
        reply = await self._call("PUT", "/v1/engines", Generation, body=wanted)
        return reply.generation

    async def claim(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Manage this node's engines from now on, or go on doing so.

        Raises:
            HeldByOther: another controller does.
        """
        try:
            await self._call("POST", "/v1/claim", dict, timeout_s=timeout_s)
        except _NoSuchRoute:
            return  # An agent from before there were leases.

    async def release(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Manage them no more: another controller may, at once."""
        try:
            await self._call("POST", "/v1/release", dict, timeout_s=timeout_s)
        except _NoSuchRoute:
            return

    async def restart(self, engine_id: str) -> None:
        await self._call("POST", f"/v1/engines/{quote(engine_id, safe='')}/restart", dict)

    async def shutdown(self, *, stop_engines: bool, timeout_s: float = 30.0) -> None:
        """Ask the agent to end. Returns when it agreed, which is before it is gone."""
        body = {"engines": "stop" if stop_engines else "keep"}
        await self._call("POST", "/v1/shutdown", dict, body=body, timeout_s=timeout_s)

    async def telemetry(self, hz: float = 1.0) -> AsyncIterator[Frame]:
        """Frames, one a beat and one on every change, until the stream ends."""
        decoder = msgspec.json.Decoder(Frame)
        path = f"/v1/telemetry/stream?hz={hz:g}"
        async with self._stream(path, silence_s=max(SILENCE_S, 3 / hz)) as lines:
            async for line in lines:
                try:
                    yield decoder.decode(line)
                except msgspec.MsgspecError as error:
                    raise AgentUnreachable(
                        f"the telemetry of {self._node} cannot be read: {error}"
                    ) from error

    async def logs(self, engine_id: str, *, tail: int, follow: bool = True) -> AsyncIterator[str]:
        """The last lines of an engine's log (of the agent's own for ""), then live ones."""
        path = f"/v1/engines/{quote(engine_id, safe='')}/logs" if engine_id else "/v1/logs"
        decoder = msgspec.json.Decoder(LogLine)
        # A quiet log is no dead stream: no silence limit.
        async with self._stream(
            f"{path}?tail={tail}&follow={int(follow)}", silence_s=None
        ) as lines:
            async for line in lines:
                yield decoder.decode(line).line

    async def _call(
        self,
        method: str,
        path: str,
        reply: type[_T],
        *,
        body: Any = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> _T:
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if content is not None else {}
        try:
            response = await self._http.request(
                method, path, content=content, headers=headers, timeout=timeout_s
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise self._refused(response.status_code, response.content)
        try:
            return msgspec.json.decode(response.content or b"{}", type=reply)
        except msgspec.MsgspecError as error:
            raise NodeError(
                f"the agent of {self._node} answered {path} with something else: {error}"
            ) from error

    @asynccontextmanager
    async def _stream(
        self, path: str, *, silence_s: float | None
    ) -> AsyncIterator[AsyncIterator[str]]:
        timeout = httpx.Timeout(CALL_TIMEOUT_S, read=silence_s)
        try:
            async with self._http.stream("GET", path, timeout=timeout) as response:
                if response.is_error:
                    raise self._refused(response.status_code, await response.aread())
                yield response.aiter_lines()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> AgentUnreachable:
        what = "is silent" if isinstance(error, httpx.TimeoutException) else "does not answer"
        detail = str(error) or type(error).__name__
        return AgentUnreachable(f"the agent of {self._node} {what} ({detail})")

    def _refused(self, status: int, content: bytes) -> NodeError:
        try:
            refusal = msgspec.json.decode(content, type=Refusal)
        except msgspec.MsgspecError:
            text = content.decode(errors="replace").strip()
            return NodeError(f"the agent of {self._node} answered {status}: {text[:200]}")
        problem = refusal.error
        if refusal.held_by is not None:
            return HeldByOther(self._node, refusal.held_by, problem.hint)
        kind = _NoSuchRoute if status == _NOT_FOUND else NodeError
        return kind(
            problem.message or f"the agent of {self._node} answered {status}",
            hint=problem.hint,
            title=problem.title or None,
        )


class _NoSuchRoute(NodeError):
    """The agent has no such path, or no such thing."""


def _spec_body(spec: Spec) -> dict[str, Any]:
    """Without what is unset: the agent's own defaults hold."""
    body: dict[str, Any] = msgspec.to_builtins(spec)
    return body
