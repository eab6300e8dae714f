"""A node provisioned again: another agent, one that died, hangs or lost its socket."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.runner import Provisioning, Report
from olol_tui.provision.steps import StepResult, Wishes
from olol_tui.provision.upload import Source
from tests.contract.provision_rig import SIMULATED, AgentCalls, Told, agent_file, job, wishes
from tests.contract.sshd_host import SshdHost, needs_sshd, sshd_host
from tests.contract.test_agent_upgrade import HELLO_NEW, variant

pytestmark = needs_sshd


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshdHost]:
    with sshd_host(tmp_path / "h1") as host:
        yield host


async def run(host: SshdHost, what: Wishes, cache: Path) -> Report:
    return await Provisioning(job(host.shell, what), Archives(cache)).run()


async def with_engines(host: SshdHost, what: Wishes, cache: Path) -> tuple[Report, set[int]]:
    report = await run(host, what, cache)
    assert report.ok, report.failure
    with AgentCalls(report.socket) as agent:
        agent.run_simulated("h1/simulated-gpu0", "h1/simulated-gpu1")
        return report, pids(agent)


def pids(agent: AgentCalls) -> set[int]:
    return {engine["pid"] for engine in agent.engines()}


def service(report: Report) -> StepResult:
    return next(step for step in report.steps if step.name == "service")


def newer(tmp_path: Path, old: Source, **changes: str) -> Wishes:
    path, digest = variant(old.path, tmp_path / "newer.pyz", **changes)
    what = wishes(Source(path, digest, path.stat().st_size))
    return replace(what, wanted=replace(what.wanted, agent_version=HELLO_NEW))


async def test_a_newer_agent_takes_over_under_load(host: SshdHost, tmp_path: Path) -> None:
    old = agent_file(tmp_path)
    first, engines = await with_engines(host, wishes(old), tmp_path)
    what = newer(tmp_path, old)
    failed: list[str] = []
    stop = threading.Event()

    def calling() -> None:
        with AgentCalls(first.socket) as agent:
            while not stop.is_set():
                try:
                    agent.hello()
                except Exception as error:  # noqa: BLE001 - any failed call counts
                    failed.append(repr(error))

    thread = threading.Thread(target=calling)
    thread.start()
    try:
        report = await run(host, what, tmp_path)
    finally:
        stop.set()
        thread.join()
    assert report.ok, report.failure
    assert failed == []
    assert service(report).message.startswith("upgraded")
    assert report.pid == first.pid
    with AgentCalls(report.socket) as agent:
        assert agent.hello()["version"] == HELLO_NEW
        assert pids(agent) == engines
    base = host.home / ".local/share/olol-agent"
    (current,) = base.glob("state/*/current.pyz")
    assert current.resolve().stem == what.agent.sha256
    assert len(list(base.glob("bin/*.pyz"))) == 2
    again = await run(host, what, tmp_path)
    assert again.ok
    assert not again.changed
    # And an older console leaves the newer agent alone.
    older = await run(host, wishes(old), tmp_path)
    assert older.ok
    assert not older.changed


async def test_a_newer_agent_that_does_not_work_is_taken_back(
    host: SshdHost, tmp_path: Path
) -> None:
    old = agent_file(tmp_path)
    _, engines = await with_engines(host, wishes(old), tmp_path)
    broken = newer(tmp_path, old, __main__="import sys\nif 'serve' in sys.argv: sys.exit(5)\n")
    report = await run(host, broken, tmp_path)
    assert report.failure is not None
    assert report.failure.name == "service"
    assert "the old one is back" in report.failure.message
    (current,) = host.home.glob(".local/share/olol-agent/state/*/current.pyz")
    assert current.resolve().stem == old.sha256
    again = await run(host, wishes(old), tmp_path)
    assert again.ok, again.failure
    assert not again.changed
    with AgentCalls(again.socket) as agent:
        assert pids(agent) == engines


async def test_an_agent_that_died_is_started_and_adopts_its_engines(
    host: SshdHost, tmp_path: Path
) -> None:
    what = wishes(agent_file(tmp_path))
    first, engines = await with_engines(host, what, tmp_path)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    report = await run(host, what, tmp_path)
    assert report.ok, report.failure
    assert service(report).message.startswith("started")
    with AgentCalls(report.socket) as agent:
        assert pids(agent) == engines


async def test_an_agent_that_hangs_is_replaced_and_its_engines_stay(
    host: SshdHost, tmp_path: Path
) -> None:
    what = wishes(agent_file(tmp_path))
    first, engines = await with_engines(host, what, tmp_path)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    report = await run(host, what, tmp_path)
    assert report.ok, report.failure
    assert any("does not answer" in line for line in service(report).log)
    assert report.pid != first.pid
    with AgentCalls(report.socket) as agent:
        assert pids(agent) == engines


async def test_an_agent_whose_socket_was_swept_away_is_replaced(
    host: SshdHost, tmp_path: Path
) -> None:
    what = wishes(agent_file(tmp_path))
    first, engines = await with_engines(host, what, tmp_path)
    Path(first.socket).unlink()
    report = await run(host, what, tmp_path)
    assert report.ok, report.failure
    assert any("without its socket" in line for line in service(report).log)
    with AgentCalls(report.socket) as agent:
        assert pids(agent) == engines


async def test_other_simulated_devices_mean_another_agent(host: SshdHost, tmp_path: Path) -> None:
    agent = agent_file(tmp_path)
    _, engines = await with_engines(host, wishes(agent), tmp_path)
    what = wishes(agent, simulated={**SIMULATED, "gpus": 4})
    report = await run(host, what, tmp_path)
    assert report.ok, report.failure
    assert service(report).message.startswith("restarted")
    with AgentCalls(report.socket) as calls:
        assert len(calls.http.get("/v1/inventory").json()["devices"]) == 4
        assert calls.engines() == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)


async def test_a_console_with_other_wishes_does_not_restart_what_another_one_manages(
    host: SshdHost, tmp_path: Path
) -> None:
    """Two consoles that want different devices once restarted each other's agent in turn."""
    what = wishes(agent_file(tmp_path))
    first, engines = await with_engines(host, what, tmp_path)
    wanted = dataclasses.replace(what.wanted, simulated=None, controller_id="somebody-else")
    report = await run(host, dataclasses.replace(what, wanted=wanted), tmp_path)
    assert not report.ok
    assert "a test manages this machine" in service(report).message
    with AgentCalls(first.socket) as agent:
        assert agent.hello()["pid"] == first.pid
        assert pids(agent) == engines


async def test_a_retry_does_again_what_was_undone_meanwhile(host: SshdHost, tmp_path: Path) -> None:
    what = wishes(agent_file(tmp_path))
    cut = True

    def react(step: StepResult) -> None:
        if cut and step.name == "service" and step.state == "running":
            host.cut()

    provisioning = Provisioning(job(host.shell, what), Archives(tmp_path), Told(react))
    first = await provisioning.run()
    assert first.failure is not None
    assert first.failure.name == "service"
    for build in host.home.rglob("*.pyz"):
        build.unlink()
    cut = False
    second = await provisioning.run()
    assert second.ok, second.failure
    assert next(step for step in second.steps if step.name == "agent").state == "done"
