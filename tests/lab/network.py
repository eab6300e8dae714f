"""Links, neighbours and faults of a lab's network.

One bridge with the gateway's address, one veth pair a host. Neighbours are static on both
sides, so that a host that is cut off is silent: with ARP, EHOSTUNREACH would tell.

`cut` and `netem` only note what is wanted; `apply` makes it so. Loss in both directions is
the bridge port's state, loss of carrier the link's. What looks into packets (one-way loss,
resets) and delay where the kernel has no netem is a process, `wire.py`, put between the
bridge and the host's link for as long as it is needed.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import sys
import time
from pathlib import Path

from tests.lab import processes, shell
from tests.lab.errors import LabError
from tests.lab.processes import Recorded
from tests.lab.state import ALIAS, HostRecord, LabRecord

FIRST_HOST = 11
MAX_HOSTS = 200
CUTS = ("drop", "rst", "link", "in", "out")
WIRED_CUTS = ("rst", "in", "out")
PORT_DISABLED, PORT_FORWARDING = 0, 3
CARRIER_NEWS_S = 5.0
"""The kernel reports a change of carrier within a second."""
WIRE = Path(__file__).with_name("wire.py")
WIRE_START_S = 10.0
AGGREGATE_PREFIX = 16
"""A route wider than this is a whole private range, in which a /24 of ours is an exception."""


def free_subnet(pool: str) -> ipaddress.IPv4Network:
    """The first /24 of `pool` that this machine neither has nor reaches otherwise.

    Raises:
        LabError: `pool` is no private IPv4 network, or nothing in it is free.
    """
    try:
        wide = ipaddress.IPv4Network(pool)
    except ValueError as error:
        raise LabError(f"subnet {pool}: {error}") from error
    if not wide.is_private or wide.is_loopback or wide.prefixlen > 24:
        raise LabError(f"subnet {pool}: must be a private IPv4 network of at least a /24")
    routes = json.loads(shell.run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    taken = []
    for route in routes:
        if route["dst"] != "default":
            network = ipaddress.IPv4Network(route["dst"])
            if network.prefixlen >= AGGREGATE_PREFIX:
                taken.append(network)
    for candidate in wide.subnets(new_prefix=24):
        if not any(candidate.overlaps(network) for network in taken):
            return candidate
    raise LabError(f"subnet {pool}: in use on this machine")


def mac(tag: str, kind: int, number: int) -> str:
    return f"02:4c:{tag[:2]}:{tag[2:]}:{kind:02x}:{number:02x}"


def make_bridge(lab: LabRecord) -> None:
    shell.ip(
        [
            f"link add {lab.bridge} address {lab.mac} type bridge",
            f"link set {lab.bridge} addrgenmode none alias '{ALIAS} {lab.tag}'",
            f"addr add {lab.gateway}/24 dev {lab.bridge}",
            f"link set {lab.bridge} up",
            *(
                f"neigh replace {host.address} lladdr {host.mac} dev {lab.bridge} nud permanent"
                for host in lab.hosts.values()
            ),
        ]
    )


def plug(lab: LabRecord, inits: dict[str, int]) -> None:
    """Gives each host (by name, with the pid of its PID 1) its link to the bridge."""
    lines = []
    for name, init in inits.items():
        host = lab.hosts[name]
        lines += [
            f"link add {host.port} type veth peer name eth0 address {host.mac} netns {init}",
            f"link set {host.port} addrgenmode none alias '{ALIAS} {lab.tag}' master {lab.bridge} up",
        ]
    shell.ip(lines)


def forward(host: HostRecord) -> None:
    """Opens the bridge to a host that has just come up, for which the kernel takes up to a second."""
    _set_port(host, PORT_FORWARDING)


def unplug(host: HostRecord) -> None:
    """Removes a host's link and whatever fault is on it."""
    _stop_wire(host)
    names = (host.port, host.wire_port) if host.wire_spec else (host.port,)
    shell.ip([f"link del {name}" for name in names], force=True)
    host.cut, host.netem, host.netem_by_kernel, host.wire_spec = "", None, False, ""


def lines_inside(lab: LabRecord, host: HostRecord) -> list[str]:
    """What `ip` must do within the host. No route leads out of the lab's subnet."""
    return [
        "link set lo up",
        "link set eth0 addrgenmode none",
        f"addr replace {host.address}/24 dev eth0",
        "link set eth0 up",
        *_neighbours(lab, host),
    ]


def _neighbours(lab: LabRecord, host: HostRecord) -> list[str]:
    others = {lab.gateway: lab.mac}
    others.update({x.address: x.mac for x in lab.hosts.values() if x is not host})
    return [
        f"neigh replace {address} lladdr {lladdr} dev eth0 nud permanent"
        for address, lladdr in others.items()
    ]


def blackhole(host: HostRecord) -> None:
    """Makes the host silent at once, before it is killed."""
    if host.cut != "link":
        _set_port(host, PORT_DISABLED)


