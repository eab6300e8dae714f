"""`olol-tui hosts` and `olol-tui discover`: host keys, and machines that could be nodes."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import aclosing
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

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

    known = {node.host: name for name, node in config.nodes.items() if not node.local}
    known |= {endpoint.url: name for name, endpoint in config.endpoints.items()}
    is_live = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if is_live:
            print(f"{done} of {total} addresses", end="\r", file=sys.stderr, flush=True)

    rows = []
    async with aclosing(scan(addresses, progress=progress)) as found:
        async for one in found:
            name = known.get(one.address) or known.get(f"http://{one.address}:11434") or ""
            rows.append(
                {"address": one.address, "ssh": one.ssh, "ollama": one.ollama, "node": name}
            )
            if not as_json:
                parts = [f"{one.address:<15}"]
                parts += [f"SSH {one.ssh}"] if one.ssh else []
                parts += [f"Ollama {one.ollama}"] if one.ollama else []
                parts += [f"known as {name}"] if name else []
                print("  ".join(parts), flush=True)
    if as_json:
        rows.sort(key=lambda row: ip_address(row["address"]).packed)
        print(json.dumps({"hosts": rows}, indent=1))
    elif rows:
        new = [str(row["address"]) for row in rows if row["ssh"] and not row["node"]]
        if new:
            print(f"add: olol-tui node add {' '.join(new)}")
    else:
        print(f"none of {len(addresses)} addresses answers on port 22 or 11434")
    return 0
