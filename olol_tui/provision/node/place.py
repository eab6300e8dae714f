"""An engine out of its archive, put where it belongs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from . import base, image

_ENGINE = re.compile(r"(ollama|llama)-[0-9a-f]{16}")


def prepare(ask: dict[str, Any]) -> dict[str, Any]:
    """Make the directories; where to upload an archive to, and how much of it is there already.

    Args:
        ask: `directory`, `sha256` and `size` of what will be uploaded.
    """
    layout = base.Layout(str(ask["directory"]))
    image.make_directories(layout, layout.engines)
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
        image.check(found, digest)
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
    processes = image.running()
    removed = []
    for path in sorted(layout.engines.iterdir()):
        wanted = path.name in used or os.fsencode(path.name) in processes
        if _ENGINE.fullmatch(path.name) and not wanted:
            shutil.rmtree(str(path))
            removed.append(path.name)
    image.drop_old_parts(layout.engines)
    return removed
