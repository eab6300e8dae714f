"""One node, whole: its steps, GPUs with their roles, engines, and Ollamas that are not ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.style import Style

from olol_tui.fleet.snapshot import Device, Engine, Fleet, Node, ProvisionStep
from olol_tui.render.box import wrap
from olol_tui.render.line import Line, Row
from olol_tui.render.logs import draw_log
from olol_tui.render.nodes import (
    engine_state,
    gpu_kind,
    gpus,
    is_old,
    node_state,
    silent_s,
    state_words,
)
from olol_tui.render.palette import Palette
from olol_tui.render.scene import Scene
from olol_tui.render.steps import draw_step, fault_lines, head_words, progress
from olol_tui.render.text import age, cells, celsius, clean, percent, size_pair
from olol_tui.render.tiles import GLYPHS, engine_fault, is_new

PartKind = Literal["step", "device", "engine", "foreign"]
LOG_ROWS = 6
"""Of a step's log that stand below the steps."""

WITHOUT_AGENT = "our agent is not installed there yet: P does it"


@dataclass(frozen=True, slots=True)
class Part:
    """Something of a node that the cursor can stand on."""

    kind: PartKind
    key: str
    """Name of a step, UUID of a device, id of an engine, URL of a foreign Ollama."""

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.key}"


@dataclass(frozen=True, slots=True)
class DetailLine:
    """A line, and the part it belongs to; empty for titles and facts."""

    part: str
    line: Line


def parts(node: Node) -> list[Part]:
    """In the order in which they are drawn."""
    return [
        *(Part("step", step.name) for step in node.steps),
        *(Part("device", device.uuid) for device in node.devices),
        *(Part("engine", engine.id) for engine in node.engines),
        *(Part("foreign", url) for url in node.foreign),
    ]


def engines_on(node: Node, device: Device) -> tuple[Engine, ...]:
    """The engines that use a device."""
    return tuple(e for e in node.engines if device.uuid in e.devices)


def draw_node(scene: Scene, node: Node, width: int, *, cursor: str) -> list[DetailLine]:
    """All there is to say about a node, below its title.

    Args:
        cursor: id of the part with the cursor; empty when the cursor is in the list.
    """
    lines = [DetailLine("", line) for line in _head(scene, node, width)]
    if node.steps:
        run = progress(node.name, node.steps, scene.history, scene.fleet.now_s)
        lines.append(DetailLine("", head_words(run, width, scene.palettes)))
        for step in node.steps:
            lines += _step_lines(scene, node, step, width, cursor)
        lines += _log_lines(scene, node, width)
    if node.devices:
        title = "Device" if all(d.vendor == "cpu" for d in node.devices) else "GPUs"
        lines.append(_rule(title, width, scene))
        for device in node.devices:
            part = Part("device", device.uuid).id
            p, chosen = _palette(scene, node, part, cursor)
            lines.append(DetailLine(part, _device_line(node, device, width, p, cursor=chosen)))
    if node.engines:
        lines.append(_rule("Engines", width, scene))
        for engine in node.engines:
            part = Part("engine", engine.id).id
            p, chosen = _palette(scene, node, part, cursor)
            line = _engine_line(engine, scene.fleet, width, p, cursor=chosen)
            lines.append(DetailLine(part, line))
            lines += [DetailLine(part, told) for told in _fault_lines(engine, width, p)]
    if node.foreign:
        lines.append(_rule("Ollama servers found there, not ours", width, scene))
        for url in node.foreign:
            part = Part("foreign", url).id
            p, chosen = _palette(scene, node, part, cursor)
            row = Row(width, p.base).raw("▶ " if chosen else "  ", 2, p.strong)
            row.put("? ", p.accent).put(url, p.base, min(cells(clean(url)), row.left - 20)).gap(2)
            words = "A uses it as an endpoint"
            lines.append(DetailLine(part, row.put(words, p.muted, row.left - 1).end()))
    return lines


