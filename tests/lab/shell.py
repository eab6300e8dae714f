"""Runs the tools that the lab leans on: iproute2, ssh-keygen, nsenter."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence

from tests.lab.errors import LabError

TOOL_TIMEOUT_S = 20.0


def run(argv: Sequence[str], *, stdin: str = "") -> str:
    """The standard output of a tool.

    Raises:
        LabError: it failed; with what it said.
    """
    try:
        done = subprocess.run(
            argv, input=stdin, text=True, capture_output=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{argv[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise LabError(f"{' '.join(argv)}: {said}")
    return done.stdout


def ip(lines: Iterable[str], *, within: int | None = None, force: bool = False) -> None:
    """Runs lines of `ip` in one process; `within` is a pid whose network namespace to use.

    With `force` the lines after a failing one still run, and none of them is an error:
    for clean-up, where what is to be removed may be gone already.
    """
    enter = ["nsenter", f"--net=/proc/{within}/ns/net"] if within else []
    argv = [*enter, "ip", *(["-force"] if force else []), "-batch", "-"]
    try:
        run(argv, stdin="\n".join(lines) + "\n")
    except LabError:
        if not force:
            raise
