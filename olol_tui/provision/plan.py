"""What has to be done to make a machine a node, and why: facts + wishes → plan.

Pure. A plan is shown before anything is changed; a step that the facts rule out carries
its reason and what to do about it, and nothing after it is tried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from olol_tui.config import NodeConfig
from olol_tui.provision.facts import OLDEST_PYTHON, Facts
from olol_tui.provision.llama import LlamaWanted
from olol_tui.units import format_size

StepName = Literal[
    "connect", "facts", "python", "agent", "engine", "service", "health", "llama", "remove", "proof"
]
STEPS: tuple[StepName, ...] = (
    "connect",
    "facts",
    "python",
    "agent",
    "engine",
    "service",
    "health",
    "llama",
)
"""`llama` only where a node is to have llama.cpp for splits: see `Wanted.llama`."""
ENSURE_STEPS: tuple[StepName, ...] = ("connect", "facts", "python", "agent", "service", "health")
"""When a node is only connected to: engines are installed by a human's word."""
UNINSTALL_STEPS: tuple[StepName, ...] = ("connect", "facts", "remove", "proof")

Action = Literal["keep", "do", "skip", "refuse"]

MARGIN_BYTES = 32 * 2**20
"""Kept free beside what is uploaded: state, logs, a second agent."""
UNPACKED_FACTOR = 2.5
"""An archive and what comes out of it, in units of its size."""
CLOCK_TOLERANCE_S = 60.0

_ARCHIVE_ARCH = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
"""`uname -m` to what Ollama calls it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this console would have on the node."""

    agent_sha256: str
    agent_size: int
    agent_version: str
    protocol: int
    controller_id: str = ""
    """Of this console: an agent that another one manages is left as it is."""
    simulated: dict[str, Any] | None = None
    engine: str = "auto"
    """As configured for the node."""
    binary: str = ""
    archive: str = ""
    """Path or URL of the engine's archive, may hold `{arch}`; empty: none to give."""
    archive_release: str = ""
    """sha256 of the archive, where it was looked up; empty: not known."""
    archive_size: int | None = None
    """Once it is known."""
    llama: LlamaWanted | None = None
    """What it should have of llama.cpp; None: that is not asked."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One step to come."""

    name: StepName
    action: Action
    text: str
    """What will be done, or why it is not."""
    hint: str = ""
    """What to do when it is refused."""


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[Planned, ...]
    notes: tuple[str, ...] = ()
    """What the operator should know and nothing has to be done about."""

    def __getitem__(self, name: str) -> Planned:
        return next(step for step in self.steps if step.name == name)

    @property
    def changes(self) -> bool:
        """Whether anything on the node will be other than before."""
        return any(step.action == "do" for step in self.steps)

    @property
    def refusal(self) -> Planned | None:
        return next((step for step in self.steps if step.action == "refuse"), None)


def wanted_simulation(config: NodeConfig) -> dict[str, Any] | None:
    """What the agent is told to simulate."""
    if config.simulated is None:
        return None
    simulated = config.simulated
    return {"gpus": simulated.gpus, "vram_bytes": simulated.vram, "name": simulated.name}


def archive_arch(facts: Facts) -> str:
    """`amd64` or `arm64`; the machine's own word for anything else."""
    return _ARCHIVE_ARCH.get(facts.arch, facts.arch)


def plan(facts: Facts, wanted: Wanted) -> Plan:
    """The steps for a machine, in order."""
    return Plan(
        steps=(
            _python(facts),
            _agent(facts, wanted),
            _engine(facts, wanted),
            _service(facts, wanted),
            Planned("health", "do" if _restarts(facts, wanted) else "keep", "ask the agent"),
        ),
        notes=tuple(_notes(facts)),
    )


