"""Provisioning of one host beside many at once, on a lab of real sshd hosts. Needs root.

    python -m tests.bench.provision [--hosts 8] [--rounds 5] [--delay-ms 3]

Three settings, one after the other: hosts that share this machine's cores with the console,
the same with a link's delay, and hosts with so small a share of the CPU each that they never
wait for one another, as machines of their own do not. In each, rounds of one host and of all
take turns; the medians are shown, and what a node costs the console and itself in CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from olol_tui.provision.archive import Archives
from olol_tui.provision.jobs import describe_link, link_transport
from olol_tui.provision.plan import STEPS, UNINSTALL_STEPS, StepName
from olol_tui.provision.runner import Job, run_all
from olol_tui.provision.shell import Shell
from olol_tui.provision.steps import Wishes
from olol_tui.ssh.connection import Connector
from olol_tui.ssh.hostkeys import HostKeys
from olol_tui.ssh.keys import KeyRing
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.target import Target
from tests.contract.provision_rig import agent_file, wishes
from tests.lab import Lab

CPU_CONTROLLER = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 20_000
CONSOLE_SHARE = 0.25
"""Of all cores, left to the console where the hosts get shares of their own."""


@dataclass(frozen=True, slots=True)
class Round:
    """One batch provisioned."""

    took_s: float
    console_cpu_ms: float
    """For each node."""
    node_cpu_ms: float


@asynccontextmanager
async def _opened(lab: Lab, host: str, state: Path) -> AsyncIterator[Shell]:
    hostkeys = HostKeys(state / "known_hosts", user_files=(), system_files=())
    connector = Connector(hostkeys, KeyRing(), lab.ssh_config)
    async with NodeLink(host, Target(host), connector, data_connections=0) as link:
        await link.wait_up()
        yield link


async def _batch(
    lab: Lab, names: list[str], what: Wishes, state: Path, order: tuple[StepName, ...]
) -> Round:
    jobs = [
        Job(name, name, partial(_opened, lab, name, state), what, link_transport, describe_link)
        for name in names
    ]
    cpu_ms, nodes_ms = time.process_time() * 1e3, _nodes_cpu_ms(lab)
    began_s = time.perf_counter()
    reports = await run_all(jobs, Archives(state), order=order)
    took_s = time.perf_counter() - began_s
    if failures := [report.failure for report in reports if not report.ok]:
        raise SystemExit(f"failed: {failures}")
    return Round(
        took_s,
        (time.process_time() * 1e3 - cpu_ms) / len(names),
        (_nodes_cpu_ms(lab) - nodes_ms) / len(names),
    )


def _nodes_cpu_ms(lab: Lab) -> float:
    stats = [Path(host.record.cgroup, "cpu.stat") for host in lab.hosts.values()]
    return sum(int(stat.read_text().split()[1]) for stat in stats if stat.is_file()) / 1e3


@contextmanager
def own_cpus(lab: Lab) -> Iterator[float]:
    """Every host on a share of the CPU that the others cannot touch; yields cores a host.

    Raises:
        OSError: this machine's kernel does not let us.
    """
    cores = (os.cpu_count() or 1) * (1 - CONSOLE_SHARE) / len(lab.hosts)
    groups: list[Path] = []
    try:
        for host in lab.hosts.values():
            group = CPU_CONTROLLER / f"olol-bench-{os.getpid()}-{host.name}"
            group.mkdir()
            groups.append(group)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(int(PERIOD_US * cores)))
            for process in host.processes():
                (group / "cgroup.procs").write_text(str(process.outer_pid))
        yield cores
    finally:
        for group in groups:
            for pid in (group / "cgroup.procs").read_text().split():
                (CPU_CONTROLLER / "cgroup.procs").write_text(pid)
            group.rmdir()


async def compare(lab: Lab, rounds: int, state: Path) -> tuple[list[Round], list[Round]]:
    """Rounds of one host and of all, in turns; the hosts are bare before and after."""
    what = wishes(agent_file(state))
    names = list(lab.hosts)
    alone: list[Round] = []
    together: list[Round] = []
    for number in range(rounds):
        for batch, found in (([names[number % len(names)]], alone), (names, together)):
            found.append(await _batch(lab, batch, what, state, STEPS))
            await _batch(lab, batch, what, state, UNINSTALL_STEPS)
    return alone, together


def _show(label: str, alone: list[Round], together: list[Round]) -> None:
    one = statistics.median(r.took_s for r in alone)
    many = statistics.median(r.took_s for r in together)
    ratio = statistics.median(b.took_s / a.took_s for a, b in zip(alone, together, strict=True))
    console = statistics.median(r.console_cpu_ms for r in together)
    node = statistics.median(r.node_cpu_ms for r in together)
    print(f"{label:34} {one:6.2f} {many:6.2f} {ratio:6.2f} {console:9.0f} {node:6.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay-ms", type=float, default=3.0, help="one way")
    args = parser.parse_args()
    if reason := Lab.available():
        raise SystemExit(f"no lab here: {reason}")
    many = f"{args.hosts} s"
    print(f"{'':34} {'1 s':>6} {many:>6} {'ratio':>6} {'CPU ms: console':>9} {'node':>6}")
    with Lab(args.hosts) as lab, tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        _show("cores shared", *asyncio.run(compare(lab, args.rounds, state)))
        if args.delay_ms:
            for host in lab.hosts.values():
                host.netem(args.delay_ms)
            label = f"cores shared, links of {args.delay_ms:g} ms"
            _show(label, *asyncio.run(compare(lab, args.rounds, state)))
            for host in lab.hosts.values():
                host.heal()
        try:
            with own_cpus(lab) as cores:
                label = f"each host {cores:.2f} cores of its own"
                _show(label, *asyncio.run(compare(lab, args.rounds, state)))
        except OSError as error:
            print(f"no shares of the CPU here: {error}")


if __name__ == "__main__":
    main()
