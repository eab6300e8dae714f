"""The frame around the screens: quitting, read-only, help, palette, themes, sizes, crashes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from textual.events import Key

from olol_tui.console.app import ConsoleOptions, OlolApp, run_console
from olol_tui.console.sample import cpu_fleet, panes_fleet
from olol_tui.console.themes import load_themes, shipped_directory
from olol_tui.console.views.fleet import FleetView
from olol_tui.fleet.snapshot import Fleet
from olol_tui.render.palette import COLOR_NAMES
from tests.console.fake_link import NOW_S, Clock, FakeLink, running, shown

HEADLESS = ConsoleOptions(refresh_hz=20, headless=True)


async def test_quit_of_an_embedded_console_asks_what_becomes_of_the_gateway() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("q")
        text = shown(app)
        assert "Quit the console, keep serving" in text
        assert "Stop everything" in text
        assert "17 requests queued or running" in text
        await pilot.press("escape")
        assert app.return_value is None
        await pilot.press("q", "enter")
        assert app.return_value == "keep-serving"


async def test_stop_everything() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("ctrl+c", "tab", "enter")
        assert app.return_value == "quit"


async def test_keys_typed_ahead_reach_the_window_they_are_meant_for() -> None:
    async with running() as (pilot, app, _):
        for key in ("q", "tab", "enter"):
            app.post_message(Key(key, None))
        for _n in range(100):
            await pilot.pause(0.02)
            if app.return_value is not None:
                break
        assert app.return_value == "quit"


async def test_cancel_stays() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("q", "tab", "tab", "enter")
        await pilot.pause()
        assert app.return_value is None
        assert len(app.screen_stack) == 1


async def test_an_attached_console_just_quits() -> None:
    async with running(embedded=False) as (pilot, app, _):
        await pilot.press("q")
        assert app.return_value == "quit"


async def test_help_is_made_from_the_table_and_greys_under_read_only() -> None:
    async with running(read_only=True) as (pilot, app, _):
        await pilot.press("question_mark")
        assert "load a model of the library" in shown(app)
        await pilot.press("end")
        assert "this console is read-only" in shown(app)
        await pilot.press("escape", "3", "question_mark")
        assert "cancel the request under the cursor" in shown(app)


async def test_the_palette_runs_an_action_by_name() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("colon", *"queued, running", "enter")
        await pilot.pause()
        assert "3 Requests" in shown(app)
        assert "Queues" in shown(app)


async def test_the_palette_has_no_dangerous_action_under_read_only() -> None:
    async with running(read_only=True) as (pilot, app, _):
        await pilot.press("ctrl+p", *"unload")
        assert "no match" in shown(app)


async def test_the_palette_knows_what_is_on_another_screen_and_goes_there() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("3", "colon", *"cordon")
        assert "on Nodes" in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        assert "4 Nodes" in shown(app)
        assert app._view.name == "nodes"


async def test_the_palette_changes_the_theme() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("ctrl+p", *"theme mono", "enter")
        await pilot.pause()
        assert app.theme == "mono"
        await pilot.press("T")
        assert app.theme != "mono"


@pytest.mark.parametrize("size", [(60, 15), (80, 24), (120, 36), (240, 67)])
async def test_every_size_is_filled_exactly(size: tuple[int, int]) -> None:
    async with running(size=size) as (pilot, app, _):
        for key in ("1", "3", "4", "5"):
            await pilot.press(key)
            lines = shown(app).splitlines()
            assert len(lines) == size[1]


async def test_a_tiny_terminal_shows_one_line_of_status() -> None:
    async with running(size=(50, 10)) as (_, app, _link):
        lines = shown(app).splitlines()
        assert "olol" in lines[0]
        assert "q7" in lines[0]
        assert "n02" in lines[1]
        assert not any(x.strip() for x in lines[2:])


async def test_resize_draws_for_the_new_size() -> None:
    async with running() as (pilot, app, _):
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        lines = shown(app).splitlines()
        assert len(lines) == 24
        assert {len(x) for x in lines} == {80}


async def test_a_silent_core_is_news_in_the_header() -> None:
    clock = Clock()
    link = FakeLink()
    options = ConsoleOptions(refresh_hz=0.001, headless=True)
    app = OlolApp(link, options, clock=clock)
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.pause()
        clock.now_s += 12
        app.tick()
        assert "no data for 12s" in shown(app)
        link.publish(replace(link.fleet, seq=link.fleet.seq + 1))
        app.tick()
        assert "no data" not in shown(app)


async def test_an_empty_fleet_says_what_is_missing() -> None:
    async with running(Fleet(name="new")) as (pilot, app, _):
        assert "no node yet" in shown(app)
        for key in ("p", "m", "u", "P", "l", "enter", "3", "ctrl+d", "4", "R", "5"):
            await pilot.press(key)
        await pilot.pause()
        assert len(app.screen_stack) == 1


async def test_a_node_without_gpu_reads_well() -> None:
    async with running(cpu_fleet(NOW_S), (80, 24)) as (_, app, _link):
        text = shown(app)
        assert "local/cpu" in text
        assert "ram" in text
        assert "smollm2:135m" in text
        assert "vram" not in text
        assert "temp" not in text


async def test_an_exception_in_the_interface_is_a_crash_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-not-to-be-printed"

    def explode(self: FleetView, width: int, height: int) -> None:
        held = secret
        raise RuntimeError("boom") from ValueError(str(len(held)))

    served = 0

    async def gateway() -> None:
        nonlocal served
        while True:
            served += 1
            await asyncio.sleep(0.01)

    other = asyncio.create_task(gateway())
    monkeypatch.setattr(FleetView, "draw", explode)
    with caplog.at_level(logging.ERROR):
        outcome = await asyncio.wait_for(run_console(FakeLink(), HEADLESS), 30)
    assert outcome == "crashed"
    assert "boom" in caplog.text
    assert secret not in caplog.text
    before = served
    await asyncio.sleep(0.1)
    assert served > before
    other.cancel()


async def test_a_link_that_fails_at_once_is_a_crash_too() -> None:
    class Broken(FakeLink):
        @property
        def fleet(self) -> Fleet:
            raise RuntimeError("no fleet")

        @fleet.setter
        def fleet(self, value: Fleet) -> None:
            pass

    assert await run_console(Broken(), HEADLESS) == "crashed"


async def test_cancelling_the_console_raises_after_it_has_left() -> None:
    task = asyncio.create_task(run_console(FakeLink(), HEADLESS))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)


async def test_the_console_follows_the_link_by_its_own_clock() -> None:
    link = FakeLink(embedded=False)
    app = OlolApp(link, HEADLESS)
    async with app.run_test(size=(120, 36)) as pilot:
        link.publish(replace(panes_fleet(NOW_S), name="renamed"))
        for _ in range(100):
            await pilot.pause(0.05)
            if "renamed" in shown(app):
                break
        assert "renamed" in shown(app)


def test_all_shipped_themes_are_whole() -> None:
    found = load_themes()
    assert found.failures == []
    assert set(found.themes) == {
        "olol-dark",
        "olol-light",
        "deuteranopia",
        "tritanopia",
        "high-contrast",
        "mono",
    }
    assert len(list(shipped_directory().glob("*.toml"))) == 6


def test_a_theme_that_is_wrong_is_named_and_left_out(tmp_path: Path) -> None:
    good = "\n".join(f'{name} = "#123456"' for name in COLOR_NAMES)
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n[colors]\n{good}\n')
    (tmp_path / "worse.toml").write_text("name = ")
    (tmp_path / "bad.toml").write_text(
        f'name = "bad"\n[colors]\n{good}\n'.replace('ok = "#123456"', 'ok = "no colour"')
    )
    (tmp_path / "short.toml").write_text('name = "short"\n[colors]\nok = "#00ff00"\n')
    found = load_themes(tmp_path)
    assert "mine" in found.themes
    assert not {"bad", "short"} & set(found.themes)
    assert len(found.failures) == 3
    assert any("'no colour' is not a colour" in x for x in found.failures)
    assert any("missing: background" in x for x in found.failures)


async def test_theme_failures_are_one_toast(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("nonsense")
    (tmp_path / "b.toml").write_text("nonsense")
    options = ConsoleOptions(refresh_hz=0, headless=True, user_themes=tmp_path, theme="gone")
    app = OlolApp(FakeLink(), options)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert app.theme == "olol-dark"
        messages = [n.message for n in app._notifications]
        assert len(messages) == 1
        assert "a.toml" in messages[0]
        assert "b.toml" in messages[0]
        assert "no theme 'gone'" in messages[0]


async def test_no_color_draws_without_hues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = OlolApp(FakeLink(), ConsoleOptions(refresh_hz=0, headless=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        from textual.geometry import Region

        from olol_tui.console.canvas import Canvas

        strips = app.screen.query_one(Canvas).render_lines(Region(0, 0, 80, 24))
        for strip in strips:
            for segment in strip:
                color = segment.style.color if segment.style else None
                if color is not None and color.triplet is not None:
                    red, green, blue = color.triplet
                    assert red == green == blue
