"""A node and its parts as label and value: the describe windows of the Nodes screen."""

from __future__ import annotations

from olol_tui.fleet.snapshot import Device, Fleet, Node, ProvisionStep
from olol_tui.render.details import Pairs, engine_facts
from olol_tui.render.node_detail import Part, engines_on, reboot_words
from olol_tui.render.nodes import silent_s
from olol_tui.render.text import age, percent, size_pair
from olol_tui.units import link_words


def part_facts(fleet: Fleet, node: Node, part: Part | None) -> Pairs:
    """Everything known about a part of a node, or about the node itself."""
    if part is not None and part.kind == "step":
        step = next((s for s in node.steps if s.name == part.key), None)
        return [("step", "is over")] if step is None else step_facts(step)
    if part is not None and part.kind == "device":
        device = fleet.device(node.name, part.key)
        return [("device", "is gone")] if device is None else device_facts(node, device, fleet)
    if part is not None and part.kind == "engine":
        engine = fleet.engine(part.key)
        return [("engine", "is gone")] if engine is None else engine_facts(engine, fleet)
    return node_facts(node, fleet)


def node_facts(node: Node, fleet: Fleet) -> Pairs:
    """One node as label and value: the describe window."""
    silent = silent_s(node, fleet)
    pairs: Pairs = [
        ("node", node.name),
        ("state", node.state + (", telemetry is stale" if node.stale else "")),
        ("kind", f"{node.kind}, agent {node.agent_version or '-'}"),
        ("host", node.host or "this machine"),
        ("seen", "never" if silent is None else f"{age(silent)} ago"),
        ("reboot", reboot_words(node) or "not known"),
        ("cordoned", "draining" if node.draining else "yes" if node.cordoned else "no"),
        ("cpu", percent(node.cpu_percent)),
        ("ram", size_pair(node.memory_used_bytes, node.memory_bytes)),
    ]
    optional = (
        ("clock", clock_words(node.clock_ahead_s)),
        ("ssh", node.ssh_command),
        ("pool", node.pool),
        ("managed by", node.managed_by),
        ("error", node.error),
        ("hint", node.hint),
    )
    pairs += [(label, words) for label, words in optional if words]
    pairs += [(device.label, _device_words(device)) for device in node.devices]
    pairs += [
        ("foreign", f"{url}: an Ollama we did not start, never touched") for url in node.foreign
    ]
    pairs += [(f"to {link.node}", link_words(link.rtt_s, link.bytes_s)) for link in node.links]
    pairs.append(("library", ", ".join(m.name for m in node.library) or "empty"))
    return pairs


def clock_words(ahead_s: float) -> str:
    """`24.0 h ahead of ours; times are shown in ours`; empty for a clock that goes right."""
    if not ahead_s:
        return ""
    off_s = abs(ahead_s)
    size = f"{off_s / 3600:.1f} h" if off_s >= 3600 else f"{off_s / 60:.0f} min"
    size = f"{off_s:.0f} s" if off_s < 120 else size
    return f"{size} {'ahead of' if ahead_s > 0 else 'behind'} ours; times are shown in ours"


def _device_words(device: Device) -> str:
    words = [device.name, device.role, device.note, device.error, device.uuid]
    return ", ".join(word for word in words if word)


def step_facts(step: ProvisionStep) -> Pairs:
    """One step with its log."""
    pairs: Pairs = [
        ("step", step.name),
        ("state", step.state),
        ("took", "-" if step.took_s is None else f"{step.took_s:.2f} s"),
        ("message", step.message or "-"),
    ]
    if step.hint:
        pairs.append(("hint", step.hint))
    pairs.extend(("log" if not i else "", line) for i, line in enumerate(step.log))
    return pairs


def device_facts(node: Node, device: Device, fleet: Fleet) -> Pairs:
    """One GPU: role, figures, and the engines on it."""
    pairs: Pairs = [
        ("device", f"{node.name}/{device.label}"),
        ("name", device.name),
        ("uuid", device.uuid),
        ("role", ", ".join(filter(None, (device.role or "-", device.note)))),
        ("util", percent(device.util_percent)),
        ("memory", size_pair(device.used_bytes, device.vram_bytes)),
    ]
    if device.error:
        pairs.append(("error", device.error))
    for engine in engines_on(node, device):
        pairs.append(("", ""))
        pairs += engine_facts(engine, fleet)
    return pairs
