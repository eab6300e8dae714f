"""The steps of provisioning, each safe to repeat: what is as it should be is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx

from olol_tui.fleet.agent_client import AgentClient
from olol_tui.provision import facts as survey
from olol_tui.provision import upload
from olol_tui.provision.archive import Archives
from olol_tui.provision.errors import ArchiveError, PlanRefused, ProvisionError
from olol_tui.provision.facts import Facts, Ollama
from olol_tui.provision.helper import Helper, Progress
from olol_tui.provision.llama import LlamaFacts, LlamaWanted
from olol_tui.provision.plan import (
    Plan,
    Planned,
    StepName,
    Wanted,
    archive_arch,
    keeps_by_unit,
    plan,
    survival,
)
from olol_tui.provision.shell import Shell
from olol_tui.ssh.text import clean
from olol_tui.units import format_size

State = Literal["waiting", "running", "done", "unchanged", "skipped", "failed", "cancelled"]

SERVICE_TIMEOUT_S = 90.0
UNPACK_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step as it stands."""

    name: StepName
    state: State = "waiting"
    message: str = ""
    hint: str = ""
    took_s: float = 0.0
    progress: float | None = None
    """0 to 1 of an upload."""
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended well."""

    message: str
    changed: bool = True
    skipped: bool = False
    hint: str = ""
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one node should become."""

    wanted: Wanted
    agent: upload.Source
    directory: str = ""
    """As configured; empty: the usual one."""


@dataclass
class Work:
    """What the steps of one run share."""

    shell: Shell
    helper: Helper
    wishes: Wishes
    archives: Archives
    progress: Callable[[str, float | None], None]
    """Tells the running step's message and progress."""
    transport: Callable[[str], httpx.AsyncBaseTransport] | None = None
    """The road to the agent's socket; None: only through commands."""
    facts: Facts | None = None
    plan: Plan | None = None
    socket: str = ""
    pid: int | None = None
    """Of the agent."""
    ollama: Ollama | None = None
    """The one that engines start from."""
    by_word: bool = True
    """Whether a human asked for this: only then engines are brought, too, and an agent to where
    none is. It may have been taken off since the facts were learnt."""
    llama: LlamaFacts | None = None
    llama_wanted: LlamaWanted | None = None
    """With what was looked up."""
    dry_run: bool = False
    log: list[str] = field(default_factory=list)

    @property
    def known(self) -> Facts:
        if self.facts is None:
            raise AssertionError("facts come before every other step")
        return self.facts

    @property
    def python(self) -> str:
        python = self.known.python
        if python is None:
            raise AssertionError("the step `python` comes before those that need it")
        return python.path

    def planned(self, name: StepName) -> Planned:
        """The plan of a step.

        Raises:
            PlanRefused: the facts rule it out.
        """
        if self.plan is None:
            raise AssertionError("the plan is made with the facts")
        step = self.plan[name]
        if step.action == "refuse":
            raise PlanRefused(step.text, hint=step.hint)
        return step


async def learn(work: Work) -> Outcome:
    """Facts, and the plan that follows from them."""
    facts = await survey.survey(work.helper, work.wishes.directory)
    work.facts = facts
    work.ollama = facts.ollama
    work.plan = plan(facts, await _looked_up(work, facts))
    if work.by_word and work.wishes.wanted.llama is not None:
        from olol_tui.provision import llama_steps

        await llama_steps.look(work, work.wishes.wanted.llama)
    work.socket = str(facts.record.get("socket") or facts.socket)
    work.pid = facts.agent.pid if facts.agent else None
    what = [facts.os or facts.system, facts.arch]
    if facts.gpus:
        what.append(f"{len(facts.gpus)} × {facts.gpus[0]}")
    if facts.driver:
        what.append(f"driver {facts.driver}")
    if facts.disk.free_bytes is not None:
        what.append(f"{format_size(facts.disk.free_bytes)} free")
    return Outcome(", ".join(what), changed=False, log=work.plan.notes)


