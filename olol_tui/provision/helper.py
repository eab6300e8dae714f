"""Errands on a node: one Python there, started once, that calls functions of `node/` for us.

A POSIX shell script finds an interpreter and becomes it; modules and errands then follow on
its standard input. Nothing is written to disk for that, no argument list grows too long, and
nothing of a former version can be met. An answer is a line that starts with a mark made for
this process, because a shell's start-up files may print what they like.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import shlex
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

from olol_tui.provision.errors import NodeMute, NodeTrouble
from olol_tui.provision.shell import Done, Shell, Talk
from olol_tui.ssh.errors import CommandTimeout
from olol_tui.ssh.sessions import SHELL
from olol_tui.ssh.text import clean

CALL_TIMEOUT_S = 60.0
PIECE_BYTES = 64 * 1024
OUTPUT_LIMIT_BYTES = 2**20
"""Of what is printed around an answer."""

MARK_PYTHON = "OLOL-PYTHON "
MARK_SYSTEM = "OLOL-SYSTEM "

_SCRIPT = """\
exec 3<&0 5>&1
main() {
  PATH="${PATH:-/usr/bin:/bin}:/usr/local/bin:/usr/bin:/bin"
  echo
  echo "$(MARK_SYSTEM)$(uname -s -n -m)"
  if [ -n "$known" ]; then
    exec "$known" -I -S -c "$program" "$known" <&3 3<&- 4>/dev/null 5>&-
  fi
  for name in $candidates; do
    path=$(command -v "$name" 2>/dev/null) || continue
    case " $seen " in *" $path "*) continue ;; esac
    seen="$seen $path"
    begun=$("$path" -I -S -c "$program" "$path" <&3 3<&- 4>&1 >&5 5>&-)
    status=$?
    [ -z "$begun" ] || exit $status
    [ $status = 0 ] || echo "$(MARK_PYTHON)$path broken"
  done
  exit 0
}
main </dev/null
"""
"""A shell may read ahead of what it runs: no errand is sent before Python has answered once.

An interpreter that is fit says so to the shell on descriptor 4, and what follows is its own;
one that is not is passed over, whether it tells why or not.
"""

_START = """\
import sys
problem = "old"
if sys.version_info >= (3, 8):
    problem = "usable"
    try:
        import _ctypes, _socket, fcntl, select, zlib
    except ImportError as error:
        problem = "without " + str(error.name).lstrip("_")
print("$(MARK_PYTHON)" + sys.argv[1] + " " + sys.version.split()[0] + " " + problem)
sys.stdout.flush()
if problem == "usable":
    import binascii, os
    os.write(4, b"1")
    os.close(4)
    exec(zlib.decompress(binascii.a2b_base64("$(PROGRAM)")))
"""
"""Even an ancient Python can read it. Packed, it fits into the first packets of a connection."""

_CANDIDATES = (
    *(f"python3.{minor}" for minor in range(14, 7, -1)),
    "python3",
    "/usr/bin/python3",
    "/usr/libexec/platform-python",
    "$HOME/miniconda3/bin/python3",
    "$HOME/anaconda3/bin/python3",
    "$HOME/miniforge3/bin/python3",
    "/opt/conda/bin/python3",
    "/opt/miniconda3/bin/python3",
)

_NEEDS = {
    "base": ("__init__", "base"),
    "survey": ("__init__", "base", "survey"),
    "image": ("__init__", "base", "turns", "image"),
    "place": ("__init__", "base", "turns", "image", "place"),
    "llama": ("__init__", "base", "turns", "image", "place", "llama"),
    "build": ("__init__", "base", "turns", "image", "place", "llama", "build"),
    "service": ("__init__", "base", "survey", "systemd", "turns", "service"),
    "remove": ("__init__", "base", "survey", "systemd", "turns", "service", "mesh", "remove"),
}
"""What each module imports, in the order in which they can be loaded."""

_PROGRAM = """\
import json, sys, types
mark, first = {what!r}

def load(name, source):
    full = "olol_node" if name == "__init__" else "olol_node." + name
    if full in sys.modules:
        return
    one = types.ModuleType(full)
    one.__package__ = "olol_node"
    one.__path__ = []
    sys.modules[full] = one
    exec(compile(source, "<" + full + ">", "exec"), one.__dict__)
    if name != "__init__":
        setattr(sys.modules["olol_node"], name, one)

def carry_out(errand):
    for name, source in errand["sources"]:
        load(name, source)
    node = sys.modules["olol_node"]
    ask = errand["ask"]
    if errand["size"]:
        ask["data"] = sys.stdin.buffer.read(errand["size"])
    try:
        return {{"ok": getattr(getattr(node, errand["module"]), errand["function"])(ask)}}
    except node.base.Trouble as error:
        return {{"trouble": [error.kind, error.message, error.hint]}}
    except OSError as error:
        # A write that fails does not say where.
        place = error.filename or node.base.Layout(ask["directory"]).base
        found = node.base.disk_trouble(node.base.Path(str(place)), error)
        return {{"trouble": [found.kind, found.message, found.hint]}}

line = first
while line:
    reply = carry_out(json.loads(line))
    sys.stdout.write("\\n" + mark + json.dumps(reply) + "\\n")
    sys.stdout.flush()
    line = sys.stdin.buffer.readline()