def title_line(scene: Scene, node: Node, width: int, *, inside: bool) -> Line:
    """The rule above the detail."""
    p = scene.palettes.base
    edge = p.accent if inside else p.faint
    row = Row(width, edge).raw("─ ", 2, edge).put(node.name, p.strong if inside else p.bright)
    for words in (
        gpus(node) if node.devices else "",
        node.host or ("this machine" if node.kind == "local" else node.kind),
        node.pool,
    ):
        if words and cells(clean(words)) + 6 < row.left:
            row.gap(2).put(words, p.muted)
    return row.gap().raw("─" * row.left, row.left, edge).end()


def _palette(scene: Scene, node: Node, part: str, cursor: str) -> tuple[Palette, bool]:
    if part == cursor:
        return scene.palettes.cursor, True
    return (scene.palettes.dim if is_old(node) else scene.palettes.base), False


def _rule(title: str, width: int, scene: Scene) -> DetailLine:
    p = scene.palettes.base
    row = Row(width, p.faint).raw("─ ", 2, p.faint).put(title, p.muted, min(cells(title), width))
    return DetailLine("", row.gap().raw("─" * row.left, row.left, p.faint).end())


def _head(scene: Scene, node: Node, width: int) -> list[Line]:
    p = scene.palettes.dim if is_old(node) else scene.palettes.base
    state = node_state(node)
    style = scene.palettes.base.state(state)
    words = [(f"{GLYPHS[state]} {state_words(scene, node)}", style)]
    if node.agent_version:
        words.append((f"agent {node.agent_version}", p.base))
    words.append((f"seen {age(silent_s(node, scene.fleet))} ago", p.muted))
    if silent_s(node, scene.fleet) is None:
        words[-1] = ("never seen", p.muted)
    if node.cpu_percent is not None:
        words.append((f"cpu {percent(node.cpu_percent)}", p.muted))
    if node.memory_bytes:
        words.append((f"ram {size_pair(node.memory_used_bytes, node.memory_bytes)}", p.muted))
    lines = _flow(words, width, p)
    if (reboot := reboot_words(node)) is not None:
        lines += _paragraph(reboot, width, p, p.warn if node.survives_reboot is False else p.muted)
    if node.managed_by:
        words_of = f"managed by {node.managed_by}: look, but do not touch"
        lines += _paragraph(words_of, width, p, scene.palettes.base.warn)
    if node.question is not None:
        asked = f"▲ unknown {node.question.key_type} host key: enter or P to look at it"
        lines += _paragraph(asked, width, p, scene.palettes.base.warn)
    elif is_new(node):
        lines += _paragraph(WITHOUT_AGENT, width, p, scene.palettes.base.accent)
    elif node.error and not _told_by_steps(node):
        for part in fault_lines(node.error):
            lines += _paragraph(part, width, p, style)
        if node.hint:
            lines += _paragraph(f"→ {node.hint}", width, p, p.base)
    return lines


def _told_by_steps(node: Node) -> bool:
    """Whether what is wrong is being worked on, or said by the step that failed at it."""
    stopped = any(step.state in ("running", "failed") for step in node.steps)
    return stopped and node.state != "ready"


def reboot_words(node: Node) -> str | None:
    """What survives a reboot, in a sentence; None where nobody knows."""
    if node.survives_reboot is None:
        return None
    if node.survives_reboot:
        return "comes back by itself after a reboot"
    return "after a reboot: started at the next connection"


def _flow(words: Sequence[tuple[str, Style]], width: int, p: Palette) -> list[Line]:
    """Chunks side by side, on as many lines as they need."""
    lines: list[Line] = []
    row = Row(width, p.base).gap(2)
    for text, style in words:
        wide = cells(clean(text))
        if row.used > 2 and wide + 2 > row.left:
            lines.append(row.end())
            row = Row(width, p.base).gap(2)
        row.put(text, style, min(wide, row.left)).gap(2)
    lines.append(row.end())
    return lines


def _paragraph(text: str, width: int, p: Palette, style: Style) -> list[Line]:
    return [Row(width, p.base).gap(2).put(part, style).end() for part in wrap(text, width - 3)]


