"""Each fault of the lab, proved by what it does to a connection, a disk or a process."""

from __future__ import annotations

import os
import re
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import Literal

import asyncssh
import pytest

from tests.e2e.probes import ANSWER_S, SILENT_S, datagrams, echo, greets, ssh
from tests.lab import Host, Lab, LabError

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


def test_a_reset_is_for_one_host_only(lab: Lab) -> None:
    """A bridge floods what is for a host that is off; the one that resets must not answer for it."""
    reset, off = lab.hosts["h1"], lab.hosts["h2"]
    reset.cut("rst")
    off.kill()
    assert not greets(off, SILENT_S)
    off.boot()
    off.cut("out")
    assert not greets(off, SILENT_S)


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


def test_a_host_that_is_cut_off_can_lose_its_power(lab: Lab) -> None:
    host = lab.hosts["h1"]
    for how in ("link", "rst"):
        host.cut(how)
        host.kill()
        host.boot()
        assert greets(host), how


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
