"""The console: draws the Fleet of a Link and sends Commands back. Nothing depends on it.

A crash of the interface restores the terminal and returns; whoever runs the gateway in
the same loop goes on. No Textual worker carries anything but chores of the interface.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

from textual.app import App, ComposeResult
from textual.events import AppBlur, AppFocus, Event, Key, Paste
from textual.screen import ModalScreen

from olol_tui import actions
from olol_tui.console import windows
from olol_tui.console.canvas import Canvas
from olol_tui.console.chores import Chores
from olol_tui.console.dialogs.base import Dialog
from olol_tui.console.driver import HUNG_UP, LossyDriver, process_as_found, settle_garbage
from olol_tui.console.options import ConsoleOptions
from olol_tui.console.painter import Painter
from olol_tui.console.questions import Questions
from olol_tui.console.results import Results
from olol_tui.console.themes import ConsoleTheme, load_themes
from olol_tui.console.views.base import View
from olol_tui.console.views.fleet import FleetView
from olol_tui.console.views.logs import LogsView
from olol_tui.console.views.matrix import MatrixView
from olol_tui.console.views.nodes import NodesView
from olol_tui.console.views.requests import RequestsView
from olol_tui.errors import OlolError
from olol_tui.fleet.commands import AnyCommand
from olol_tui.fleet.snapshot import Node
from olol_tui.link import Link
from olol_tui.render.history import FleetHistory
from olol_tui.render.scene import Scene, make_scene
from olol_tui.render.text import clean

__all__ = ["ConsoleOptions", "OlolApp", "Outcome", "run_console"]

log = logging.getLogger(__name__)

Outcome = Literal["quit", "keep-serving", "crashed"]

VIEWS: tuple[type[View], ...] = (FleetView, MatrixView, RequestsView, NodesView, LogsView)
"""The screens that exist, in the order of their tabs."""

SLOW_HZ = 1.0
"""Frames a second while the terminal has no focus."""


class OlolApp(App[str], inherit_bindings=False):
    """One canvas, a few views, and windows over it."""

    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    CSS = """
    ToastRack { margin-bottom: 2; }
    Toast { max-width: 72; }
    """

    def __init__(
        self,
        link: Link,
        options: ConsoleOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        history: FleetHistory | None = None,
    ) -> None:
        """`history` may come filled, so that graphs do not start empty (screenshots)."""
        super().__init__(driver_class=None if options.headless else LossyDriver)
        self._link = link
        self._options = options
        self._clock = clock
        self._themes = load_themes(options.user_themes)
        self._look: ConsoleTheme = self._themes.get(options.theme)
        self.animation_level = "none"
        self.crash: Exception | None = None
        """What ended the interface, when it was not the operator."""
        self._history = history or FleetHistory()
        self._fleet = link.fleet
        self._history.feed(self._fleet)
        self._fleet_since_s = clock()
        self._scene = self._make_scene()
        self._results = Results(self._fleet, self.say)
        self._canvas = Canvas()
        self._views: dict[str, View] = {cls.name: cls(self) for cls in VIEWS}
        self._view = next(iter(self._views.values()))
        logs = self._views["logs"]
        assert isinstance(logs, LogsView)
        self._logs = logs
        self._painter = Painter([(v.key, v.title, v.name) for v in self._views.values()])
        self._questions = Questions(self)
        self._chores = Chores(lambda words: self.say(words, severity="error"))
        self._focused = True
        self._drawn_s = 0.0

    # -- what views and dialogs see --

    @property
    def scene(self) -> Scene:
        return self._scene

    @property
    def read_only(self) -> bool:
        return self._options.read_only

    def redraw(self) -> None:
        """Draw the whole frame; only rows that changed reach the terminal."""
        width, height = self._canvas.size
        if width < 1 or height < 1:
            return
        silent_s = self._clock() - self._fleet_since_s
        frame = self._painter.frame(
            self._scene,
            self._view,
            width,
            height,
            read_only=self.read_only,
            silent_s=silent_s if self._options.refresh_hz else 0.0,
        )
        self._canvas.show(frame, width, self._scene.palettes.base.base)

    @property
    def ssh_config(self) -> Path | None:
        return self._options.ssh_config

    def submit(self, *commands: AnyCommand) -> None:
        """Send wishes in their order; a refusal becomes a toast, and ends the series."""
        if self.read_only:
            self.say("this console is read-only", severity="warning")
            return
        self.chore(self._submit(commands))

    async def _submit(self, commands: Sequence[AnyCommand]) -> None:
        try:
            for command in commands:
                await self._link.submit(command)
        except OlolError as error:
            self.say("\n".join(error.lines()), severity="error")

    def chore(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something small of the interface; its failure is shown, not fatal."""
        return self._chores.start(coroutine)

    def say(self, text: str, *, severity: str = "information") -> None:
        """A toast. Its text is data, never markup."""
        lines = "\n".join(clean(line) for line in text.splitlines())
        kind: Any = severity
        self.notify(lines, severity=kind, timeout=8 if severity == "error" else 4, markup=False)

    def ask(
        self,
        dialog: ModalScreen[Any],
        then: Callable[[Any], None],
        *,
        cancelled: Callable[[], None] | None = None,
    ) -> None:
        """Show a window; `then` gets its result unless it was cancelled."""

        def done(result: Any) -> None:
            self.redraw()
            if result is not None:
                then(result)
            elif cancelled is not None:
                cancelled()

        self.push_screen(dialog, done)

    def ask_about_key(self, node: Node) -> None:
        """Open the question about a node's unknown host key."""
        self._questions.ask_about(node)

    def copy(self, text: str) -> None:
        """Into the clipboard of the operator's terminal (OSC 52)."""
        self.copy_to_clipboard(text)

    def logs(self, node: str, engine: str, *, tail: int) -> AsyncIterator[str]:
        """Lines of a log, from the link."""
        return self._link.logs(node, engine, tail=tail)

    def open_log(self, node: str, engine: str) -> None:
        """Go to the log screen; an empty engine is the node's agent."""
        self._logs.show(node, engine, self._view.name)
        self.show_view("logs")

    # -- life --

    def compose(self) -> ComposeResult:
        yield self._canvas

    def on_mount(self) -> None:
        for theme in self._themes.themes.values():
            self.register_theme(theme.textual())
        self._wear(self._look)
        if self._themes.failures:
            self.say("themes left out\n" + "\n".join(self._themes.failures), severity="warning")
        self._canvas.focus()
        if self._options.refresh_hz > 0:
            self.set_interval(1 / self._options.refresh_hz, self._beat)
        if not self._options.headless:
            self.call_after_refresh(settle_garbage)

    async def on_unmount(self) -> None:
        self._view.closed()
        await self._chores.stop()

    def _handle_exception(self, error: Exception) -> None:
        if self.crash is None:
            self.crash = error
        super()._handle_exception(error)

    def _fatal_error(self) -> None:
        # Textual's own prints every local variable; those may hold secrets.
        self._close_messages_no_wait()

    def tick(self) -> None:
        """Take the latest snapshot once, and draw the view that is on screen."""
        if self._take():
            self._show()

    def _beat(self) -> None:
        """`tick` by the clock, in two callbacks: the loop is held half as long at a time."""
        if self._take():
            self.call_later(self._show)

    def _take(self) -> bool:
        """Read the link; False when there is nothing to draw for."""
        driver = self._driver if isinstance(self._driver, LossyDriver) else None
        if driver is not None and driver.hung_up:
            self.exit(HUNG_UP)
            return False
        now_s = self._clock()
        if not self._focused and now_s - self._drawn_s < 0.9 / SLOW_HZ:
            return False
        fleet = self._link.fleet
        if fleet is not self._fleet:
            self._fleet = fleet
            self._fleet_since_s = now_s
            self._history.feed(fleet)
            self._scene = self._make_scene()
            self._results.tell(fleet)
        if driver is not None and driver.backlog > 1:
            return False
        self._drawn_s = now_s
        return True

    def _show(self) -> None:
        self._view.tick()
        self.redraw()
        if isinstance(self.screen, Dialog):
            self.screen.repaint()
        if not self.read_only:
            width, _ = self._canvas.size
            idle = len(self.screen_stack) == 1 and self._view.prompt(width) is None
            self._questions.look(self._fleet, idle=idle)

    def _make_scene(self) -> Scene:
        return make_scene(self._fleet, self._history, self._look.palettes)

    def _wear(self, theme: ConsoleTheme) -> None:
        self._look = theme
        self.theme = theme.name
        self._scene = self._make_scene()
        self.redraw()

    # -- events --

    def on_canvas_resized(self) -> None:
        self.redraw()

    def on_app_blur(self, event: AppBlur) -> None:
        self._focused = False

    def on_app_focus(self, event: AppFocus) -> None:
        self._focused = True

    def on_paste(self, event: Paste) -> None:
        self._view.paste(event.text)

    def on_canvas_clicked(self, event: Canvas.Clicked) -> None:
        hit = event.hit
        if hit.kind == "action":
            self.action_perform(hit.value)
        elif hit.kind == "view":
            self.show_view(hit.value)
        else:
            self._view.click(hit, double=event.double)

    def on_canvas_scrolled(self, event: Canvas.Scrolled) -> None:
        self._view.scroll(event.rows)

    async def on_event(self, event: Event) -> None:
        """Keys are taken one by one, here.

        Textual hands a key to a widget at once and looks for its binding later: what is
        typed ahead of a window that opens would reach the screen behind it.
        """
        if not isinstance(event, Key) or event.is_forwarded or not self.screen_stack:
            await super().on_event(event)
            return
        self.app_focus = True
        if isinstance(self.screen, Dialog):
            self.screen.typed(event)
        elif not self._view.intercept(event):
            action = actions.by_key(self._view.name, event.key)
            if action is not None:
                self.action_perform(action.name)

    # -- actions, by the table --

    def action_perform(self, name: str) -> None:
        """Carry out one action of the table, here or in the view."""
        item = actions.action(name)
        if not item.on(self._view.name) or not actions.allowed(item, read_only=self.read_only):
            return
        own = getattr(self, f"do_{name}", None)
        if own is not None:
            own()
        elif name.startswith("show_") and name.removeprefix("show_") in self._views:
            self.show_view(name.removeprefix("show_"))
        else:
            self._view.perform(name)

    def show_view(self, name: str) -> None:
        if self._view.name != name:
            self._view.closed()
            self._view = self._views[name]
            self._view.opened()
        self.redraw()

    def do_show_help(self) -> None:
        sheet = windows.help_sheet(self, self._view.name, self._view.title, self.read_only)
        self.ask(sheet, lambda _: None)

    def do_cycle_theme(self) -> None:
        self._wear(self._themes.after(self._look.name))
        self.say(f"theme {self._look.name}")

    def do_open_palette(self) -> None:
        """Every action that is possible now, and every theme, by name."""

        def done(value: str) -> None:
            if value.startswith(windows.THEME):
                self._wear(self._themes.themes[value.removeprefix(windows.THEME)])
            else:
                name = value.removeprefix(windows.ELSEWHERE)
                self.action_perform(value if name == value else windows.way_to(name))

        themes = list(self._themes.themes)
        picker = windows.command_picker(self, self._view.name, themes, self.read_only)
        self.ask(picker, done)

    def do_quit(self) -> None:
        """Leave; with the gateway inside this process, ask what becomes of it."""
        if self._link.embedded:
            self.ask(windows.quit_question(self, self._fleet.gateway), self.exit)
        else:
            self.exit("quit")


async def run_console(link: Link, options: ConsoleOptions) -> Outcome:
    """Show the console until it is left.

    Never raises because of the interface: a failure in it is logged, the terminal is
    restored, and whatever else runs in the loop goes on.

    Returns:
        "quit": the operator wants the console gone (and, when embedded, all of it);
        "keep-serving": only the console is gone, or its terminal is;
        "crashed": the interface failed.

    Raises:
        asyncio.CancelledError: the task was cancelled; the terminal is restored.
    """
    result: str | None = None
    crash: Exception | None = None
    try:
        with process_as_found():
            app = OlolApp(link, options)
            result = await app.run_async(mouse=options.mouse, headless=options.headless)
            crash = app.crash
    except Exception as error:  # noqa: BLE001 - the gateway must outlive any fault of the interface
        crash = error
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # Textual swallows the cancellation of its own task.
        raise asyncio.CancelledError
    if crash is not None:
        log.error("the console failed", exc_info=crash)
        return "crashed"
    if result in ("keep-serving", HUNG_UP):
        return "keep-serving"
    return "quit"
