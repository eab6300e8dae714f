"""The work of the step `llama`: an archive uploaded, or a source uploaded and built there.

A build runs on the node by itself. It is followed here, which a lost connection interrupts and
the next run takes up again; cancelling the step ends it, and keeps its tree.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from olol_tui.errors import OlolError
from olol_tui.provision import llama, upload
from olol_tui.provision.archive import Archive, Field
from olol_tui.provision.errors import ArchiveError, BuildFailed, PlanRefused
from olol_tui.provision.llama import LlamaFacts, LlamaWanted
from olol_tui.provision.llama_plan import release_id, step, with_llama
from olol_tui.provision.plan import archive_arch
from olol_tui.provision.steps import Outcome, Work, counting, tidy
from olol_tui.ssh.errors import SSHError
from olol_tui.ssh.text import clean
from olol_tui.units import format_size

log = logging.getLogger("olol.provision")

INSTALL_TIMEOUT_S = 900.0
FOLLOW_S = 2.0
"""A question waits so long for news on the node."""
STOP_TIMEOUT_S = 20.0
LOG_LINES = 40
"""Of a build that failed, kept with the step."""

_PERCENT = re.compile(r"^\[\s*(\d{1,3})%\]\s*(.*)")
_COUNT = re.compile(r"^\[(\d+)/(\d+)\]\s*(.*)")
_FAULT = re.compile(r"\berror:|\*\*\*|CMake Error|No space left|Killed|internal compiler error")


async def look(work: Work, wanted: LlamaWanted) -> None:
    """Learn what there is, and add the step to the plan."""
    ask = {"directory": work.wishes.directory, "toolchain": bool(wanted.build)}
    work.llama = llama.parse(await work.helper.call("llama", "look", ask))
    work.llama_wanted = wanted = await _looked_up(work, wanted)
    if work.plan is not None:
        work.plan = with_llama(work.plan, work.known, work.llama, wanted)


async def _looked_up(work: Work, wanted: LlamaWanted) -> LlamaWanted:
    """With the hash of what is to be brought, where it can be had now."""
    where = _where(work, wanted)
    if not where:
        return wanted
    try:
        return replace(wanted, release=await work.archives.release(where, _field(wanted)))
    except ArchiveError as error:
        # Where ours is there already, that is no reason to fail; else the step says it.
        work.log.append(f"which release {_field(wanted).name} is, is not known: {error}")
        return wanted


def _where(work: Work, wanted: LlamaWanted) -> str:
    """Of an archive, or of a source that the operator names."""
    if wanted.source is not None:
        return ""
    return (wanted.archive or wanted.build).replace("{arch}", archive_arch(work.known))


def _field(wanted: LlamaWanted) -> Field:
    name = "llama_archive" if wanted.archive else "llama_build"
    return Field(name, wanted.sha256, releases="")


async def carry_out(work: Work) -> Outcome:
    planned, there, wanted = work.planned("llama"), work.llama, work.llama_wanted
    if there is None or wanted is None:
        raise AssertionError("the facts come before every other step")
    if planned.action != "do":
        removed = await tidy(work) if there.ours is not None else 0
        left = f"; removed {removed} that nothing runs from any more" if removed else ""
        skipped = planned.action == "skip"
        return Outcome(planned.text + left, bool(removed), skipped=skipped, hint=planned.hint)
    identity = release_id(work.known, there, wanted)
    if identity in there.there:
        return await _installed(work, wanted, identity, "it lay there already")
    if wanted.archive:
        return await _bring(work, there, wanted)
    return await _build(work, there, wanted)


# -- brought


async def _bring(work: Work, there: LlamaFacts, wanted: LlamaWanted) -> Outcome:
    archive = await _archive(work, wanted)
    _room(work, there, replace(wanted, release=archive.release, size=archive.source.size))
    archive, part, way = await _sent(work, archive)
    ask = {"part": part, "sha256": archive.source.sha256, "kind": archive.kind}
    told = f"{format_size(archive.source.size)} by {way}"
    return await _installed(work, wanted, archive.release[:16], told, ask)


async def _archive(work: Work, wanted: LlamaWanted) -> Archive:
    if wanted.source is not None:
        return await work.archives.sdist(wanted.source, work.progress)
    return await work.archives.get(_where(work, wanted), work.progress, _field(wanted))


def _room(work: Work, there: LlamaFacts, wanted: LlamaWanted) -> None:
    """Refuse once the size is known.

    Raises:
        PlanRefused: there is no room for it.
    """
    planned = step(work.known, there, wanted)
    if planned.action == "refuse":
        raise PlanRefused(planned.text, hint=planned.hint)


async def _sent(work: Work, archive: Archive) -> tuple[Archive, str, str]:
    """The archive as it was sent, its part on the node, the way it took."""
    if archive.kind == "tar.zst" and "zstd" not in work.known.tools:
        archive = await work.archives.repacked(archive, work.progress)
        work.log.append("packed anew with gzip: there is no zstd there")
    part, way = await upload.upload(
        work.shell,
        work.helper,
        archive.source,
        directory=work.wishes.directory,
        progress=counting(work),
    )
    return archive, part, way


async def _installed(
    work: Work, wanted: LlamaWanted, identity: str, told: str, more: dict[str, Any] | None = None
) -> Outcome:
    """Args: more: of an upload: `part`, `sha256`, `kind`."""
    work.progress("unpacking", None)
    ask = {
        "directory": work.wishes.directory,
        "id": identity,
        "build": llama.expected_build(wanted),
        "part": "",
        "sha256": "",
        "kind": "",
        **(more or {}),
    }
    done = await work.helper.call("llama", "install", ask, timeout_s=INSTALL_TIMEOUT_S)
    version, path = clean(str(done["version"])), clean(str(done["path"]))
    return Outcome(f"llama.cpp {version or '?'} installed; {told}", log=(path,))


# -- built


async def _build(work: Work, there: LlamaFacts, wanted: LlamaWanted) -> Outcome:
    chain = there.toolchain
    if chain is None:
        raise AssertionError("compilers are looked for where something is to be built")
    if wanted.source is None and not wanted.release:
        wanted = replace(wanted, release=(await _archive(work, wanted)).release)
        _room(work, there, wanted)
    given = llama.flags(wanted, chain, has_gpu=bool(work.known.gpus))
    ask: dict[str, Any] = {
        "directory": work.wishes.directory,
        "id": release_id(work.known, there, wanted),
        "flags": given,
        "generator": chain.generator,
        "jobs": chain.jobs,
        "cmake": chain.cmake,
        "part": "",
    }
    began_s = time.monotonic()
    begun = await work.helper.call("build", "start", ask, timeout_s=INSTALL_TIMEOUT_S)
    if begun["needs_source"]:
        archive, part, _ = await _sent(work, await _archive(work, wanted))
        work.progress("unpacking the source", None)
        ask |= {"part": part, "sha256": archive.source.sha256, "kind": archive.kind}
        began_s = time.monotonic()
        begun = await work.helper.call("build", "start", ask, timeout_s=INSTALL_TIMEOUT_S)
    if begun["joined"]:
        work.log.append("it ran already: followed from here on")
    elif begun["resumed"]:
        work.log.append("went on with what an earlier try had compiled")
    await _followed(work, ask)
    work.progress("trying what was built", None)
    took_s = time.monotonic() - began_s
    done = await work.helper.call(
        "build",
        "finish",
        {**ask, "build": llama.expected_build(wanted), "took_s": round(took_s, 1)},
        timeout_s=INSTALL_TIMEOUT_S,
    )
    version, path = clean(str(done["version"])), clean(str(done["path"]))
    told = f"llama.cpp {version or '?'} built there in {took_s:.0f} s"
    return Outcome(told, log=(f"cmake {' '.join(given)}", path))


async def _followed(work: Work, ask: dict[str, Any]) -> None:
    """Return once it is built.

    Raises:
        BuildFailed: with the compiler's own words.
        SSHError: the connection failed; the build goes on.
        CancelledError: it was ended, too.
    """
    lines: list[str] = []
    offset = 0
    status: int | None = None
    try:
        while status is None:
            more = {**ask, "offset": offset, "wait_s": FOLLOW_S}
            said = await work.helper.call("build", "follow", more)
            offset, status = int(said["offset"]), said["status"]
            new = [clean(line) for line in str(said["text"]).splitlines()]
            lines += new
            for message, share in _progress(new):
                work.progress(message, share)
    except asyncio.CancelledError:
        await _stop(work)
        raise
    except SSHError as error:
        error.hint = "The build goes on there. Provision it again to go on watching it."
        raise
    if status:
        raise _failed(status, lines, work)


def _progress(lines: list[str]) -> Iterator[tuple[str, float | None]]:
    """What the latest line of a compiler says: `[ 42%] Building …`, `[12/213] Building …`."""
    for line in reversed(lines):
        if match := _PERCENT.match(line):
            yield match[2], min(int(match[1]), 100) / 100
            return
        if match := _COUNT.match(line):
            yield match[3], int(match[1]) / max(int(match[2]), 1)
            return
    if lines and lines[-1].startswith("-- "):
        yield f"configuring: {lines[-1][3:]}", None


def _failed(status: int, lines: list[str], work: Work) -> BuildFailed:
    work.log.extend(lines[-LOG_LINES:])
    if status < 0:
        return BuildFailed(
            "it was ended before its end",
            hint="Provision it again: it goes on with what is compiled. Where a logout ends "
            "everything, stay logged in meanwhile.",
        )
    first = next((line for line in lines if _FAULT.search(line)), lines[-1] if lines else "")
    if "No space left" in "\n".join(lines[-LOG_LINES:]):
        return BuildFailed(
            f"the disk is full: {first}",
            hint="Free some space there, or put `directory` of this node on another disk.",
        )
    if any("Killed" in line for line in lines[-LOG_LINES:]):
        return BuildFailed(f"a compiler was killed, for want of memory most likely: {first}")
    return BuildFailed(
        f"status {status}: {first}",
        hint="Its log has more. After a mend it goes on with what is compiled; or bring "
        "llama.cpp in an archive: [engines] llama_archive.",
    )


async def _stop(work: Work) -> None:
    """End the compilers; whoever cancelled waits for it, not for ever."""
    ask = {"directory": work.wishes.directory}
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            done = await work.helper.call("build", "stop", ask, timeout_s=STOP_TIMEOUT_S)
    except (OlolError, TimeoutError) as error:
        log.warning("the build was not ended: %s", error or "no answer")
        return
    work.log.append(f"ended {done['ended']} processes; what is compiled stays for the next try")
