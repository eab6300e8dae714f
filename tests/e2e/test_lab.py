"""Each promise of the lab, proved by what it does to a connection, a disk or a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import asyncssh
import pytest

from tests.e2e.probes import ANSWER_S, SILENT_S, datagrams, echo, greets
from tests.lab import Host, Lab, LabError, interpreter, preflight, processes, state

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


def ssh(lab: Lab, host: str, command: str) -> str:
    argv = ["ssh", "-F", str(lab.ssh_config), host, command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout


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


# Network faults -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["drop", "link", "in", "out"])
def test_a_cut_is_silent_for_new_and_for_open_connections(
    lab: Lab, how: Literal["drop", "link", "in", "out"]
) -> None:
    host = lab.hosts["h1"]
    with echo(host) as connection:
        host.cut(how)
        assert not greets(host, SILENT_S)
        connection.settimeout(SILENT_S)
        connection.sendall(b"anybody?")
        with pytest.raises(TimeoutError):
            connection.recv(16)
        assert greets(lab.hosts["h2"])
        host.heal()
        assert greets(host)
        connection.settimeout(ANSWER_S)
        assert connection.recv(16) == b"anybody?"


@pytest.mark.parametrize(("how", "heard"), [("in", False), ("out", True)])
def test_one_way_loss_is_one_way(lab: Lab, how: Literal["in", "out"], heard: bool) -> None:
    """What the host hears shows in a connection that it cannot answer, and the other way round."""
    host = lab.hosts["h1"]
    with echo(host) as connection, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        port = connection.getpeername()[1]
        ear.bind((lab.gateway, 0))
        ear.settimeout(ANSWER_S if not heard else SILENT_S)
        host.cut(how)
        connection.sendall(b"x" * 1000)
        code = f"import socket; socket.socket(2, 2).sendto(b'me', {ear.getsockname()!r})"
        host.exec(["python3", "-c", code])
        if heard:
            with pytest.raises(TimeoutError):
                ear.recv(16)
        else:
            assert ear.recv(16) == b"me"
        assert bool(_unanswered_bytes(host, port)) == heard


def _unanswered_bytes(host: Host, port: int) -> int:
    """What the echo server on the host has sent and nobody acknowledged."""
    for line in (Path(f"/proc/{host.init}/net/tcp")).read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01":
            return int(fields[4].split(":")[0], 16)
    raise AssertionError("the connection is gone")


def test_rst_resets_what_is_open_and_refuses_what_is_new(lab: Lab) -> None:
    host = lab.hosts["h1"]
    with echo(host) as connection:
        host.cut("rst")
        started = time.monotonic()
        connection.settimeout(ANSWER_S)
        connection.sendall(b"still there?")
        with pytest.raises(ConnectionResetError):
            connection.recv(16)
        with pytest.raises(ConnectionRefusedError):
            greets(host)
        assert time.monotonic() - started < 1
    with pytest.raises(LabError, match="refused"):
        host.exec(
            ["python3", "-c", f"import socket; socket.create_connection(('{lab.gateway}', 22), 5)"]
        )
    host.heal()
    assert greets(host)


def test_netem_delays_both_ways_in_order(lab: Lab) -> None:
    host = lab.hosts["h1"]
    with datagrams(host) as wire:
        wire.exchange(1, 0, ANSWER_S)
        host.netem(delay_ms=30, jitter_ms=5)
        trips = wire.exchange(60, 0.005, ANSWER_S)
        host.heal()
        healed = wire.exchange(20, 0.005, ANSWER_S)
    assert len(trips) == 60 and list(trips) == sorted(trips)
    assert min(trips.values()) >= 0.050
    assert statistics.median(trips.values()) < 0.120
    assert len(healed) == 20 and statistics.median(healed.values()) < 0.020


def test_netem_loses_its_share(lab: Lab) -> None:
    host = lab.hosts["h1"]
    host.netem(delay_ms=0, loss_pct=20)
    with datagrams(host) as wire:
        trips = wire.exchange(400, 0.002, 0.5)
    # 64 % survive both ways; five standard deviations are 12 %.
    assert 400 * 0.52 < len(trips) < 400 * 0.76


def test_a_delayed_link_carries_a_file_unharmed(lab: Lab) -> None:
    """Checksums and segments survive the wire, there and back, under delay and loss."""
    host = lab.hosts["h1"]
    host.netem(delay_ms=2, loss_pct=0.5)
    data = os.urandom(2_000_000)
    argv = ["ssh", "-F", str(lab.ssh_config), "h1", "cat"]
    assert (
        subprocess.run(argv, input=data, capture_output=True, timeout=60, check=True).stdout == data
    )


def test_faults_combine_and_replace_each_other(lab: Lab) -> None:
    host = lab.hosts["h1"]
    with datagrams(host) as wire:
        host.netem(delay_ms=20)
        for how in ("in", "drop", "out", "link", "rst"):
            host.cut(how)
            assert wire.exchange(1, 0, 0.2) == {}, how
        host.cut("drop")
        host.heal()
        assert len(wire.exchange(3, 0.001, ANSWER_S)) == 3
    assert not [
        name for name in os.listdir("/sys/class/net") if re.match(rf"ol{lab.tag}[wx]", name)
    ]


# Power, processes, disk ---------------------------------------------------------------


def test_a_power_cut_is_silent_and_loses_all_but_the_disk(lab: Lab) -> None:
    host = lab.hosts["h1"]
    look = (
        "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; cat /proc/sys/kernel/random/boot_id"
    )
    host.exec("echo 1 >~/kept; echo 1 >/tmp/lost; echo 1 >$XDG_RUNTIME_DIR/lost")
    before = host.exec(look).stdout.splitlines()
    with echo(host) as connection:
        host.kill()
        connection.settimeout(SILENT_S)
        connection.sendall(b"anybody?")
        with pytest.raises(TimeoutError):
            connection.recv(16)
        assert not greets(host, SILENT_S)
        with pytest.raises(LabError, match="powered off"):
            host.exec("true")
        with pytest.raises(LabError, match="powered off"):
            host.cut()
        host.boot()
        # Whoever still speaks to the machine as it was learns that it was off.
        connection.settimeout(ANSWER_S)
        with pytest.raises(ConnectionResetError):
            connection.recv(16)
    after = host.exec(look).stdout.splitlines()
    assert after[:2] == before[:2] and after[2] != before[2]
    assert host.exec("cat ~/kept").stdout == "1\n"
    assert host.exec("ls /tmp/lost $XDG_RUNTIME_DIR/lost", check=False).stdout == ""
    assert ssh(lab, "h1", "hostname") == "h1\n"


@pytest.mark.parametrize("cgroups", [True, False])
def test_a_frozen_host_acknowledges_and_does_nothing(lab: Lab, cgroups: bool) -> None:
    host = lab.hosts["h1"]
    group = host.record.cgroup
    if not cgroups:
        host.record.cgroup = ""
    elif not group:
        pytest.skip("no cgroup v2 on this machine")
    try:
        with echo(host) as connection:
            host.freeze()
            connection.sendall(b"hello?")
            with socket.create_connection((host.address, 22), ANSWER_S) as fresh:
                fresh.settimeout(SILENT_S)
                with pytest.raises(TimeoutError):
                    fresh.recv(4)
                connection.settimeout(0.01)
                with pytest.raises(TimeoutError):
                    connection.recv(16)
                with pytest.raises(LabError, match="frozen"):
                    host.exec("true")
                host.thaw()
                fresh.settimeout(ANSWER_S)
                connection.settimeout(ANSWER_S)
                assert fresh.recv(4) == b"SSH-"
                assert connection.recv(16) == b"hello?"
    finally:
        host.record.cgroup = group


def test_a_frozen_host_can_lose_its_power(lab: Lab) -> None:
    host = lab.hosts["h1"]
    host.freeze()
    host.kill()
    host.boot()
    assert host.exec("hostname").stdout == "h1\n"


def test_a_full_disk_is_full_and_an_emptied_one_is_not(lab: Lab) -> None:
    host = lab.hosts["h1"]
    write = "head -c 1500000 /dev/zero >~/big"
    host.fill()
    assert "No space left" in host.exec(write, check=False).stderr
    host.fill(leave_mb=4)
    host.exec(write)
    assert "No space left" in host.exec("head -c 5000000 /dev/zero >~/big", check=False).stderr
    host.unfill()
    host.exec("head -c 5000000 /dev/zero >~/big && rm ~/big")
    assert lab.hosts["h2"].exec(write).returncode == 0


# sshd ---------------------------------------------------------------------------------


def test_sshd_comes_back_when_it_is_killed(lab: Lab) -> None:
    host = lab.hosts["h1"]
    old = host.sshd.pid
    host.exec(f"kill -9 {old}", "root")
    lab.wait_for_sshd(["h1"])
    assert host.sshd.pid != old


async def test_sshd_takes_other_settings_and_open_sessions_stay(lab: Lab) -> None:
    host = lab.hosts["h1"]
    config = [str(lab.ssh_config)]
    async with asyncssh.connect("h1", config=config) as before:
        host.sshd_config("AllowTcpForwarding no", "MaxSessions 1")
        assert (await before.run("hostname", check=True)).stdout == "h1\n"
        async with asyncssh.connect("h1", config=config) as now:
            with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
                await now.open_connection("127.0.0.1", 22)
            async with now.create_process("cat"):
                with pytest.raises(asyncssh.ChannelOpenError):
                    await now.run("true")
    with pytest.raises(LabError, match="Bad configuration option: NoSuchThing"):
        host.sshd_config("NoSuchThing yes")
    assert "MaxSessions 1" in host.exec("cat /etc/ssh/sshd_config", "root").stdout
    host.sshd_config()
    async with asyncssh.connect("h1", config=config) as after:
        reader, writer = await after.open_connection(host.address, 22)
        assert (await reader.read(4)) == b"SSH-"
        writer.close()


# Labs ---------------------------------------------------------------------------------


def test_labs_live_side_by_side_and_leave_nothing(lab: Lab) -> None:
    mounts = Path("/proc/self/mounts").read_text()
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
    assert Path("/proc/self/mounts").read_text() == mounts
    assert greets(lab.hosts["h1"])


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
