"""`olol-tui node`: machines over SSH, from the shell. No core needs to run.

What is done to nodes is told step by step on stdout, one line each; with `--json` one
document at the end instead.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import logging
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olol_tui.cli_core import fleet_now, told_ready
from olol_tui.cli_teller import Teller
from olol_tui.errors import NodeError
from olol_tui.paths import Paths

if TYPE_CHECKING:
    from olol_tui.config import ClusterConfig
    from olol_tui.provision.plan import StepName
    from olol_tui.provision.runner import Job, Report
    from olol_tui.ssh.connection import Connector
    from olol_tui.ssh.hostkeys import HostKeys, OfferedKey

_HOST = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[^\]\s]+\]|[^@:\s]+)(?::(?P<port>\d{1,5}))?")


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `node` with its own commands."""
    node = commands.add_parser("node", help="machines reached by SSH: add, provision, uninstall")
    actions = node.add_subparsers(title="commands", metavar="COMMAND", required=True)
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="as JSON")
    keys = argparse.ArgumentParser(add_help=False)
    keys.add_argument(
        "--accept-new",
        action="store_true",
        help="trust host keys that were never seen; changed ones are refused always",
    )
    keys.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("nodes", nargs="*", metavar="NODE", help="names from the configuration")
    many.add_argument("--all", action="store_true", help="all nodes over SSH")

    add = actions.add_parser("add", parents=[shared], help="write nodes into cluster.toml")
    add.add_argument("hosts", nargs="+", metavar="HOST", type=_host, help="[USER@]HOST[:PORT]")
    add.add_argument("--name", help="the node's name, when only one is added")
    add.add_argument("--identity", metavar="FILE", help="private key to offer first")
    add.add_argument("--known-hosts", metavar="FILE", help="host keys to trust there")
    add.add_argument("--profile", choices=("lan", "wan"))
    add.add_argument("--pool", metavar="NAME", help="label for placement and filters")
    add.add_argument("--directory", metavar="DIR", help="where agent and engines are kept there")
    add.add_argument(
        "--simulated",
        type=_simulated,
        metavar="LIST",
        help="gpus=8,vram=24GiB: simulated GPUs and engines, everything else real",
    )
    add.set_defaults(run=_add)

    provision = actions.add_parser(
        "provision", parents=[shared, many, as_json, keys], help="install what a node needs"
    )
    provision.add_argument(
        "--build-llama",
        action="store_true",
        help="build llama.cpp for splits there, as llama_build = true does",
    )
    provision.set_defaults(run=_provision)
    uninstall = actions.add_parser(
        "uninstall", parents=[shared, many, as_json, keys], help="remove it and prove it"
    )
    uninstall.set_defaults(run=_uninstall)
    listing = actions.add_parser("list", parents=[shared, as_json], help="all nodes")
    listing.set_defaults(run=_list)
    remove = actions.add_parser("remove", parents=[shared], help="take nodes out of cluster.toml")
    remove.add_argument("nodes", nargs="+", metavar="NODE")
    remove.add_argument("--force", action="store_true", help="also while something is installed")
    remove.set_defaults(run=_remove)


# -- arguments


def _host(text: str) -> dict[str, Any]:
    """`ops@gpu1.lan:2222` as fields of a node."""
    match = _HOST.fullmatch(text)
    if match is None or (match["port"] and not 1 <= int(match["port"]) <= 65535):
        raise argparse.ArgumentTypeError(f"expected [USER@]HOST[:PORT], got {text!r}")
    fields: dict[str, Any] = {"host": match["host"].strip("[]")}
    if match["user"]:
        fields["user"] = match["user"]
    if match["port"]:
        fields["port"] = int(match["port"])
    return fields


def _simulated(text: str) -> dict[str, Any]:
    """`gpus=8,vram=24GiB` as a table; the configuration's own check does the rest."""
    table: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"expected KEY=VALUE with commas, got {text!r}")
        table[key] = int(value) if value.isascii() and value.isdigit() else value
    return table


def config_of(args: argparse.Namespace) -> tuple[ClusterConfig, Paths]:
    from olol_tui.config import load

    paths = Paths.resolve(args.state_dir, args.config)
    return load(paths.config_file, must_exist=args.config is not None), paths


def _chosen(args: argparse.Namespace, config: ClusterConfig) -> list[str]:
    over_ssh = [name for name, node in config.nodes.items() if not node.local]
    if args.all and args.nodes:
        raise NodeError("expected either names or --all")
    names = over_ssh if args.all else list(dict.fromkeys(args.nodes))
    if not names:
        known = f": {', '.join(over_ssh)}" if over_ssh else ""
        raise NodeError(
            f"expected the names of nodes, or --all{known}",
            hint="" if over_ssh else "Add one first: olol-tui node add HOST",
        )
    return names


