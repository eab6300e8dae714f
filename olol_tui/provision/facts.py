"""What a machine is and has, learnt in one command, and read into a type.

The helper's shell script finds an interpreter and hands over to `node/survey.py`. On a
machine without a Python of 3.8 or newer it tells what there is, so that the refusal can name
it. `parse` is pure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from olol_tui.provision.errors import NodeMute
from olol_tui.provision.helper import MARK_PYTHON, MARK_SYSTEM, Helper
from olol_tui.provision.helper import answer as read_answer
from olol_tui.ssh.text import clean

SURVEY_TIMEOUT_S = 30.0
OLDEST_PYTHON = (3, 8)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that the machine has."""

    path: str
    version: str
    problem: str = ""
    """Why it cannot run the agent: `old`, `broken`, `without zlib`; empty when it can."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Where our files would lie."""

    path: str = ""
    """The directory, or the nearest one above it that exists."""
    exists: bool = False
    ours: bool = True
    writable: bool = True
    read_only: bool = False
    noexec: bool = False
    free_bytes: int | None = None
    free_files: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class RunningAgent:
    pid: int | None
    sha256: str = ""
    version: str = ""
    protocol: int = 0
    unit_enabled: bool = False
    """Whether systemd starts it at boot."""
    error: str = ""
    """Why it cannot be talked to."""


@dataclass(frozen=True, slots=True)
class Ollama:
    path: str
    version: str
    release: str = ""
    """Of one that we installed, the first 16 digits of its archive's sha256; else empty."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One machine, as one user sees it. Every text is safe to show."""

    system: str
    """`Linux`."""
    arch: str
    hostname: str
    pythons: tuple[Interpreter, ...] = ()
    """In the order in which they were tried; the last one is used if it can be."""
    os: str = ""
    kernel: str = ""
    user: str = ""
    uid: int = -1
    home: str = ""
    machine_id: str = ""
    boot_id: str = ""
    clock_ahead_s: float = 0.0
    """The node's clock minus ours."""
    tools: frozenset[str] = frozenset()
    linger: bool = False
    user_units: bool = False
    kill_user_processes: bool = False
    base: str = ""
    """Our directory there."""
    disk: Disk = field(default_factory=Disk)
    builds: tuple[str, ...] = ()
    """sha256 of the agents that lie there."""
    record: dict[str, Any] = field(default_factory=dict)
    """How the agent was last started."""
    agent: RunningAgent | None = None
    ollama: Ollama | None = None
    listening_ollama: str = ""
    """Version of an Ollama that answers on port 11434; empty without one."""
    gpus: tuple[str, ...] = ()
    driver: str = ""
    driver_error: str = ""
    socket: str = ""

    @property
    def python(self) -> Interpreter | None:
        """The one that will run the agent."""
        last = self.pythons[-1] if self.pythons else None
        return last if last is not None and not last.problem else None

    @property
    def same_machine(self) -> tuple[str, str, int, str]:
        """Equal for two names of one and the same place."""
        return (self.machine_id, self.boot_id, self.uid, self.base)


async def survey(helper: Helper, directory: str) -> Facts:
    """Ask a node, in one command; after it the helper has the interpreter that was found.

    Raises:
        NodeTrouble, NodeMute: it says nothing that can be read.
        SSHError: the connection failed.
    """
    before_s = time.time()
    ask = {"directory": directory}
    said = await helper.begin("survey", "survey", ask, timeout_s=SURVEY_TIMEOUT_S)
    middle_s = (before_s + time.time()) / 2
    facts = parse(said, helper.mark, middle_s)
    if facts is None:
        done = await helper.ended()
        told = clean(done.stderr[-2000:]) or clean(said[-2000:]) or "nothing"
        raise NodeMute(
            f"its shell ended with status {done.status} and said: {told}",
            hint="Does `ssh HOST /bin/sh` give a shell there? Some accounts allow no commands.",
        )
    if facts.python is None:
        await helper.close()
    else:
        helper.python = facts.python.path
    return facts


