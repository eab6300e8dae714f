"""Everything known about one row, as label and value: the describe windows."""

from __future__ import annotations

from olol_tui.fleet.snapshot import Engine, Fleet, Request, Split
from olol_tui.render.text import (
    age,
    celsius,
    percent,
    rate,
    remaining,
    seconds,
    size,
    size_pair,
    watts,
)
from olol_tui.render.tiles import Tile
from olol_tui.units import link_words

Pairs = list[tuple[str, str]]


def engine_facts(engine: Engine, fleet: Fleet) -> Pairs:
    """One engine: state, process, faults."""
    state: str = engine.state
    if engine.since_s:
        state += f" for {age(fleet.now_s - engine.since_s)}"
    if engine.retry_in_s is not None:
        state += f", retry in {engine.retry_in_s:.0f}s"
    pairs = [
        ("engine", engine.id),
        ("kind", f"{engine.kind} {engine.version}".strip()),
        ("state", state),
        ("address", engine.address or "-"),
        ("pid", "-" if engine.pid is None else str(engine.pid)),
        ("slots", str(engine.slots)),
        ("restarts", str(engine.restarts)),
    ]
    if engine.error:
        pairs.append(("error", engine.error))
    pairs.extend((("last log" if not i else ""), x) for i, x in enumerate(engine.log_tail[-12:]))
    return pairs


def tile_facts(tile: Tile, fleet: Fleet) -> Pairs:
    """A device with its models and engines."""
    node, device = tile.node, tile.device
    pairs: Pairs = [("state", tile.state + (f": {tile.note}" if tile.note else ""))]
    if device is not None:
        pairs += [
            ("name", device.name),
            ("vendor", device.vendor),
            ("uuid", device.uuid),
            ("util", percent(device.util_percent)),
            ("memory", size_pair(device.used_bytes, device.vram_bytes)),
        ]
        optional = (
            ("temp", device.temp_c, f"{celsius(device.temp_c)} of {celsius(device.temp_limit_c)}"),
            ("power", device.power_w, f"{watts(device.power_w)} of {watts(device.power_limit_w)}"),
            ("clock", device.clock_mhz, f"{device.clock_mhz or 0:.0f} MHz"),
            ("ECC errors", device.ecc_errors, str(device.ecc_errors)),
            (
                "PCIe",
                device.pcie_rx_bytes_s,
                f"{size(device.pcie_rx_bytes_s)}/s in, {size(device.pcie_tx_bytes_s)}/s out",
            ),
        )
        pairs += [(label, words) for label, value, words in optional if value is not None]
        if device.throttle:
            pairs.append(("throttle", ", ".join(device.throttle)))
    pairs += [
        ("node", f"{node.name}: {node.kind}, {node.state}, telemetry {age(node.age_s)} old"),
        ("requests", f"{tile.requests} running"),
    ]
    if node.error:
        pairs.append(("node error", node.error))
    for url in node.foreign:
        pairs.append(("foreign", f"{url} (an Ollama we did not start: shown, never touched)"))
    for split in fleet.splits:
        if tile.key in split.devices:
            pairs.extend(split_facts(split))
    for resident in tile.residents:
        if resident.of_layers:
            continue
        if resident.loading:
            progress = "" if resident.progress is None else f" {percent(100 * resident.progress)}"
            pairs.append(("model", f"{resident.name}: loading{progress}"))
            continue
        keep = (
            "pinned" if resident.pinned else f"keeps {remaining(resident.expires_at, fleet.wall)}"
        )
        context = "" if resident.context_length is None else f", context {resident.context_length}"
        spilled = ", partly on the CPU" if resident.spilled else ""
        held = size(resident.vram_bytes or resident.size_bytes or None)
        pairs.append(("model", f"{resident.name}: {held}{context}, {keep}{spilled}"))
    for engine in tile.engines:
        pairs.append(("", ""))
        pairs.extend(engine_facts(engine, fleet))
    return pairs


def split_facts(split: Split) -> Pairs:
    """One model over its devices: what was planned, what its head's log says."""
    pairs: Pairs = [
        ("split", f"{split.model}: {split.state}, {len(split.parts)} devices, head {split.node}"),
        ("", f"expected at {percent(100 * split.tokens_factor)} of one such GPU's tokens/s"),
    ]
    for part in split.parts:
        layers = part.layers if part.real_layers is None else part.real_layers
        output = " + output" if part.has_output else ""
        held = size(part.planned_bytes) if part.real_bytes is None else size(part.real_bytes)
        word = "planned" if part.real_bytes is None else f"of {size(part.planned_bytes)} planned"
        done = "" if part.progress is None else f", {percent(100 * part.progress)} there"
        way = link_words(part.rtt_s, part.bytes_s)
        road = f", {part.road}{f' {way}' if way else ''}" if part.road else ", the head's own"
        pairs.append((part.where, f"{layers} layers{output}: {held} {word}{done}{road}"))
    if split.restarts:
        took = f", the last in {seconds(split.restart_s)}" if split.restart_s else ""
        pairs.append(("restarts", f"{split.restarts}{took}"))
    if split.error:
        pairs.append(("error", split.error))
    return pairs


def request_facts(request: Request) -> Pairs:
    """One request, all fields, and why it went where it went."""
    tokens = str(request.tokens)
    if request.prompt_tokens is not None:
        tokens = f"{request.prompt_tokens} prompt, {tokens} reply"
    pairs: Pairs = [
        ("id", request.id),
        ("state", request.state),
        ("model", request.model),
        ("client", request.client),
        ("call", f"{request.dialect} {request.path}{', streaming' if request.stream else ''}"),
        ("class", request.priority),
        ("age", seconds(request.age_s)),
        ("where", request.where or "-"),
        ("engine", request.engine or "-"),
        ("wait", seconds(request.wait_s)),
        ("first token", seconds(request.ttft_s)),
        ("total", seconds(request.total_s)),
        ("tokens", tokens),
        ("tok/s", rate(request.tokens_per_s)),
        ("status", "-" if request.status is None else str(request.status)),
    ]
    if request.position is not None:
        ahead = f"{request.position - 1} before it" if request.position > 1 else "next"
        expected = request.expected_s
        told = "nobody knows how long" if expected is None else f"about {seconds(expected)} to go"
        pairs.append(("place", f"{ahead}, {told}"))
    if request.deadline_s is not None:
        pairs.append(("deadline", f"in {seconds(request.deadline_s)}"))
    if request.error:
        pairs.append(("error", request.error))
    pairs.append(("why", request.why or "not said"))
    return pairs
