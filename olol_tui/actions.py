"""Everything an operator can do in the console, one row each.

Keys, footer, `?` help, palette and the effect of `--read-only` are all read from this
table; nothing is listed twice. Pure data: imports neither textual nor rich.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ALL: frozenset[str] = frozenset()
"""No screens named: the action exists on every screen."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing an operator can do."""

    name: str
    """`verb_noun`."""
    keys: tuple[str, ...]
    """Textual key names; the first is the one that is shown."""
    label: str
    """A word or two for the footer."""
    help: str
    group: str
    screens: frozenset[str] = ALL
    dangerous: bool = False
    """Changes the fleet: confirmed, and gone under read-only."""
    footer: int = 0
    """Place in the footer, 1 first; 0 is help and palette only."""

    def on(self, screen: str) -> bool:
        return not self.screens or screen in self.screens

    @property
    def shown_key(self) -> str:
        return show_key(self.keys[0])


_KEY_WORDS = {
    "question_mark": "?",
    "slash": "/",
    "colon": ":",
    "escape": "esc",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "enter": "↵",
}


def show_key(key: str) -> str:
    """A Textual key name as people write it: `ctrl+d` is `^d`.

    >>> show_key("ctrl+d"), show_key("question_mark")
    ('^d', '?')
    """
    if key.startswith("ctrl+"):
        return "^" + key.removeprefix("ctrl+")
    return _KEY_WORDS.get(key, key)


def _on(*screens: str) -> frozenset[str]:
    return frozenset(screens)


def _node(
    name: str, key: str, label: str, help: str, footer: int = 0, *, dangerous: bool = True
) -> Action:
    """A row of the Nodes screen: most of what it does changes a machine."""
    return Action(name, (key,), label, help, "Nodes", _on("nodes"), dangerous, footer)


def _request(name: str, key: str, label: str, help: str, footer: int) -> Action:
    """A row of the Requests screen that changes what becomes of them."""
    return Action(name, (key,), label, help, "Requests", _on("requests"), True, footer)


_LISTS = _on("fleet", "placement", "requests", "nodes", "logs")
_SIDES = _on("fleet", "placement", "nodes")
_PLACES = _on("fleet", "placement")

