"""The lab by hand: `python -m tests.lab up 3`, `ssh h1`, `cut h1 drop`, `down`."""

from __future__ import annotations

import argparse
import os
import sys

from tests.lab import state
from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.lab import POOL, Lab

SKIPPED = 77
"""Exit status where this machine cannot host a lab: for test runners, not a failure."""


def _lab(args: argparse.Namespace) -> Lab:
    """The lab that is meant: by --lab, or the only one there is."""
    tags = [args.lab] if args.lab else state.tags()
    if len(tags) != 1:
        raise LabError(f"--lab TAG, one of {', '.join(tags)}" if tags else "no lab is up")
    return Lab.attach(tags[0])


def _host(args: argparse.Namespace) -> Host:
    lab = _lab(args)
    try:
        return lab.hosts[args.host]
    except KeyError:
        raise LabError(f"no host {args.host}, there are {', '.join(lab.hosts)}") from None


def _up(args: argparse.Namespace) -> None:
    if reason := Lab.available():
        print(f"lab: {reason}", file=sys.stderr)
        raise SystemExit(SKIPPED)
    lab = Lab(
        args.hosts, disk=args.disk, shared_home=args.shared_home, subnet=args.subnet, keep=True
    )
    lab.up()
    print(
        f"lab {lab.tag}: " + " ".join(f"{host.name}={host.address}" for host in lab.hosts.values())
    )
    print(f"ssh -F {lab.ssh_config} h1")


def _down(args: argparse.Namespace) -> None:
    """Removes the lab that is named, or all that nobody's test holds."""
    if args.lab:
        Lab.attach(args.lab).down()
        return
    with state.lock():
        state.sweep()
        mine = [tag for tag in state.tags() if state.LabRecord.load(tag).owner is None]
    for tag in mine:
        Lab.attach(tag).down()


def _reap(args: argparse.Namespace) -> None:
    """Waits for the end of stdin, then removes a lab whose owner did not."""
    sys.stdin.buffer.read()
    with state.lock():
        if args.tag in state.tags():
            state.remove(args.tag)


def _status(args: argparse.Namespace) -> None:
    for tag in [args.lab] if args.lab else state.tags():
        lab = Lab.attach(tag)
        owner = lab.record.owner
        print(
            f"lab {tag}  {lab.record.subnet}  " + (f"of process {owner.pid}" if owner else "kept")
        )
        for host in lab.hosts.values():
            record = host.record
            words = ["frozen"] if record.frozen else []
            words += [f"cut {record.cut}"] if record.cut else []
            words += ["netem {} ms ± {} ms, {} %".format(*record.netem)] if record.netem else []
            line = f"  {host.name:<5}{host.address:<16}{'up' if host.is_up else 'off':<5}"
            print(line + ", ".join(words))


def _exec(args: argparse.Namespace) -> None:
    argv = _host(args).command(args.cmd or ["bash", "-l"], args.user)
    os.execvp(argv[0], argv)


def _ssh(args: argparse.Namespace) -> None:
    host = _host(args)
    config = str(_lab(args).ssh_config)
    os.execvp("ssh", ["ssh", "-F", config, host.name, *args.cmd])


def _listening(args: argparse.Namespace) -> None:
    for listener in _host(args).listening():
        print(f"{listener.address}:{listener.port}\t{listener.pid}\t{listener.command}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument(
        "--lab", default="", metavar="TAG", help="which lab, where there are several"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="bring hosts up; they stay until `down`")
    up.add_argument("hosts", type=int, nargs="?", default=3)
    up.add_argument("--disk", default="512m")
    up.add_argument("--shared-home", action="store_true")
    up.add_argument("--subnet", default=POOL)
    up.set_defaults(run=_up)
    commands.add_parser("down", help="remove every trace").set_defaults(run=_down)
    commands.add_parser("status", help="labs and their hosts").set_defaults(run=_status)
    reap = commands.add_parser("reap")
    reap.add_argument("tag")
    reap.set_defaults(run=_reap)

    def of_host(name: str, help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text)
        command.add_argument("host")
        return command

    for name, run, help_text in (
        ("exec", _exec, "run a command on a host"),
        ("ssh", _ssh, "log in as its user"),
    ):
        command = of_host(name, help_text)
        if name == "exec":
            command.add_argument("-u", "--user", default="root")
        command.add_argument("cmd", nargs=argparse.REMAINDER)
        command.set_defaults(run=run)
    of_host("listening", "its listening TCP sockets").set_defaults(run=_listening)
    command = of_host("cut", "drop, rst, link, in, out")
    command.add_argument("how", nargs="?", default="drop")
    command.set_defaults(run=lambda args: _host(args).cut(args.how))
    command = of_host("netem", "delay, jitter and loss, each way")
    command.add_argument("delay_ms", type=float)
    command.add_argument("--jitter-ms", type=float, default=0)
    command.add_argument("--loss-pct", type=float, default=0)
    command.set_defaults(
        run=lambda args: _host(args).netem(args.delay_ms, args.jitter_ms, args.loss_pct)
    )
    command = of_host("fill", "fill the disk")
    command.add_argument("leave_mb", type=float, nargs="?", default=0)
    command.set_defaults(run=lambda args: _host(args).fill(args.leave_mb))
    command = of_host("sshd-config", "lines that override the lab's sshd_config; none restores it")
    command.add_argument("lines", nargs="*")
    command.set_defaults(run=lambda args: _host(args).sshd_config(*args.lines))
    for name, help_text in (
        ("heal", "undo cut and netem"),
        ("kill", "power cut; the disk survives"),
        ("boot", "power on"),
        ("freeze", "stop every process"),
        ("thaw", "let them run on"),
        ("unfill", "free the disk"),
    ):
        of_host(name, help_text).set_defaults(
            run=lambda args, name=name: getattr(_host(args), name)()
        )
    return parser


def main() -> int:
    args = _parser().parse_args()
    try:
        args.run(args)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
