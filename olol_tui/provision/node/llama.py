"""llama.cpp's two programs for splits: what there is of them, and those that we bring."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from . import base, image, place, turns

HEAD = "llama-server"
WORKER = "ggml-rpc-server"
_WORKERS = (WORKER, "rpc-server")
"""As it is called, and as it was called before."""
VERSION_TIMEOUT_S = 30.0
"""The first start of a CUDA build reads a gigabyte from the disk."""
BUILT = "built.json"
"""Beside `bin` of what was built here: how."""

_RELEASE = re.compile(r"llama-([0-9a-f]{16})")
_VERSION = re.compile(r"version:? *v?([0-9][^\s,]*(?: \([^)]*\))?)")


def look(ask: dict[str, Any]) -> dict[str, Any]:
    """What there is of llama.cpp, and what it could be built with. Reads only.

    Args:
        ask: `directory`, `toolchain`: whether to look for compilers.
    """
    layout = base.Layout(str(ask["directory"]))
    ours = layout.llama / "bin"
    head, worker = ours / HEAD, ours / WORKER
    found: dict[str, Any] = {"ours": None, "theirs": None, "toolchain": None}
    if head.is_file() and worker.is_file():
        name = Path(os.readlink(layout.llama)).name  # noqa: PTH115 (3.9 has Path.readlink)
        found["ours"] = {
            "head": str(head),
            "worker": str(worker),
            "version": _said(head)[1],
            "id": name.rpartition("-")[2],
            "built": _built(layout.llama),
        }
    their_head, their_worker = base.which(HEAD), base.which(WORKER)
    if their_head or their_worker:
        found["theirs"] = {
            "head": their_head or "",
            "worker": their_worker or "",
            "version": _said(Path(their_head))[1] if their_head else "",
        }
    found["there"] = sorted(
        match.group(1)
        for path in (layout.engines.iterdir() if layout.engines.is_dir() else ())
        for match in [_RELEASE.fullmatch(path.name)]
        if match
    )
    if ask["toolchain"]:
        found["toolchain"] = toolchain()
    return found


def _built(release: Path) -> str:
    """The flags of what was built here; empty for what was brought."""
    try:
        known = json.loads((release / BUILT).read_bytes())
    except (OSError, ValueError):
        return ""
    return str(known.get("flags", "")) if isinstance(known, dict) else ""


# -- what is brought


def install(ask: dict[str, Any]) -> dict[str, Any]:
    """Unpack an uploaded archive, unless it lies there, and make it this machine's llama.cpp.

    Args:
        ask: `directory`, `part` (empty: it must lie there), `sha256` of the part, `kind`, `id`:
            16 hex digits that name the release, `build`: the number it must have, 0 for any.
    """
    layout = base.Layout(str(ask["directory"]))
    # By now the agent is there: if not, it was uninstalled while this was on its way.
    with turns.only_one(layout, fresh=False):
        image.make_directories(layout, layout.engines)
        final = layout.engines / ("llama-" + str(ask["id"]))
        if final.is_dir():
            return use(layout, final, check(final, int(ask["build"])))
        part = Path(str(ask["part"]))
        place.check_part(part, str(ask["sha256"]))
        with Fresh(final) as fresh:
            place.unpack(part, str(ask["kind"]), fresh.path)
            _arrange(fresh.path)
            version = check(fresh.path, int(ask["build"]))
            fresh.keep()
        part.unlink()
        return use(layout, final, version)


def use(layout: base.Layout, final: Path, version: str) -> dict[str, Any]:
    """Point this machine's link at a release, drop what nobody uses any more."""
    base.point(layout.llama, os.path.relpath(str(final), str(layout.state)))
    return {
        "path": str(final / "bin"),
        "version": version,
        "removed": place.collect_engines(layout),
    }


class Fresh:
    """A directory that becomes the release as a whole, or never was there."""

    def __init__(self, final: Path) -> None:
        self._final = final
        self.path = final.parent / f".{final.name}.{os.urandom(4).hex()}"

    def __enter__(self) -> Fresh:
        try:
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise base.disk_trouble(self.path, error) from error
        return self

    def keep(self) -> None:
        self.path.rename(self._final)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.path.exists():
            shutil.rmtree(str(self.path), ignore_errors=True)
        if isinstance(error, OSError):
            raise base.disk_trouble(self._final.parent, error) from error


def _arrange(release: Path) -> None:
    """Have both programs under the same names in `bin`, wherever the archive keeps them."""
    heads = sorted(release.rglob(HEAD), key=lambda path: (len(path.parts), str(path)))
    heads = [path for path in heads if path.is_file()]
    if not heads:
        raise base.Trouble(
            "archive",
            f"the archive has no {HEAD}",
            "Pack llama.cpp's build/bin: llama-server, ggml-rpc-server and their .so files.",
        )
    folder = heads[0].parent
    worker = next((folder / name for name in _WORKERS if (folder / name).is_file()), None)
    if worker is None:
        raise base.Trouble(
            "rpc",
            f"the archive has {HEAD} and no {WORKER} beside it",
            "Build llama.cpp with -DGGML_RPC=ON and pack both programs with their .so files.",
        )
    if worker.name != WORKER:
        (folder / WORKER).symlink_to(worker.name)
    if folder == release / "bin":
        return
    if (release / "bin").exists():
        raise base.Trouble("archive", f"the archive has a bin without {HEAD}, and one elsewhere")
    (release / "bin").symlink_to(os.path.relpath(str(folder), str(release)))