def _python(facts: Facts) -> Planned:
    if facts.system != "Linux":
        return Planned(
            "python",
            "refuse",
            f"this is {facts.system or 'an unknown system'}; nodes run Linux",
            'If an Ollama runs there, use it as it is: [endpoints.NAME] url = "http://HOST:11434"',
        )
    python = facts.python
    if python is not None:
        return Planned("python", "keep", f"{python.path} ({python.version})")
    oldest = ".".join(str(part) for part in OLDEST_PYTHON)
    found = [f"{p.path} ({p.version or p.problem})" for p in facts.pythons if p.version]
    hint = f"Install python3 {oldest} or newer there, or unpack a standalone one into ~/miniforge3."
    if not found:
        return Planned("python", "refuse", f"no python3 was found; {oldest} is needed", hint)
    why = f"too old: {oldest} is needed"
    broken = [p for p in facts.pythons if p.version and p.problem not in ("old", "")]
    if broken:
        why = f"not usable: {broken[-1].problem}"
    return Planned("python", "refuse", f"{', '.join(found)}: {why}", hint)


def _agent(facts: Facts, wanted: Wanted) -> Planned:
    running = facts.agent
    if running is not None and newer(running.version, wanted.agent_version):
        there = f"version {running.version} there is newer than ours"
        if running.protocol != wanted.protocol:
            why = f"{there} and speaks protocol {running.protocol}, we speak {wanted.protocol}"
            return Planned("agent", "refuse", why, "Update olol-tui on this machine.")
        return Planned("agent", "keep", there)
    short = f"{wanted.agent_version} ({wanted.agent_sha256[:12]})"
    if wanted.agent_sha256 in facts.builds:
        return Planned("agent", "keep", f"{short} is there")
    if refusal := no_room(facts, wanted.agent_size + MARGIN_BYTES):
        return Planned("agent", "refuse", *refusal)
    size = format_size(wanted.agent_size)
    return Planned("agent", "do", f"upload {short}, {size}, to {facts.base}/bin")


def no_room(facts: Facts, needed: int) -> tuple[str, str] | None:
    """Why our directory cannot take so many bytes, and what to do."""
    disk = facts.disk
    elsewhere = "Set `directory` of this node to a place of its own, such as /scratch/NAME."
    if disk.error:
        return disk.error, elsewhere
    if disk.exists and not disk.ours:
        return f"{disk.path} belongs to somebody else than {facts.user}", elsewhere
    if disk.read_only:
        return f"{disk.path} is on a read-only file system", elsewhere
    if not disk.writable:
        return f"{facts.user} may not write to {disk.path}", elsewhere
    if disk.free_bytes is not None and disk.free_bytes < needed:
        free, need = format_size(disk.free_bytes), format_size(needed)
        return f"{disk.path} has {free} free, {need} are needed", f"Free some space. {elsewhere}"
    if disk.free_files is not None and disk.free_files < 100:
        return f"{disk.path} has no room for another file (inodes)", elsewhere
    return None


def _engine(facts: Facts, wanted: Wanted) -> Planned:
    if wanted.simulated is not None:
        return Planned("engine", "skip", "simulated")
    if wanted.engine not in ("auto", "ollama"):
        return Planned("engine", "skip", f'engine = "{wanted.engine}" is not installed by olol-tui')
    if wanted.binary:
        return Planned("engine", "keep", f"{wanted.binary}, as configured")
    if facts.ollama is not None and not is_outdated(facts, wanted):
        version = f" ({facts.ollama.version})" if facts.ollama.version else ""
        return Planned("engine", "keep", f"Ollama{version} at {facts.ollama.path}")
    if not wanted.archive:
        hint = "Install Ollama there, or give [engines] ollama_archive for olol-tui to bring it."
        return Planned("engine", "skip", "no Ollama there, and no archive to install", hint)
    arch = archive_arch(facts)
    name = wanted.archive.replace("{arch}", arch).rsplit("/", 1)[-1]
    if arch not in ("amd64", "arm64"):
        return Planned("engine", "refuse", f"there is no Ollama for {facts.arch}", 'engine = "…"')
    other = {"amd64": "arm64", "arm64": "amd64"}[arch]
    if other in name:
        return Planned(
            "engine",
            "refuse",
            f"{name} is not for this machine ({arch})",
            "Put {arch} into ollama_archive, with an archive for each kind of machine.",
        )
    if facts.disk.noexec:
        return Planned(
            "engine",
            "refuse",
            f"no program may be started from {facts.disk.path} (mounted noexec)",
            "Set `directory` of this node to a place without noexec.",
        )
    size = wanted.archive_size
    if size and (refusal := no_room(facts, int(size * UNPACKED_FACTOR) + MARGIN_BYTES)):
        return Planned("engine", "refuse", *refusal)
    size_told = f", {format_size(size)}," if size else ""
    if facts.ollama is None:
        return Planned("engine", "do", f"install {name}{size_told} into {facts.base}/engines")
    old, new = facts.ollama.version, version_in(wanted.archive)
    verb = "go back from" if old and new and newer(old, new) else "upgrade"
    text = f"{verb} Ollama {old or '?'} → {new or name}{size_told} in {facts.base}/engines"
    return Planned("engine", "do", f"{text}; its engines are restarted afterwards, one by one")


