"""RemoteLink and the commands of the shell against the gateway's real control socket."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from olol_tui.cli import main
from olol_tui.config import GatewayConfig
from olol_tui.errors import LinkError, ModelNotFound, OlolError, PlacementError
from olol_tui.fleet.commands import Accepted, AnyCommand, CancelRequest, Place
from olol_tui.fleet.snapshot import Fleet, Node, Operation
from olol_tui.following import run_command
from olol_tui.gateway.gateway import Gateway
from olol_tui.paths import Paths
from olol_tui.placement.report import Parts, PlannedShare, Report, Spot
from olol_tui.remote import RemoteLink, find_running
from tests.contract.gguf_files import write_gguf

FIT = Report(
    model="m:1b",
    architecture="llama",
    layers=2,
    ctx=2048,
    slots=1,
    cache_type="q8_0",
    parts=Parts(2 << 30, 1 << 30, 1 << 29, 1 << 29),
    host_bytes=1 << 28,
    loads=True,
    places=(
        Spot("n1/gpu0", 5 << 30, 9 << 29, has_file=True),
        Spot("n2/gpu0", 4 << 30, 9 << 29, has_file=False),
    ),
    shares=(
        PlannedShare("n2/gpu0", 1, False, True, 1 << 30, 1 << 28, 1 << 28, 0, 4 << 30),
        PlannedShare("n1/gpu0", 1, True, False, 2 << 30, 1 << 28, 1 << 28, 0, 5 << 30),
    ),
    tokens_factor=0.9,
    reasons=("n1/gpu0 is the head: the file is on n1",),
)


class ScriptedFleet:
    """What a controller shows and answers, as the test says. A `gateway.port.FleetPort`."""

    def __init__(self) -> None:
        self.fleet = Fleet(name="scripted", nodes=(Node("n1", "ready"),))
        self.commands: list[AnyCommand] = []
        self.refuse: OlolError | None = None
        self.fits: list[tuple[str, dict[str, Any]]] = []
        self.log_lines: asyncio.Queue[str | OlolError] = asyncio.Queue()
        self._callbacks: list[Callable[[Fleet], None]] = []

    def publish(self, **changes: Any) -> None:
        self.fleet = replace(self.fleet, seq=self.fleet.seq + 1, **changes)
        for callback in list(self._callbacks):
            callback(self.fleet)

    def on_change(self, callback: Callable[[Fleet], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    @property
    def watchers(self) -> int:
        return len(self._callbacks)

    def attach_gateway(self, view: Any, cancel: Any, reroute: Any) -> None: ...

    def launch(self, model: str, node: str, device_uuid: str, **_: Any) -> str:
        raise AssertionError("no request is made here")

    def touch(self, engine_id: str, model: str, keep_alive_s: float | None) -> None: ...

    def poke(self) -> None: ...

    async def refresh(self, engine_id: str) -> None: ...

    def kick(self, engine_id: str) -> None: ...

    async def survey(self, node: str) -> None: ...

    async def submit(self, command: AnyCommand) -> Accepted:
        self.commands.append(command)
        if self.refuse is not None:
            raise self.refuse
        return Accepted("op1")

    async def fit(self, model: str, **how: Any) -> Report:
        if self.refuse is not None:
            raise self.refuse
        self.fits.append((model, how))
        return FIT

    async def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        yield f"{node} {engine} {tail}"
        while True:
            line = await self.log_lines.get()
            if isinstance(line, OlolError):
                raise line
            yield line


@asynccontextmanager
async def serving(paths: Paths, scripted: ScriptedFleet) -> AsyncIterator[None]:
    gateway = Gateway(GatewayConfig(port=0), scripted)
    paths.control_socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(str(paths.control_socket))
    await gateway.serve_control(listener)
    try:
        yield
    finally:
        await gateway.close()
        listener.close()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.resolve(tmp_path)


@pytest.fixture
def scripted() -> ScriptedFleet:
    return ScriptedFleet()


async def until(link: RemoteLink, condition: Callable[[Fleet], bool]) -> Fleet:
    async with asyncio.timeout(30):
        async for fleet in link.changes():
            if condition(fleet):
                return fleet
    raise AssertionError("changes() never ends")


def operation(state: Any, message: str = "", progress: float | None = None) -> Any:
    return (
        Operation("op0", "something else", "failed", 0.0),
        Operation("op1", "load m on n1/gpu0", state, 1.0, progress, message, hint="Free it."),
    )


async def test_nobody_there_is_told_with_the_command_that_helps(paths: Paths) -> None:
    assert not find_running(paths)
    with pytest.raises(LinkError, match="no olol-tui answers") as caught:
        async with RemoteLink(paths.control_socket):
            pass
    assert caught.value.hint == "Start one: olol-tui --serve"


async def test_snapshots_arrive_as_they_are_published(
    paths: Paths, scripted: ScriptedFleet
) -> None:
    async with serving(paths, scripted):
        assert find_running(paths)
        async with RemoteLink(paths.control_socket) as link:
            assert link.fleet == scripted.fleet
            assert not link.embedded
            await until(link, lambda _: scripted.watchers == 2)
            scripted.publish(name="renamed")
            assert (await until(link, lambda fleet: fleet.seq == 1)).name == "renamed"
            assert link.connected


async def test_a_core_that_restarts_is_found_again_and_its_last_facts_stay(
    paths: Paths, scripted: ScriptedFleet
) -> None:
    async with serving(paths, scripted):
        link = await RemoteLink(paths.control_socket).__aenter__()
    try:
        lost = await until(link, lambda _: not link.connected)
        assert [node.name for node in lost.nodes] == ["n1"]
        assert lost.nodes[0].stale, "known, but no longer fresh"
        assert lost.alerts[-1].where == "core"
        with pytest.raises(LinkError):
            await link.submit(CancelRequest("r1"))
        scripted.publish(name="second life")
        async with serving(paths, scripted):
            back = await until(link, lambda _: link.connected)
            assert back == scripted.fleet
    finally:
        await link.__aexit__()


async def test_a_slow_reader_skips_to_the_latest(paths: Paths, scripted: ScriptedFleet) -> None:
    async with serving(paths, scripted), RemoteLink(paths.control_socket) as link:
        reader = link.changes()
        await anext(reader)
        await until(link, lambda _: scripted.watchers == 2)
        for _ in range(20):
            scripted.publish()
        await until(link, lambda fleet: fleet.seq == 20)
        assert (await anext(reader)).seq == 20
        await reader.aclose()  # type: ignore[attr-defined]


async def test_a_refusal_is_the_same_error_here(paths: Paths, scripted: ScriptedFleet) -> None:
    async with serving(paths, scripted), RemoteLink(paths.control_socket) as link:
        assert (await link.submit(Place("m", "n1", "gpu0"))).operation == "op1"
        assert scripted.commands == [Place("m", "n1", "gpu0")]
        for error in (
            PlacementError("does not fit", hint="Free 3 GiB."),
            ModelNotFound("nobody has m"),
            OlolError("odd", title="Of no known kind"),
        ):
            scripted.refuse = error
            with pytest.raises(type(error)) as caught:
                await link.submit(Place("m", "n1", "gpu0"))
            assert caught.value.lines() == error.lines()


async def test_log_lines_arrive_live_and_their_end_is_told(
    paths: Paths, scripted: ScriptedFleet
) -> None:
    async with serving(paths, scripted), RemoteLink(paths.control_socket) as link:
        lines = link.logs("n1", "n1/ollama-gpu0", tail=7)
        assert await anext(lines) == "n1 n1/ollama-gpu0 7"
        scripted.log_lines.put_nowait("later")
        assert await anext(lines) == "later"
        scripted.log_lines.put_nowait(LinkError("the node is gone"))
        with pytest.raises(LinkError, match=r"the node is gone|broke off"):
            await anext(lines)


async def test_a_command_is_followed_to_its_end(paths: Paths, scripted: ScriptedFleet) -> None:
    out = io.StringIO()
    async with serving(paths, scripted):
        running = asyncio.create_task(run_command(paths, Place("m", "n1", "gpu0"), out))
        await _submitted(scripted)
        scripted.publish(operations=operation("running", "reading", 0.4))
        await _until_said(out, "reading")
        scripted.publish(operations=operation("done", "9.1 GiB free"))
        assert await running == 0
    assert out.getvalue().splitlines() == [
        "load m on n1/gpu0: reading",
        "● load m on n1/gpu0: 9.1 GiB free",
        "Free it.",
    ]


async def test_a_command_that_fails_says_why_and_ends_with_1(
    paths: Paths, scripted: ScriptedFleet
) -> None:
    out = io.StringIO()
    async with serving(paths, scripted):
        running = asyncio.create_task(run_command(paths, Place("m", "n1", "gpu0"), out))
        await _submitted(scripted)
        scripted.publish(operations=operation("failed", "out of memory"))
        assert await running == 1
    assert "✖ load m on n1/gpu0: out of memory\nFree it." in out.getvalue()


async def test_leaving_a_command_leaves_it_running(paths: Paths, scripted: ScriptedFleet) -> None:
    out = io.StringIO()
    async with serving(paths, scripted):
        running = asyncio.create_task(run_command(paths, Place("m", "n1", "gpu0"), out))
        await _submitted(scripted)
        scripted.publish(operations=operation("running", "reading"))
        await _until_said(out, "reading")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert "it goes on: olol-tui status" in out.getvalue()


async def test_a_core_that_ends_meanwhile_ends_the_waiting(
    paths: Paths, scripted: ScriptedFleet
) -> None:
    async with serving(paths, scripted):
        running = asyncio.create_task(run_command(paths, Place("m", "n1", "gpu0"), io.StringIO()))
        await _submitted(scripted)
        scripted.publish(operations=operation("running"))
    with pytest.raises(LinkError, match="stopped while it worked"):
        await running


async def test_status_of_a_running_core(
    paths: Paths, scripted: ScriptedFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(paths, scripted):
        assert await asyncio.to_thread(main, ["status", "--state-dir", str(tmp_path)]) == 0
        assert "n1    ● ready" in capsys.readouterr().out
        code = await asyncio.to_thread(main, ["status", "--json", "--state-dir", str(tmp_path)])
        assert code == 0
        assert '"name":"scripted"' in capsys.readouterr().out


async def _submitted(scripted: ScriptedFleet) -> None:
    """The command has arrived and its sender watches."""
    async with asyncio.timeout(30):
        while not scripted.commands or scripted.watchers < 2:
            await asyncio.sleep(0.01)


async def _until_said(out: io.StringIO, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in out.getvalue():
            await asyncio.sleep(0.01)


async def test_where_a_model_fits_and_the_split_it_would_get(
    paths: Paths, scripted: ScriptedFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["model", "fit", "m:1b", "--ctx", "2048", "--cache-type", "q8_0"]
    state = ["--state-dir", str(paths.state_dir)]
    async with serving(paths, scripted):
        assert await asyncio.to_thread(main, [*asked, *state]) == 0
        assert scripted.fits == [("m:1b", {"num_ctx": 2048, "slots": 0, "cache_type": "q8_0"})]
        text = capsys.readouterr().out
        assert "together" in text and "4 GiB" in text
        assert "● fits, 512 MiB left" in text
        assert "✖ 512 MiB too much, the file is not there" in text
        assert "Split over 2 devices, about 90% of the speed" in text
        assert "1 layer + output" in text
        assert await asyncio.to_thread(main, [*asked, *state, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["shares"][1]["has_output"] and found["parts"]["total"] == 4 << 30
        scripted.refuse = ModelNotFound("model 'm:1b' not found on any node")
        assert await asyncio.to_thread(main, [*asked, *state]) == 1
        assert "not found on any node" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({}, 0, "2 layers; 4096 tokens × 3 slots"),
        ({"llama__block_count": ("I", 0)}, 1, "names no layers"),
    ],
)
def test_a_file_is_planned_without_any_core(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, code: int, words: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", **change)
    assert main(["model", "fit", str(path), "--slots", "3"]) == code
    shown = capsys.readouterr()
    assert words in shown.out + shown.err
    assert main(["model", "fit", str(tmp_path / "none.gguf")]) == 1
    assert "No such file" in capsys.readouterr().err
