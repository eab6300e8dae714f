"""Sends `node/` to a node and calls a function of it there.

The program goes through the standard input of `python -I -S -`: nothing is written to disk,
no argument list grows too long, nothing of a former version can be met. The answer is the
one line that starts with a mark made for this call, because a shell's start-up files may
print what they like.
"""

from __future__ import annotations

import json
import secrets
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from olol_tui.provision.errors import NodeMute, NodeTrouble
from olol_tui.provision.shell import Shell
from olol_tui.ssh.text import clean

CALL_TIMEOUT_S = 60.0

_NEEDS = {
    "survey": ("__init__", "base", "survey"),
    "place": ("__init__", "base", "place"),
    "service": ("__init__", "base", "survey", "systemd", "service"),
    "remove": ("__init__", "base", "survey", "systemd", "service", "remove"),
}
"""What each module imports, in the order in which they can be loaded."""

_PROGRAM = """\
import json, sys, types
mark, sources, module, function, ask = {what!r}
for name, source in sources:
    full = "olol_node" if name == "__init__" else "olol_node." + name
    one = types.ModuleType(full)
    one.__package__ = "olol_node"
    one.__path__ = []
    sys.modules[full] = one
    exec(compile(source, "<" + full + ">", "exec"), one.__dict__)
    if name != "__init__":
        setattr(sys.modules["olol_node"], name, one)
node = sys.modules["olol_node"]
try:
    reply = {{"ok": getattr(getattr(node, module), function)(json.loads(ask))}}
except node.base.Trouble as error:
    reply = {{"trouble": [error.kind, error.message, error.hint]}}
except OSError as error:
    # A write that fails does not say where.
    place = error.filename or node.base.Layout(json.loads(ask)["directory"]).base
    found = node.base.disk_trouble(node.base.Path(str(place)), error)
    reply = {{"trouble": [found.kind, found.message, found.hint]}}
sys.stdout.write("\\n" + mark + json.dumps(reply) + "\\n")
sys.stdout.flush()
"""


@cache
def sources(module: str) -> tuple[tuple[str, str], ...]:
    """(name, source) of a module and of what it imports."""
    folder = Path(__file__).parent / "node"
    return tuple((name, (folder / f"{name}.py").read_text("utf-8")) for name in _NEEDS[module])


def program(module: str, function: str, ask: dict[str, Any], mark: str) -> str:
    """A Python program that prints `mark` and the function's answer as JSON."""
    return _PROGRAM.format(what=(mark, sources(module), module, function, json.dumps(ask)))


def new_mark() -> str:
    return f"OLOL-{secrets.token_hex(8)} "


def answer(stdout: str, mark: str) -> dict[str, Any] | None:
    """The reply in what a session printed; None when there is none.

    Raises:
        NodeTrouble: the function failed there, in its own words.
    """
    for line in reversed(stdout.splitlines()):
        if not line.startswith(mark):
            continue
        try:
            reply = json.loads(line[len(mark) :])
        except ValueError:
            return None
        if "trouble" in reply:
            kind, message, hint = (clean(str(part)) for part in reply["trouble"])
            raise NodeTrouble(message, hint=hint, kind=kind)
        found = reply.get("ok")
        return found if isinstance(found, dict) else None
    return None


async def call(
    shell: Shell,
    python: str,
    module: str,
    function: str,
    ask: dict[str, Any],
    *,
    timeout_s: float = CALL_TIMEOUT_S,
) -> dict[str, Any]:
    """The answer of `module.function(ask)` as run by the node's `python`.

    Raises:
        NodeTrouble: it failed, and says why.
        NodeMute: it gave no answer.
        SSHError: the connection failed.
    """
    mark = new_mark()
    done = await shell.run(
        f"exec {shlex.quote(python)} -I -S -",
        stdin=program(module, function, ask, mark).encode(),
        timeout_s=timeout_s,
    )
    found = answer(done.stdout, mark)
    if found is None:
        said = clean(done.stderr[-2000:] or done.stdout[-2000:]) or "nothing"
        raise NodeMute(
            f"{python} ended with status {done.status} and said: {said}",
            hint="Does this interpreter work there? Try it: python3 -I -c 'import ssl, zlib'",
        )
    return found