def is_outdated(facts: Facts, wanted: Wanted) -> bool:
    """Whether the Ollama there is ours and of another release than the archive to bring.

    One that somebody else installed is theirs to upgrade.
    """
    ours = facts.ollama.release if facts.ollama is not None else ""
    return bool(ours and wanted.archive and wanted.archive_release) and (
        not wanted.archive_release.startswith(ours)
    )


def version_in(archive: str) -> str:
    """The version that a path or URL names, as in `…/v0.13.0/ollama-linux-amd64.tgz`."""
    found = re.findall(r"(?<![0-9.])v?([0-9]+\.[0-9]+\.[0-9]+(?:-rc[0-9]+)?)(?![0-9.])", archive)
    return found[-1] if found else ""


def keeps_by_unit(facts: Facts) -> bool:
    """Whether systemd should keep the agent: linger is on, or may be turned on."""
    return facts.user_units


def _service(facts: Facts, wanted: Wanted) -> Planned:
    running = facts.agent
    if not _restarts(facts, wanted):
        return Planned("service", "keep", f"it runs as pid {running.pid if running else '?'}")
    unit = keeps_by_unit(facts)
    how = "systemd user unit" if unit else "detached"
    if running is None:
        what = f"start it, {how}"
    elif running.error:
        what = f"replace it ({running.error}); engines stay"
    elif facts.record.get("simulated") != wanted.simulated:
        what = "restart it with other devices; its engines end"
    elif running.sha256 != wanted.agent_sha256:
        what = f"upgrade it in place from {running.version} ({running.sha256[:12]}); engines stay"
    else:
        what = f"restart it, {how}; engines stay"
    return Planned("service", "do", what)


def _restarts(facts: Facts, wanted: Wanted) -> bool:
    """Whether the agent that runs is not the one that should."""
    running = facts.agent
    if running is None or running.error:
        return True
    if facts.record.get("simulated") != wanted.simulated:
        return True
    if running.sha256 != wanted.agent_sha256 and not newer(running.version, wanted.agent_version):
        return True
    unit = facts.record.get("unit")
    if unit:
        return not running.unit_enabled
    # Refused once, linger is not asked for again at every run; turned on by hand, it is used.
    return facts.user_units and facts.linger


def _notes(facts: Facts) -> list[str]:
    notes = []
    if abs(facts.clock_ahead_s) > CLOCK_TOLERANCE_S:
        hours = abs(facts.clock_ahead_s) / 3600
        side = "ahead of" if facts.clock_ahead_s > 0 else "behind"
        # Leases, ages and requests are timed by clocks that only go forward, and here.
        notes.append(
            f"its clock is {hours:.1f} h {side} ours: nothing breaks, times are shown in ours; "
            "only SSH and TLS certificates may seem expired there"
        )
    if facts.driver_error:
        notes.append(f"NVIDIA driver: {facts.driver_error}")
    if facts.listening_ollama:
        notes.append(
            f"an Ollama {facts.listening_ollama} already runs there; it is left alone and "
            "can be used as an endpoint"
        )
    return notes


def newer(version: str, than: str) -> bool:
    """Whether a dotted version is above another; what is not a number counts as 0."""
    return _numbers(version) > _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def survival(*, unit: str, linger: bool, kill_user_processes: bool) -> str:
    """What the agent and its engines outlive, in one sentence."""
    if unit and linger:
        return "survives logout and reboot (systemd user unit)"
    if kill_user_processes:
        return (
            "does not survive a logout: this machine ends what a session leaves behind "
            "(KillUserProcesses); have an administrator run: loginctl enable-linger USER"
        )
    return "survives logout, not a reboot: after one it is started at the next connection"
