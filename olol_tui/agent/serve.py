"""`serve`: the parts put together, from start to an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import logging.handlers
import os
import signal
import sys
from pathlib import Path
from typing import Any

from . import __version__, proc, upgrade
from .api import Api, Facts
from .devices import open_devices
from .errors import AgentError, BadRequest, StartError
from .lease import Lease
from .records import State
from .sampler import Sampler
from .server import Server
from .spec import Policy
from .supervisor import Supervisor
from .telemetry import Telemetry
from .upgrade import Changing, Handover, Replacement

log = logging.getLogger(__name__)

_SAMPLE_HZ = 1.0
_SIMULATED_SAMPLE_HZ = 2.0

GRACE_S = 2.0
"""For calls in progress when we leave for another image."""
SETTLE_S = 2.0
"""For adopted engines to be seen ready, after an image took over."""


def image() -> Path | None:
    """The zipapp this runs from; None from a source tree."""
    archive = getattr(__spec__.loader if __spec__ else None, "archive", None)
    return Path(archive).resolve() if archive else None


def self_argv() -> tuple[str, ...]:
    """Command that runs this very agent's subcommands, isolated from the user's Python set-up."""
    archive = image()
    if archive is not None:
        return (sys.executable, "-I", str(archive))
    package = str(__package__)
    root = Path(__file__).resolve().parents[len(package.split("."))]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); "
        f"from {package}.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    return (sys.executable, "-I", "-c", code)


def _see_brought_programs(state: Path) -> None:
    """llama.cpp that was brought for splits, or built here, goes before any other: every node
    of a split must run the same."""
    ours = str(state / "llama" / "bin")
    known = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if ours not in known:
        os.environ["PATH"] = os.pathsep.join([ours, *known])


def main(argv: list[str]) -> int:
    """Run the agent in the foreground until SIGTERM or POST /v1/shutdown."""
    options = _parse(argv)
    handover = upgrade.taken_over()
    try:
        policy = Policy.from_json(options.policy)
        root = options.state_dir.expanduser().resolve()
        state = State(root, options.machine_id, handover.lock if handover else None)
        _see_brought_programs(state.path)
    except AgentError as error:
        return _refused(error)
    try:
        _log_to(state.log_path(""), policy, to_stderr=not options.quiet)
        while True:
            left = asyncio.run(_serve(options, policy, state, handover, argv))
            if left is None:
                return 0
            replacement, handover = left
            problem = upgrade.become(replacement.path, argv, handover)
            log.error("cannot become %s: %s", replacement.path, problem)
    except AgentError as error:
        log.error("%s", error.message)
        return _refused(error)
    finally:
        state.close()


async def _serve(
    options: argparse.Namespace,
    policy: Policy,
    state: State,
    handover: Handover | None,
    argv: list[str],
) -> tuple[Replacement, Handover] | None:
    """Until it is told to end; when by an upgrade, who comes after us and what they get."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bool | Replacement] = loop.create_future()

    def stop(how: bool | Replacement) -> None:
        if not ended.done():
            ended.set_result(how)

    # Engines outlive a killed or stopped agent; only /v1/shutdown may end them.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, False)
    try:
        source = open_devices(options.simulated)
    except ValueError as error:
        raise BadRequest(f"--simulated: {error}") from error
    simulated = options.simulated is not None
    sampler = Sampler(source, _SIMULATED_SAMPLE_HZ if simulated else _SAMPLE_HZ)
    sampler.start()
    archive = image()
    facts = Facts(source, sampler.errors, _sha256(archive) if archive else "", simulated=simulated)
    # Late binding: telemetry asks the supervisor, which tells telemetry of changes.
    telemetry = Telemetry(
        sampler.latest, lambda: _engines(supervisor), facts.foreign_urls, lambda: lease.shown()
    )
    lease = Lease(state.path / "controller.json", telemetry.changed)
    supervisor = Supervisor(state, policy, source, self_argv(), telemetry.changed)
    changing = Changing(archive, argv, options.socket, state.lock, lambda: server.listener(), stop)
    api = Api(state, supervisor, telemetry, facts, lease, stop, changing.to)
    server = Server(options.socket, api.router())
    watcher: asyncio.Task[None] | None = None
    how: bool | Replacement = False
    connections: list[tuple[int, str]] = []
    try:
        if handover is None:
            await server.start()
            await supervisor.start()
        else:
            if handover.rolled_back:
                supervisor.errors.append(f"an upgrade was rolled back: {handover.rolled_back}")
            await supervisor.start()
            await supervisor.settled(SETTLE_S)
            await server.start(handover.listener)
            await server.resume(handover.connections)
        watcher = asyncio.ensure_future(_watch_foreign(facts, supervisor, telemetry, policy))
        log.info("agent %s serves %s as pid %d", __version__, options.socket, os.getpid())
        how = await ended
    finally:
        if watcher is not None:
            watcher.cancel()
        if isinstance(how, Replacement):
            connections = await server.hand_over(GRACE_S)
            await supervisor.close(stop_engines=False)
        else:
            # The socket goes last, so that a console sees the engines stop.
            await supervisor.close(stop_engines=how)
            await server.close()
            sampler.stop()
            log.info("agent ended")
    if not isinstance(how, Replacement):
        return None
    return how, Handover(how.listener, state.lock, connections)


async def _watch_foreign(
    facts: Facts, supervisor: Supervisor, telemetry: Telemetry, policy: Policy
) -> None:
    while True:
        try:
            if await facts.look_for_foreign(supervisor.sessions()):
                telemetry.changed()
        except OSError as error:
            log.warning("cannot look for other Ollama servers: %s", error)
        await asyncio.sleep(policy.foreign_s)


def _engines(supervisor: Supervisor) -> tuple[int, list[dict[str, Any]]]:
    return supervisor.generation, supervisor.statuses()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _log_to(path: Path, policy: Policy, *, to_stderr: bool) -> None:
    """The agent's own log: a file of ours alone, so it may rotate by renaming."""
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    file = logging.handlers.RotatingFileHandler(
        str(path), maxBytes=policy.log_max_bytes, backupCount=policy.log_files - 1
    )
    root = logging.getLogger()
    handlers: list[logging.Handler] = [file]
    if to_stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(form)
        root.addHandler(handler)
    root.setLevel(logging.INFO)


def _refused(error: AgentError) -> int:
    print(f"{error.title}: {error.message}", file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    return 3 if isinstance(error, StartError) else 2


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent serve", description=main.__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="UNIX socket to listen on")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument(
        "--simulated",
        type=_json_object,
        help='devices on paper: {"gpus": 4, "vram_bytes": 25769803776, "name": "SIM 24G"}',
    )
    parser.add_argument(
        "--policy",
        type=_json_object,
        default={},
        help='supervision intervals: {"backoff_first_s": 1, "stop_grace_s": 10}',
    )
    parser.add_argument(
        "--quiet", action="store_true", help="log to the state directory only, not to stderr too"
    )
    parser.add_argument(
        "--machine-id", default=proc.machine_id(), help="names this machine in the state directory"
    )
    return parser.parse_args(argv)


def _json_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return data
