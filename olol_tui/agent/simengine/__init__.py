"""The simulated engine: an Ollama-compatible server with memory, slots and speeds.

One light process per engine, started by the agent like a real one. `catalogue` holds
what it can load; everything else is reached over HTTP.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Runs `sim-engine`; `argv` are the arguments after that word."""
    from .process import run  # the agent's other commands never pay for this import

    return run(argv)