async def _looked_up(work: Work, facts: Facts) -> Wanted:
    """The wishes, with the release of the archive where ours is there already."""
    wanted = work.wishes.wanted
    ours = facts.ollama is not None and facts.ollama.release
    if not work.by_word or not ours or not wanted.archive or wanted.binary:
        return wanted
    try:
        release = await work.archives.release(_archive(work))
    except ArchiveError as error:
        # What is there works: that is no reason to fail.
        work.log.append(f"whether ollama_archive is another release is not known: {error}")
        return wanted
    wanted = replace(wanted, archive_release=release)
    work.wishes = replace(work.wishes, wanted=wanted)
    return wanted


def _archive(work: Work) -> str:
    return work.wishes.wanted.archive.replace("{arch}", archive_arch(work.known))


async def python(work: Work) -> Outcome:
    return Outcome(work.planned("python").text, changed=False)


async def agent(work: Work) -> Outcome:
    step = work.planned("agent")
    if step.action == "keep":
        return Outcome(step.text, changed=False)
    source = work.wishes.agent
    done = await work.helper.call(
        "image",
        "install",
        {"directory": work.wishes.directory, "sha256": source.sha256, "fresh": work.by_word},
        data=await asyncio.to_thread(upload.read, source),
        progress=counting(work),
        timeout_s=upload.PIECE_TIMEOUT_S,
    )
    if removed := done.get("removed"):
        work.log.append(f"removed {len(removed)} old agents")
    return Outcome(f"{format_size(source.size)} sent, checked", log=(clean(str(done["path"])),))


def counting(work: Work) -> Progress:
    def progress(there: int, size: int) -> None:
        text = f"{format_size(there)} of {format_size(size)}"
        work.progress(text, there / size if size else None)

    return progress


async def engine(work: Work) -> Outcome:
    step = work.planned("engine")
    if step.action == "keep" and work.ollama is not None and work.ollama.release:
        removed = await tidy(work)
        left = f"; removed {removed} that nothing runs from any more" if removed else ""
        return Outcome(step.text + left, changed=bool(removed))
    if step.action != "do":
        return Outcome(step.text, changed=False, skipped=step.action == "skip", hint=step.hint)
    wanted, facts = work.wishes.wanted, work.known
    archive = await work.archives.get(_archive(work), work.progress)
    # Now that its size is known: is there room?
    step = plan(facts, replace(wanted, archive_size=archive.source.size))["engine"]
    if step.action == "refuse":
        raise PlanRefused(step.text, hint=step.hint)
    if archive.kind == "tar.zst" and "zstd" not in facts.tools:
        archive = await work.archives.repacked(archive, work.progress)
        work.log.append("packed anew with gzip: there is no zstd there")
    directory = work.wishes.directory
    part, way = await upload.upload(
        work.shell, work.helper, archive.source, directory=directory, progress=counting(work)
    )
    work.progress("unpacking", None)
    ask = {
        "directory": directory,
        "part": part,
        "sha256": archive.source.sha256,
        "kind": archive.kind,
        "id": archive.release[:16],
    }
    done = await work.helper.call("place", "install_ollama", ask, timeout_s=UNPACK_TIMEOUT_S)
    size = format_size(archive.source.size)
    version, path = clean(str(done["version"])), clean(str(done["path"]))
    work.ollama = Ollama(path, version, archive.release[:16])
    told = f"Ollama {version} installed"
    if facts.ollama is not None:
        told = f"Ollama {facts.ollama.version} → {version}, engines have it from their next start"
    return Outcome(f"{told}; {size} by {way}", log=(path,))


async def tidy(work: Work) -> int:
    """Remove releases of the engine that nothing runs from any more; how many there were."""
    done = await work.helper.call("place", "tidy", {"directory": work.wishes.directory})
    return len(done["removed"])


