"""What an operator does to a node: every question and command of the Nodes screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from olol_tui.console.dialogs.add_node import Added, AddNodeDialog
from olol_tui.console.dialogs.ask import CANCEL, Answer, Ask
from olol_tui.console.dialogs.picker import Item, Picker
from olol_tui.console.views.base import Host
from olol_tui.fleet.commands import (
    AdoptEndpoint,
    AnyCommand,
    CancelProvision,
    Drain,
    Provision,
    Reconnect,
    RemoveNode,
    RestartEngine,
    SetCordon,
    SetRole,
    Uninstall,
)
from olol_tui.fleet.snapshot import Device, Engine, Node, Role
from olol_tui.render.box import facts, paragraph
from olol_tui.render.line import Line, Row
from olol_tui.render.node_detail import engines_on
from olol_tui.render.nodes import engine_state, requests_by_node
from olol_tui.render.palette import Palette
from olol_tui.render.steps import has_failed, is_running
from olol_tui.render.text import MISSING, clean, count, percent, size_pair
from olol_tui.render.tiles import GLYPHS, RUNNING
from olol_tui.ssh.config_hosts import read_ssh_hosts

Text = list[tuple[str, str]]

PROVISION_STEPS = (
    ("connect", "verify the host key, log in with your keys"),
    ("facts", "look: system, GPUs, driver, disk, what runs there"),
    ("python", "find a python3; none is installed"),
    ("agent", "upload our agent into the user's own directory"),
    ("engine", "use the Ollama that is there, or bring the configured one"),
    ("service", "keep the agent alive: systemd user unit, else detached"),
    ("health", "ask the agent"),
    ("llama", "llama.cpp for splits, if configured: from an archive or built"),
    ("engines", "start those that the roles of its GPUs ask for"),
    ("traffic", "one request over the road that clients' requests take"),
)

ROLES: dict[Role, str] = {
    "ollama": "an engine of its own: one Ollama on this GPU",
    "shared": "part of one engine over all the GPUs that are shared",
    "rpc": "a llama.cpp worker, lent to models that are split over GPUs",
    "off": "nothing of ours runs on it",
}


class NodeActions:
    """Asks, then submits. Knows nothing of cursors."""

    def __init__(self, host: Host, ask_about_key: Callable[[Node], None]) -> None:
        """`ask_about_key` opens the question about a node's unknown host key."""
        self._host = host
        self._ask_about_key = ask_about_key

    def _confirm(
        self,
        title: str,
        text: Text,
        answer: str,
        *commands: AnyCommand,
        type_first: str = "",
        body: Callable[[int, Palette], list[Line]] | None = None,
        danger: bool = True,
        width: int = 72,
    ) -> None:
        answers = [Answer("yes", answer)]
        dialog = Ask(
            self._host,
            title,
            text,
            answers,
            danger=danger,
            focus=CANCEL if danger else "yes",
            type_first=type_first,
            body=body,
            width=width,
        )
        self._host.ask(dialog, lambda _: self._host.submit(*commands))

    def _running(self, node: Node) -> int:
        return requests_by_node(self._host.scene.fleet).get(node.name, 0)

    # -- a machine becomes a node, and ceases to be one --

    def add(self, added: Callable[[str], None]) -> None:
        """Ask for a host; `added` gets the name of the node that will be there."""
        config = self._host.ssh_config

        def done(result: Added) -> None:
            commands: list[AnyCommand] = [result.command]
            if result.provision:
                commands.append(Provision(node=result.command.name))
            added(result.command.name)
            self._host.submit(*commands)

        self._host.ask(AddNodeDialog(self._host, lambda: read_ssh_hosts(config)), done)

    def provision(self, node: Node) -> None:
        """Show what will be done, then do it."""
        if is_running(node):
            self._host.say(f"{node.name} is being worked on: x stops that", severity="warning")
            return
        if node.question is not None:
            self._ask_about_key(node)
            return
        name = clean(node.name)
        what = "Look after" if node.provisioned else "Make a node of"
        where = f" ({clean(node.host)})" if node.host != node.name else ""
        text: Text = [("bright", f"{what} {name}{where}")]
        if has_failed(node):
            stopped = next(s.name for s in node.steps if s.state in ("failed", "cancelled"))
            text.append(("accent", f"It goes on from where it stopped: {stopped}."))
        text.append(("muted", "Nothing needs root there, and nothing will listen on its network."))

        def body(width: int, p: Palette) -> list[Line]:
            lines = facts(PROVISION_STEPS, width, p)
            words = "What is in order stays as it is; every step can be repeated."
            return [*lines, *paragraph(words, width, p, "muted")]

        command = Provision(node=node.name)
        self._confirm("Provision", text, "Provision", command, body=body, danger=False, width=78)

    def retry(self, node: Node, engine: Engine | None) -> None:
        """Go on after a failure: of a run, of the connection, of an engine."""
        if node.question is not None:
            self._ask_about_key(node)
        elif has_failed(node):
            uninstall = any(step.name in ("remove", "proof") for step in node.steps)
            self._host.submit((Uninstall if uninstall else Provision)(node=node.name))
        elif engine is not None and engine.state in ("backoff", "failed"):
            self.restart(engine)
        else:
            self._host.submit(Reconnect(node=node.name))

    def abort(self, node: Node) -> None:
        step = next((s.name for s in node.steps if s.state == "running"), "")
        text: Text = [
            ("bright", f"Stop working on {clean(node.name)}?"),
            ("base", f"Now: {clean(step)}. What is done stays done; r goes on from there."),
        ]
        self._confirm("Abort", text, "Abort", CancelProvision(node=node.name))

    def uninstall(self, node: Node) -> None:
        text: Text = [
            ("bright", f"Take everything of ours off {clean(node.name)}?"),
            ("base", "Agent, engines that we brought, unit, logs and state go. Models stay."),
        ]
        if running := self._running(node):
            text.append(("warn", f"▲ {count(running, 'request')} running there will fail"))
        command = Uninstall(node=node.name)
        self._confirm("Uninstall", text, "Uninstall", command, type_first=clean(node.name))

    def forget(self, node: Node) -> None:
        text: Text = [
            ("bright", f"Take {clean(node.name)} out of the configuration?"),
            ("base", "What runs there goes on running, without us. U takes it off first."),
        ]
        if running := self._running(node):
            text.append(("warn", f"▲ {count(running, 'request')} running there will fail"))
        self._confirm("Forget a node", text, "Forget", RemoveNode(node=node.name))

    # -- work --

    def cordon(self, node: Node) -> None:
        command = SetCordon(node=node.name, cordoned=not node.cordoned)
        if node.cordoned:
            text: Text = [("bright", f"Give {clean(node.name)} new work again?")]
            answer = "Uncordon"
        else:
            text = [("bright", f"Give {clean(node.name)} no new work?")]
            text.append(("muted", "What runs there is finished."))
            answer = "Cordon"
        self._confirm(f"{answer} a node", text, answer, command)

    def drain(self, node: Node) -> None:
        running = self._running(node)
        text: Text = [
            ("bright", f"Drain {clean(node.name)}?"),
            ("base", "No new work; what runs there may end, for 120 s at most."),
            ("warn" if running else "muted", f"{count(running, 'request')} running there now."),
        ]
        self._confirm("Drain a node", text, "Drain", Drain(node=node.name))

    def restart(self, engine: Engine) -> None:
        fleet = self._host.scene.fleet
        running = sum(1 for r in fleet.requests if r.engine == engine.id and r.state in RUNNING)
        text: Text = [("bright", f"Restart {clean(engine.id)}?")]
        if running:
            text.append(("warn", f"▲ {count(running, 'request')} running there will fail"))
        command = RestartEngine(engine=engine.id)
        self._confirm("Restart an engine", text, "Restart", command)

    # -- GPUs --

    def role(self, node: Node, device: Device) -> None:
        """Choose what a GPU is for."""

        def row(role: Role) -> Callable[[int, Palette], Line]:
            def draw(width: int, p: Palette) -> Line:
                line = Row(width, p.base).put(role, p.bright, 8)
                line.put("now" if device.role == role else "", p.ok, 5)
                return line.put(ROLES[role], p.muted, line.left).end()

            return draw

        items = [
            Item(
                role,
                role,
                row(role),
                refusal="it has this role now" if device.role == role else "",
            )
            for role in ROLES
        ]

        def detail(role: str, width: int, p: Palette) -> list[Line]:
            style, words = self._stops(node, device, role)
            return paragraph(words, width, p, style)

        def chosen(value: str) -> None:
            role = cast(Role, value)
            command = SetRole(node=node.name, device=device.uuid, role=role)
            style, words = self._stops(node, device, role)
            if style != "warn":
                self._host.submit(command)
                return
            title = f"Role of {clean(node.name)}/{device.label}"
            text: Text = [("bright", f"{title}: {role}?"), (style, words)]
            self._confirm("Change a role", text, "Change", command)

        title = f"Role of {clean(node.name)}/{device.label}"
        picker = Picker(self._host, title, lambda: items, detail=detail, hint="enter choose")
        self._host.ask(picker, chosen)

    def _stops(self, node: Node, device: Device, role: str) -> tuple[str, str]:
        """What ends when a GPU changes its role: style and words."""
        if role == device.role:
            return "muted", "Nothing changes."
        now = next((n for n in self._host.scene.fleet.nodes if n.name == node.name), node)
        ending = [e for e in engines_on(now, device) if e.kind != "endpoint"]
        if not ending:
            return "muted", "No engine uses it now: nothing stops."
        ids = {e.id for e in ending}
        requests = self._host.scene.fleet.requests
        running = sum(1 for r in requests if r.engine in ids and r.state in RUNNING)
        names = ", ".join(clean(e.id) for e in ending)
        held = [clean(model.name) for e in ending for model in e.loaded]
        words = f"▲ stops or restarts {names}"
        if held:
            words += f", with {', '.join(dict.fromkeys(held))} loaded"
        if running:
            words += f"; {count(running, 'request')} running there will fail"
        if any(len(e.devices) > 1 for e in ending):
            words += ". It spans other GPUs too"
        return "warn", f"{words}."

    # -- choosing among what a node has --

    def choose_engine(
        self, title: str, engines: Sequence[Engine], then: Callable[[Engine], None]
    ) -> None:
        """The only one at once, else a picker."""
        if len(engines) == 1:
            then(engines[0])
            return

        def row(engine: Engine) -> Callable[[int, Palette], Line]:
            def draw(width: int, p: Palette) -> Line:
                state = engine_state(engine)
                line = Row(width, p.base).put(GLYPHS[state] + " ", p.state(state))
                line.put(engine.id, p.base, 34).gap().put(engine.state, p.state(state), 9)
                held = "  ".join(model.name for model in engine.loaded)
                return line.put(held, p.muted, line.left).end()

            return draw

        items = [Item(e.id, f"{e.id} {e.state}", row(e)) for e in engines]
        by_id = {engine.id: engine for engine in engines}
        picker = Picker(self._host, title, lambda: items)
        self._host.ask(picker, lambda value: then(by_id[value]))

    def choose_device(self, node: Node, then: Callable[[Device], None]) -> None:
        if len(node.devices) == 1:
            then(node.devices[0])
            return

        def row(device: Device) -> Callable[[int, Palette], Line]:
            def draw(width: int, p: Palette) -> Line:
                line = Row(width, p.base).put(device.label, p.bright, 7)
                line.put(device.role or MISSING, p.base, 8).put(device.name, p.muted, 24).gap()
                line.put(percent(device.util_percent), p.base, 5, ">").gap()
                memory = size_pair(device.used_bytes, device.vram_bytes)
                return line.put(memory, p.base, 11, ">").end()

            return draw

        items = [Item(d.uuid, f"{d.label} {d.name} {d.role}", row(d)) for d in node.devices]
        by_uuid = {device.uuid: device for device in node.devices}
        picker = Picker(self._host, f"A GPU of {clean(node.name)}", lambda: items)
        self._host.ask(picker, lambda value: then(by_uuid[value]))

    def adopt(self, node: Node, urls: Sequence[str]) -> None:
        """Use an Ollama that runs there."""

        def confirm(url: str) -> None:
            text: Text = [
                ("bright", f"Send requests to {clean(url)} on {clean(node.name)}?"),
                ("base", "Somebody else runs it: it is used, never started, stopped or changed."),
            ]
            command = AdoptEndpoint(node=node.name, url=url)
            self._confirm("Adopt an Ollama", text, "Use it", command, danger=False)

        if len(urls) == 1:
            confirm(urls[0])
            return

        def row(url: str) -> Callable[[int, Palette], Line]:
            return lambda width, p: Row(width, p.base).put(url, p.base, width).end()

        items = [Item(url, url, row(url)) for url in urls]
        title = f"Ollama servers found on {clean(node.name)}"
        self._host.ask(Picker(self._host, title, lambda: items), confirm)

    def release(self, node: Node, url: str) -> None:
        """Stop using an adopted Ollama."""
        text: Text = [
            ("bright", f"Send {clean(url)} on {clean(node.name)} no more requests?"),
            ("base", "It goes on running: it is not ours."),
        ]
        command = AdoptEndpoint(node=node.name, url=url, adopted=False)
        self._confirm("Let an Ollama go", text, "Let go", command)