# -- node add, remove, list


def _add(args: argparse.Namespace) -> int:
    from olol_tui.config import load
    from olol_tui.config.edit import add_nodes
    from olol_tui.remote import find_running

    paths = Paths.resolve(args.state_dir, args.config)
    if args.name and len(args.hosts) > 1:
        raise NodeError("--name is for one host", hint="Leave it out, or add one at a time.")
    old = load(paths.config_file)
    more = {
        key: getattr(args, key)
        for key in ("identity", "known_hosts", "profile", "pool", "directory", "simulated")
        if getattr(args, key)
    }
    nodes: dict[str, dict[str, Any]] = {}
    for fields in args.hosts:
        name = args.name or _name(fields["host"], old.nodes.keys() | nodes.keys())
        if name in nodes:
            raise NodeError(f"{fields['host']} is named twice")
        nodes[name] = {**fields, **more}
    # Without a node the file means this machine: no fleet that runs is to lose it by this.
    implied = not _names_nodes(paths.config_file)
    kept = {"local": {"local": True}} if implied and find_running(paths) else {}
    add_nodes(paths.config_file, {**kept, **nodes})
    for name, fields in nodes.items():
        print(f"● {name}: {fields['host']} in {paths.config_file}")
    if kept:
        print("this machine stays a node too; if it is none: olol-tui node remove local")
    elif implied:
        print("this machine is a node only if the file says so from now on; then add:")
        print("[nodes.local]\nlocal = true")
    print(f"provision: olol-tui node provision {' '.join(nodes)}")
    return 0


def _name(host: str, taken: set[str]) -> str:
    """A short name for a host: `gpu1` for gpu1.lan, unless that is taken."""
    plain = re.sub(r"[^a-z0-9._-]", "-", host.lower()).strip("-.")
    is_address = re.fullmatch(r"[0-9.]+", plain) or ":" in host
    short = plain if is_address else plain.split(".")[0]
    return plain if short in taken else short


def _names_nodes(config_file: Path) -> bool:
    """Whether the file has a node, endpoints left aside; it is known to be valid."""
    try:
        return bool(tomllib.loads(config_file.read_text("utf-8-sig")).get("nodes"))
    except FileNotFoundError:
        return False


def _remove(args: argparse.Namespace) -> int:
    from olol_tui.config.edit import remove_nodes

    config, paths = config_of(args)
    over_ssh = [n for n in args.nodes if n in config.nodes and not config.nodes[n].local]
    if not args.force and over_ssh:
        asyncio.run(_refuse_provisioned(config, paths, over_ssh))
    remove_nodes(paths.config_file, args.nodes)
    for name in args.nodes:
        print(f"● {name} is no longer in {paths.config_file}")
    return 0


async def _refuse_provisioned(config: ClusterConfig, paths: Paths, names: list[str]) -> None:
    """Raises NodeError unless it is known that nothing of ours is left there."""
    from olol_tui.provision.runner import run_all

    connector = _connector(paths, accept_new=False)
    jobs, archives = await _jobs(config, paths, names, connector)
    for report in await run_all(jobs, archives, dry_run=True):
        if report.facts is None:
            why = report.failure.message if report.failure else "it cannot be asked"
            raise NodeError(
                f"whether something is installed on {report.node} is not known: {why}",
                hint=f"Remove it anyway: olol-tui node remove --force {report.node}",
            )
        if report.facts.record:
            raise NodeError(
                f"{report.node} is provisioned: agent and engines would stay there",
                hint=f"First: olol-tui node uninstall {report.node}. Or --force.",
            )


def _list(args: argparse.Namespace) -> int:
    from olol_tui.provision.jobs import resolved

    config, paths = config_of(args)
    fleet = asyncio.run(fleet_now(paths))
    seen = {node.name: node for node in fleet.nodes} if fleet is not None else {}
    rows = []
    for name, node in config.nodes.items():
        live = seen.get(name)
        rows.append(
            {
                "name": name,
                "where": "this machine" if node.local else live.host if live else resolved(node),
                "state": live.state if live is not None else "",
                "gpus": len(live.devices) if live is not None else None,
                "agent": live.agent_version if live is not None else "",
                "error": live.error if live is not None else "",
            }
        )
    if args.json:
        print(json.dumps({"core": fleet is not None, "nodes": rows}, indent=1))
        return 0
    table = [["NODE", "WHERE", "STATE", "GPUS", "AGENT", ""]]
    table += [["" if cell is None else str(cell) for cell in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(6)]
    for line in table:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip())
    if fleet is None:
        print("no core runs: states are not known")
    return 0


