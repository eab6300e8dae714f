"""Which engines a node should run: configuration + what the node has + what was launched.

Pure. The result is the whole list for the agent, the kind of runner the node can launch,
and a sentence when the node can compute nothing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from olol_tui.config import NodeConfig
from olol_tui.fleet.snapshot import RUNNERS, Device, EngineKind, Model, Role
from olol_tui.fleet.wire import Inventory, RunnerModel, Spec
from olol_tui.fleet.wishes import Launch
from olol_tui.models.names import canonical

_LABELS: dict[str, str] = {
    "ollama": "Ollama",
    "llama-server": "llama-server",
    "embedded": "The embedded engine",
    "simulated": "The simulated engine",
}
_HOW_TO_GET: dict[str, str] = {
    "ollama": "install it (https://ollama.com/download), or give its path as `binary`",
    "llama-server": "build or download llama.cpp and give the path of llama-server as `binary`",
    "embedded": "pip install 'olol-tui[embedded]'",
    "simulated": 'the agent was not started with simulated devices: give `engine = "simulated"`',
}


NOTES: dict[Role, str] = {
    "rpc": "reserved for llama.cpp RPC",
    "off": "switched off: no engine may use it",
}
"""What the role of a device without an engine means."""
EVERYWHERE = "0.0.0.0"
"""Where engines listen that are reached without SSH (`transport = "direct"`)."""
_NO_ROLES: Mapping[str, Role] = {}


@dataclass(frozen=True, slots=True)
class Plan:
    """What one node should run, and why."""

    specs: tuple[Spec, ...] = ()
    reasons: tuple[str, ...] = ()
    """One for each spec."""
    runner: EngineKind | None = None
    """A kind in RUNNERS when the node launches one process a model."""
    error: str = ""
    """Why the node cannot compute."""
    roles: Mapping[str, Role] = field(default_factory=dict)
    """By UUID, for every device."""
    warning: str = ""
    """What of the configuration has no effect."""

    def show(self, device: Device) -> Device:
        """The device with its role."""
        role = self.roles.get(device.uuid, "")
        return replace(device, role=role, note=NOTES.get(role, "")) if role else device


@dataclass(frozen=True, slots=True)
class Choice:
    kind: EngineKind | None
    reason: str


def choose_kind(config: NodeConfig, inventory: Inventory) -> Choice:
    """The engine kind of a node; no kind with a sentence that says how to get one."""
    has = {kind for kind, found in inventory.engines.items() if found is not None}
    if config.engine != "auto":
        if config.engine in has or (config.binary and config.engine in ("ollama", "llama-server")):
            return Choice(config.engine, f'engine = "{config.engine}"')
        how = _HOW_TO_GET[config.engine]
        if config.engine == "llama-server" and not config.local:
            how += (
                "; or name an [engines] llama_archive, or set llama_build = true to have it built "
                "there, and provision again (P)"
            )
        return Choice(None, f"{_LABELS[config.engine]} was not found: {how}")
    if "ollama" in has or config.binary:
        return Choice("ollama", "Ollama is installed")
    if "embedded" in has:
        return Choice("embedded", "no Ollama, but the embedded engine is installed")
    other = '; or set engine = "llama-server", which is installed' if "llama-server" in has else ""
    if config.local:
        how = f"{_HOW_TO_GET['embedded']}, or install Ollama (https://ollama.com/download)"
    else:
        how = "name an [engines] ollama_archive and provision again (P), or install Ollama there"
    return Choice(None, f"No engine was found: {how}{other}")


def role_of(config: NodeConfig, device: Device, wished: Mapping[str, Role] = _NO_ROLES) -> Role:
    """What a device is for: as wished, else as configured by UUID (or its start) or index."""
    if device.uuid in wished:
        return wished[device.uuid]
    for key, role in config.roles.items():
        if key == str(device.index) or (not key.isdigit() and device.uuid.startswith(key)):
            return role
    return "shared" if config.gpus == "shared" else "ollama"


def plan(
    node: str,
    config: NodeConfig,
    inventory: Inventory,
    launches: Iterable[Launch] = (),
    wished: Mapping[str, Role] = _NO_ROLES,
) -> Plan:
    """The desired engines of a node.

    Args:
        launches: the runners asked for on this node. Those whose device is gone or whose
            kind the node no longer has are left out: the agent would refuse the whole list.
        wished: roles that the operator gave to devices, by UUID.
    """
    roles = {device.uuid: role_of(config, device, wished) for device in inventory.devices}
    warning = _without_device(config, inventory.devices)
    choice = choose_kind(config, inventory)
    if choice.kind is None:
        return Plan(error=choice.reason, roles=roles, warning=warning)
    if not inventory.devices:
        return Plan(error="The agent found no device to compute on", warning=warning)
    if choice.kind in RUNNERS:
        by_uuid = {
            device.uuid: device for device in inventory.devices if roles[device.uuid] not in NOTES
        }
        wanted = [
            launch for launch in launches if launch.kind == choice.kind and launch.device in by_uuid
        ]
        return Plan(
            specs=tuple(_runner_spec(config, launch) for launch in wanted),
            reasons=tuple(
                f"{launch.model} was asked for on {by_uuid[launch.device].label}"
                for launch in wanted
            ),
            runner=choice.kind,
            roles=roles,
            warning=warning,
        )
    groups = _device_groups(inventory.devices, roles)
    # One prunes the store that they share; several would delete each other's downloads. Always
    # the same one: its neighbours' roles may change without another process for it.
    pruner = inventory.devices[0].uuid
    return Plan(
        specs=tuple(
            _base_spec(node, config, choice.kind, label, devices, prunes=pruner in devices)
            for label, devices in groups
        ),
        reasons=tuple(f"{choice.reason}; {_grouping(label)}" for label, _ in groups),
        roles=roles,
        warning=warning,
    )


def engine_for(
    node: str, kind: EngineKind, device: Device, model: str, taken: Iterable[Launch] = ()
) -> str:
    """The id a runner has: `local/embedded-cpu-smollm2-135m`.

    A checksum is added when another model's launch already has that id.
    """
    slug = re.sub(r"[^a-z0-9.]+", "-", canonical(model)).strip("-")
    engine_id = f"{node}/{kind}-{device.label}-{slug}"
    if any(
        launch.engine_id == engine_id and canonical(launch.model) != canonical(model)
        for launch in taken
    ):
        return f"{engine_id}-{zlib.crc32(canonical(model).encode()):08x}"
    return engine_id


def library_request(
    node: str, config: NodeConfig, files: Iterable[tuple[str, str, str]], user_dir: str
) -> tuple[list[dict[str, str]], list[str], str]:
    """The arguments of the agent's `models` call: files, directories, Ollama store.

    Args:
        files: (name, path, chat template) of the configured models.
        user_dir: where the user of this machine drops GGUF files; "" for other machines.
    """
    named = [
        {"name": name, "path": path, "chat_template": template} for name, path, template in files
    ]
    dirs = [user_dir] if user_dir else []
    runs_files = config.engine in RUNNERS
    if config.models_dir and runs_files:
        dirs.append(config.models_dir)
    return named, dirs, "" if runs_files else config.models_dir


def usable(library: Iterable[Model], chosen: Plan) -> tuple[Model, ...]:
    """What the node's engines can load of what it holds.

    A runner is given a file. An engine of many models knows only the names in its store:
    loose files (those with a path) are not among them.
    """
    wants_path = chosen.runner is not None
    return tuple(model for model in library if bool(model.path) == wants_path)


def _device_groups(
    devices: tuple[Device, ...], roles: Mapping[str, Role]
) -> list[tuple[str, tuple[str, ...]]]:
    """(label, UUIDs) of each engine.

    A device in error keeps its engine: a sensor that hangs is no reason to stop work.
    """
    shared = [device for device in devices if roles[device.uuid] == "shared"]
    groups: list[tuple[str, tuple[str, ...]]] = []
    if len(shared) > 1:
        groups.append(("shared", tuple(device.uuid for device in shared)))
        shared = []
    groups += [
        (device.label, (device.uuid,))
        for device in devices
        if roles[device.uuid] == "ollama" or device in shared
    ]
    return groups


def _grouping(label: str) -> str:
    return "one engine over shared GPUs" if label == "shared" else f"one engine for {label}"


def _without_device(config: NodeConfig, devices: tuple[Device, ...]) -> str:
    """Roles for devices that are not there: a typing error, or a card that was taken out."""
    unknown = [
        key
        for key in config.roles
        if not any(
            key == str(device.index) or (not key.isdigit() and device.uuid.startswith(key))
            for device in devices
        )
    ]
    if not unknown or not devices:
        return ""
    return f"roles names {', '.join(unknown)}, and this node has {_listed(devices)}"


def _listed(devices: tuple[Device, ...]) -> str:
    shown = [f"{device.index} ({device.uuid})" for device in devices[:8]]
    return ", ".join(shown) + (" …" if len(devices) > len(shown) else "")


def _base_spec(
    node: str,
    config: NodeConfig,
    kind: EngineKind,
    label: str,
    devices: tuple[str, ...],
    *,
    prunes: bool,
) -> Spec:
    simulation: dict[str, float | int] = {}
    slots = config.slots
    if kind == "simulated" and config.simulated is not None:
        simulated = config.simulated
        slots = slots or simulated.slots
        simulation = {
            key: value
            for key, value in (
                ("num_ctx", config.num_ctx),
                ("load_bytes_s", simulated.load_bytes_s),
                ("prefill_tps", simulated.prefill_tps),
                ("decode_tps", simulated.decode_tps),
                ("reply_tokens", simulated.reply_tokens),
                ("speedup", simulated.speedup),
                ("tokens_per_piece", simulated.tokens_per_piece),
            )
            if value is not None
        }
    return Spec(
        id=f"{node}/{kind}-{label}",
        kind=kind,
        devices=devices,
        slots=slots,
        num_ctx=config.num_ctx,
        binary=config.binary,
        models_dir=config.models_dir,
        prune=kind == "ollama" and prunes,
        simulated=simulation,
        listen=EVERYWHERE if config.transport == "direct" else "",
    )


def _runner_spec(config: NodeConfig, launch: Launch) -> Spec:
    return Spec(
        id=launch.engine_id,
        kind=launch.kind,
        devices=(launch.device,),
        slots=config.slots,
        num_ctx=launch.num_ctx or config.num_ctx,
        binary=config.binary,
        model=RunnerModel(name=launch.model, path=launch.path, chat_template=launch.chat_template),
        listen=EVERYWHERE if config.transport == "direct" else "",
    )
