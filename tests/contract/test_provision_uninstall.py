"""Taken off again: nothing left that was not there before, and proof of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.facts import Facts
from olol_tui.provision.plan import ENSURE_STEPS, UNINSTALL_STEPS, Plan
from olol_tui.provision.runner import Provisioning, Report
from olol_tui.provision.steps import Wishes
from tests.contract.provision_rig import AgentCalls, agent_file, job, wishes
from tests.contract.sshd_host import SshdHost, needs_sshd, sshd_host

pytestmark = needs_sshd


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshdHost]:
    with sshd_host(tmp_path / "h1") as host:
        yield host


async def provisioned(host: SshdHost, what: Wishes, cache: Path) -> Report:
    report = await Provisioning(job(host.shell, what), Archives(cache)).run()
    assert report.ok, report.failure
    return report


async def uninstalled(host: SshdHost, what: Wishes, cache: Path) -> Report:
    run = Provisioning(job(host.shell, what), Archives(cache), order=UNINSTALL_STEPS)
    return await run.run()


def residue(host: SshdHost) -> set[str]:
    """Every file of the user. /tmp is this machine's, with other tests in it."""
    places = [host.home, host.folder / "run"]
    return {str(path) for place in places for path in place.rglob("*")}


async def test_an_uninstall_ends_engines_and_agent_and_leaves_no_file(
    host: SshdHost, tmp_path: Path
) -> None:
    models = host.home / ".ollama/models/blobs"
    models.mkdir(parents=True)
    (models / "sha256-0").write_bytes(b"x")
    before = residue(host)
    what = wishes(agent_file(tmp_path))
    report = await provisioned(host, what, tmp_path)
    with AgentCalls(report.socket) as agent:
        agent.run_simulated("h1/simulated-gpu0", "h1/simulated-gpu1")
        engines = {engine["pid"] for engine in agent.engines()}
    assert len(engines) == 2

    gone = await uninstalled(host, what, tmp_path)
    assert gone.ok, gone.failure
    removed, proof = gone.steps[2:]
    assert removed.state == "done"
    assert "2 engines" in removed.message
    assert "models in" in proof.message
    assert host.processes() == {}
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)
    assert residue(host) == before
    assert not Path(report.socket).parent.exists()

    again = await uninstalled(host, what, tmp_path)
    assert again.ok
    assert not again.changed
    assert "nothing of ours is there" in again.steps[2].message


async def test_engines_of_a_dead_agent_are_ended_too(host: SshdHost, tmp_path: Path) -> None:
    what = wishes(agent_file(tmp_path))
    report = await provisioned(host, what, tmp_path)
    with AgentCalls(report.socket) as agent:
        agent.run_simulated("h1/simulated-gpu0")
    assert report.pid is not None
    os.kill(report.pid, signal.SIGKILL)
    gone = await uninstalled(host, what, tmp_path)
    assert gone.ok, gone.failure
    assert "1 engine" in gone.steps[2].message
    assert host.processes() == {}


async def test_what_is_not_ours_stays_and_is_named(host: SshdHost, tmp_path: Path) -> None:
    what = wishes(agent_file(tmp_path))
    await provisioned(host, what, tmp_path)
    mine = host.home / ".local/share/olol-agent/notes.txt"
    mine.write_text("of the user")
    gone = await uninstalled(host, what, tmp_path)
    assert gone.ok, gone.failure
    assert mine.read_text() == "of the user"
    assert "not ours: notes.txt" in gone.steps[3].message


async def test_a_shared_home_keeps_what_other_machines_run_from(
    host: SshdHost, tmp_path: Path
) -> None:
    """Two machines, one home over NFS: each takes only its own part away."""
    agent = agent_file(tmp_path)
    what = wishes(agent)
    await provisioned(host, what, tmp_path)
    base = host.home / ".local/share/olol-agent"
    other = base / "state" / "of-another-machine"
    other.mkdir()
    (other / "launch.json").write_text("{}")
    gone = await uninstalled(host, what, tmp_path)
    assert gone.ok, gone.failure
    assert [path.name for path in (base / "state").iterdir()] == ["of-another-machine"]
    assert (base / "bin" / f"{agent.sha256}.pyz").exists()
    assert "1 other machine" in gone.steps[3].message


@pytest.mark.parametrize("must_upload", [False, True])
async def test_a_console_that_had_looked_before_brings_nothing_back(
    host: SshdHost, tmp_path: Path, must_upload: bool
) -> None:
    """A core that serves sees the agent go, looks, decides to start one, and is overtaken."""
    before = residue(host)
    agent = agent_file(tmp_path)
    what = wishes(agent)
    report = await provisioned(host, what, tmp_path)
    assert report.pid is not None
    os.kill(report.pid, signal.SIGKILL)
    if must_upload:
        (host.home / ".local/share/olol-agent/bin" / f"{agent.sha256}.pyz").unlink()

    async def overtaken(node: str, facts: Facts, plan: Plan) -> bool:
        assert facts.record
        assert plan["agent"].action == ("do" if must_upload else "keep")
        assert plan["service"].action == "do"
        gone = await uninstalled(host, what, tmp_path)
        assert gone.ok, gone.failure
        return True

    late = Provisioning(
        job(host.shell, what), Archives(tmp_path), approve=overtaken, order=ENSURE_STEPS
    )
    failure = (await late.run()).failure
    assert failure is not None
    assert "uninstalled meanwhile" in failure.message
    assert host.processes() == {}
    assert residue(host) == before

    # By a human's word it is a node again.
    await provisioned(host, what, tmp_path)
    gone = await uninstalled(host, what, tmp_path)
    assert gone.ok, gone.failure
    assert residue(host) == before
