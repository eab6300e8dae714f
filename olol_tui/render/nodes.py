"""The Nodes screen: every node with its engines, what fails and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style

from olol_tui.fleet.snapshot import Engine, Fleet, Node
from olol_tui.render.box import facts
from olol_tui.render.details import Pairs, engine_facts
from olol_tui.render.line import Frame, Hit, Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.scene import Scene
from olol_tui.render.text import age, count, percent, size_pair
from olol_tui.render.tiles import GLYPHS


@dataclass(frozen=True, slots=True)
class Entry:
    """A node, or one of its engines."""

    id: str
    """The node's name, or the engine's id."""
    node: Node
    engine: Engine | None


def entries(fleet: Fleet) -> list[Entry]:
    """Nodes in the fleet's order, each followed by its engines."""
    found: list[Entry] = []
    for node in fleet.nodes:
        found.append(Entry(f"node:{node.name}", node, None))
        found.extend(Entry(engine.id, node, engine) for engine in node.engines)
    return found


def node_state(node: Node) -> str:
    """The state of a node by the names in GLYPHS."""
    if node.state in ("lost", "failed"):
        return "lost"
    if node.stale:
        return "stale"
    if node.state == "connecting":
        return "loading"
    return "cordoned" if node.cordoned else "warn" if node.error else "ok"


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


def _node_line(node: Node, width: int, p: Palette, *, cursor: bool) -> Line:
    row = Row(width, p.base).raw("▶ " if cursor else "  ", 2, p.strong)
    state = node_state(node)
    row.put(GLYPHS[state] + " ", p.state(state)).put(node.name, p.bright, 16).gap()
    words = {"ok": "ready", "cordoned": "cordoned"}.get(state, node.state)
    row.put(words, p.state(state), 11)
    row.put(count(len(node.devices), "device"), p.base, 11)
    if node.cpu_percent is not None:
        row.put(f"cpu {percent(node.cpu_percent)}", p.base, 9)
    if node.memory_bytes:
        row.put(f"ram {size_pair(node.memory_used_bytes, node.memory_bytes)}", p.base, 17)
    row.put(f"{node.kind} {node.agent_version}".strip(), p.muted, 14)
    if node.error:
        row.put(node.error, p.state(state), max(0, row.left - 7))
    return row.right(age(node.age_s), p.stale if node.stale else p.muted, margin=1).end()


def _engine_line(engine: Engine, fleet: Fleet, width: int, p: Palette, *, cursor: bool) -> Line:
    row = Row(width, p.base).raw("▶   " if cursor else "    ", 4, p.strong)
    state = engine_state(engine)
    row.put(GLYPHS[state] + " ", p.state(state))
    row.put(engine.id.split("/", 1)[-1], p.base, 26 if width >= 100 else 20).gap()
    row.put(engine.state, p.state(state), 9).put(age(fleet.now_s - engine.since_s), p.muted, 6)
    restarts = f"{engine.restarts}×" if engine.restarts else ""
    row.put(restarts, p.warn, 4)
    if width >= 100:
        row.put(engine.address or "-", p.muted, 17)
        row.put(str(engine.pid or "-"), p.muted, 8)
    words, style = _engine_words(engine, p)
    return row.put(words, style, max(0, row.left - 1)).end()


def _engine_words(engine: Engine, p: Palette) -> tuple[str, Style]:
    """What matters most about an engine: its fault, else its models."""
    if engine.state in ("backoff", "failed") or engine.error:
        retry = "" if engine.retry_in_s is None else f", retry in {engine.retry_in_s:.0f}s"
        return f"{engine.error or engine.state}{retry}", p.state(engine_state(engine))
    names = [f"▒ {x.name}" for x in engine.loading] + [x.name for x in engine.loaded]
    return ("  ".join(names), p.base) if names else ("nothing loaded", p.faint)


def node_facts(node: Node, fleet: Fleet) -> Pairs:
    """One node: state, devices, library, engines found that are not ours."""
    pairs: Pairs = [
        ("node", node.name),
        ("state", f"{node.state}, telemetry {age(node.age_s)} old"),
        ("kind", f"{node.kind}, agent {node.agent_version or '-'}"),
        ("cordoned", "yes" if node.cordoned else "no"),
        ("cpu", percent(node.cpu_percent)),
        ("ram", size_pair(node.memory_used_bytes, node.memory_bytes)),
    ]
    if node.error:
        pairs.append(("error", node.error))
    pairs += [
        ("device", f"{d.label}: {d.name}{': ' + d.error if d.error else ''}") for d in node.devices
    ]
    pairs += [
        ("foreign", f"{url}: an Ollama we did not start, never touched") for url in node.foreign
    ]
    pairs.append(("library", ", ".join(m.name for m in node.library) or "empty"))
    return pairs


def draw_nodes(
    scene: Scene,
    shown: Sequence[Entry],
    first: int,
    rows: int,
    width: int,
    *,
    cursor: str,
) -> Frame:
    """The rows from index `first` on."""
    frame = Frame()
    for index, entry in enumerate(shown[first : first + rows], start=first):
        chosen = entry.id == cursor
        palette = scene.palettes.cursor if chosen else scene.palettes.base
        frame.hits.append(Hit(0, len(frame.lines), width, 1, "cursor", str(index)))
        if entry.engine is None:
            frame.lines.append(_node_line(entry.node, width, palette, cursor=chosen))
        else:
            frame.lines.append(
                _engine_line(entry.engine, scene.fleet, width, palette, cursor=chosen)
            )
    return frame


def draw_detail(scene: Scene, entry: Entry | None, width: int, rows: int) -> list[Line]:
    """About the row under the cursor: an engine's last log lines, or a node's facts."""
    p = scene.palettes.base
    if entry is None or rows < 3:
        return []
    title = entry.engine.id if entry.engine else entry.node.name
    rule = Row(width, p.faint).raw("─ ", 2, p.faint).put(title, p.muted).gap()
    lines = [rule.raw("─" * rule.left, rule.left, p.faint).end()]
    if entry.engine is not None:
        pairs = engine_facts(entry.engine, scene.fleet)
    else:
        pairs = node_facts(entry.node, scene.fleet)
    indented = facts(pairs, max(10, width - 3), p)
    margin = Row(2, p.base).end()
    lines.extend([*margin, *line, *Row(1, p.base).end()] for line in indented[: rows - 1])
    return lines
