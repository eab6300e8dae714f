"""The command line: options and subcommands, and nothing heavy until it is known which.

The one place that knows both worlds: the core without a screen, and the console.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from olol_tui import __version__, cli_hosts, cli_keys, cli_model, cli_node, cli_requests
from olol_tui.errors import ConfigError, OlolError, PortTaken
from olol_tui.paths import Paths, UnsafeDirectory

if TYPE_CHECKING:
    from olol_tui.config import ClusterConfig
    from olol_tui.console.app import ConsoleOptions
    from olol_tui.fleet.commands import AnyCommand

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EPILOG = """\
examples:
  olol-tui                              console; starts everything on this machine
  olol-tui --serve --port 8000          without a console, for a service manager
  olol-tui demo --nodes 2 --gpus 4      a simulated fleet with traffic
  olol-tui place qwen3:8b local/gpu0    load a model on a GPU of the running fleet
  olol-tui doctor                       what this machine has, and how to get what it lacks
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code is 0 done, 1 failed, 2 usage, configuration or port."""
    _keep_httpx_lean()
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except OlolError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return _exit_code(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has left; the interpreter must not fail on its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _exit_code(error: OlolError) -> int:
    from olol_tui.serving import AlreadyRunning

    usage = (ConfigError, PortTaken, UnsafeDirectory, AlreadyRunning)
    return EXIT_USAGE if isinstance(error, usage) else EXIT_FAILED


def _keep_httpx_lean() -> None:
    """httpx imports its own command line, and with it click and rich, where they happen to be
    installed: 60 ms and 6 MB for a gateway that draws nothing. It copes without."""
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="olol-tui",
        description="Console and gateway for machines that run language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"olol-tui {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: cluster.toml")
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="keep everything of this instance in DIR"
    )
    parser.add_argument("--host", help="address to listen on, instead of the configured one")
    parser.add_argument(
        "--insecure-no-keys",
        action="store_true",
        help="accept that everybody who can reach --host may use every model",
    )
    parser.add_argument("--port", type=_port, help="port, 0 for any")
    parser.add_argument(
        "--max-queue", type=_bound, metavar="N", help="requests that may wait for a slot"
    )
    parser.add_argument(
        "--max-body", type=_size, metavar="SIZE", help="of a request, such as 128MiB"
    )
    parser.add_argument("--serve", action="store_true", help="gateway without a console")
    parser.add_argument("--once", action="store_true", help="print one snapshot and end")
    parser.add_argument("--json", action="store_true", help="with --once: as JSON")
    _console_options(parser)
    parser.set_defaults(run=_run_main, read_only=False, no_mouse=False, theme=None)

    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--state-dir", type=Path, metavar="DIR", help="as of olol-tui")
    shared.add_argument("--config", type=Path, metavar="FILE", help="as of olol-tui")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    status = commands.add_parser("status", parents=[shared], help="the running fleet as text")
    status.add_argument("--json", action="store_true", help="the snapshot as JSON")
    status.set_defaults(run=_run_status)

    demo = commands.add_parser("demo", parents=[shared], help="a simulated fleet with traffic")
    demo.add_argument("--nodes", type=_count, default=2, help="default: 2")
    demo.add_argument("--gpus", type=_count, default=4, help="GPUs of each node; default: 4")
    demo.add_argument("--serve", action="store_true", help="without a console")
    demo.add_argument("--host", default=None, help="default: 127.0.0.1")
    demo.add_argument("--port", type=_port, default=None, help="default: 8000 if free, else any")
    demo.add_argument("--no-traffic", action="store_true", help="send no requests")
    _console_options(demo)
    demo.set_defaults(run=_run_demo)

    doctor = commands.add_parser("doctor", parents=[shared], help="what is here, and what to do")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(run=_run_doctor)

    cli_keys.add_parser(commands, shared)
    cli_requests.add_parsers(commands, shared)
    cli_node.add_parser(commands, shared)
    cli_hosts.add_parsers(commands, shared)
    cli_model.add_parser(commands, shared)

    stop = commands.add_parser(
        "stop", parents=[shared], help="stop engines and agents that a core has left running"
    )
    stop.set_defaults(run=_run_stop)

    for name, help_text in (
        ("place", "load a model on a GPU"),
        ("unload", "unload a model from a GPU"),
        ("pin", "keep a model on a GPU, also after restarts"),
        ("unpin", "let a pinned model go when it is idle"),
        ("move", "load a model on a GPU, then unload it from another"),
    ):
        command = commands.add_parser(name, parents=[shared], help=help_text)
        command.add_argument("model", metavar="MODEL")
        command.add_argument("at", metavar="NODE/GPU", type=_target)
        if name == "move":
            command.add_argument("to", metavar="TO-NODE/GPU", type=_target)
        command.set_defaults(run=_run_command, command=name)
    for name, help_text in (
        ("pause", "let the requests of a model wait, also after a restart"),
        ("resume", "let them go on"),
        ("retry", "split a model again whose split failed and was given up"),
    ):
        command = commands.add_parser(name, parents=[shared], help=help_text)
        command.add_argument("model", metavar="MODEL")
        command.set_defaults(run=_run_command, command=name)
    reroute = commands.add_parser("reroute", parents=[shared], help="send a queued request away")
    reroute.add_argument("request", metavar="REQUEST")
    way = reroute.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", default="", metavar="NODE|ENGINE", help="nowhere but there")
    way.add_argument("--away", default="", metavar="NODE|ENGINE", help="anywhere but there")
    reroute.set_defaults(run=_run_command, command="reroute")
    cancel = commands.add_parser("cancel", parents=[shared], help="end a request")
    cancel.add_argument("request", metavar="REQUEST")
    cancel.set_defaults(run=_run_command, command="cancel")
    return parser


def _console_options(parser: argparse.ArgumentParser) -> None:
    """Given before or after `demo`; the one that is given wins."""
    shared = argparse.SUPPRESS
    parser.add_argument(
        "--read-only", action="store_true", default=shared, help="console that changes nothing"
    )
    parser.add_argument(
        "--no-mouse", action="store_true", default=shared, help="leave the mouse to the terminal"
    )
    parser.add_argument("--theme", default=shared, metavar="NAME", help="theme of the console")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 1024:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from 1 to 1024, got {text!r}")


def _bound(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 1_000_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1000000, got {text!r}")


def _size(text: str) -> int:
    from olol_tui.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _target(text: str) -> tuple[str, str]:
    """`node/gpu0` as (node, device)."""
    node, slash, device = text.partition("/")
    if not (node and slash and device):
        raise argparse.ArgumentTypeError(f"expected NODE/GPU such as local/gpu0, got {text!r}")
    return node, device


def _run_main(args: argparse.Namespace) -> int:
    from olol_tui import serving

    if args.json and not args.once:
        _usage("--json needs --once, or a command such as: olol-tui status --json")
    if args.serve and args.once:
        _usage("expected either --serve or --once")
    paths = Paths.resolve(args.state_dir, args.config)
    config = _config(args, paths)
    if args.serve:
        return serving.run(serving.serve(config, paths))
    if args.once:
        return _print_fleet(asyncio.run(_once(config, paths)), as_json=args.json)
    _need_terminal()
    return serving.run(_console(args, config, paths))


async def _once(config: ClusterConfig, paths: Paths) -> bytes:
    from olol_tui import serving
    from olol_tui.fleet.snapshot import encode

    return encode(await serving.snapshot(config, paths))


async def _console(args: argparse.Namespace, config: ClusterConfig, paths: Paths) -> int:
    """Attach to the core of this state directory, or start one."""
    from olol_tui import serving

    options = _options(args, paths)
    if not await serving.wait_for_core(paths):
        return await serving.embed(config, paths, options)
    named = ("config", "host", "port", "max_queue", "max_body")
    given = [f"--{name.replace('_', '-')}" for name in named if getattr(args, name) is not None]
    if given:
        raise serving.AlreadyRunning(
            f"{', '.join(given)} would have no effect on the core that serves {paths.state_dir}",
            hint="Attach without it, or use another --state-dir.",
        )
    return await serving.attach(paths, options)


def _run_status(args: argparse.Namespace) -> int:
    paths = Paths.resolve(args.state_dir, args.config)
    return _print_fleet(asyncio.run(_status(paths)), as_json=args.json)


async def _status(paths: Paths) -> bytes:
    from olol_tui.fleet.snapshot import encode
    from olol_tui.remote import RemoteLink

    async with RemoteLink(paths.control_socket) as link:
        return encode(link.fleet)


def _print_fleet(raw: bytes, *, as_json: bool) -> int:
    from olol_tui.fleet.snapshot import decode
    from olol_tui.status import status_lines

    if as_json:
        print(raw.decode())
    else:
        print("\n".join(status_lines(decode(raw), colour=_wants_colour(sys.stdout))))
    return 0


def _run_demo(args: argparse.Namespace) -> int:
    from olol_tui import serving
    from olol_tui.demo import DemoOptions
    from olol_tui.demo_fleet import demo_config, demo_paths

    paths = demo_paths(args.state_dir)
    config = demo_config(nodes=args.nodes, gpus=args.gpus, host=args.host, port=args.port)
    demo = DemoOptions(traffic=not args.no_traffic)
    if args.serve:
        return serving.run(serving.serve(config, paths, demo))
    _need_terminal()
    return serving.run(serving.embed(config, paths, _options(args, paths), demo))


def _run_doctor(args: argparse.Namespace) -> int:
    from olol_tui.doctor import examine, report_json, report_lines

    paths = Paths.resolve(args.state_dir, args.config)
    findings = asyncio.run(examine(paths, config_named=args.config is not None))
    if args.json:
        print(report_json(findings))
    else:
        print("\n".join(report_lines(findings, colour=_wants_colour(sys.stdout))))
    return EXIT_FAILED if any(finding.state == "bad" for finding in findings) else 0


def _run_stop(args: argparse.Namespace) -> int:
    from olol_tui import serving

    paths = Paths.resolve(args.state_dir, args.config)
    return asyncio.run(serving.stop(paths, sys.stdout))


def _run_command(args: argparse.Namespace) -> int:
    from olol_tui.following import run_command

    paths = Paths.resolve(args.state_dir, args.config)
    return asyncio.run(run_command(paths, _command(args), sys.stdout))


def _command(args: argparse.Namespace) -> AnyCommand:
    from olol_tui.fleet import commands

    if args.command == "cancel":
        return commands.CancelRequest(args.request)
    if args.command == "reroute":
        return commands.RerouteRequest(args.request, args.to, args.away)
    if args.command == "retry":
        return commands.RetrySplit(args.model)
    if args.command in ("pause", "resume"):
        return commands.PauseModel(args.model, paused=args.command == "pause")
    node, device = args.at
    match args.command:
        case "place":
            return commands.Place(args.model, node, device)
        case "unload":
            return commands.Unload(args.model, node, device)
        case "move":
            return commands.Move(args.model, node, device, *args.to)
        case _:
            return commands.SetPin(args.model, node, device, pinned=args.command == "pin")


def _config(args: argparse.Namespace, paths: Paths) -> ClusterConfig:
    """The file, with what the command line says instead."""
    from olol_tui.config import load

    config = load(paths.config_file, must_exist=args.config is not None)
    given = {name: getattr(args, name) for name in ("host", "port", "max_queue")}
    given["max_body_bytes"] = args.max_body
    changed: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
    if args.insecure_no_keys:
        changed["insecure_no_keys"] = True
    gateway = config.gateway.model_copy(update=changed)
    return config.model_copy(update={"gateway": gateway, "given": changed})


def _options(args: argparse.Namespace, paths: Paths) -> ConsoleOptions:
    from olol_tui.console.app import ConsoleOptions

    return ConsoleOptions(
        read_only=args.read_only,
        mouse=not args.no_mouse,
        theme=args.theme,
        user_themes=paths.user_themes,
    )


def _usage(message: str) -> None:
    _parser().error(message)


def _need_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _usage("the console needs a terminal; without one use --serve, status or --once")


def _wants_colour(out: TextIO) -> bool:
    """As https://no-color.org has it."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