async def service(work: Work) -> Outcome:
    step = work.planned("service")
    facts = work.known
    if step.action == "keep":
        lives = survival(
            unit=str(facts.record.get("unit", "")),
            linger=facts.linger,
            kill_user_processes=facts.kill_user_processes,
        )
        return Outcome(f"{step.text}; {lives}", changed=False)
    wanted = work.wishes.wanted
    ask: dict[str, Any] = {
        "directory": work.wishes.directory,
        "sha256": wanted.agent_sha256,
        "version": wanted.agent_version,
        "simulated": wanted.simulated,
        "controller": wanted.controller_id,
        "python": work.python,
        "keep": "unit" if keeps_by_unit(facts) else "detached",
        "fresh": work.by_word,
    }
    done = await work.helper.call("service", "ensure", ask, timeout_s=SERVICE_TIMEOUT_S)
    work.socket = str(done["socket"])
    hello = done.get("hello") or {}
    work.pid = hello.get("pid")
    unit = str(done["record"].get("unit", ""))
    lives = survival(unit=unit, linger=bool(unit), kill_user_processes=facts.kill_user_processes)
    return Outcome(
        f"{clean(str(done['did']))}, pid {hello.get('pid')}; {lives}",
        changed=done["did"] != "nothing",
        log=tuple(clean(str(line)) for line in done["log"]),
    )


async def health(work: Work) -> Outcome:
    """The agent answers by the road that the gateway takes, and knows its devices."""
    if work.transport is None:
        ask = {"directory": work.wishes.directory}
        done = await work.helper.call("survey", "survey", ask)
        found = done.get("agent") or {}
        if found.get("sha256") is None:
            raise ProvisionError(f"the agent does not answer: {clean(str(found.get('error')))}")
        return Outcome(f"agent {clean(str(found['version']))} answers", changed=False)
    # Side by side: over a long line it is the round trips that take the time. Looking for the
    # socket may take the session that the helper has.
    closing = asyncio.create_task(work.helper.close())
    try:
        async with AgentClient(work.transport(work.socket), "node") as client:
            hello, inventory = await asyncio.gather(client.hello(), client.inventory())
    finally:
        await closing
    if hello.machine_id != work.known.machine_id:
        raise ProvisionError(
            "the agent that answers is another machine's: "
            f"{clean(hello.hostname)} ({clean(hello.machine_id)})",
            hint="Does a forward or a proxy stand between? Look at ~/.ssh/config.",
        )
    devices = ", ".join(clean(device.name) for device in inventory.devices[:8]) or "no device"
    return Outcome(
        f"agent {clean(hello.version)} answers: {devices}",
        changed=False,
        log=tuple(clean(error) for error in inventory.errors),
    )


async def llama(work: Work) -> Outcome:
    """llama.cpp for splits; what does it is loaded only where it is wanted."""
    from olol_tui.provision import llama_steps

    return await llama_steps.carry_out(work)


async def remove(work: Work) -> Outcome:
    if work.known.python is None:
        return Outcome("no Python there that could have run an agent", changed=False)
    ask = {"directory": work.wishes.directory, "dry_run": work.dry_run}
    done = await _removal(work, "uninstall", ask)
    removed = [clean(str(what)) for what in done["done"]]
    if not removed:
        return Outcome("nothing of ours is there", changed=False)
    if work.dry_run:
        return Outcome(f"would remove {', '.join(removed)}", changed=False)
    return Outcome(f"removed {', '.join(removed)}", log=tuple(removed))


async def proof(work: Work) -> Outcome:
    """Nothing of ours runs, listens or lies there."""
    if work.known.python is None:
        return Outcome("nothing to look for", changed=False)
    ask = {
        "directory": work.wishes.directory,
        "socket": str(work.known.record.get("socket", "")),
    }
    done = await _removal(work, "prove", ask)
    if residue := [clean(str(what)) for what in done["residue"]]:
        raise ProvisionError(
            f"still there: {', '.join(residue)}",
            hint="Try again; end what hangs by hand: kill -9 PID",
        )
    left = [clean(str(what)) for what in done["left"]]
    kept = f"; left as it is: {'; '.join(left)}" if left else ""
    return Outcome(f"nothing of ours runs, listens or lies there{kept}", changed=False)


async def _removal(work: Work, function: str, ask: dict[str, Any]) -> dict[str, Any]:
    return await work.helper.call("remove", function, ask, timeout_s=SERVICE_TIMEOUT_S)


STEP_WORK: dict[StepName, Callable[[Work], Awaitable[Outcome]]] = {
    "facts": learn,
    "python": python,
    "agent": agent,
    "engine": engine,
    "service": service,
    "health": health,
    "llama": llama,
    "remove": remove,
    "proof": proof,
}
