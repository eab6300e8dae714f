"""A machine made a node over a real sshd: the whole way, again, and off again."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.runner import Provisioning
from tests.contract.provision_rig import Told, agent_file, job, wishes
from tests.contract.sshd_host import SshdHost, needs_sshd, sshd_host

pytestmark = needs_sshd


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshdHost]:
    with sshd_host(tmp_path / "h1") as host:
        yield host


async def test_a_bare_machine_becomes_a_node_and_a_second_run_changes_nothing(
    host: SshdHost, tmp_path: Path
) -> None:
    agent = agent_file(tmp_path)
    told = Told()
    archives = Archives(tmp_path)
    report = await Provisioning(job(host.shell, wishes(agent)), archives, told).run()
    assert report.ok, report.failure
    states = {step.name: step.state for step in report.steps}
    assert states == {
        "connect": "unchanged",
        "facts": "unchanged",
        "python": "unchanged",
        "agent": "done",
        "engine": "skipped",
        "service": "done",
        "health": "unchanged",
    }
    assert any(step.name == "agent" and step.progress == 1.0 for step in told.steps)
    base = host.home / ".local/share/olol-agent"
    assert stat.S_IMODE((base / "bin" / f"{agent.sha256}.pyz").stat().st_mode) == 0o500
    assert not list(base.rglob("*.part"))
    before = host.processes()

    again = await Provisioning(job(host.shell, wishes(agent)), archives).run()
    assert again.ok
    assert not again.changed
    assert again.plan is not None
    assert not again.plan.changes
    assert host.processes() == before


async def test_a_dry_run_leaves_nothing_behind(host: SshdHost, tmp_path: Path) -> None:
    what = wishes(agent_file(tmp_path))
    report = await Provisioning(job(host.shell, what), Archives(tmp_path)).run(dry_run=True)
    assert report.plan is not None
    assert report.plan.changes
    assert [step.name for step in report.steps if step.state == "waiting"]
    assert list(host.home.iterdir()) == []


async def test_without_sftp_the_agent_goes_through_a_session(tmp_path: Path) -> None:
    with sshd_host(tmp_path / "h1", settings="Subsystem none") as host:
        what = wishes(agent_file(tmp_path))
        report = await Provisioning(job(host.shell, what), Archives(tmp_path)).run()
        assert report.ok, report.failure
        assert "by cat" in next(s.message for s in report.steps if s.name == "agent")