ACTIONS: tuple[Action, ...] = (
    # Screens
    Action("show_fleet", ("1",), "Fleet", "devices, alerts and models", "Screens"),
    Action("show_placement", ("2",), "Placement", "models × devices, as a plan", "Screens"),
    Action("show_requests", ("3",), "Requests", "queued, running, recent requests", "Screens"),
    Action("show_nodes", ("4",), "Nodes", "nodes and engines, with faults", "Screens"),
    Action("show_logs", ("5",), "Logs", "the log of an engine, live", "Screens"),
    # Moving
    Action("cursor_up", ("up", "k"), "Up", "move up", "Moving", _LISTS),
    Action("cursor_down", ("down", "j"), "Down", "move down", "Moving", _LISTS),
    Action("cursor_left", ("left", "h"), "Left", "move left", "Moving", _SIDES),
    Action("cursor_right", ("right",), "Right", "move right", "Moving", _SIDES),
    Action("cursor_first", ("home", "g"), "First", "to the first row", "Moving", _LISTS),
    Action("cursor_last", ("end", "G"), "Last", "to the last row", "Moving", _LISTS),
    Action("page_up", ("pageup",), "Page up", "a page up", "Moving", _LISTS),
    Action("page_down", ("pagedown",), "Page down", "a page down", "Moving", _LISTS),
    Action(
        "describe",
        ("enter", "d"),
        "Detail",
        "everything known about the row under the cursor",
        "Looking",
        _on("fleet", "placement", "requests"),
        footer=1,
    ),
    Action(
        "open_node",
        ("enter",),
        "Open",
        "into the node: its steps, GPUs and engines; there, everything about one",
        "Looking",
        _on("nodes"),
    ),
    Action(
        "describe_node",
        ("d",),
        "Detail",
        "everything known about the node, or the part of it under the cursor",
        "Looking",
        _on("nodes"),
    ),
    # Placement
    Action(
        "place_model",
        ("p",),
        "Place",
        "load a model of the library on the device under the cursor",
        "Placement",
        _PLACES,
        dangerous=True,
        footer=2,
    ),
    Action(
        "move_model",
        ("m",),
        "Move",
        "move a model: arrows choose the device, enter drops it",
        "Placement",
        _PLACES,
        dangerous=True,
        footer=3,
    ),
    Action(
        "unload_model",
        ("u", "ctrl+d"),
        "Unload",
        "unload a model from the device under the cursor",
        "Placement",
        _PLACES,
        dangerous=True,
        footer=4,
    ),
    Action(
        "pin_model",
        ("P",),
        "Pin",
        "pin a model: it stays, and returns after a restart; or unpin it",
        "Placement",
        _PLACES,
        dangerous=True,
        footer=5,
    ),
    Action(
        "retry_split",
        ("r",),
        "Retry",
        "split a model again whose split was given up: shows what it said last",
        "Placement",
        _PLACES,
        dangerous=True,
        footer=1,
    ),
    Action(
        "apply_plan",
        ("a",),
        "Apply",
        "carry out the planned changes: shows them, with memory before and after",
        "Placement",
        _on("placement"),
        dangerous=True,
        footer=6,
    ),
    Action(
        "undo_change",
        ("z",),
        "Undo",
        "take the last edit of the plan back",
        "Placement",
        _on("placement"),
        dangerous=True,
        footer=7,
    ),
    Action(
        "discard_plan",
        ("Z",),
        "Discard",
        "plan nothing; z brings the plan back",
        "Placement",
        _on("placement"),
        dangerous=True,
        footer=8,
    ),
    # Requests
    _request("cancel_request", "ctrl+d", "Cancel", "cancel the request under the cursor", 2),
    _request(
        "pause_model",
        "p",
        "Pause model",
        "let requests of the model under the cursor wait; again resumes it",
        4,
    ),
    _request("reroute_request", "r", "Reroute", "send a queued request to another engine", 5),
    Action(
        "pause_view",
        ("u",),
        "Hold still",
        "hold the table still; requests keep flowing",
        "Requests",
        _on("requests"),
        footer=3,
    ),
    # Nodes
    _node("add_node", "a", "Add", "add a machine: a host of ~/.ssh/config, or user@host:port", 3),
    _node(
        "provision_node",
        "P",
        "Provision",
        "install or mend what the node needs: shows the steps first",
        4,
    ),
    _node(
        "abort_provision",
        "x",
        "Abort",
        "stop what is being done to the node; what is done stays done",
        1,
    ),
    _node(
        "retry_node",
        "r",
        "Retry",
        "go on from the failed step, connect anew, or restart a failed engine",
        2,
    ),
    _node("cordon_node", "c", "Cordon", "take no new work on the node, or take it again", 5),
    _node("drain_node", "D", "Drain", "take no new work and let what runs end", 5),
    _node(
        "restart_engine",
        "e",
        "Restart",
        "restart an engine: the one under the cursor, or one of the node's",
        7,
    ),
    _node("set_role", "R", "Role", "what a GPU is for: ollama, shared, rpc or off", 5),
    _node(
        "adopt_endpoint",
        "A",
        "Adopt",
        "use an Ollama that was found on the node, or stop using it",
        2,
    ),
    _node(
        "copy_ssh", "y", "Copy ssh", "copy the command that opens a shell there", 8, dangerous=False
    ),
    _node(
        "uninstall_node",
        "U",
        "Uninstall",
        "take everything of ours off the node, models excepted",
        9,
    ),
    _node(
        "forget_node",
        "ctrl+d",
        "Forget",
        "take the node out of the configuration; what runs there goes on",
    ),
    # Logs
    Action(
        "follow_log", ("f",), "Follow", "stay at the newest line", "Logs", _on("logs"), footer=1
    ),
    Action("wrap_log", ("w",), "Wrap", "wrap long lines", "Logs", _on("logs"), footer=2),
    Action(
        "next_log", ("n",), "Next engine", "the next engine's log", "Logs", _on("logs"), footer=3
    ),
    # Looking
    Action(
        "open_log",
        ("l",),
        "Logs",
        "the log of the engine under the cursor, or of the node's agent",
        "Looking",
        _on("fleet", "placement", "nodes", "requests"),
        footer=6,
    ),
    Action(
        "cycle_view",
        ("v",),
        "View",
        "panes, list, graphs of one device, or what fits",
        "Looking",
        _on("fleet"),
        footer=7,
    ),
    Action(
        "sort_rows",
        ("o",),
        "Sort",
        "sort by a column: its letter follows; again reverses",
        "Looking",
        _on("fleet", "requests"),
        footer=8,
    ),
    Action(
        "filter_rows",
        ("slash",),
        "Filter",
        "show matching rows: a regular expression, or field:value",
        "Looking",
        _on("fleet", "placement", "requests", "nodes", "logs"),
        footer=9,
    ),
    Action(
        "show_faults",
        ("ctrl+z",),
        "Faults",
        "only what is wrong",
        "Looking",
        _on("fleet"),
    ),
    Action("go_back", ("escape",), "Back", "clear the filter, then go back", "Looking"),
    # General
    Action(
        "open_palette",
        ("colon", "ctrl+p"),
        "Command",
        "find an action by name",
        "General",
        footer=20,
    ),
    Action("cycle_theme", ("T",), "Theme", "next colour theme", "General"),
    Action("show_help", ("question_mark",), "Help", "this page", "General", footer=90),
    Action("quit", ("q", "ctrl+c"), "Quit", "leave the console", "General", footer=91),
)

LAST_IN_FOOTER = 90
"""Actions from this footer place on are always shown, at the end."""

_BY_NAME = {action.name: action for action in ACTIONS}


def action(name: str) -> Action:
    return _BY_NAME[name]


def actions_on(screen: str) -> Iterator[Action]:
    """What exists on a screen, in table order."""
    return (a for a in ACTIONS if a.on(screen))


def by_key(screen: str, key: str) -> Action | None:
    """What a key does on a screen."""
    return next((a for a in actions_on(screen) if key in a.keys), None)


def allowed(action: Action, *, read_only: bool) -> bool:
    """The one place where read-only takes actions away."""
    return not (read_only and action.dangerous)


def footer_actions(screen: str, *, read_only: bool) -> tuple[list[Action], list[Action]]:
    """What the footer shows, in order, and what it always shows at its end."""
    shown = sorted(
        (a for a in actions_on(screen) if a.footer and allowed(a, read_only=read_only)),
        key=lambda a: a.footer,
    )
    return (
        [a for a in shown if a.footer < LAST_IN_FOOTER],
        [a for a in shown if a.footer >= LAST_IN_FOOTER],
    )


def groups_on(screen: str) -> dict[str, list[Action]]:
    """Actions of a screen by group, in table order: the help page."""
    found: dict[str, list[Action]] = {}
    for item in actions_on(screen):
        found.setdefault(item.group, []).append(item)
    return found
