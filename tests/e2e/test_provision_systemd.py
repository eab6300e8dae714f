"""The agent as a unit of the user's real systemd: restarted, replaced, rolled back, gone."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from olol_tui.provision.runner import Report
from tests.contract.provision_rig import agent_file, wishes
from tests.contract.test_provision_again import newer
from tests.e2e.test_provision_lab import provision, uninstall
from tests.lab import Host, Lab

SYSTEMD = Path("/lib/systemd/systemd")
pytestmark = pytest.mark.skipif(
    not (SYSTEMD.exists() and shutil.which("curl")), reason="needs systemd and curl"
)

PATIENCE_S = 60.0
MANAGER_S = 20.0
_MANAGER = (
    "mkdir -p /sys/fs/cgroup/ops && chown -R ops /sys/fs/cgroup/ops && "
    "echo $$ > /sys/fs/cgroup/ops/cgroup.procs && "
    "exec setpriv --reuid=1500 --regid=1500 --clear-groups env HOME=/home/ops "
    f"XDG_RUNTIME_DIR=/run/user/1500 {SYSTEMD} --user"
)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.1)


class Machine:
    """A host whose user has a systemd that lingers."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.exec(
            "mkdir -p /run/systemd/system /var/lib/systemd/linger && "
            "touch /var/lib/systemd/linger/ops",
            user="root",
        )
        self.start()

    def start(self) -> None:
        """As logind does at boot."""
        self._manager = self.host.spawn(_MANAGER, user="root", stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + MANAGER_S
        while not self.host.exec("systemctl --user is-active -- -.slice", check=False).stdout:
            if self._manager.poll() is not None or time.monotonic() > deadline:
                self._manager.kill()
                self._manager.wait()
                pytest.skip("a user's systemd does not run in a lab of this machine")
            time.sleep(0.1)

    def stop(self) -> None:
        self.host.exec("pkill -KILL -u ops -x systemd", user="root", check=False)
        self._manager.kill()
        self._manager.wait()

    def reboot(self) -> None:
        """A power cut, and what comes up by itself."""
        self.host.kill()
        self._manager.kill()
        self._manager.wait()
        self.host.boot()
        self.host.exec("mkdir -p /run/systemd/system", user="root")
        self.start()

    def show(self, report: Report, name: str) -> str:
        unit = str(report.facts.record["unit"]) if report.facts else ""
        done = self.host.exec(f"systemctl --user show -p {name} --value {unit or 'olol-agent-*'}")
        return done.stdout.strip()

    def call(self, socket: str, path: str, *curl: str) -> dict[str, object]:
        command = ["curl", "-sS", "--unix-socket", socket, f"http://agent{path}", *curl]
        return json.loads(self.host.exec(command).stdout)

    def hello(self, socket: str) -> dict[str, object]:
        done = self.host.exec(
            ["curl", "-sS", "--unix-socket", socket, "http://agent/v1/hello"], check=False
        )
        return json.loads(done.stdout or "{}")

    def kill(self, pid: object) -> None:
        self.host.exec(["kill", "-KILL", str(pid)], user="root")


@pytest.fixture
def machine(lab: Lab) -> Iterator[Machine]:
    machine = Machine(lab.hosts["h1"])
    yield machine
    machine.stop()
    machine.host.exec(
        "pkill -KILL -f '[o]lol-agent'; rm -rf ~ops/.local ~ops/.config "
        "/run/systemd/system /var/lib/systemd/linger/ops",
        user="root",
        check=False,
    )


def engines_of(machine: Machine, socket: str) -> set[int]:
    """Two simulated engines, running; their pids."""
    inventory = machine.call(socket, "/v1/inventory")
    devices = inventory["devices"]
    assert isinstance(devices, list)
    specs = [
        {"id": f"h1/sim{i}", "kind": "simulated", "devices": [device["uuid"]]}
        for i, device in enumerate(devices)
    ]
    body = json.dumps({"generation": 1, "engines": specs})
    name = ["-H", "x-olol-controller: test-controller a test"]
    machine.call(socket, "/v1/engines", "-X", "PUT", *name, "-d", body)
    until(lambda: len(pids(machine, socket)) == 2, "two engines are ready")
    return pids(machine, socket)


def pids(machine: Machine, socket: str) -> set[int]:
    found = machine.call(socket, "/v1/engines")["engines"]
    assert isinstance(found, list)
    return {engine["pid"] for engine in found if engine["state"] == "ready"}


async def test_a_unit_keeps_the_agent_and_never_takes_its_engines_along(
    machine: Machine, lab: Lab, tmp_path: Path
) -> None:
    old = agent_file(tmp_path)
    what = wishes(old)
    report = await provision(lab, "h1", what, tmp_path)
    assert report.ok, report.failure
    service = next(step for step in report.steps if step.name == "service")
    assert "survives logout and reboot (systemd user unit)" in service.message
    assert report.socket.startswith("/run/user/1500/olol-agent/")
    engines = engines_of(machine, report.socket)
    again = await provision(lab, "h1", what, tmp_path)
    assert again.ok
    assert not again.changed
    assert machine.show(again, "MainPID") == str(report.pid)

    # It dies: systemd starts it again, and it adopts.
    machine.kill(report.pid)
    until(
        lambda: machine.hello(report.socket).get("pid") not in (None, report.pid),
        "systemd has started the agent again",
    )
    until(lambda: pids(machine, report.socket) == engines, "the engines are adopted")

    # Another image, in place: systemd sees the same process go on.
    pid = machine.hello(report.socket)["pid"]
    upgraded = await provision(lab, "h1", newer(tmp_path, old), tmp_path)
    assert upgraded.ok, upgraded.failure
    assert upgraded.pid == pid
    assert machine.show(again, "MainPID") == str(pid)
    assert machine.show(again, "ActiveState") == "active"
    assert pids(machine, report.socket) == engines

    # systemd's own restart: KillMode=process.
    unit = str(again.facts.record["unit"]) if again.facts else ""
    machine.host.exec(f"systemctl --user restart {unit}")
    until(lambda: machine.hello(report.socket).get("pid") not in (None, pid), "the restart")
    assert pids(machine, report.socket) == engines

    # Uninstalled: no unit, no process, no file.
    gone = await uninstall(lab, "h1", what, tmp_path)
    assert gone.ok, gone.failure
    assert f"unit {unit}" in gone.steps[2].message
    listed = machine.host.exec("systemctl --user list-unit-files --no-legend 'olol*'", check=False)
    assert listed.stdout == ""
    assert machine.host.exec("ls -A ~").stdout.split() == [".ssh"]
    assert machine.host.exec("ls -A /run/user/1500").stdout.split() == ["systemd"] or (
        "olol-agent" not in machine.host.exec("ls -A /run/user/1500").stdout
    )


async def test_an_image_that_does_not_work_is_rolled_back_by_systemd(
    machine: Machine, lab: Lab, tmp_path: Path
) -> None:
    old = agent_file(tmp_path)
    report = await provision(lab, "h1", wishes(old), tmp_path)
    assert report.ok, report.failure
    engines = engines_of(machine, report.socket)
    broken = newer(tmp_path, old, __main__="import sys\nif 'serve' in sys.argv: sys.exit(5)\n")
    refused = await provision(lab, "h1", broken, tmp_path)
    assert refused.failure is not None
    assert "the old one is back" in refused.failure.message
    assert machine.hello(report.socket)["sha256"] == old.sha256
    until(lambda: pids(machine, report.socket) == engines, "the engines are adopted")


async def test_after_a_reboot_the_agent_is_there_before_anybody_comes(
    machine: Machine, lab: Lab, tmp_path: Path
) -> None:
    report = await provision(lab, "h1", wishes(agent_file(tmp_path)), tmp_path)
    assert report.ok, report.failure
    engines_of(machine, report.socket)
    machine.reboot()
    until(lambda: "pid" in machine.hello(report.socket), "systemd has started the agent")
    until(lambda: len(pids(machine, report.socket)) == 2, "its engines are back")
