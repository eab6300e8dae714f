"""What the Requests screen does to queues: pause a model, send a waiting request elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from olol_tui.console.dialogs.ask import Answer, Ask
from olol_tui.console.dialogs.picker import Item, Picker
from olol_tui.console.views.base import Host
from olol_tui.fleet.commands import PauseModel, RerouteRequest
from olol_tui.fleet.snapshot import Engine, Node, Request
from olol_tui.models.names import canonical, same
from olol_tui.render.line import Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.text import clean

_ANYWHERE = ""


class RequestActions:
    """Asks, and submits what was answered."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def pause(self, request: Request) -> None:
        """Pause the model of a request, or resume it."""
        fleet, model = self._host.scene.fleet, canonical(request.model)
        if model in fleet.paused:
            self._host.submit(PauseModel(model, paused=False))
            return
        load = next((one for one in fleet.gateway.models if same(one.model, model)), None)
        waiting = 0 if load is None else load.queued
        running = 0 if load is None else load.running
        text = [
            ("bright", f"Pause {clean(model)}?"),
            ("base", f"{waiting} waiting and all that come wait until it is resumed."),
            ("muted", f"{running} running go on. It stays paused over a restart."),
        ]
        dialog = Ask(
            self._host, "Pause a model", text, [Answer("yes", "Pause")], danger=True, cancel="Keep"
        )
        self._host.ask(dialog, lambda _: self._host.submit(PauseModel(model)))

    def reroute(self, request: Request) -> None:
        """Choose where a waiting request goes."""
        engines = [
            (node, engine)
            for node in self._host.scene.fleet.nodes
            if any(same(entry.name, request.model) for entry in node.library)
            for engine in node.engines
            if engine.kind != "rpc-server"
            and (not engine.model or same(engine.model, request.model))
        ]

        def row(node: Node, engine: Engine) -> Callable[[int, Palette], Line]:
            def draw(width: int, p: Palette) -> Line:
                line = Row(width, p.base).put(engine.id, p.bright, 34).gap()
                line.put("cordoned" if node.cordoned else engine.state, p.muted, 9)
                held = "  ".join(model.name for model in engine.loaded)
                return line.put(held, p.muted, line.left).end()

            return draw

        def anywhere(width: int, p: Palette) -> Line:
            return Row(width, p.base).put("wherever it is served first", p.base, width).end()

        items = [Item(_ANYWHERE, "anywhere", anywhere)]
        items += [Item(e.id, f"{e.id} {e.state}", row(n, e)) for n, e in engines]
        title = f"Send {clean(request.id)} to"
        picker = Picker(self._host, title, lambda: items)
        self._host.ask(
            picker, lambda value: self._host.submit(RerouteRequest(request.id, to=value))
        )
