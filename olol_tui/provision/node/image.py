"""The agent's image put where it belongs, and what else every installation does to files."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any

from . import base, turns

BUILDS_KEPT = 3
"""Agents kept for going back, and for engines that still run from their file."""
PARTS_KEPT_S = 7 * 86400
"""An upload that nobody resumes is thrown away after so long."""

_BUILD = re.compile(r"[0-9a-f]{64}\.pyz")


def install(ask: dict[str, Any]) -> dict[str, Any]:
    """Put the agent into its place, remove old ones.

    Args:
        ask: `directory`, `sha256`, `data`: the zipapp; `fresh`: also where nothing of ours is.
    """
    layout = base.Layout(str(ask["directory"]))
    digest, data = str(ask["sha256"]), bytes(ask["data"])
    check(hashlib.sha256(data).hexdigest(), digest)
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
    """Ours, and one in it that something is put into."""
    base.make_base(layout)
    for directory in (folder, layout.states, layout.state):
        base.make_private(directory)


def check(found: str, digest: str) -> None:
    """
    Raises:
        Trouble: what arrived is not what was sent.
    """
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
    drop_old_parts(layout.bin)
    return removed


def drop_old_parts(folder: Path) -> None:
    """Uploads that were broken off long ago."""
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
