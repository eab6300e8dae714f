"""Files put where they belong: the agent, and an engine out of its archive."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from . import base, turns

BUILDS_KEPT = 3
"""Agents kept for going back, and for engines that still run from their file."""
PARTS_KEPT_S = 7 * 86400
"""An upload that nobody resumes is thrown away after so long."""

_BUILD = re.compile(r"[0-9a-f]{64}\.pyz")
_ENGINE = re.compile(r"(ollama|llama)-[0-9a-f]{16}")


def install_agent(ask: dict[str, Any]) -> dict[str, Any]:
    """Put the agent into its place, remove old ones.

    Args:
        ask: `directory`, `sha256`, `data`: the zipapp; `fresh`: also where nothing of ours is.
    """
    layout = base.Layout(str(ask["directory"]))
    digest, data = str(ask["sha256"]), bytes(ask["data"])
    _check(hashlib.sha256(data).hexdigest(), digest)
    final = layout.bin / (digest + ".pyz")
    if ask["fresh"]:
        make_directories(layout, layout.bin)
    with turns.only_one(layout, fresh=bool(ask["fresh"])):
        make_directories(layout, layout.bin)
        try:
            base.write_atomic(final, data, 0o500)
        except OSError as error:
            raise base.disk_trouble(final, error) from error
        return {"path": str(final), "removed": _collect_builds(layout, keep=final)}


def make_directories(layout: base.Layout, folder: Path) -> None:
    base.make_base(layout)
    for directory in (folder, layout.states, layout.state):
        base.make_private(directory)


def _check(found: str, digest: str) -> None:
    if found != digest:
        raise base.Trouble(
            "damaged",
            f"the upload was damaged on its way: expected sha256 {digest[:12]}…, got {found[:12]}…",
            "Try again; if it stays so, look at the disk and the network of this machine.",
        )


def _collect_builds(layout: base.Layout, keep: Path) -> list[str]:
    """Old agents, but not those that a machine starts from or a process runs from."""
    used = {p.resolve().name for p in layout.states.glob("*/current.pyz")}
    used |= {keep.name}
    builds = [p for p in layout.bin.iterdir() if _BUILD.fullmatch(p.name)]
    builds.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    old = [p for p in builds[BUILDS_KEPT:] if p.name not in used]
    processes = running() if old else b""
    removed = []
    for path in old:
        if os.fsencode(path.name) not in processes:
            path.unlink()
            removed.append(path.name)
    _drop_old_parts(layout.bin)
    return removed


def _drop_old_parts(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        try:
            if time.time() - part.stat().st_mtime > PARTS_KEPT_S:
                part.unlink()
        except FileNotFoundError:
            continue


def running() -> bytes:
    """Command lines and programs of all processes that can be seen."""
    lines = []
    for pid in base.pids():
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
            # What was started through a link shows its own place only here.
            lines.append(os.fsencode(os.readlink(f"/proc/{pid}/exe")))  # noqa: PTH115
        except OSError:
            continue
    return b"\n".join(lines)


# -- engines


def prepare(ask: dict[str, Any]) -> dict[str, Any]:
    """Make the directories; where to upload an archive to, and how much of it is there already.

    Args:
        ask: `directory`, `sha256` and `size` of what will be uploaded.
    """
    layout = base.Layout(str(ask["directory"]))
    make_directories(layout, layout.engines)
    # The home may be shared: two machines must not write the same part.
    part = layout.engines / (".{}.{}.part".format(ask["sha256"], layout.machine_id[:8]))
    try:
        if part.is_symlink():
            part.unlink()
        descriptor = os.open(str(part), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        size = part.stat().st_size
    except OSError as error:
        raise base.disk_trouble(part, error) from error
    if size > int(ask["size"]):
        os.truncate(str(part), 0)
        size = 0
    return {"part": str(part), "size": size}


def install_ollama(ask: dict[str, Any]) -> dict[str, Any]:
    """Unpack the uploaded archive and point this machine's engine at it.

    Args:
        ask: `directory`, `part`, `sha256` of the part, `kind` (tgz or tar.zst), `id`: 16 hex
            digits that name the release.
    """
    layout = base.Layout(str(ask["directory"]))
    final = layout.engines / ("ollama-" + str(ask["id"]))
    if not final.is_dir():
        part = Path(str(ask["part"]))
        check_part(part, str(ask["sha256"]))
        # Never unpack over something: a half of it must not look like the whole.
        fresh = layout.engines / f".{final.name}.{os.urandom(4).hex()}"
        try:
            fresh.mkdir(mode=0o700)
            unpack(part, str(ask["kind"]), fresh)
            version = _try(fresh / "bin" / "ollama")
            fresh.rename(final)
        except OSError as error:
            raise base.disk_trouble(layout.engines, error) from error
        finally:
            if fresh.exists():
                shutil.rmtree(str(fresh), ignore_errors=True)
        part.unlink()
    else:
        version = _try(final / "bin" / "ollama")
    base.point(layout.ollama, os.path.relpath(str(final), str(layout.state)))
    return {
        "path": str(final / "bin" / "ollama"),
        "version": version,
        "removed": collect_engines(layout),
    }


def check_part(part: Path, digest: str) -> None:
    try:
        found = base.sha256(part)
    except FileNotFoundError:
        raise base.Trouble(
            "absent",
            f"what was uploaded is not at {part}",
            "SFTP may show another tree than the shell does (ChrootDirectory).",
        ) from None
    try:
        _check(found, digest)
    except base.Trouble:
        part.unlink()
        raise


def unpack(archive: Path, kind: str, into: Path) -> None:
    if kind != "tar.zst":
        try:
            with tarfile.open(str(archive), "r:*") as tar:
                _extract(tar, into)
        except (tarfile.TarError, EOFError) as error:
            raise base.Trouble("archive", f"the archive cannot be unpacked: {error}") from error
        return
    program = base.which("zstd")
    if program is None:
        raise base.Trouble("archive", "there is no zstd here any more")
    zstd = subprocess.Popen(
        [program, "-dcq", "--", str(archive)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        with tarfile.open(fileobj=_piped(zstd), mode="r|") as tar:
            _extract(tar, into)
    except (tarfile.TarError, EOFError) as error:
        raise base.Trouble("archive", f"the archive cannot be unpacked: {error}") from error
    finally:
        if zstd.stdout is not None:
            zstd.stdout.close()
        status = zstd.wait()
    # 141 and -13: it was cut short by us, after the archive's end.
    if status not in (0, 141, -13):
        raise base.Trouble("archive", f"zstd ended with status {status}")


def _piped(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise base.Trouble("archive", "zstd gives nothing")
    return process.stdout


def _extract(tar: tarfile.TarFile, into: Path) -> None:
    """Regular files, directories and links that stay inside; nothing keeps its owner."""
    try:
        for member in _members(tar):
            if sys.version_info >= (3, 12):
                tar.extract(member, str(into), filter="tar")
            else:
                tar.extract(member, str(into))
    except (tarfile.TarError, EOFError) as error:
        raise base.Trouble("archive", f"the archive cannot be unpacked: {error}") from error


def _members(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    for member in tar:
        name = os.path.normpath(member.name)
        target = member.name
        if member.issym():
            target = str(Path(name).parent / member.linkname)
        elif member.islnk():
            target = member.linkname
        elif not (member.isreg() or member.isdir()):
            raise base.Trouble("archive", f"the archive holds a device: {name}")
        for path in (name, os.path.normpath(target)):
            if Path(path).is_absolute() or Path(path).parts[:1] == ("..",):
                raise base.Trouble("archive", f"the archive reaches outside: {member.name}")
        member.uid, member.gid = os.getuid(), os.getgid()
        member.uname = member.gname = ""
        member.mode = 0o700 if member.isdir() or member.mode & 0o111 else 0o600
        yield member


def _try(program: Path) -> str:
    """The version the program tells.

    Raises:
        Trouble: it is not there or does not run.
    """
    if not program.is_file():
        raise base.Trouble(
            "archive", "the archive has no bin/ollama", "Use an archive of Ollama's release page."
        )
    try:
        done = subprocess.run(
            [str(program), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise base.Trouble("engine", f"{program} --version does not end") from None
    except OSError as error:
        raise _not_runnable(program, error) from error
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise base.Trouble(
            "engine", "ollama --version failed: {}".format(" ".join(said.split())[:300])
        )
    return base.ollama_version(said)


def _not_runnable(program: Path, error: OSError) -> base.Trouble:
    import errno

    if error.errno == errno.ENOEXEC:
        return base.Trouble(
            "engine",
            f"this ollama is not for {os.uname().machine}",
            "Put {arch} into `ollama_archive`, with an archive for each kind of machine.",
        )
    if error.errno == errno.EACCES and os.statvfs(str(program)).f_flag & os.ST_NOEXEC:
        return base.Trouble(
            "noexec",
            f"no program may be started from {program.parent} (mounted noexec)",
            "Set `directory` of this node to a place without noexec.",
        )
    return base.Trouble("engine", f"{program} does not start: {error.strerror}")


def tidy(ask: dict[str, Any]) -> dict[str, Any]:
    """Remove releases that nothing runs from any more. Args: `directory`."""
    layout = base.Layout(str(ask["directory"]))
    return {"removed": collect_engines(layout) if layout.engines.is_dir() else []}


def collect_engines(layout: base.Layout) -> list[str]:
    """Releases that no machine points at and no process runs from."""
    links = (*layout.states.glob("*/ollama"), *layout.states.glob("*/llama"))
    used = {p.resolve().name for p in links}
    processes = running()
    removed = []
    for path in sorted(layout.engines.iterdir()):
        wanted = path.name in used or os.fsencode(path.name) in processes
        if _ENGINE.fullmatch(path.name) and not wanted:
            shutil.rmtree(str(path))
            removed.append(path.name)
    _drop_old_parts(layout.engines)
    return removed
