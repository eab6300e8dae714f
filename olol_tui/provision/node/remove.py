"""Everything of ours taken off this machine, and the proof of it."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from . import base, mesh, service, systemd, turns

GRACE_S = 10.0
PROOF_S = 3.0
"""For what is just going: another machine of this home may be about to remove the rest."""

_OURS = ("bin", "engines", "state", "made.json")
"""What we make in our directory. Anything else there is not ours to delete."""


def uninstall(ask: dict[str, Any]) -> dict[str, Any]:
    """Stop engines and agent, remove what was installed.

    Args:
        ask: `directory`, `dry_run`: only say what would be removed.

    Returns:
        `done`: what was, or would be, removed.
    """
    layout = base.Layout(str(ask["directory"]))
    if ask["dry_run"]:
        return {"done": _planned(layout, layout.read_record())}
    done: list[str] = []
    with ExitStack() as stack:
        if layout.state.is_dir():
            # To the end: a console that sees its agent go would else start another one.
            stack.enter_context(turns.only_one(layout))
        record = layout.read_record()
        if layout.state.is_dir():
            _stop_all(layout, record, done)
        if systemd.remove(layout):
            done.append(f"unit {systemd.unit_name(layout)}")
        if record.get("we_enabled_linger") and not _used_elsewhere(layout):
            status, _ = systemd.run_tool("loginctl", "--no-ask-password", "disable-linger")
            if status == 0:
                done.append("linger, which was off before")
        if keys := mesh.remove(layout):
            done.append(f"{base.counted(keys, 'line')} of authorized_keys")
        _remove_socket(record, done)
        # Before anything else goes: without it no console brings an agent by itself, and of
        # machines that share this home the last one to leave sees that it is the last.
        with suppress(FileNotFoundError):
            layout.record.unlink()
        _remove_files(layout, done)
    return {"done": done}


def prove(ask: dict[str, Any]) -> dict[str, Any]:
    """Look at what is there afterwards.

    Args:
        ask: `directory`, `socket`: where the agent listened.

    Returns:
        `left`: what stays on purpose, and why; `residue`: what is ours and should be gone.
    """
    layout = base.Layout(str(ask["directory"]))
    deadline = time.monotonic() + PROOF_S
    while (residue := _residue(layout, str(ask["socket"]))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return {"left": _left(layout), "residue": residue}


def _planned(layout: base.Layout, record: dict[str, Any]) -> list[str]:
    plan = []
    pid = base.agent_pid(layout)
    sessions = set(base.engine_sessions(layout).values())
    if sessions:
        plan.append(base.counted(len(sessions), "engine"))
    if base.build_sessions(layout):
        plan.append("a build that runs")
    if pid is not None:
        plan.append(f"agent (pid {pid})")
    if record.get("unit"):
        plan.append("unit {}".format(record["unit"]))
    return plan + [str(path) for path in _files(layout) if path != layout.made]


# -- processes


def _stop_all(layout: base.Layout, record: dict[str, Any], done: list[str]) -> None:
    before = set(base.engine_sessions(layout).values())
    log: list[str] = []
    pid = base.agent_pid(layout)
    service.stop_agent(layout, record, "stop", log)
    if pid is not None:
        done.append(f"agent (pid {pid})")
    # A dead agent leaves its engines, and so does one that had to be killed.
    base.end_all(lambda: base.engine_sessions(layout), GRACE_S)
    if before:
        done.append(base.counted(len(before), "engine"))
    if base.build_sessions(layout):
        base.end_all(lambda: base.build_sessions(layout), GRACE_S)
        done.append("a build that ran")


# -- files


def _used_elsewhere(layout: base.Layout) -> list[str]:
    """Other machines that run from this directory: a shared home."""
    return sorted(
        path.parent.name
        for path in layout.states.glob("*/launch.json")
        if path.parent != layout.state
    )


def _files(layout: base.Layout) -> list[Path]:
    """What is to be removed: this machine's part, or all of it with the last machine."""
    found = [layout.state] if layout.state.exists() else []
    if not _used_elsewhere(layout):
        found += [layout.base / name for name in _OURS if (layout.base / name).exists()]
        found = [path for path in found if path != layout.state or layout.states not in found]
    return found


