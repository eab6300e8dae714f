"""A machine made a node over a real sshd: the whole way, again, and off again."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.jobs import describe_link, link_transport
from olol_tui.provision.plan import UNINSTALL_STEPS
from olol_tui.provision.runner import Job, Provisioning
from olol_tui.ssh.connection import Connector
from olol_tui.ssh.hostkeys import HostKeys
from olol_tui.ssh.keys import KeyRing
from olol_tui.ssh.link import NodeLink
from tests.contract.provision_rig import AgentCalls, Told, agent_file, job, wishes
from tests.contract.sshd_host import SshdHost, needs_sshd, sshd_host
from tests.contract.test_agent_pythons import MODERN

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


@pytest.mark.parametrize("version", MODERN)
async def test_every_python_that_a_node_may_have(version: str, tmp_path: Path) -> None:
    place = tmp_path / "python"
    place.mkdir()
    (place / "python3.14").symlink_to(MODERN[version])
    with sshd_host(tmp_path / "h1", path=f"{place}:/usr/bin:/bin") as host:
        what = wishes(agent_file(tmp_path))
        report = await Provisioning(job(host.shell, what), Archives(tmp_path)).run()
        assert report.ok, report.failure
        with AgentCalls(report.socket) as agent:
            assert agent.hello()["python"].startswith(version)
        uninstall = Provisioning(job(host.shell, what), Archives(tmp_path), order=UNINSTALL_STEPS)
        gone = await uninstall.run()
        assert gone.ok, gone.failure


async def test_the_road_is_an_ssh_link_with_a_channel_to_the_agent(
    host: SshdHost, tmp_path: Path
) -> None:
    """What the gateway uses: hello and inventory come through a channel, not a command."""
    hostkeys = HostKeys(tmp_path / "keys", user_files=(), system_files=(), policy="accept-new")
    connector = Connector(hostkeys, KeyRing(), config=host.folder / "none")
    (host.folder / "none").touch()
    async with NodeLink("h1", host.target, connector) as link:
        await link.wait_up()
        what = wishes(agent_file(tmp_path))
        there = Job("h1", "h1", lambda: nullcontext(link), what, link_transport, describe_link)
        report = await Provisioning(there, Archives(tmp_path)).run()
        assert report.ok, report.failure
        place = f"{host.target.user}@127.0.0.1:{host.port}"
        assert report.steps[0].message.startswith(f"{place}, OpenSSH")
        assert "SIM 24G, SIM 24G" in report.steps[-1].message
