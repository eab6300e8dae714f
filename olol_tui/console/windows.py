"""The app's own windows: help, the command palette, and the question before leaving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from olol_tui import actions
from olol_tui.console.dialogs.ask import Answer, Ask
from olol_tui.console.dialogs.base import DialogHost
from olol_tui.console.dialogs.picker import Item, Picker
from olol_tui.console.dialogs.sheet import Sheet
from olol_tui.fleet.snapshot import GatewayState
from olol_tui.render.help import draw_help
from olol_tui.render.line import Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.text import clean, count

THEME = "theme:"
"""In front of a theme's name in the palette's values."""
ELSEWHERE = "elsewhere:"
"""In front of the name of an action that is on another screen."""


def help_sheet(host: DialogHost, screen: str, title: str, read_only: bool) -> Sheet:
    """The keys of a screen."""

    def content(width: int, palette: Palette) -> list[Line]:
        return draw_help(screen, width, palette, read_only=read_only)

    return Sheet(host, f"Keys on {title}", content, width=86)


def command_picker(host: DialogHost, screen: str, themes: Sequence[str], read_only: bool) -> Picker:
    """Every action that is possible on a screen, and every theme, by name."""
    found = [
        a
        for a in actions.actions_on(screen)
        if actions.allowed(a, read_only=read_only) and a.group != "Moving"
    ]
    rows = [Item(a.name, f"{a.label} {a.help}", _action_row(a)) for a in found]
    there = {a.name for a in found}
    elsewhere = [
        a for a in actions.ACTIONS
        if a.screens and not a.on(screen) and actions.allowed(a, read_only=read_only)
        and a.group != "Moving" and a.name not in there
    ]  # fmt: skip
    # What is sought and is on another screen: choosing it goes there.
    rows += [Item(ELSEWHERE + a.name, f"{a.label} {a.help}", _other_row(a)) for a in elsewhere]
    rows += [Item(THEME + name, f"theme {name}", _theme_row(name)) for name in themes]
    return Picker(host, "Command", lambda: rows, hint="enter do it")


def quit_question(host: DialogHost, gateway: GatewayState) -> Ask:
    """What becomes of the gateway when the console goes: "keep-serving" or "quit"."""
    address = clean(gateway.address) or "its address"
    text = [("base", f"The gateway at {address} runs inside this process.")]
    busy = gateway.running + gateway.queued
    if busy:
        text.append(("warn", f"▲ {count(busy, 'request')} queued or running"))
    answers = [
        Answer("keep-serving", "Quit the console, keep serving"),
        Answer("quit", "Stop everything"),
    ]
    return Ask(host, "Quit", text, answers, focus="keep-serving", width=82)


def _action_row(action: actions.Action) -> Callable[[int, Palette], Line]:
    def draw(width: int, palette: Palette) -> Line:
        row = Row(width, palette.base).put(action.shown_key, palette.strong, 5)
        row.put(action.label, palette.bright, 14)
        return row.put(action.help, palette.muted, row.left).end()

    return draw


def way_to(name: str) -> str:
    """The action that shows the first screen on which another one exists."""
    screens = next(a.screens for a in actions.ACTIONS if a.name == name)
    order = [a.name.removeprefix("show_") for a in actions.ACTIONS if a.group == "Screens"]
    return f"show_{min(screens & set(order), key=order.index)}"


def _other_row(action: actions.Action) -> Callable[[int, Palette], Line]:
    def draw(width: int, palette: Palette) -> Line:
        screen = way_to(action.name).removeprefix("show_").capitalize()
        row = Row(width, palette.base).put(action.shown_key, palette.muted, 5)
        row.put(action.label, palette.muted, 14)
        return row.put(f"on {screen}: {action.help}", palette.muted, row.left).end()

    return draw


def _theme_row(name: str) -> Callable[[int, Palette], Line]:
    def draw(width: int, palette: Palette) -> Line:
        row = Row(width, palette.base).gap(5).put("Theme", palette.bright, 14)
        return row.put(name, palette.muted, row.left).end()

    return draw
