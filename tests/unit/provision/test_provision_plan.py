"""Facts and wishes to a plan: what is done, what is left alone, what is refused and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from olol_tui.provision.facts import Disk, Facts, Interpreter, Ollama, RunningAgent
from olol_tui.provision.plan import Planned, Wanted, plan, survival

GIB = 2**30
NEW, OLD = "a" * 64, "b" * 64

BARE = Facts(
    system="Linux",
    arch="x86_64",
    hostname="h1",
    pythons=(Interpreter("/usr/bin/python3", "3.11.2"),),
    user="ops",
    base="/home/ops/.local/share/olol-agent",
    disk=Disk(path="/home/ops", free_bytes=10 * GIB),
)
WANTED = Wanted(agent_sha256=NEW, agent_size=200_000, agent_version="0.2.0", protocol=1)
RECORD = {"sha256": NEW, "simulated": None, "unit": "", "python": "/usr/bin/python3"}
ARCHIVE = "https://mirror.lan/ollama-linux-{arch}.tgz"


def running(sha256: str = NEW, version: str = "0.2.0", **more: Any) -> Facts:
    return replace(
        BARE,
        builds=(NEW, OLD),
        record=RECORD,
        agent=RunningAgent(pid=42, sha256=sha256, version=version, protocol=1, **more),
    )


def actions(facts: Facts, wanted: Wanted = WANTED) -> dict[str, str]:
    return {step.name: step.action for step in plan(facts, wanted).steps}


def test_a_bare_machine_gets_everything() -> None:
    wanted = replace(WANTED, archive=ARCHIVE)
    assert actions(BARE, wanted) == {
        "python": "keep",
        "agent": "do",
        "engine": "do",
        "service": "do",
        "health": "do",
    }
    assert plan(BARE, wanted)["engine"].text.startswith("install ollama-linux-amd64.tgz")


def test_what_is_as_wished_is_left_alone() -> None:
    facts = replace(running(), ollama=Ollama("/usr/bin/ollama", "0.12.0"))
    what = plan(facts, WANTED)
    assert not what.changes
    assert what["engine"].text == "Ollama (0.12.0) at /usr/bin/ollama"


OURS = Ollama("/home/ops/.local/share/olol-agent/state/1/ollama/bin/ollama", "0.12.3", "a" * 16)


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        ("https://mirror.lan/v0.13.0/ollama-linux-{arch}.tgz", "upgrade Ollama 0.12.3 → 0.13.0"),
        ("/srv/ollama-linux-amd64.tgz", "upgrade Ollama 0.12.3 → ollama-linux-amd64.tgz"),
        ("/srv/0.11.4/ollama-linux-amd64.tgz", "go back from Ollama 0.12.3 → 0.11.4"),
    ],
)
def test_an_ollama_of_ours_follows_the_configured_archive(archive: str, words: str) -> None:
    facts = replace(running(), ollama=OURS)
    step = plan(facts, replace(WANTED, archive=archive, archive_release="b" * 64))["engine"]
    assert step.action == "do"
    assert step.text.startswith(words)
    same = plan(facts, replace(WANTED, archive=archive, archive_release="a" * 64))
    assert not same.changes
    unknown = plan(facts, replace(WANTED, archive=archive))
    assert not unknown.changes


def test_an_ollama_of_somebody_else_is_never_upgraded() -> None:
    facts = replace(running(), ollama=Ollama("/usr/bin/ollama", "0.1.0"))
    wanted = replace(WANTED, archive="/v0.13.0/ollama-linux-amd64.tgz", archive_release="b" * 64)
    assert plan(facts, wanted)["engine"].text == "Ollama (0.1.0) at /usr/bin/ollama"
    assert not plan(facts, wanted).changes


def test_another_image_of_the_agent_is_replaced_in_place() -> None:
    what = plan(running(OLD, "0.1.0"), WANTED)
    assert what["service"].action == "do"
    assert "upgrade it in place from 0.1.0" in what["service"].text


def test_a_newer_agent_is_not_taken_back() -> None:
    """Two consoles of different age would else replace each other's agent for ever."""
    what = plan(running(OLD, "0.10.0"), WANTED)
    assert not what.changes
    assert "newer than ours" in what["agent"].text


def test_a_newer_agent_that_we_do_not_understand_is_named() -> None:
    facts = running(OLD, "0.10.0")
    assert facts.agent is not None
    refusal = plan(replace(facts, agent=replace(facts.agent, protocol=2)), WANTED).refusal
    assert refusal is not None
    assert "speaks protocol 2, we speak 1" in refusal.text


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (running(error="it runs without its socket"), "it runs without its socket"),
        (replace(running(), record={**RECORD, "simulated": {"gpus": 2}}), "other devices"),
        (replace(running(), user_units=True, linger=True), "systemd user unit"),
        (replace(running(), record={**RECORD, "unit": "olol-agent-1.service"}), "restart it"),
    ],
)
def test_an_agent_that_is_not_as_it_should_be_is_restarted(facts: Facts, why: str) -> None:
    what = plan(facts, WANTED)["service"]
    assert what.action == "do"
    assert why in what.text


