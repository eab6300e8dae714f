"""`olol-tui hosts` and `olol-tui discover`: host keys, and machines that could be nodes."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import aclosing, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from olol_tui.cli_node import config_of, hostkeys
from olol_tui.paths import Paths

if TYPE_CHECKING:
    from olol_tui.config import ClusterConfig


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `hosts` with its own commands, and `discover`."""
    hosts = commands.add_parser("hosts", help="host keys of machines over SSH")
    host_actions = hosts.add_subparsers(title="commands", metavar="COMMAND", required=True)
    forget = host_actions.add_parser("forget", parents=[shared], help="forget a host's keys")
    forget.add_argument("host", metavar="HOST[:PORT]")
    forget.set_defaults(run=_forget)

    discover = commands.add_parser(
        "discover", parents=[shared], help="find SSH and Ollama servers in a network"
    )
    discover.add_argument("cidr", metavar="CIDR", help="such as 192.168.1.0/24")
    discover.add_argument("--json", action="store_true", help="as JSON")
    discover.set_defaults(run=_discover)


def _forget(args: argparse.Namespace) -> int:
    paths = Paths.resolve(args.state_dir, args.config)
    removed = hostkeys(paths, accept_new=False).forget(args.host)
    for line in removed:
        print(f"● forgot {line}")
    if not removed:
        print(f"no key of {args.host} was known")
    return 0 if removed else 1


def _discover(args: argparse.Namespace) -> int:
    from olol_tui.provision.discover import hosts_of

    config, _ = config_of(args)
    return asyncio.run(_scan(hosts_of(args.cidr), config, as_json=args.json))


async def _scan(addresses: list[str], config: ClusterConfig, *, as_json: bool) -> int:
    from olol_tui.provision.discover import scan

    known, aliases = await asyncio.to_thread(_names, config)
    is_live = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if is_live:
            print(f"{done} of {total} addresses", end="\r", file=sys.stderr, flush=True)

    rows = []
    async with aclosing(scan(addresses, progress=progress)) as found:
        async for one in found:
            name, alias = known.get(one.address, ""), aliases.get(one.address, "")
            rows.append(
                {
                    "address": one.address,
                    "ssh": one.ssh,
                    "ollama": one.ollama,
                    "node": name,
                    "ssh_config": alias,
                }
            )
            if not as_json:
                parts = [f"{one.address:<15}"]
                parts += [f"SSH {one.ssh}"] if one.ssh else []
                parts += [f"Ollama {one.ollama}"] if one.ollama else []
                parts += [f"node {name}"] if name else [f"Host {alias}"] if alias else []
                print("  ".join(parts), flush=True)
    if as_json:
        rows.sort(key=lambda row: ip_address(row["address"]).packed)
        print(json.dumps({"hosts": rows}, indent=1))
    elif rows:
        new = [
            row["ssh_config"] or row["address"] for row in rows if row["ssh"] and not row["node"]
        ]
        if new:
            print(f"add: olol-tui node add {' '.join(new)}")
    else:
        print(f"none of {len(addresses)} addresses answers on port 22 or 11434")
    return 0


def _names(config: ClusterConfig) -> tuple[dict[str, str], dict[str, str]]:
    """(address → node or endpoint, address → Host of `~/.ssh/config`). Blocking."""
    from olol_tui.provision.jobs import ssh_target
    from olol_tui.ssh.config_hosts import read_ssh_hosts
    from olol_tui.ssh.errors import SSHError
    from olol_tui.ssh.target import route

    known = {urlsplit(one.url).hostname or "": name for name, one in config.endpoints.items()}
    for name, node in config.nodes.items():
        if not node.local:
            # A configuration that cannot be read is told when somebody connects.
            with suppress(SSHError):
                known[route(ssh_target(node))[-1].host] = name
    return known, {host.hostname or host.name: host.name for host in read_ssh_hosts()}