def _step_lines(
    scene: Scene, node: Node, step: ProvisionStep, width: int, cursor: str
) -> list[DetailLine]:
    part = Part("step", step.name).id
    p = scene.palettes.cursor if part == cursor else scene.palettes.base
    drawn = draw_step(
        node.name, step, scene.history, scene.fleet.now_s, width, p, cursor=part == cursor
    )
    return [DetailLine(part, line) for line in drawn]


def _log_lines(scene: Scene, node: Node, width: int) -> list[DetailLine]:
    """The last lines that a step which runs or failed wrote."""
    step = next((s for s in node.steps if s.state in ("running", "failed") and s.log), None)
    if step is None:
        return []
    drawn = draw_log(step.log, width - 1, LOG_ROWS, scene.palettes.base, wrap=False)
    edge = Row(1, scene.palettes.base.base).gap().end()
    title = _rule(f"{step.name} says", width, scene)
    return [title, *(DetailLine("", [*edge, *line]) for line in drawn)]


def _device_line(node: Node, device: Device, width: int, p: Palette, *, cursor: bool) -> Line:
    row = Row(width, p.base).raw("▶ " if cursor else "  ", 2, p.strong)
    row.put(device.label, p.bright, 6)
    role = {"off": p.muted, "rpc": p.accent}.get(device.role, p.base)
    row.put(device.role or "-", role, 7)
    if len({gpu_kind(d.name) for d in node.devices}) > 1 or width >= 90:
        row.put(gpu_kind(device.name), p.muted, 12).gap()
    row.put(percent(device.util_percent), p.base, 4, ">").gap()
    row.put(size_pair(device.used_bytes, device.vram_bytes), p.base, 10, ">").gap()
    if device.temp_c is not None and width >= 76:
        row.put(celsius(device.temp_c), p.base, 4, ">").gap()
    row.gap()
    if device.error:
        return row.put(device.error, p.crit, max(0, row.left - 1)).end()
    if device.note:
        return row.put(device.note, p.muted, max(0, row.left - 1)).end()
    held = [m.name for e in engines_on(node, device) for m in e.loaded]
    words = "  ".join(dict.fromkeys(held))
    return row.put(words or "empty", p.base if words else p.faint, max(0, row.left - 1)).end()


def _engine_line(engine: Engine, fleet: Fleet, width: int, p: Palette, *, cursor: bool) -> Line:
    row = Row(width, p.base).raw("▶ " if cursor else "  ", 2, p.strong)
    state = engine_state(engine)
    row.put(GLYPHS[state] + " ", p.state(state))
    row.put(engine.id.split("/", 1)[-1], p.base, 24 if width >= 90 else 16).gap()
    row.put(engine.state, p.state(state), 8).gap()
    row.put(age(fleet.now_s - engine.since_s), p.muted, 5)
    row.put(f"{engine.restarts}×" if engine.restarts else "", p.warn, 4)
    if width >= 76:
        row.put(engine.address or "-", p.muted, 16)
    if width >= 90:
        row.put(str(engine.pid or "-"), p.muted, 8)
    words, style = _engine_words(engine, p)
    return row.put(words, style, max(0, row.left - 1)).end()


def _fault_lines(engine: Engine, width: int, p: Palette) -> list[Line]:
    """Below an engine that does not run: why, and the last it said."""
    fault = engine_fault(engine)
    if not fault:
        return []
    row = Row(width, p.base).gap(4).put("└ ", p.faint)
    lines = [row.put(fault, p.state(engine_state(engine)), max(0, row.left - 1)).end()]
    if engine.log_tail:
        row = Row(width, p.base).gap(6)
        lines.append(row.put(engine.log_tail[-1], p.muted, max(0, row.left - 1)).end())
    return lines


def _engine_words(engine: Engine, p: Palette) -> tuple[str, Style]:
    """What an engine holds, else what it complains of, else what it is."""
    names = [f"▒ {x.name}" for x in engine.loading] + [x.name for x in engine.loaded]
    if names:
        return "  ".join(names), p.base
    if engine.error and not engine_fault(engine):
        return engine.error, p.warn
    return (f"{engine.kind} {engine.version}".strip(), p.faint)