def parse(text: str, mark: str, now_s: float) -> Facts | None:
    """Facts from what the script printed, between whatever a shell prints by itself.

    Args:
        mark: starts the line with the survey's answer.
        now_s: our clock when the node read its own.

    Returns:
        None when the script did not run.

    Raises:
        NodeTrouble: the survey failed there.
    """
    system: list[str] | None = None
    pythons = []
    for line in text.splitlines():
        if line.startswith(MARK_SYSTEM):
            system = [clean(word) for word in line[len(MARK_SYSTEM) :].split()]
        elif line.startswith(MARK_PYTHON):
            path, _, rest = line[len(MARK_PYTHON) :].partition(" ")
            version, _, problem = rest.partition(" ")
            if version == "broken":
                version, problem = "", "broken"
            pythons.append(
                Interpreter(clean(path), clean(version), clean(problem.replace("usable", "")))
            )
    if system is None:
        return None
    name, hostname, arch = (*system, "", "", "")[:3]
    answer = read_answer(text, mark)
    if answer is None:
        return Facts(system=name, arch=arch, hostname=hostname, pythons=tuple(pythons))
    return _facts(name, tuple(pythons), answer, now_s)


def _facts(
    system: str, pythons: tuple[Interpreter, ...], answer: dict[str, Any], now_s: float
) -> Facts:
    def text(name: str) -> str:
        return clean(str(answer.get(name) or ""))

    # A shim (pyenv, conda) may lead elsewhere tomorrow: the interpreter behind it is kept.
    if text("executable"):
        pythons = (*pythons[:-1], replace(pythons[-1], path=text("executable")))
    disk = answer.get("disk") or {}
    agent = answer.get("agent")
    ollama = answer.get("ollama")
    driver = answer.get("driver") or {}
    record = answer.get("record")
    return Facts(
        system=system,
        arch=text("arch"),
        hostname=text("hostname"),
        pythons=pythons,
        os=text("os"),
        kernel=text("kernel"),
        user=text("user"),
        uid=int(answer.get("uid", -1)),
        home=text("home"),
        machine_id=text("machine_id"),
        boot_id=text("boot_id"),
        clock_ahead_s=float(answer.get("wall_s", now_s)) - now_s,
        tools=frozenset(str(tool) for tool in answer.get("tools", ())),
        linger=answer.get("linger") is True,
        user_units=answer.get("user_units") is True,
        kill_user_processes=answer.get("kill_user_processes") is True,
        base=text("base"),
        disk=Disk(
            path=clean(str(disk.get("path", ""))),
            exists=disk.get("exists") is True,
            ours=disk.get("ours") is True,
            writable=disk.get("writable") is True,
            read_only=disk.get("read_only") is True,
            noexec=disk.get("noexec") is True,
            free_bytes=_whole(disk.get("free_bytes")),
            free_files=_whole(disk.get("free_files")),
            error=clean(str(disk.get("error", ""))),
        ),
        builds=tuple(str(name).removesuffix(".pyz") for name in answer.get("builds", ())),
        record=record if isinstance(record, dict) else {},
        agent=None if not isinstance(agent, dict) else _agent(agent),
        ollama=None
        if not isinstance(ollama, dict)
        else Ollama(*(clean(str(ollama.get(key) or "")) for key in ("path", "version", "release"))),
        listening_ollama=text("listens"),
        gpus=tuple(clean(str(gpu)) for gpu in answer.get("gpus", ())),
        driver=clean(str(driver.get("version", ""))),
        driver_error=clean(str(driver.get("error", ""))),
        socket=text("runtime") + "/agent.sock",
    )


def _agent(found: dict[str, Any]) -> RunningAgent:
    return RunningAgent(
        pid=_whole(found.get("pid")),
        sha256=clean(str(found.get("sha256", ""))),
        version=clean(str(found.get("version", ""))),
        protocol=_whole(found.get("protocol")) or 0,
        unit_enabled=found.get("unit_enabled") is True,
        error=clean(str(found.get("error", ""))),
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