# -- node provision, uninstall


def _provision(args: argparse.Namespace) -> int:
    from olol_tui.provision.plan import STEPS

    return asyncio.run(_run(args, STEPS))


def _uninstall(args: argparse.Namespace) -> int:
    from olol_tui.provision.plan import UNINSTALL_STEPS

    return asyncio.run(_run(args, UNINSTALL_STEPS))


async def _run(args: argparse.Namespace, order: tuple[StepName, ...]) -> int:
    from olol_tui.provision.runner import run_all
    from olol_tui.provision.telling import report_json, summary_line

    config, paths = config_of(args)
    names = _chosen(args, config)
    connector = _connector(paths, accept_new=args.accept_new)
    if getattr(args, "build_llama", False):
        config = _building(config)
    jobs, archives = await _jobs(config, paths, names, connector)
    teller = Teller(names, quiet=args.json)
    reports = await run_all(jobs, archives, told=teller.tell, dry_run=args.dry_run, order=order)
    is_provision = "service" in order
    if is_provision and not args.dry_run:
        await told_ready(paths, [report.node for report in reports if report.ok])
    if args.json:
        print(json.dumps({"nodes": [report_json(r) for r in reports]}, indent=1))
    else:
        if args.dry_run and is_provision:
            teller.plans(reports)
        teller.clear()
        if not args.dry_run:
            print(summary_line(reports, verb="provisioned" if is_provision else "uninstalled"))
    return 0 if all(_is_fine(report, dry_run=args.dry_run) for report in reports) else 1


def _building(config: ClusterConfig) -> ClusterConfig:
    """The configuration with llama.cpp built on the nodes, whatever else it says of it."""
    engines = config.engines
    if engines.llama_build:
        return config
    more = {"llama_build": True, "llama_archive": "", "llama_sha256": ""}
    return config.model_copy(update={"engines": engines.model_copy(update=more)})


def _is_fine(report: Report, *, dry_run: bool) -> bool:
    if not dry_run:
        return report.ok
    return report.failure is None and (report.plan is None or report.plan.refusal is None)


async def _jobs(
    config: ClusterConfig, paths: Paths, names: list[str], connector: Connector
) -> tuple[list[Job], Any]:
    from olol_tui.fleet.identity import load as load_identity
    from olol_tui.provision.jobs import Kit, build_jobs

    me = await asyncio.to_thread(load_identity, paths.state_dir / "controller-id")
    kit = Kit(paths.cache_dir, config.engines, me.id)
    trusts = _trusts if _is_interactive() else None
    jobs = await asyncio.to_thread(build_jobs, config, names, kit, connector, trusts)
    return jobs, kit.archives


# -- questions


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


_asking = asyncio.Lock()
"""Hosts are connected to side by side; their questions come one after the other."""


async def _trusts(node: str, offered: OfferedKey) -> bool:
    async with _asking:
        print(
            f"\n{node}: the host key of {offered.display} was never seen.\n{offered.randomart}\n"
            f"{offered.key_type} {offered.fingerprint}",
            file=sys.stderr,
        )
        answer = await asyncio.to_thread(_ask, "Trust it from now on? [y/N] ")
        return answer.strip().lower() in ("y", "yes")


async def _passphrase(path: Path, complaint: str) -> str | None:
    async with _asking:
        if complaint:
            print(complaint, file=sys.stderr)
        return await asyncio.to_thread(getpass.getpass, f"Passphrase of {path}: ") or None


def _ask(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def hostkeys(paths: Paths, *, accept_new: bool) -> HostKeys:
    from olol_tui.ssh.hostkeys import HostKeys

    return HostKeys(paths.state_dir / "known_hosts", policy="accept-new" if accept_new else "ask")


def _connector(paths: Paths, *, accept_new: bool) -> Connector:
    from olol_tui.ssh.connection import Connector
    from olol_tui.ssh.keys import KeyRing

    # What goes wrong is told as steps; without a handler Python would tell it once more.
    logging.getLogger("olol").addHandler(logging.NullHandler())
    ring = KeyRing(_passphrase if _is_interactive() else None)
    return Connector(hostkeys(paths, accept_new=accept_new), ring)