def _remove_files(layout: base.Layout, done: list[str]) -> None:
    made = [] if _used_elsewhere(layout) else base.made_directories(layout)
    for path in _files(layout):
        if path != layout.made:
            done.append(str(path))
        # Another machine of this home may be taking the same away.
        while path.is_dir():
            with suppress(FileNotFoundError):
                shutil.rmtree(str(path))
        with suppress(FileNotFoundError):
            path.unlink()
    # The deepest first; what is not empty has become somebody else's too.
    for directory in (layout.base, *sorted(map(Path, made), reverse=True)):
        with suppress(OSError):
            directory.rmdir()


def _remove_socket(record: dict[str, Any], done: list[str]) -> None:
    socket = str(record.get("socket") or "")
    if not socket:
        return
    path = Path(socket)
    if os.path.lexists(str(path)):
        path.unlink()
    # Ours alone; the directory above may hold another installation's.
    for folder in (path.parent, path.parent.parent):
        if folder != path.parent and not folder.name.startswith("olol-"):
            break
        try:
            folder.rmdir()
        except OSError:
            break
        done.append(str(folder))


# -- proof


def _left(layout: base.Layout) -> list[str]:
    """What stays on purpose."""
    left = []
    others = _used_elsewhere(layout)
    if others:
        left.append(
            f"{layout.base}: also used by {base.counted(len(others), 'other machine')} of this home"
        )
    elif layout.base.is_dir():
        strange = sorted(p.name for p in layout.base.iterdir() if p.name not in _OURS)
        if strange:
            left.append("{}: not ours: {}".format(layout.base, ", ".join(strange[:5])))
    models = Path(os.environ.get("OLLAMA_MODELS") or Path(os.environ["HOME"]) / ".ollama/models")
    blobs = models / "blobs"
    if blobs.is_dir():
        size = sum(p.stat().st_size for p in blobs.iterdir() if p.is_file())
        left.append(f"models in {models}, {size / 2**30:.1f} GiB")
    return left


def _residue(layout: base.Layout, socket: str) -> list[str]:
    """What is ours and still there: processes, listeners, files."""
    residue = []
    pids = set(base.engine_sessions(layout)) | set(base.build_sessions(layout))
    agent = base.agent_pid(layout)
    pids |= _from_our_directory(layout) | ({agent} if agent is not None else set())
    pids.discard(os.getpid())
    residue += [f"process {pid}" for pid in sorted(pids)]
    residue += [f"port {port}" for port in sorted(_listening_ports(pids))]
    residue += [str(path) for path in _files(layout)]
    if keys := mesh.lines_of(layout):
        residue.append(f"{base.counted(keys, 'line')} of authorized_keys")
    if socket and os.path.lexists(socket):
        residue.append(socket)
    unit = systemd.unit_file(systemd.unit_name(layout))
    if unit.exists() and not _used_elsewhere(layout):
        residue.append(str(unit))
    return residue


def _from_our_directory(layout: base.Layout) -> set[int]:
    """Processes of this user that were started from our files, whatever they became."""
    prefixes = {str(layout.base) + "/", os.path.realpath(str(layout.base)) + "/"}
    marks = [os.fsencode(prefix) for prefix in prefixes]
    found = set()
    for pid in base.pids():
        folder = Path("/proc") / str(pid)
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        words = command.split(b"\0")
        ours = any(word.startswith(mark) for word in words for mark in marks)
        if ours and base.starttime(pid) is not None:
            found.add(pid)
    return found


def _listening_ports(pids: set[int]) -> set[int]:
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if len(fields) > 9 and fields[3] == "0A":
                inodes[f"socket:[{fields[9]}]"] = int(fields[1].rpartition(":")[2], 16)
    ports = set()
    for pid in pids:
        try:
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        for link in links:
            try:
                ports.add(inodes.get(os.readlink(link), 0))  # noqa: PTH115
            except OSError:
                continue
    return ports - {0}
