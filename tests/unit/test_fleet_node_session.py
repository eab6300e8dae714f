"""A node session against an agent that the test plays: refusals, versions, hiccups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import msgspec
import pytest

from olol_tui.config import NodeConfig
from olol_tui.errors import NodeError, OlolError
from olol_tui.fleet import node_session, steering
from olol_tui.fleet.identity import Identity
from olol_tui.fleet.node_session import Library, NodeSession
from olol_tui.fleet.road import Factory, NotProvisioned, RoadFacts
from olol_tui.fleet.snapshot import Node, ProvisionStep
from olol_tui.fleet.wishes import Launch, Wishes

GPUS = [{"uuid": f"GPU-{n}", "index": n, "name": "RTX", "vendor": "nvidia"} for n in range(2)]


class PlayedAgent(httpx.AsyncBaseTransport):
    """Answers as an agent would, from what the test puts into its fields."""

    def __init__(self) -> None:
        self.protocol = 1
        self.devices = GPUS
        self.kinds: dict[str, Any] = {"embedded": {"version": "1"}}
        self.errors: list[str] = []
        self.puts: list[list[str]] = []
        self.refuses = ""
        """A part of an engine id that makes the whole list unacceptable."""
        self.telemetry = asyncio.Event()
        """Set: the stream ends."""
        self.beat = asyncio.Event()
        """Set: the stream has another frame."""
        self.held_by = ""
        self.claims: list[str] = []
        self.released = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = msgspec.json.decode(await request.aread() or b"{}")
        match request.method, request.url.path:
            case "GET", "/v1/hello":
                return self._json({"protocol": self.protocol, "version": "9", "boot_id": "b"})
            case "GET", "/v1/inventory":
                return self._json(
                    {"devices": self.devices, "engines": self.kinds, "errors": self.errors}
                )
            case "POST", "/v1/models":
                return self._json({"models": [{"name": "m:1", "path": "/m.gguf"}], "errors": []})
            case "GET", "/v1/engines":
                return self._json({"generation": 4, "engines": []})
            case "PUT", "/v1/engines":
                ids = [spec["id"] for spec in body["engines"]]
                self.puts.append(ids)
                if self.refuses and any(self.refuses in one for one in ids):
                    problem = {"title": "Bad", "message": "unknown device", "hint": ""}
                    return self._json({"error": problem}, 400)
                return self._json({"generation": body["generation"]})
            case "GET", "/v1/telemetry/stream":
                return httpx.Response(200, stream=_Frames(self))
            case "POST", "/v1/claim":
                if self.held_by:
                    return self._json(
                        {"error": {"message": "no"}, "held_by": {"name": self.held_by}}, 409
                    )
                self.claims.append(request.headers.get("x-olol-controller", ""))
                return self._json({})
            case "POST", "/v1/release":
                self.released = True
                return self._json({})
        return self._json({"error": {"message": "no such path"}}, 404)

    def _json(self, content: object, status: int = 200) -> httpx.Response:
        return httpx.Response(status, content=msgspec.json.encode(content))


class _Frames(httpx.AsyncByteStream):
    def __init__(self, agent: PlayedAgent) -> None:
        self._agent = agent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        agent = self._agent
        while not agent.telemetry.is_set():
            holder = {"id": "x", "name": agent.held_by} if agent.held_by else None
            frame = {
                "seq": 1, "t_mono": 5.0, "devices": agent.devices, "engines": [],
                "controller": holder,
            }  # fmt: skip
            agent.beat.clear()
            yield msgspec.json.encode(frame) + b"\n"
            waits = [asyncio.ensure_future(e.wait()) for e in (agent.beat, agent.telemetry)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()


class PlayedRoad:
    kind: Literal["local", "ssh"] = "ssh"
    facts = RoadFacts(host="ops@gpu1.lan")

    def __init__(self, agent: PlayedAgent) -> None:
        self.agent = agent
        self.broken: OlolError | None = None
        """Nothing travels."""
        self.refused: OlolError | None = None
        """The link is up, and the agent cannot be had."""
        self._changed: Callable[[], None] = lambda: None
        self._news = asyncio.Event()

    def set(self, *, broken: str = "", refused: OlolError | None = None) -> None:
        self.broken = NodeError(broken) if broken else None
        self.refused = refused
        self._news.set()
        self._changed()

    @property
    def problem(self) -> OlolError | None:
        return self.broken

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    async def lost(self) -> OlolError:
        while self.broken is None:
            self._news.clear()
            await self._news.wait()
        return self.broken

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        raise ConnectionRefusedError(address)

    async def aclose(self) -> None:
        self.set(broken="closed")

    async def ensure_agent(self) -> None:
        if error := self.broken or self.refused:
            raise error

    def agent_transport(self) -> httpx.AsyncBaseTransport:
        return self.agent

    def engine_transport(self) -> httpx.AsyncBaseTransport:
        return self.agent

    async def gone(self, timeout_s: float) -> bool:
        return True


class Session:
    """A running session, and a wait for what it comes to know."""

    def __init__(self, config: NodeConfig) -> None:
        self.agent = PlayedAgent()
        self.road = PlayedRoad(self.agent)
        self.wishes = Wishes()
        self.session = NodeSession(
            "n1",
            config,
            self.road,
            wishes=self.wishes,
            library=Library(),
            clock=time.monotonic,
            changed=lambda: None,
            expires_at=lambda _: "",
            identity=Identity("ops-console-17", "ops@laptop"),
        )

    @property
    def node(self) -> Node:
        return self.session.view(time.monotonic())

    async def until(self, condition: Any) -> Node:
        async with asyncio.timeout(20):
            while not condition(self.node):
                await asyncio.sleep(0.01)
        return self.node

    def launch(self, model: str, device: str = "GPU-0") -> str:
        engine_id = f"n1/embedded-{device}-{model}"
        self.wishes.add_launch(
            Launch(
                engine_id=engine_id, node="n1", kind="embedded", device=device, model=model,
                path="/m.gguf",
            )
        )  # fmt: skip
        self.session.replan()
        return engine_id


@asynccontextmanager
async def running(**config: Any) -> AsyncIterator[Session]:
    session = Session(NodeConfig.model_validate({"local": True, **config}))
    task = asyncio.create_task(session.session.run())
    try:
        yield session
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_refused_launch_is_shown_and_does_not_hold_up_the_others() -> None:
    async with running() as session:
        await session.until(lambda node: node.state == "ready")
        good = session.launch("good")
        await session.until(lambda _: [good] in session.agent.puts)
        session.agent.refuses = "bad"
        bad = session.launch("bad")
        node = await session.until(lambda n: any(e.state == "failed" for e in n.engines))
        assert {e.id: e.state for e in node.engines} == {good: "starting", bad: "failed"}
        assert next(e.error for e in node.engines if e.id == bad) == "unknown device"
        assert session.wishes.launch_of(bad) is None
        other = session.launch("other")
        await session.until(lambda _: session.agent.puts[-1] == [good, other])
        assert session.node.state == "ready"


async def test_generations_go_on_from_where_the_agent_stands() -> None:
    async with running(engine="ollama", binary="/opt/ollama") as session:
        await session.until(lambda _: session.agent.puts)
        assert session.agent.puts == [["n1/ollama-gpu0", "n1/ollama-gpu1"]]


async def test_engines_that_cannot_be_planned_are_not_stopped() -> None:
    async with running() as session:
        session.agent.kinds = {}
        node = await session.until(lambda n: n.state == "ready")
        assert "No engine was found" in node.error
        await asyncio.sleep(0.05)
        assert session.agent.puts == []


async def test_devices_missing_beside_a_driver_error_keep_their_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_session, "SURVEY_EVERY_S", 0.02)
    async with running(engine="ollama", binary="/opt/ollama") as session:
        await session.until(lambda _: session.agent.puts)
        session.agent.devices, session.agent.errors = GPUS[:1], ["NVML: driver mismatch"]
        await asyncio.sleep(0.2)
        assert len(session.agent.puts) == 1
        session.agent.errors = []
        await session.until(lambda _: session.agent.puts[-1] == ["n1/ollama-gpu0"])


async def test_an_agent_of_another_protocol_is_a_sentence() -> None:
    async with running() as session:
        session.agent.protocol = 7
        node = await session.until(lambda n: n.state == "failed")
        assert "speaks protocol 7" in node.error
        session.agent.protocol = 1
        assert not (await session.until(lambda n: n.state == "ready")).error


async def test_a_lost_node_keeps_what_is_known_and_rejoins() -> None:
    async with running() as session:
        await session.until(lambda n: n.state == "ready")
        session.road.set(broken="the road is closed")
        # In the same moment: no request may be sent into the void.
        node = session.node
        assert (node.state, node.error) == ("lost", "the road is closed")
        assert len(node.devices) == 2 and [m.name for m in node.library] == ["m:1"]
        await asyncio.sleep(0.05)
        session.road.set()
        await session.until(lambda n: n.state == "ready" and not n.error)
        with pytest.raises(NodeError, match="no such path"):
            await session.session.restart("n1/x")


async def test_engines_go_on_without_an_agent_while_the_road_holds() -> None:
    """Requests reach them: a dead agent is no reason to stop sending."""
    async with running() as session:
        await session.until(lambda n: n.state == "ready")
        dead = NodeError("no room for its log")
        session.road.set(refused=dead)
        session.agent.telemetry.set()
        node = await session.until(lambda n: n.error == "no room for its log")
        assert node.state == "ready"
        session.road.set(broken="the road is closed", refused=dead)
        assert session.node.state == "lost"
        session.road.set(refused=dead)
        node = await session.until(lambda n: n.error == "no room for its log")
        assert node.state == "lost", "who knows what runs there after the line was cut"
        session.agent.telemetry.clear()
        session.road.set()
        session.session.try_now()
        await session.until(lambda n: n.state == "ready" and not n.error)


async def test_a_node_from_which_everything_was_taken_is_forgotten() -> None:
    async with running() as session:
        await session.until(lambda n: n.state == "ready")
        session.session.show_steps((ProvisionStep("agent", "done"),))
        session.road.set(refused=NotProvisioned("nothing is there", hint="P provisions it"))
        session.agent.telemetry.set()
        node = await session.until(lambda n: n.state == "failed")
        assert not node.devices and not node.library and not node.engines
        assert not node.steps, "what was done there is no more"
        assert node.hint == "P provisions it"


async def test_only_one_controller_steers() -> None:
    async with running(engine="ollama", binary="/opt/ollama") as session:
        session.agent.held_by = "eve@desk"
        node = await session.until(lambda n: n.managed_by and n.state == "ready")
        assert node.managed_by.startswith("eve@desk since ")
        assert node.devices and not node.engines
        assert session.agent.puts == []
        session.agent.held_by = ""
        session.agent.beat.set()
        await session.until(lambda n: not n.managed_by)
        await session.until(lambda _: session.agent.puts)
        ids = [engine.id for engine in session.node.engines]
        assert ids == ["n1/ollama-gpu0", "n1/ollama-gpu1"]


async def test_what_another_controller_did_meanwhile_is_put_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steering, "CLAIM_EVERY_S", 0.02)
    async with running(engine="ollama", binary="/opt/ollama") as session:
        await session.until(lambda _: session.agent.puts)
        session.agent.held_by = "eve@desk"
        await session.until(lambda n: n.managed_by)
        session.session.replan()
        await asyncio.sleep(0.1)
        assert len(session.agent.puts) == 1
        session.agent.held_by = ""
        await session.until(lambda _: len(session.agent.puts) == 2)
        assert session.agent.claims[-1] == "ops-console-17 ops@laptop"


async def test_leaving_frees_the_node_for_the_next_one() -> None:
    async with running() as session:
        await session.until(lambda _: session.agent.claims)
        await session.session.release()
        assert session.agent.released


async def test_roles_reach_the_agent_and_the_screen() -> None:
    config = {"engine": "ollama", "binary": "/opt/ollama", "roles": {"1": "rpc", "7": "off"}}
    async with running(**config) as session:
        node = await session.until(lambda n: n.state == "ready")
        await session.until(lambda _: session.agent.puts == [["n1/ollama-gpu0"]])
        assert [(d.role, d.note) for d in node.devices] == [
            ("ollama", ""),
            ("rpc", "reserved for llama.cpp RPC"),
        ]
        assert "roles names 7, and this node has 0 (GPU-0), 1 (GPU-1)" in node.error
        assert "gpu1 is for splits (role rpc), but there is no ggml-rpc-server" in node.error
        for way in ("llama_server", "llama_archive", "llama_build = true"):
            assert way in node.hint
        session.session.name_binaries(frozenset({"rpc-server"}))
        assert "rpc-server" not in session.node.error and not session.node.hint
        session.wishes.set_role("n1", "GPU-1", "ollama")
        session.session.replan()
        both = ["n1/ollama-gpu0", "n1/ollama-gpu1"]
        await session.until(lambda _: session.agent.puts[-1] == both)
        assert session.node.devices[1].note == ""
