"""The list of the Nodes screen: a row for every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from olol_tui.fleet.snapshot import Engine, Fleet, Node
from olol_tui.render.line import Frame, Hit, Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.scene import Scene
from olol_tui.render.steps import is_running, progress
from olol_tui.render.table import Column, Fitted, fit_columns, head_line
from olol_tui.render.text import MISSING, age, clean, count, percent
from olol_tui.render.tiles import GLYPHS, RUNNING, is_new

COLUMNS = (
    Column("name", "node", 8, grow=16, keep=99),
    Column("state", "state", 10, keep=98),
    Column("gpus", "GPUs", 8, keep=90, grow=4),
    Column("run", "run", 3, ">", keep=80),
    Column("util", "util", 4, ">", keep=85),
    Column("agent", "agent", 6, keep=50),
    Column("seen", "seen", 4, ">", keep=70),
    Column("reboot", "boot", 4, keep=60),
    Column("host", "host", 12, grow=24, keep=30),
)
_MARGIN = 4
"""The cursor's mark and the state's."""


def is_old(node: Node) -> bool:
    """Its figures are the last good ones: drawn dimmed."""
    return node.stale or (node.state == "lost" and not is_new(node))


def node_state(node: Node) -> str:
    """The state of a node by the names in GLYPHS."""
    if is_running(node):
        return "loading"
    if node.question is not None:
        return "warn"
    if node.state in ("lost", "failed"):
        return "idle" if is_new(node) else "lost"
    if node.stale:
        return "stale"
    if node.state == "connecting":
        return "loading"
    if node.cordoned:
        return "cordoned"
    return "warn" if node.error or faulty_engines(node) else "ok"


def state_words(scene: Scene, node: Node) -> str:
    """The state in a word or two."""
    if is_running(node):
        return progress(node.name, node.steps, scene.history, scene.fleet.now_s).short
    if node.question is not None:
        return "host key?"
    if is_new(node):
        return "new"
    if node.state != "ready":
        return node.state
    if node.stale:
        return "stale"
    if node.draining:
        return "draining"
    if node.cordoned:
        return "cordoned"
    faults = faulty_engines(node)
    return count(faults, "fault") if faults else "ready"


def faulty_engines(node: Node) -> int:
    """Engines that exit, or were given up."""
    return sum(1 for engine in node.engines if engine.state in ("backoff", "failed"))


def engine_state(engine: Engine) -> str:
    """The state of an engine by the names in GLYPHS."""
    return {
        "ready": "cordoned" if engine.cordoned else "ok",
        "starting": "loading",
        "stopping": "loading",
        "backoff": "warn",
        "failed": "crit",
        "stopped": "idle",
    }[engine.state]


def gpu_kind(name: str) -> str:
    """A GPU's name without its maker: `H200`, `RTX 4090`."""
    return clean(name).removeprefix("NVIDIA ").removeprefix("AMD ").removeprefix("GeForce ")


def gpus(node: Node) -> str:
    """`8×H200`, `RTX 4090`, `4 GPUs` of several kinds, `cpu`."""
    if not node.devices:
        return MISSING
    kinds = {gpu_kind(d.name) for d in node.devices}
    if all(d.vendor == "cpu" for d in node.devices):
        return "cpu"
    number = len(node.devices)
    if len(kinds) > 1:
        return f"{number} GPUs"
    return f"{number}×{kinds.pop()}" if number > 1 else kinds.pop()


def adopted_from(node: Node, fleet: Fleet) -> tuple[Node, str] | None:
    """The node that an adopted Ollama was found on, and its URL there.

    An adopted server is a member of its own, called after its node and its port.
    """
    address = node.engines[0].address if node.engines else ""
    if node.kind != "endpoint" or not address:
        return None
    port = address.rpartition(":")[2]
    for other in fleet.nodes:
        if other.kind != "endpoint" and node.name == f"{other.name}-{port}":
            return other, f"http://{address}"
    return None


def mean_util(node: Node) -> float | None:
    """Of the GPUs that say; a node without any gives its CPU's."""
    utils = [d.util_percent for d in node.devices if d.util_percent is not None]
    return sum(utils) / len(utils) if utils else None


def requests_by_node(fleet: Fleet) -> Mapping[str, int]:
    """Running requests by node."""
    return Counter(r.engine.split("/", 1)[0] for r in fleet.requests if r.state in RUNNING)


def silent_s(node: Node, fleet: Fleet) -> float | None:
    """Since when nothing was heard of the node; None: it never said anything."""
    if node.last_contact_s is not None:
        return fleet.now_s - node.last_contact_s
    return node.age_s if node.agent_version else None


def survives(node: Node) -> str:
    """Whether agent and engines come back after a reboot."""
    if node.survives_reboot is None:
        return MISSING
    return "yes" if node.survives_reboot else "no"


def _node_line(
    scene: Scene, node: Node, running: int, fitted: Fitted, width: int, p: Palette, *, cursor: bool
) -> Line:
    state = node_state(node)
    row = Row(width, p.base).raw("▶ " if cursor else "  ", 2, p.strong)
    row.put(GLYPHS[state] + " ", p.state(state))
    told = {
        "name": (node.name, p.bright),
        "state": (state_words(scene, node), p.state(state)),
        "gpus": (gpus(node), p.base),
        "run": (str(running) if running else MISSING, p.base if running else p.faint),
        "util": (percent(mean_util(node)), p.base),
        "agent": (node.agent_version or MISSING, p.muted),
        "seen": (age(silent_s(node, scene.fleet)), p.stale if is_old(node) else p.muted),
        "reboot": (survives(node), p.warn if node.survives_reboot is False else p.muted),
        "host": (node.host or node.kind, p.muted),
    }
    for index, (column, wide) in enumerate(fitted):
        words, style = told[column.key]
        row.gap(1 if index else 0).put(words, style, wide, column.align)
    return row.end()


def draw_nodes(
    scene: Scene,
    shown: Sequence[Node],
    first: int,
    rows: int,
    width: int,
    *,
    cursor: str,
) -> Frame:
    """Titles, and the rows from index `first` on; `rows` counts both."""
    fitted = fit_columns(COLUMNS, width - _MARGIN - 1)
    frame = Frame([head_line(fitted, width, scene.palettes.base, margin=_MARGIN)])
    running = requests_by_node(scene.fleet)
    for index, node in enumerate(shown[first : first + rows - 1], start=first):
        chosen = node.name == cursor
        palettes = scene.palettes
        dimmed = palettes.dim if is_old(node) else palettes.base
        frame.hits.append(Hit(0, len(frame.lines), width, 1, "cursor", f"node:{index}"))
        frame.lines.append(
            _node_line(
                scene,
                node,
                running.get(node.name, 0),
                fitted,
                width,
                palettes.cursor if chosen else dimmed,
                cursor=chosen,
            )
        )
    return frame