# -- does it run, and is it the wanted one?


def check(release: Path, build: int) -> str:
    """The version that both programs of a release have.

    Raises:
        Trouble: one does not run on this machine, or it is another build.
    """
    head, worker = release / "bin" / HEAD, release / "bin" / WORKER
    status, version, said = _run(head, "--version")
    if status != 0:
        raise _does_not_run(head, status, said)
    worker_status, _, worker_said = _run(worker, "--help")
    # Its usage is all that it has to say; what cannot start ends otherwise.
    if worker_status not in (0, 1):
        raise _does_not_run(worker, worker_status, worker_said)
    found = number(version)
    if build and found and build != found:
        raise base.Trouble(
            "build",
            f"expected build {build} of llama.cpp, this {HEAD} is {version}",
            "All parts of a split must be of one build: give the archive of that build.",
        )
    return version


def number(version: str) -> int:
    """The build's number in what `--version` says; 0 when it does not know its own."""
    match = re.search(r"\(build (\d+)", version) or re.match(r"(\d+)(?: \(|$)", version)
    return int(match.group(1)) if match else 0


def _said(program: Path) -> tuple[int, str]:
    try:
        status, version, _ = _run(program, "--version")
    except base.Trouble:
        return 1, ""
    return status, version


def _run(program: Path, flag: str) -> tuple[int, str, str]:
    """(exit status, version if it tells one, what it said)."""
    try:
        done = subprocess.run(
            [str(program), flag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=VERSION_TIMEOUT_S,
            env=_with_libraries(program),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise base.Trouble("engine", f"{program} {flag} does not end") from None
    except OSError as error:
        raise _not_startable(program, error) from error
    said = done.stdout.decode("utf-8", "replace")
    match = _VERSION.search(said)
    return done.returncode, match.group(1) if match else "", said


def _with_libraries(program: Path) -> dict[str, str]:
    """As the agent starts it: an archive of a build tree names directories of its own machine."""
    env = dict(os.environ)
    folder = program.resolve().parent
    if any(folder.glob("*.so*")):
        env["LD_LIBRARY_PATH"] = os.pathsep.join(
            filter(None, [str(folder), env.get("LD_LIBRARY_PATH", "")])
        )
    return env


def _does_not_run(program: Path, status: int, said: str) -> base.Trouble:
    told = " ".join(said.split())[:300]
    if status == -4:
        return base.Trouble(
            "cpu",
            f"{program.name} uses instructions that this processor lacks",
            "Take an archive that was built with -DGGML_NATIVE=OFF, or build it there: "
            "llama_build = true.",
        )
    if "shared librar" in told or "GLIBC" in told:
        return base.Trouble(
            "library",
            f"{program.name} misses a library there: {told}",
            "Pack its .so files beside it, or build it there: llama_build = true.",
        )
    return base.Trouble("engine", f"{program.name} ended with status {status}: {told or 'nothing'}")


def _not_startable(program: Path, error: OSError) -> base.Trouble:
    import errno

    if error.errno == errno.ENOEXEC:
        return base.Trouble(
            "arch",
            f"this {program.name} is not for {os.uname().machine}",
            "Put {arch} into `llama_archive`, with an archive for each kind of machine.",
        )
    if error.errno == errno.EACCES and os.statvfs(str(program)).f_flag & os.ST_NOEXEC:
        return base.Trouble(
            "noexec",
            f"no program may be started from {program.parent} (mounted noexec)",
            "Set `directory` of this node to a place without noexec.",
        )
    return base.Trouble("engine", f"{program} does not start: {error.strerror}")


# -- what it could be built with


def toolchain() -> dict[str, Any]:
    """Compilers and what limits them; empty texts for what is missing."""
    cmake = base.which("cmake") or ""
    compiler = next(filter(None, map(base.which, ("c++", "g++", "clang++"))), "")
    nvcc = base.which("nvcc", "/usr/local/cuda/bin", "/opt/cuda/bin") or ""
    generator = "Unix Makefiles" if base.which("make") else "Ninja" if base.which("ninja") else ""
    return {
        "cmake": cmake,
        "cmake_version": _first_number(cmake),
        "compiler": compiler,
        "compiler_version": _first_line(compiler),
        "nvcc": nvcc,
        "nvcc_version": _first_number(nvcc, last=True),
        "generator": generator,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cpu": _cpu(),
    }


def _tells(program: str) -> str:
    if not program:
        return ""
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _first_line(program: str) -> str:
    return (_tells(program).splitlines() or [""])[0]


def _first_number(program: str, *, last: bool = False) -> str:
    found = re.findall(r"\d+\.\d+(?:\.\d+)?", _tells(program))
    return found[-1 if last else 0] if found else ""


def _cpu() -> str:
    """Differs between processors that could not run each other's native code."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    words = sorted(set(match.group(1).split())) if match else []
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