def apply(lab: LabRecord, host: HostRecord) -> None:
    """Makes the host's network be as its record wants it."""
    assert host.init is not None, "a host without power has no network"
    if host.cut != "link":  # a link without carrier has no port state
        shell.ip([f"link set {host.port} up"])
    _apply_netem(host, host.init.pid)
    wanted = _wanted_wire(host)
    if wanted and wanted != host.wire_spec:
        _start_wire(lab, host, wanted)
    elif not wanted and host.wire_spec:
        _stop_wire(host)
        shell.ip([f"link del {host.wire_port}", f"link set {host.port} master {lab.bridge}"])
        host.wire_spec = ""
    if host.cut == "link":
        shell.ip([f"link set {host.port} down"])
    else:
        _set_port(host, PORT_DISABLED if host.cut == "drop" else PORT_FORWARDING)
        # Older kernels forget neighbours when the carrier goes.
        shell.ip(_neighbours(lab, host), within=host.init.pid)


def _set_port(host: HostRecord, state: int) -> None:
    name = host.wire_port if host.wire_spec else host.port
    # Until the news of its carrier are out, a port cannot be opened, and they open a closed one.
    deadline = time.monotonic() + CARRIER_NEWS_S
    while Path(f"/sys/class/net/{name}/operstate").read_text().strip() != "up":
        if time.monotonic() > deadline:
            raise LabError(f"{host.name}: its link does not come up")
        time.sleep(0.005)
    shell.run(["bridge", "link", "set", "dev", name, "state", str(state)])


@functools.cache
def kernel_has_netem() -> bool:
    """Whether `tc netem` works here; asked of a link made for the question."""
    name = f"olq{os.getpid()}"
    shell.ip([f"link add {name} type bridge"])
    try:
        shell.run(["tc", "qdisc", "add", "dev", name, "root", "netem", "delay", "1ms"])
    except LabError:
        return False
    finally:
        shell.ip([f"link del {name}"], force=True)
    return True


def _apply_netem(host: HostRecord, init: int) -> None:
    """Delay and loss by the kernel on both ends of the host's link, where it can.

    Its jitter reorders packets, which a real path seldom does: jitter is the wire's.
    """
    inside = ["nsenter", f"--net=/proc/{init}/ns/net"]
    ends: tuple[tuple[list[str], str], ...] = (([], host.port), (inside, "eth0"))
    if host.netem and not host.netem[1] and kernel_has_netem():
        delay_ms, _, loss_percent = host.netem
        what = ["netem", "delay", f"{delay_ms}ms", "loss", f"{loss_percent}%"]
        for enter, name in ends:
            verb = ["tc", "qdisc", "replace", "dev", name, "root"]
            shell.run([*enter, *verb, *what, "limit", "100000"])
        host.netem_by_kernel = True
    elif host.netem_by_kernel:
        for enter, name in ends:
            shell.run([*enter, "tc", "qdisc", "del", "dev", name, "root"])
        host.netem_by_kernel = False


def _wanted_wire(host: HostRecord) -> str:
    """Arguments of the wire that the host's record asks for, empty when it needs none."""
    delayed = host.netem if host.netem and not host.netem_by_kernel else None
    if host.cut not in WIRED_CUTS and delayed is None:
        return ""
    mode = host.cut if host.cut in WIRED_CUTS else "pass"
    return " ".join([mode, *(str(number) for number in delayed or (0, 0, 0))])


def _start_wire(lab: LabRecord, host: HostRecord, spec: str) -> None:
    """Puts a wire between bridge and host, or another one in the place of the present one."""
    assert host.init is not None
    if not host.wire_spec:
        alias = f"alias '{ALIAS} {lab.tag}'"
        shell.ip(
            [
                f"link add {host.wire_port} type veth peer name {host.wire_end}",
                f"link set {host.wire_end} addrgenmode none {alias} up",
                f"link set {host.wire_port} addrgenmode none {alias} master {lab.bridge} up",
            ]
        )
    place = str(lab.directory / host.name)
    argv = [sys.executable, "-I", "-S", str(WIRE), place, host.port, host.mac, host.wire_end]
    with open(f"{place}/wire.log", "ab") as log:
        process = processes.start([*argv, host.wire_port, str(host.init.pid), *spec.split()], log)
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        _expect(process.stdout.fileno(), place)
        _stop_wire(host)
        host.wire_spec = spec
        shell.ip([f"link set {host.port} nomaster"])
        process.stdin.write(b"go")
        process.stdin.flush()
        _expect(process.stdout.fileno(), place)
    host.wire = Recorded.of(process.pid)


def _expect(fd: int, place: str) -> None:
    """Waits for the next sign of life of a wire."""
    if not processes.readable(fd, WIRE_START_S) or not os.read(fd, 1):
        raise LabError(f"the wire did not start: {Path(place, 'wire.log').read_text().strip()}")


def _stop_wire(host: HostRecord) -> None:
    """Ends the wire's process in its own way: it gives the link its offloads back."""
    if host.wire:
        host.wire.end()
        host.wire = None
