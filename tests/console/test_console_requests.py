"""Requests, nodes and logs by keyboard."""

from __future__ import annotations

from dataclasses import replace

from olol_tui.console.sample import panes_fleet
from olol_tui.fleet.commands import (
    CancelRequest,
    PauseModel,
    RerouteRequest,
    RestartEngine,
    SetCordon,
)
from tests.console.fake_link import NOW_S, running, shown


def rows(text: str) -> list[str]:
    """Lines of the table of requests."""
    return [x for x in text.splitlines() if x[2:4] in ("r9", "op") or x.startswith("▶ r")]


async def test_queues_then_requests_with_the_live_ones_first() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("3")
        text = shown(app)
        assert "7 waiting" in text
        assert "loading on n02/gpu2 41%" in text
        states = [row.split()[3 if row.startswith("▶") else 2] for row in rows(text)]
        assert states[:2] == ["○", "○"]
        assert states.index("●") > states.index("○")
        assert "503" in text


async def test_cancel_starts_on_keep_and_submits_after_confirmation() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("3", "down", "ctrl+d")
        assert "Cancel r9411?" in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == []
        await pilot.press("ctrl+d", "tab", "enter")
        await pilot.pause()
        assert link.commands == [CancelRequest(request="r9411")]


async def test_a_model_is_paused_and_resumed_and_the_queue_says_so() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("3", "down", "p")
        assert "Pause gpt-oss:120b?" in shown(app)
        assert "3 waiting and all that come wait" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands == [PauseModel("gpt-oss:120b")]
        fleet = link.fleet
        loads = tuple(replace(x, paused=x.model == "gpt-oss:120b") for x in fleet.gateway.models)
        gateway = replace(fleet.gateway, models=loads)
        link.publish(replace(fleet, paused=("gpt-oss:120b",), gateway=gateway))
        app.tick()
        assert "paused: p resumes it" in shown(app)
        await pilot.press("p")
        await pilot.pause()
        assert link.commands[1:] == [PauseModel("gpt-oss:120b", paused=False)]


async def test_a_waiting_request_shows_its_place_and_is_sent_elsewhere() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("3")
        assert "#1 ~4.2s" in shown(app)
        await pilot.press("enter")
        assert "next, about 4.20s to go" in shown(app)
        await pilot.press("escape", "r")
        assert "Send r9412 to" in shown(app)
        assert "wherever it is served first" in shown(app)
        await pilot.press("down", "enter")
        await pilot.pause()
        (command,) = link.commands
        assert isinstance(command, RerouteRequest)
        assert (command.request, command.away) == ("r9412", "")
        assert link.fleet.engine(command.to) is not None
        await pilot.press("G", "r")
        await pilot.pause()
        assert "only a request that waits" in [n.message for n in app._notifications][-1]


async def test_what_has_ended_cannot_be_cancelled() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("3", "G", "ctrl+d")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert [n.message for n in app._notifications] == ["this request has ended"]
        assert link.commands == []


async def test_the_cursor_stays_on_its_request_when_others_end() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("3", "down", "down")
        fleet = link.fleet
        link.publish(replace(fleet, requests=tuple(r for r in fleet.requests if r.id != "r9412")))
        app.tick()
        assert any(x.startswith("▶ r9410") for x in shown(app).splitlines())


async def test_filter_and_sort() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("3", "slash", *"state:decode model:gpt", "enter")
        found = rows(shown(app))
        assert found
        assert all("gpt-oss:120b" in x and "decode" in x for x in found)
        await pilot.press("escape", "o", "t", "g")
        assert "by tokens↓" in shown(app)
        counts = [int(x.split()[-2]) for x in rows(shown(app))[:4] if x.split()[-2].isdigit()]
        assert counts == sorted(counts, reverse=True)


async def test_pause_holds_the_table_while_requests_flow() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("3", "u")
        assert "paused" in shown(app)
        link.publish(replace(link.fleet, requests=(), now_s=NOW_S + 1))
        app.tick()
        assert "r9412" in shown(app)
        await pilot.press("u")
        assert "r9412" not in shown(app)
        assert "no request yet" in shown(app)


async def test_describe_says_why() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("3", "slash", *"r9404", "enter", "enter")
        text = shown(app)
        assert "Request r9404" in text
        assert "warm on 2 engines" in text
        assert "ollama /api/chat, streaming" in text


async def test_nodes_show_faults_and_restart_asks_first() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("4", "slash", *"engine:backoff", "enter")
        text = shown(app)
        assert "ollama-gpu3" in text
        assert "exited, retry in 4s: exit status 2" in text
        assert "CUDA error: out of memory" in text
        await pilot.press("right", "end", "e", "tab", "enter")
        await pilot.pause()
        assert link.commands == [RestartEngine(engine="n02/ollama-gpu3")]


async def test_cordon_asks_first() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("4", "c", "enter", "c", "tab", "enter")
        await pilot.pause()
        assert link.commands == [SetCordon(node="n01", cordoned=True)]
        assert len(app.screen_stack) == 1


async def test_logs_open_on_the_failing_engine_filter_and_go_on() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("5")
        await pilot.pause()
        app.tick()
        assert link.logs_asked == [("n02", "n02/ollama-gpu3")]
        assert "level=WARN second" in shown(app)
        await pilot.press("slash", *"error", "enter")
        text = shown(app)
        assert "ERROR third" in text
        assert "first line" not in text
        await pilot.press("escape", "n")
        await pilot.pause()
        assert link.logs_asked[-1] == ("n01", "n01/ollama-gpu0")


async def test_logs_follow_until_scrolled() -> None:
    async with running(size=(80, 24)) as (pilot, app, link):
        link.log_lines = [f"line {n}" for n in range(100)]
        await pilot.press("5")
        await pilot.pause()
        app.tick()
        assert "line 99" in shown(app)
        assert "follow ●" in shown(app)
        await pilot.press("pageup")
        assert "line 99" not in shown(app)
        assert "follow ○" in shown(app)
        await pilot.press("f")
        assert "line 99" in shown(app)


async def test_a_log_that_ends_says_why() -> None:
    from olol_tui.errors import LinkError

    async with running(panes_fleet(NOW_S)) as (pilot, app, link):

        async def broken(node: str, engine: str, *, tail: int = 200):  # type: ignore[no-untyped-def]
            yield "one"
            raise LinkError("the core has gone")

        link.logs = broken  # type: ignore[method-assign]
        await pilot.press("5")
        await pilot.pause()
        app.tick()
        assert "the core has gone" in shown(app)
