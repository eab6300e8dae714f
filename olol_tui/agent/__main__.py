"""Subcommands of the agent: `serve`, and the children it starts of itself."""

from __future__ import annotations

import json
import sys
from typing import Callable

from . import PROTOCOL, __version__

_USAGE = "usage: agent (serve | embedded | sim-engine) [options] | --selfcheck | --version"


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["--version"]:
        print(f"olol-agent {__version__}")
        return 0
    if given[:1] == ["--selfcheck"]:
        return _selfcheck()
    commands: dict[str, Callable[[list[str]], int]] = {
        "serve": _serve,
        "embedded": _embedded,
        "sim-engine": _sim_engine,
        "guard": _guard,
    }
    command = commands.get(given[0]) if given else None
    if command is None:
        print(_USAGE, file=sys.stderr)
        return 0 if given[:1] in (["-h"], ["--help"]) else 2
    return command(given[1:])


# Each subcommand imports its own half: an engine child needs no supervisor.


def _serve(argv: list[str]) -> int:
    from .serve import main as serve

    return serve(argv)


def _embedded(argv: list[str]) -> int:
    from .engines.embedded import main as embedded

    return embedded(argv)


def _sim_engine(argv: list[str]) -> int:
    from .simengine import main as sim_engine

    return sim_engine(argv)


def _guard(argv: list[str]) -> int:
    from .upgrade import watch

    return watch(argv)


def _selfcheck() -> int:
    """Import everything and read this node's devices: does this image run on this Python?"""
    from h11._version import __version__ as h11_version

    from . import serve, simengine
    from .devices import open_devices

    source = open_devices(None)
    report = {
        "ok": True,
        "version": __version__,
        "protocol": PROTOCOL,
        "python": sys.version.split()[0],
        "h11": h11_version,
        "devices": len(source.inventory()),
        "errors": source.errors(),
        "parts": [serve.__name__, simengine.__name__],
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