"""

Progress = Callable[[int, int], None]
"""(bytes there, bytes in all)."""


@cache
def sources(module: str) -> tuple[tuple[str, str], ...]:
    """(name, source) of a module and of what it imports."""
    folder = Path(__file__).parent / "node"
    return tuple((name, (folder / f"{name}.py").read_text("utf-8")) for name in _NEEDS[module])


def program(first: str, mark: str) -> str:
    """A Python program that carries out `first`, then what follows on its standard input."""
    inner = _PROGRAM.format(what=(mark, first)).encode()
    packed = base64.b64encode(zlib.compress(inner, 9)).decode()
    return _START.replace("$(MARK_PYTHON)", MARK_PYTHON).replace("$(PROGRAM)", packed)


def errand(
    module: str,
    function: str,
    ask: dict[str, Any],
    size: int = 0,
    known: frozenset[str] = frozenset(),
) -> str:
    """One errand as a line.

    Args:
        size: bytes that follow the line; the function finds them as `data` in what it is asked.
        known: modules that are there already.
    """
    needed = [item for item in sources(module) if item[0] not in known]
    return json.dumps(
        {"module": module, "function": function, "ask": ask, "size": size, "sources": needed}
    )


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


class Helper:
    """The Python of one run. Started by the first errand, again by one after `close`.

    While it lives it holds a session of the node, of which a server may allow but one: `close`
    before anything else that needs a session, and at the end.
    """

    def __init__(self, shell: Shell) -> None:
        self.mark = new_mark()
        self.python = ""
        """The interpreter, once it is known; until then it is searched for."""
        self._shell = shell
        self._stack = AsyncExitStack()
        self._talk: Talk | None = None
        self._known: frozenset[str] = frozenset()
        """Modules that it has."""

    async def begin(
        self, module: str, function: str, ask: dict[str, Any], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> str:
        """Start it with an errand; what was printed up to the answer, or in vain up to the end.

        Raises:
            SSHError: the connection failed, or it took too long.
        """
        await self.close()
        self._known = frozenset(name for name, _ in sources(module))
        self._talk = await self._stack.enter_async_context(self._shell.talk(SHELL))
        script = _script(program(errand(module, function, ask), self.mark), self.python)
        return await self._say(script.encode(), timeout_s)

    async def call(
        self,
        module: str,
        function: str,
        ask: dict[str, Any],
        *,
        data: bytes = b"",
        progress: Progress = lambda there, size: None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        """The answer of `module.function(ask)` on the node.

        Args:
            data: comes there as `ask["data"]`.

        Raises:
            NodeTrouble: it failed, and says why.
            NodeMute: it gave no answer.
            SSHError: the connection failed, or it took too long.
        """
        if self._talk is None and data:
            await self.call("base", "ready", {"directory": ""})
        if self._talk is None:
            said = await self.begin(module, function, ask, timeout_s=timeout_s)
        else:
            line = errand(module, function, ask, len(data), self._known)
            self._known |= {name for name, _ in sources(module)}
            said = await self._say(line.encode() + b"\n", timeout_s, data, progress)
        found = answer(said, self.mark)
        if found is None:
            done = await self.ended()
            told = clean(done.stderr[-2000:] or said[-2000:]) or "nothing"
            raise NodeMute(
                f"{self.python or 'its Python'} ended with status {done.status} and said: {told}",
                hint="Does this interpreter work there? Try it: python3 -I -c 'import ssl, zlib'",
            )
        return found

    async def ended(self) -> Done:
        """How it ended, or ends now that it is told to; it must have been started."""
        assert self._talk is not None
        done = await self._talk.end()
        await self.close()
        return done

    async def close(self) -> None:
        """End it: at once when it waits for an errand, by force when it is in one."""
        self._talk = None
        await self._stack.aclose()

    async def _say(
        self, line: bytes, timeout_s: float, data: bytes = b"", progress: Progress | None = None
    ) -> str:
        """Send an errand; what is printed up to the answer, or to the end without one."""
        assert self._talk is not None
        talk, mark = self._talk, self.mark.encode()
        said = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                await talk.write(line)
                for at in range(0, len(data), PIECE_BYTES):
                    await talk.write(data[at : at + PIECE_BYTES])
                    if progress is not None:
                        progress(min(at + PIECE_BYTES, len(data)), len(data))
                while not _has_answer(said, mark) and (piece := await talk.read()):
                    said += piece
                    if len(said) > OUTPUT_LIMIT_BYTES:
                        raise NodeMute(f"its shell prints without end: {clean(bytes(said[:200]))}")
        except BaseException as error:
            talk.abandon()
            await self.close()
            if isinstance(error, TimeoutError):
                raise CommandTimeout(
                    f"no answer within {timeout_s:g} s",
                    hint="Is the machine overloaded, or a disk of it hung? Log in and look.",
                ) from error
            raise
        return said.decode("utf-8", "replace")


def _has_answer(said: bytearray, mark: bytes) -> bool:
    at = said.find(b"\n" + mark)
    return at >= 0 and said.find(b"\n", at + 1) >= 0


def _script(program: str, python: str) -> str:
    """The shell's part, with or without a search for an interpreter."""
    settings = {"program": program, "known": python}
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    script = _SCRIPT.replace("$(MARK_PYTHON)", MARK_PYTHON)
    script = script.replace("$(MARK_SYSTEM)", MARK_SYSTEM)
    return "\n".join([*lines, f'candidates="{" ".join(_CANDIDATES)}"', script])