def test_linger_that_was_refused_is_not_asked_for_again() -> None:
    """A second run changes nothing."""
    assert actions(replace(running(), user_units=True, linger=False))["service"] == "keep"


REFUSED = {
    "no python": (
        replace(BARE, pythons=()),
        "python",
        "no python3 was found; 3.8 is needed",
    ),
    "python 3.6": (
        replace(BARE, pythons=(Interpreter("/usr/libexec/platform-python", "3.6.8", "old"),)),
        "python",
        "/usr/libexec/platform-python (3.6.8): too old: 3.8 is needed",
    ),
    "python without zlib": (
        replace(BARE, pythons=(Interpreter("/opt/py/bin/python3", "3.12.1", "without zlib"),)),
        "python",
        "/opt/py/bin/python3 (3.12.1): not usable: without zlib",
    ),
    "macOS": (replace(BARE, system="Darwin", pythons=()), "python", "nodes run Linux"),
    "full disk": (
        replace(BARE, disk=Disk(path="/home/ops", free_bytes=2**20)),
        "agent",
        "/home/ops has 1 MiB free, 32.2 MiB are needed",
    ),
    "no inodes": (
        replace(BARE, disk=Disk(path="/home/ops", free_bytes=GIB, free_files=3)),
        "agent",
        "no room for another file",
    ),
    "read-only home": (
        replace(BARE, disk=Disk(path="/home/ops", read_only=True, writable=False)),
        "agent",
        "/home/ops is on a read-only file system",
    ),
    "home of another": (
        replace(BARE, disk=Disk(path="/scratch", writable=False)),
        "agent",
        "ops may not write to /scratch",
    ),
    "a directory of another": (
        replace(BARE, disk=Disk(path="/tmp/olol", exists=True, ours=False)),
        "agent",
        "/tmp/olol belongs to somebody else than ops",
    ),
    "noexec": (
        replace(BARE, disk=Disk(path="/home/ops", noexec=True)),
        "engine",
        "no program may be started from /home/ops (mounted noexec)",
    ),
    "unknown arch": (replace(BARE, arch="riscv64"), "engine", "there is no Ollama for riscv64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_rules_a_machine_out_is_named_with_what_to_do(name: str) -> None:
    facts, step, why = REFUSED[name]
    refusal = plan(facts, replace(WANTED, archive=ARCHIVE)).refusal
    assert refusal is not None
    assert (refusal.name, why in refusal.text) == (step, True), refusal.text
    assert refusal.hint


def test_noexec_does_not_matter_without_an_engine_to_install() -> None:
    """Python reads the agent; nothing of it is executed."""
    facts = replace(BARE, disk=Disk(path="/home/ops", noexec=True))
    assert plan(facts, WANTED).refusal is None


def test_an_archive_for_another_machine_is_refused() -> None:
    wanted = replace(WANTED, archive="/mnt/ollama-linux-arm64.tgz")
    refusal = plan(BARE, wanted).refusal
    assert refusal == Planned(
        "engine",
        "refuse",
        "ollama-linux-arm64.tgz is not for this machine (amd64)",
        "Put {arch} into ollama_archive, with an archive for each kind of machine.",
    )


def test_an_archive_needs_room_for_what_comes_out_of_it() -> None:
    wanted = replace(WANTED, archive=ARCHIVE, archive_size=2 * GIB)
    facts = replace(BARE, disk=Disk(path="/home/ops", free_bytes=4 * GIB))
    refusal = plan(facts, wanted).refusal
    assert refusal is not None
    assert "4 GiB free, 5 GiB are needed" in refusal.text


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"simulated": {"gpus": 2}}, "simulated"),
        ({"engine": "embedded"}, "is not installed by olol-tui"),
        ({}, "no archive to install"),
    ],
)
def test_an_engine_is_left_out_with_the_reason(wanted: dict[str, Any], why: str) -> None:
    step = plan(BARE, replace(WANTED, **wanted))["engine"]
    assert step.action == "skip"
    assert why in step.text


def test_what_the_operator_should_know_is_noted() -> None:
    facts = replace(
        BARE,
        clock_ahead_s=-86_400.0,
        driver_error="Failed to initialize NVML: Driver/library version mismatch",
        listening_ollama="0.5.7",
    )
    notes = "\n".join(plan(facts, WANTED).notes)
    assert "24.0 h behind ours" in notes
    assert "Driver/library version mismatch" in notes
    assert "an Ollama 0.5.7 already runs there" in notes


def test_what_survives_is_said() -> None:
    unit = survival(unit="u.service", linger=True, kill_user_processes=True)
    assert "logout and reboot" in unit
    assert "not a reboot" in survival(unit="", linger=False, kill_user_processes=False)
    assert "not survive a logout" in survival(unit="", linger=False, kill_user_processes=True)
