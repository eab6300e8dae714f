"""Provisioning on real hosts: from the shell, many at once, with whatever a host may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.jobs import describe_link, link_transport
from olol_tui.provision.plan import UNINSTALL_STEPS
from olol_tui.provision.runner import Job, Provisioning, Report, run_all
from olol_tui.provision.shell import Shell
from olol_tui.provision.steps import StepResult, Wishes
from olol_tui.ssh.connection import Connector
from olol_tui.ssh.hostkeys import HostKeys
from olol_tui.ssh.keys import KeyRing
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.target import Target
from tests.contract.provision_rig import agent_file, wishes
from tests.lab import Host, Lab

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def opened(lab: Lab, host: str, state: Path) -> AsyncIterator[Shell]:
    hostkeys = HostKeys(state / "known_hosts", user_files=(), system_files=())
    connector = Connector(hostkeys, KeyRing(), lab.ssh_config)
    async with NodeLink(host, Target(host), connector, data_connections=0) as link:
        await link.wait_up()
        yield link


def job(lab: Lab, host: str, what: Wishes, state: Path) -> Job:
    return Job(host, host, partial(opened, lab, host, state), what, link_transport, describe_link)


async def provision(lab: Lab, host: str, what: Wishes, state: Path) -> Report:
    return await Provisioning(job(lab, host, what, state), Archives(state)).run()


async def uninstall(lab: Lab, host: str, what: Wishes, state: Path) -> Report:
    run = Provisioning(job(lab, host, what, state), Archives(state), order=UNINSTALL_STEPS)
    return await run.run()


def failure(report: Report) -> StepResult:
    found = report.failure
    assert found is not None, report.steps
    assert found.hint, found
    return found


@pytest.fixture
def clean(lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """The lab, and nothing of ours on it afterwards."""
    yield lab
    for host in lab.hosts.values():
        if host.is_up:
            host.exec("pkill -KILL -f '[o]lol-agent'; rm -rf ~/.local /tmp/olol-*", check=False)


def files(host: Host) -> str:
    """Every file that the user could have made, and what runs and listens."""
    find = "find /home /var/tmp /tmp /run/user /dev/shm | sort"
    listed = host.exec(find, user="root").stdout
    running = sorted(p.command for p in host.processes() if p.uid == 1500)
    return listed + "\n".join(running + sorted(str(item.port) for item in host.listening()))


# -- from the shell


class Cli:
    """`olol-tui` as a user of the lab types it: hosts are names of ~/.ssh/config."""

    def __init__(self, lab: Lab, home: Path) -> None:
        (home / ".ssh").mkdir(mode=0o700, parents=True)
        (home / ".ssh/config").write_text(lab.ssh_config.read_text())
        self._env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
        self._state = ["--state-dir", str(home / "state")]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "olol_tui", *words[:2], *self._state, *words[2:]]
        return subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=120, check=False
        )


def test_three_hosts_from_the_shell_and_off_again(clean: Lab, tmp_path: Path) -> None:
    cli = Cli(clean, tmp_path / "me")
    before = {name: files(host) for name, host in clean.hosts.items()}

    added = cli("node", "add", *clean.hosts, "--simulated", "gpus=2,vram=24GiB")
    assert added.returncode == 0, added.stderr
    listed = json.loads(cli("node", "list", "--json").stdout)
    assert [node["name"] for node in listed["nodes"]] == list(clean.hosts)

    dry = cli("node", "provision", "--all", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "● agent    upload" in dry.stdout
    assert {name: files(host) for name, host in clean.hosts.items()} == before

    first = cli("node", "provision", "--all", "--json")
    assert first.returncode == 0, first.stdout + first.stderr
    nodes = json.loads(first.stdout)["nodes"]
    assert [(node["node"], node["ok"], node["changed"]) for node in nodes] == [
        (name, True, True) for name in clean.hosts
    ]
    for host in clean.hosts.values():
        assert {item.port for item in host.listening()} == {22}
        assert any("current.pyz serve" in process.command for process in host.processes())

    again = cli("node", "provision", "--all")
    assert again.returncode == 0
    assert "3 nodes: 3 unchanged" in again.stdout

    refused = cli("node", "remove", "h1")
    assert refused.returncode == 1
    assert "h1 is provisioned" in refused.stderr

    gone = cli("node", "uninstall", "--all")
    assert gone.returncode == 0, gone.stdout
    assert "3 nodes: 3 uninstalled" in gone.stdout
    assert {name: files(host) for name, host in clean.hosts.items()} == before

    assert cli("node", "remove", *clean.hosts).returncode == 0
    assert "h1" not in cli("node", "list").stdout


def test_an_unknown_host_key_stops_until_it_is_accepted(clean: Lab, tmp_path: Path) -> None:
    cli = Cli(clean, tmp_path / "me")
    address = clean.hosts["h1"].record.address
    identity = ["--identity", str(clean.identity), "--simulated", "gpus=1"]
    assert cli("node", "add", f"ops@{address}", "--name", "h1", *identity).returncode == 0
    refused = cli("node", "provision", "h1")
    assert refused.returncode == 1
    assert "never seen: SHA256:" in refused.stdout
    accepted = cli("node", "provision", "h1", "--accept-new")
    assert accepted.returncode == 0, accepted.stdout
    assert cli("node", "provision", "h1").returncode == 0
    assert "forgot" in cli("hosts", "forget", address).stdout
    assert cli("node", "uninstall", "h1").returncode == 1
    assert cli("node", "uninstall", "h1", "--accept-new").returncode == 0


def test_discovery_finds_the_hosts(clean: Lab, tmp_path: Path) -> None:
    cli = Cli(clean, tmp_path / "me")
    first = clean.hosts["h1"].record.address
    found = cli("discover", first.rpartition(".")[0] + ".8/29", "--json")
    found = cli("discover", first.rpartition(".")[0] + ".0/28", "--json")
    assert found.returncode == 0, found.stderr
    hosts = json.loads(found.stdout)["hosts"]
    assert [host["address"] for host in hosts if "OpenSSH" in host["ssh"]] == [
        host.record.address for host in clean.hosts.values()
    ]
    assert cli("discover", "10.0.0.0/8").returncode == 1


# -- speed


async def test_a_node_is_ready_in_two_seconds_and_three_take_little_longer(
    clean: Lab, tmp_path: Path
) -> None:
    what = wishes(agent_file(tmp_path))
    one = await provision(clean, "h1", what, tmp_path)
    assert one.ok, one.failure
    assert one.took_s < 2.0
    gone = await uninstall(clean, "h1", what, tmp_path)
    assert gone.ok, gone.failure
    jobs = [job(clean, name, what, tmp_path) for name in clean.hosts]
    reports = await run_all(jobs, Archives(tmp_path))
    assert all(report.ok for report in reports)
    assert max(report.took_s for report in reports) < 2 * max(one.took_s, 1.0)


# -- what a host may lack


async def test_without_python_the_step_says_what_there_is(clean: Lab, tmp_path: Path) -> None:
    host, what = clean.hosts["h1"], wishes(agent_file(tmp_path))
    hide = "mkdir -p /root/hidden && mv -t /root/hidden /usr/bin/python3* /usr/local/bin/python3*"
    host.exec(f"{hide} 2>/dev/null; true", user="root")
    try:
        none = failure(await provision(clean, "h1", what, tmp_path))
        assert none.name == "python"
        assert "no python3 was found; 3.8 is needed" in none.message
        # One that answers as CPython 3.6 does.
        old = "#!/bin/sh\necho OLOL-PYTHON /usr/bin/python3 3.6.8 old\n"
        host.exec("cat > /usr/bin/python3 && chmod 755 /usr/bin/python3", user="root", stdin=old)
        aged = failure(await provision(clean, "h1", what, tmp_path))
        assert "/usr/bin/python3 (3.6.8): too old: 3.8 is needed" in aged.message
        assert host.exec("ls -A ~").stdout.split() == [".ssh"] or ".local" not in (
            host.exec("ls -A ~").stdout
        )
    finally:
        host.exec("rm -f /usr/bin/python3", user="root")
        host.exec(
            "for f in /root/hidden/*; do mv $f /usr/bin/ 2>/dev/null; done; "
            "[ -e /usr/bin/python3 ] || ln -s python3.11 /usr/bin/python3; true",
            user="root",
        )
    assert (await provision(clean, "h1", what, tmp_path)).ok


async def test_a_full_disk_is_named_and_a_retry_mends_it(clean: Lab, tmp_path: Path) -> None:
    host, what = clean.hosts["h1"], wishes(agent_file(tmp_path))
    host.fill(leave_mb=1)
    run = Provisioning(job(clean, "h1", what, tmp_path), Archives(tmp_path))
    full = failure(await run.run())
    assert full.name == "agent"
    assert "free, 32.2 MiB are needed" in full.message
    host.unfill()
    report = await run.run()
    assert report.ok, report.failure


async def test_a_disk_that_fills_up_meanwhile_is_named_too(clean: Lab, tmp_path: Path) -> None:
    host, what = clean.hosts["h1"], wishes(agent_file(tmp_path))

    def fill(node: str, step: StepResult) -> None:
        if step.name == "agent" and step.state == "running" and not step.message:
            host.fill()

    run = Provisioning(job(clean, "h1", what, tmp_path), Archives(tmp_path), told=fill)
    full = failure(await run.run())
    assert full.name == "agent"
    assert "disk is full" in full.message, full.message
    run.told = lambda node, step: None
    host.unfill()
    report = await run.run()
    assert report.ok, report.failure


@pytest.mark.parametrize(
    ("options", "words"), [("remount,ro,bind", "read-only"), ("remount,noexec,bind", "")]
)
async def test_a_home_that_is_mounted_so(
    clean: Lab, tmp_path: Path, options: str, words: str
) -> None:
    """Read-only rules a node out; noexec does not: Python reads the agent."""
    host, what = clean.hosts["h1"], wishes(agent_file(tmp_path))
    host.exec(f"mount --bind /home /home && mount -o {options} /home", user="root")
    run = Provisioning(job(clean, "h1", what, tmp_path), Archives(tmp_path))
    try:
        report = await run.run()
        if words:
            assert words in failure(report).message
            assert failure(report).name == "agent"
            elsewhere = wishes(agent_file(tmp_path), directory="/var/tmp/olol")
            moved = await provision(clean, "h1", elsewhere, tmp_path)
            assert moved.ok, moved.failure
            assert (await uninstall(clean, "h1", elsewhere, tmp_path)).ok
            host.exec("mount -o remount,rw,bind /home", user="root")
            mended = await run.run()
            assert mended.ok, mended.failure
            assert (await uninstall(clean, "h1", what, tmp_path)).ok
        else:
            assert report.ok, report.failure
            assert report.facts is not None
            assert report.facts.disk.noexec
            assert (await uninstall(clean, "h1", what, tmp_path)).ok
    finally:
        host.exec("umount /home", user="root")


async def test_nothing_is_started_from_tmp(clean: Lab, tmp_path: Path) -> None:
    """A socket does not mind noexec."""
    host, what = clean.hosts["h1"], wishes(agent_file(tmp_path))
    host.exec("mount -o remount,noexec /tmp", user="root")
    try:
        report = await provision(clean, "h1", what, tmp_path)
        assert report.ok, report.failure
        assert report.socket.startswith("/tmp/olol-1500/")
    finally:
        host.exec("mount -o remount,exec /tmp", user="root")


async def test_a_place_in_tmp_taken_by_others_is_not_used(clean: Lab, tmp_path: Path) -> None:
    host, what = clean.hosts["h1"], wishes(agent_file(tmp_path))
    host.exec("mkdir -m 777 /tmp/olol-1500", user="root")
    try:
        report = await provision(clean, "h1", what, tmp_path)
        assert report.ok, report.failure
        assert report.socket.startswith("/home/ops/.local/share/olol-agent/state/")
        assert (await uninstall(clean, "h1", what, tmp_path)).ok
    finally:
        host.exec("rm -rf /tmp/olol-1500", user="root")


SERVERS = {
    "one session at a time": ("MaxSessions 1",),
    "no forwarding": ("AllowTcpForwarding no", "AllowStreamLocalForwarding no"),
    "nothing but sessions": ("DisableForwarding yes", "MaxSessions 1"),
    "a banner with escapes": ("Banner /etc/banner",),
}


@pytest.mark.parametrize("name", SERVERS)
async def test_servers_with_opinions(clean: Lab, tmp_path: Path, name: str) -> None:
    host, what = clean.hosts["h2"], wishes(agent_file(tmp_path))
    banner = "\x1b]0;owned\x07\x1b[2J\x1b[31mAll your base\n"
    host.exec("cat > /etc/banner", user="root", stdin=banner)
    host.sshd_config(*SERVERS[name])
    report = await provision(clean, "h2", what, tmp_path)
    assert report.ok, report.failure
    for step in report.steps:
        assert step.message.isprintable()
    assert (await uninstall(clean, "h2", what, tmp_path)).ok


async def test_the_agent_needs_no_sftp(clean: Lab, tmp_path: Path) -> None:
    host, what = clean.hosts["h2"], wishes(agent_file(tmp_path))
    host.exec("sed -i s:internal-sftp:/bin/false: /etc/ssh/sshd_config", user="root")
    host.restart_sshd()
    try:
        report = await provision(clean, "h2", what, tmp_path)
        assert report.ok, report.failure
    finally:
        host.sshd_config()


async def test_shells_that_talk_or_are_no_sh(clean: Lab, tmp_path: Path) -> None:
    host, what = clean.hosts["h1"], wishes(agent_file(tmp_path))
    host.exec("printf 'echo \"\\033[2JHello from .bashrc\"; echo OLOL-SYSTEM fake\\n' > ~/.bashrc")
    try:
        report = await provision(clean, "h1", what, tmp_path)
        assert report.ok, report.failure
        assert (await uninstall(clean, "h1", what, tmp_path)).ok
    finally:
        host.exec("rm -f ~/.bashrc")


async def test_a_power_cut_ends_the_agent_and_the_next_run_starts_it(
    clean: Lab, tmp_path: Path
) -> None:
    host, what = clean.hosts["h3"], wishes(agent_file(tmp_path))
    assert (await provision(clean, "h3", what, tmp_path)).ok
    host.kill()
    host.boot()
    report = await provision(clean, "h3", what, tmp_path)
    assert report.ok, report.failure
    service = next(step for step in report.steps if step.name == "service")
    assert service.message.startswith("started")


async def test_two_names_of_one_machine_do_not_fight(clean: Lab, tmp_path: Path) -> None:
    what = wishes(agent_file(tmp_path))
    twin = Job("twin", "h1", partial(opened, clean, "h1", tmp_path), what, link_transport)
    reports = await run_all([job(clean, "h1", what, tmp_path), twin], Archives(tmp_path))
    bad = [report for report in reports if not report.ok]
    assert len(bad) == 1
    assert "the same machine and user as" in failure(bad[0]).message


async def test_a_home_shared_by_two_machines(lab_machine: None, tmp_path: Path) -> None:
    """As with NFS: two agents, two sockets, no cross-talk, and each is taken off alone."""
    what = wishes(agent_file(tmp_path))
    with Lab(2, shared_home=True) as lab:
        before = {name: files(host) for name, host in lab.hosts.items()}
        jobs = [job(lab, name, what, tmp_path) for name in lab.hosts]
        reports = await run_all(jobs, Archives(tmp_path))
        assert all(report.ok for report in reports), [report.failure for report in reports]
        ids = {report.facts.machine_id for report in reports if report.facts is not None}
        assert len(ids) == 2
        base = lab.hosts["h1"].root / "home/ops/.local/share/olol-agent"
        assert {path.name for path in (base / "state").iterdir()} == ids
        assert len(list((base / "bin").glob("*.pyz"))) == 1

        first = await uninstall(lab, "h1", what, tmp_path)
        assert first.ok, first.failure
        assert "1 other machine of this home" in first.steps[3].message
        again = await provision(lab, "h2", what, tmp_path)
        assert again.ok
        assert not again.changed
        second = await uninstall(lab, "h2", what, tmp_path)
        assert second.ok, second.failure
        assert {name: files(host) for name, host in lab.hosts.items()} == before
