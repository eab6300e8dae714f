"""The simulated engine as a process: command line, port, signals."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

from .server import SimServer
from .settings import Settings

_USAGE = "usage: sim-engine --port PORT --id ID --config JSON [--host ADDRESS]"


class UsageError(Exception):
    """The command line is wrong."""


def run(argv: list[str]) -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a signal, 1 when the port cannot be had, 2 for a wrong
        command line or configuration.
    """
    try:
        host, port, engine_id, settings = _options(argv)
        return asyncio.run(_serve(host, port, engine_id, settings))
    except (UsageError, ValueError) as error:
        print(f"sim-engine: {error}\n{_USAGE}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"sim-engine: cannot listen: {error}", file=sys.stderr)
        return 1


def _options(argv: list[str]) -> tuple[str, int, str, Settings]:
    values = {"--host": "127.0.0.1", "--port": "0", "--id": "sim", "--config": "{}"}
    rest = list(argv)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in values:
            raise UsageError(f"unknown argument {name!r}")
        if not equals:
            if not rest:
                raise UsageError(f"{name} needs a value")
            value = rest.pop(0)
        values[name] = value
    try:
        config: Any = json.loads(values["--config"])
        port = int(values["--port"])
    except ValueError as error:
        raise UsageError(f"--port takes a number and --config JSON: {error}") from error
    if not isinstance(config, dict) or not 0 <= port <= 65535:
        raise UsageError("--config takes a JSON object and --port 0..65535")
    return values["--host"], port, values["--id"], Settings(_known(config))


def _known(config: dict[str, Any]) -> dict[str, Any]:
    for key in config:
        if key not in Settings.__slots__ and key != "keep_alive":
            print(f"sim-engine: unknown key {key!r} in the configuration", file=sys.stderr)
    return config


async def _serve(host: str, port: int, engine_id: str, settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    server = SimServer(engine_id, settings)
    listener = await loop.create_server(server.protocol, host, port, backlog=1024)
    stopped: asyncio.Future[int | None] = loop.create_future()

    def stop(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    bound = listener.sockets[0].getsockname()[1] if listener.sockets else port
    print(f"Listening on {host}:{bound}", flush=True)
    server.log(
        f"simulated engine: vram_bytes={settings.vram_bytes} slots={settings.slots} "
        f"num_ctx={settings.num_ctx} models={len(server.shelf)}"
    )
    await stopped
    listener.close()  # running requests end with their connections, as in Ollama
    server.log("stopped")
    return 0
