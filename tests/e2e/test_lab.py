"""The lab's hosts are machines of their own, and labs come and go without a trace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.probes import ANSWER_S, echo, greets, ssh
from tests.lab import Lab, LabError, interpreter, preflight, processes, state

PROJECT = Path(__file__).parents[2]


def lab_command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.lab", *args],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def traces(tag: str) -> list[str]:
    """Everything on this machine that bears the tag of a lab."""
    found = [name for name in os.listdir("/sys/class/net") if name.startswith(f"ol{tag}")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if tag in line]
    if root := state.cgroup_root():
        found += [str(path) for path in root.glob(f"*-{tag}-*")]
    for pid in processes.pids():
        command = " ".join(processes.command_of(pid))
        if f"/{tag}/" in command or f"reap {tag}" in command:
            found.append(command)
    return found + [str(path) for path in [state.BASE / tag] if path.exists()]


def wait_for_no_traces(tag: str) -> None:
    deadline = time.monotonic() + ANSWER_S
    while left := traces(tag):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


# Hosts ------------------------------------------------------------------------------


def test_hosts_are_machines_of_their_own(lab: Lab) -> None:
    look = "hostname; id -u; cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id; pwd"
    seen = {name: ssh(lab, name, look).split() for name in lab.hosts}
    assert {name: words[0] for name, words in seen.items()} == {name: name for name in seen}
    assert {words[1] for words in seen.values()} == {"1500"}
    assert {words[4] for words in seen.values()} == {"/home/ops"}
    assert (
        len({words[2] for words in seen.values()})
        == len({words[3] for words in seen.values()})
        == 3
    )
    keys = [line.split()[2] for line in lab.known_hosts.read_text().splitlines()]
    assert len(set(keys)) == 3


def test_hosts_see_neither_each_other_nor_this_machine(lab: Lab) -> None:
    one, two = lab.hosts["h1"], lab.hosts["h2"]
    one.exec("echo 1 >~/mine; echo 1 >/tmp/mine; echo 1 >/var/tmp/mine")
    assert (
        two.exec("ls ~/mine /tmp/mine /var/tmp/mine; ls /root /run/olol-lab", check=False).stdout
        == ""
    )
    assert one.exec("ls -A /root /srv /mnt /tmp | grep -v :", "root").stdout.split() == ["mine"]
    assert {process.pid for process in one.processes()} < set(range(1, 200))
    assert one.exec(f"kill -0 {os.getpid()}", "root", check=False).returncode != 0


async def test_asyncssh_reaches_a_host_by_name(lab: Lab) -> None:
    async with asyncssh.connect("h1", config=[str(lab.ssh_config)]) as connection:
        done = await connection.run("hostname", check=True)
        assert done.stdout == "h1\n"
        with pytest.raises(asyncssh.ChannelOpenError, match="refused"):
            await connection.open_connection("127.0.0.1", 9)


def test_the_user_has_a_python_and_a_runtime_directory(lab: Lab) -> None:
    code = (
        "import sys, os, json, asyncio, http.server; print(sys.version_info >= (3, 8), os.getuid())"
    )
    assert ssh(lab, "h1", f"python3 -I -c '{code}'").split() == ["True", "1500"]
    assert ssh(lab, "h1", "stat -c '%U %a' $XDG_RUNTIME_DIR").split() == ["ops", "700"]


def test_an_interpreter_that_only_root_can_reach_is_shown_elsewhere(
    lab_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose one python3 lies under /root."""
    monkeypatch.setattr(interpreter, "open_to_all", lambda path: False)
    interpreter.find.cache_clear()
    try:
        with Lab(1) as lab:
            found = ssh(
                lab, "h1", "readlink $(command -v python3); python3 -c 'import json; print(1)'"
            )
    finally:
        interpreter.find.cache_clear()
    assert found.startswith(interpreter.VIEW)
    assert found.endswith("\n1\n")


