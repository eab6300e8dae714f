"""The step `llama` of a plan: what will be done about llama.cpp on a node, or why nothing is.

Pure.
"""

from __future__ import annotations

from dataclasses import replace

from olol_tui.fleet.split_binaries import HOW_TO_GET
from olol_tui.provision import llama
from olol_tui.provision.facts import Facts
from olol_tui.provision.llama import LlamaFacts, LlamaWanted, Release, Toolchain
from olol_tui.provision.plan import (
    MARGIN_BYTES,
    UNPACKED_FACTOR,
    Plan,
    Planned,
    archive_arch,
    no_room,
)
from olol_tui.units import format_size

_ARCH_WORDS = {"amd64": ("amd64", "x86_64", "x64"), "arm64": ("arm64", "aarch64")}
_NO_EXEC = "Set `directory` of this node to a place without noexec."


def with_llama(plan: Plan, facts: Facts, there: LlamaFacts, wanted: LlamaWanted) -> Plan:
    """The plan with one step more, at its end: the agent is up before anything is compiled."""
    return replace(plan, steps=(*plan.steps, step(facts, there, wanted)))


def release_id(facts: Facts, there: LlamaFacts, wanted: LlamaWanted) -> str:
    """Of what is wanted; empty while that is not known."""
    if wanted.archive:
        return wanted.release[:16]
    if wanted.build and there.toolchain is not None:
        if wanted.source is None and not wanted.release:
            return ""
        has_gpu = bool(facts.gpus)
        return llama.build_id(wanted, there.toolchain, facts.arch, has_gpu=has_gpu)
    return ""


def step(facts: Facts, there: LlamaFacts, wanted: LlamaWanted) -> Planned:
    identity = release_id(facts, there, wanted)
    ours = there.ours
    if ours is not None and (not identity or ours.id == identity):
        return Planned("llama", "keep", _told(ours))
    if not wanted.archive and not wanted.build:
        return _without_a_way(there.theirs)
    expected = llama.expected_build(wanted)
    if ours is None and (same := _same_build(there.theirs, expected)) is not None:
        return Planned("llama", "keep", f"{_told(same)}: build {expected} already")
    if facts.disk.noexec:
        why = f"no program may be started from {facts.disk.path} (mounted noexec)"
        return Planned("llama", "refuse", why, _NO_EXEC)
    if identity in there.there:
        return Planned(
            "llama",
            "do",
            f"use the one that lies in {facts.base}/engines already{_before(there)}",
        )
    if wanted.archive:
        return _archive(facts, there, wanted)
    return _build(facts, there, wanted)


def _without_a_way(theirs: Release | None) -> Planned:
    if theirs is None:
        return Planned("llama", "skip", "no llama.cpp there, which splits need", HOW_TO_GET)
    if theirs.head and theirs.worker:
        return Planned("llama", "keep", _told(theirs))
    found, missing = (
        (theirs.head, "ggml-rpc-server") if theirs.head else (theirs.worker, "llama-server")
    )
    return Planned("llama", "skip", f"{found}, but no {missing}, which splits need", HOW_TO_GET)


def _told(release: Release) -> str:
    version = f" ({release.version})" if release.version else ""
    built = f", built there with {release.built}" if release.built else ""
    return f"llama.cpp{version} at {release.head.rpartition('/')[0]}{built}"


def _same_build(theirs: Release | None, expected: int) -> Release | None:
    """Theirs, if it is complete and of the wanted build."""
    if theirs is None or not (theirs.head and theirs.worker and expected):
        return None
    told = f"(build {expected}," in theirs.version or theirs.version.split(" ")[0] == str(expected)
    return theirs if told else None


def _before(there: LlamaFacts) -> str:
    """What it takes the place of."""
    if there.ours is not None:
        return f", in place of {there.ours.version or there.ours.id}"
    if there.theirs is not None:
        return f"; it goes before {there.theirs.head or there.theirs.worker}, which stays"
    return ""


def _archive(facts: Facts, there: LlamaFacts, wanted: LlamaWanted) -> Planned:
    arch = archive_arch(facts)
    name = wanted.archive.replace("{arch}", arch).rsplit("/", 1)[-1]
    others = [w for key, words in _ARCH_WORDS.items() if key != arch for w in words]
    own = _ARCH_WORDS.get(arch, (arch,))
    if any(word in name for word in others) and not any(word in name for word in own):
        return Planned(
            "llama",
            "refuse",
            f"{name} is not for this machine ({arch})",
            "Put {arch} into llama_archive, with an archive for each kind of machine.",
        )
    size = wanted.size
    if size and (refusal := no_room(facts, int(size * UNPACKED_FACTOR) + MARGIN_BYTES)):
        return Planned("llama", "refuse", *refusal)
    size_told = f", {format_size(size)}," if size else ""
    text = f"install {name}{size_told} into {facts.base}/engines{_before(there)}"
    return Planned("llama", "do", text)


def _build(facts: Facts, there: LlamaFacts, wanted: LlamaWanted) -> Planned:
    chain = there.toolchain
    if chain is None:
        raise AssertionError("compilers are looked for where something is to be built")
    if problem := llama.toolchain_problem(chain):
        return Planned("llama", "refuse", *problem)
    given = llama.flags(wanted, chain, has_gpu=bool(facts.gpus))
    needed = llama.CUDA_BUILD_BYTES if llama.is_cuda(given) else llama.BUILD_BYTES
    if refusal := no_room(facts, needed):
        return Planned("llama", "refuse", *refusal)
    return Planned("llama", "do", f"build {_source(wanted)} there: {_how(chain, given)}")


def _source(wanted: LlamaWanted) -> str:
    source = wanted.source
    return source.file if source is not None else wanted.build.rsplit("/", 1)[-1]


def _how(chain: Toolchain, given: tuple[str, ...]) -> str:
    jobs = f"{chain.jobs} {'job' if chain.jobs == 1 else 'jobs'} at low priority"
    return f"{chain.compiler_version or chain.compiler}, {jobs}, cmake {' '.join(given)}"