def test_a_directory_can_be_shared_with_the_hosts(lab_machine: None, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    tmp_path.chmod(0o755)
    with Lab(1, share={"/srv/models": tmp_path}) as lab:
        host = lab.hosts["h1"]
        assert host.exec("cat /srv/models/model").stdout == "weights"
        assert "Read-only" in host.exec("rm /srv/models/model", "root", check=False).stderr


def test_a_shared_home_is_one_for_all(lab_machine: None) -> None:
    with Lab(2, shared_home=True) as lab:
        lab.hosts["h1"].exec("echo hi >~/note")
        assert ssh(lab, "h2", "cat ~/note") == "hi\n"
        lab.hosts["h1"].exec("echo hi >/var/tmp/note")
        assert lab.hosts["h2"].exec("test -e /var/tmp/note", check=False).returncode == 1


def test_commands_die_with_their_handle(lab: Lab) -> None:
    host = lab.hosts["h1"]
    process = host.spawn(["sleep", "1000"])
    deadline = time.monotonic() + ANSWER_S
    while "sleep 1000" not in [found.command for found in host.processes()]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    while "sleep 1000" in [found.command for found in host.processes()]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(LabError, match=r"longer than 0\.2 s"):
        host.exec("sleep 1000", timeout_s=0.2)
    with pytest.raises(LabError, match="ended with 3: oh no"):
        host.exec("echo oh no >&2; exit 3")


def test_listening_names_address_port_and_process(lab: Lab) -> None:
    host = lab.hosts["h1"]
    with echo(host):
        found = {(item.address, item.port): item for item in host.listening()}
    sshd = found.pop((host.address, 22))
    assert "sshd" in sshd.command and sshd.pid == host.sshd.pid
    ((address, _port),) = found
    assert address == "0.0.0.0"
    (server,) = found.values()
    assert server.command.startswith("python3 -c") and server.pid > 1


# Labs ---------------------------------------------------------------------------------


def test_labs_live_side_by_side_and_leave_nothing(lab: Lab) -> None:
    mounts = _mounts()
    with Lab(2) as other:
        tag = other.tag
        assert other.record.subnet != lab.record.subnet
        assert traces(tag)
        assert greets(other.hosts["h1"]) and greets(lab.hosts["h1"])
        knock = f"</dev/tcp/{lab.hosts['h1'].address}/22"
        done = other.hosts["h1"].exec(["bash", "-c", knock], check=False)
        assert "unreachable" in done.stderr
        with pytest.raises(LabError, match="in use"):
            Lab(1, subnet=other.record.subnet).up()
        other.hosts["h1"].netem(1)
        other.hosts["h2"].cut("rst")
        other.hosts["h1"].freeze()
    assert traces(tag) == []
    assert _mounts() == mounts
    assert greets(lab.hosts["h1"])


def _mounts() -> list[str]:
    """This machine's mounts, other labs' left out."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if str(state.BASE) not in line]


def _crashing_lab() -> tuple[subprocess.Popen[str], str]:
    code = (
        "import time; from tests.lab import Lab\n"
        "lab = Lab(2); lab.up(); lab.hosts['h1'].netem(5); print(lab.tag, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_lab_goes_with_its_process_even_when_that_is_killed(lab_machine: None) -> None:
    process, tag = _crashing_lab()
    with process:
        assert traces(tag)
        process.kill()
    wait_for_no_traces(tag)


@pytest.mark.parametrize("lost", ["", "lab.json", "."])
def test_the_next_lab_sweeps_what_a_crash_left(lab_machine: None, lost: str) -> None:
    """Also where the reaper died too, and the record or the whole directory is lost."""
    process, tag = _crashing_lab()
    with process:
        for pid in processes.pids():
            if processes.command_of(pid)[-2:] == ["reap", tag]:
                os.kill(pid, signal.SIGKILL)
        process.kill()
    if lost == ".":
        moved = state.BASE / f"{tag}.gone"
        (state.BASE / tag).rename(moved)
        (moved / "lab.json").unlink()
        moved.rename(state.BASE / tag)
    elif lost:
        (state.BASE / tag / lost).unlink()
    assert traces(tag)
    with Lab(1):
        assert traces(tag) == []


def test_a_machine_without_the_rights_says_so(lab_machine: None) -> None:
    """Root of a user namespace is not enough, and no root even less."""
    code = "from tests.lab import Lab; print(Lab.available())"
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    done = subprocess.run(
        argv, cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        pytest.skip(f"no user namespaces: {done.stderr}")
    assert "does not allow" in done.stdout


def test_a_lab_comes_up_in_a_container(lab_machine: None) -> None:
    """Where the root itself is an overlay and cgroups are a subtree; a lab's host is such a place."""
    with Lab(1, share={"/srv/project": PROJECT}) as lab:
        host = lab.hosts["h1"]
        python = ["env", "-C", "/srv/project", "python3", "-B", "-m", "tests.lab"]
        newer = host.exec("python3 -c 'import typing; typing.Self'", check=False)
        if newer.returncode:
            pytest.skip("the python3 of the host is too old for the lab itself")
        host.exec([*python, "up", "1"], "root")
        for fault in ("cut h1 rst", "heal h1", "freeze h1", "thaw h1", "kill h1", "boot h1"):
            host.exec([*python, *fault.split()], "root")
        assert host.exec([*python, "ssh", "h1", "id -un"], "root").stdout == "ops\n"
        host.exec([*python, "down"], "root")
        left = host.exec("ls -d /run/olol-lab; ip -br link | grep -c ol", "root", check=False)
        assert left.stdout == "0\n"


def test_no_root_no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in preflight.obstacle.__wrapped__()


def test_the_command_line(lab_machine: None) -> None:
    up = lab_command("up", "2", "--disk", "32m")
    assert up.returncode == 0, up.stderr
    match = re.match(r"lab (\w+): h1=", up.stdout)
    assert match
    tag = match[1]
    here = ("--lab", tag)
    try:
        host = Lab.attach(tag).hosts["h1"]
        assert lab_command(*here, "exec", "h1", "hostname").stdout == "h1\n"
        assert lab_command(*here, "exec", "-u", "ops", "h1", "id", "-un").stdout == "ops\n"
        assert lab_command(*here, "ssh", "h2", "hostname").stdout == "h2\n"
        assert lab_command(*here, "cut", "h1", "rst").returncode == 0
        with pytest.raises(ConnectionRefusedError):
            greets(host)
        assert "cut rst" in lab_command(*here, "status").stdout
        assert lab_command(*here, "heal", "h1").returncode == 0
        assert greets(host)
        assert ":22\t" in lab_command(*here, "listening", "h1").stdout
        assert lab_command(*here, "cut", "h9").stderr == "lab: no host h9, there are h1, h2\n"
    finally:
        assert lab_command(*here, "down").returncode == 0
    assert traces(tag) == []
