"""What a simulated store holds: the catalogue, and what was pulled, created and deleted since.

The engines of a node share one store, as Ollamas do: it is a directory then, in which each
change is a small file that the others see at once. Without a directory the changes live and
die with the process. Weights are never kept: a blob is its digest and its size.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from .catalogue import SimModel, canonical, from_json, open_catalogue

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_SETTLED_NS = 100_000_000
"""Two changes of a directory within a tick of the kernel's clock have one time: a directory
that was changed just now is read again."""


def digest_of_path(text: str) -> str | None:
    """A digest as clients write it in a path, in its one spelling; None when it is none."""
    match = _DIGEST.fullmatch(text)
    return f"sha256:{match.group(1).lower()}" if match else None


class Shelf:
    """The models and blobs of one store."""

    def __init__(self, base: dict[str, SimModel], directory: str = "") -> None:
        """
        Args:
            base: what it holds before any change.
            directory: of a shared store; made when the first change is written.
        """
        self._base = base
        self._changes: dict[str, SimModel | None] = {}
        """By name; None: deleted."""
        self._models = dict(base)
        self._blobs: dict[str, int] = {}
        self._directory = Path(directory) if directory else None
        self._seen_ns = 0
        self._files: dict[str, tuple[tuple[int, int], SimModel | None]] = {}
        """By file name: (inode, time of change) and what was in it."""

    def __len__(self) -> int:
        self._look()
        return len(self._models)

    def find(self, name: str) -> SimModel | None:
        self._look()
        return self._models.get(canonical(name))

    def all(self) -> list[SimModel]:
        self._look()
        return list(self._models.values())

    def put(self, model: SimModel) -> None:
        self._change(model.name, model)

    def remove(self, model: SimModel) -> None:
        """Deletes it, and its weights unless another model is made of them."""
        self._change(model.name, None)
        if not any(other.weights == model.weights for other in self.all()):
            self._drop_blob(model.weights)

    # -- blobs

    def blob_bytes(self, digest: str) -> int | None:
        """Size of a blob that is here, None when it is not."""
        size = self._blobs.get(digest)
        if size is None and self._directory is not None:
            with suppress(OSError, ValueError):
                size = int(self._blob_path(digest).read_text())
        if size is None:
            size = next((m.size_bytes for m in self.all() if m.weights == digest), None)
        return size

    def add_blob(self, digest: str, size_bytes: int) -> None:
        if self._directory is None:
            self._blobs[digest] = size_bytes
        else:
            _write(self._blob_path(digest), str(size_bytes))

    def _drop_blob(self, digest: str) -> None:
        self._blobs.pop(digest, None)
        if self._directory is not None:
            with suppress(OSError):
                self._blob_path(digest).unlink()

    def _blob_path(self, digest: str) -> Path:
        assert self._directory is not None
        return self._directory / "blobs" / digest.replace(":", "-")

    # -- models

    def _change(self, name: str, model: SimModel | None) -> None:
        if self._directory is None:
            self._changes[name] = model
            self._merge()
        else:
            text = json.dumps(None if model is None else model.to_json(), sort_keys=True)
            _write(self._directory / "models" / f"{quote(name, safe='')}.json", text)
            self._look()

    def _look(self) -> None:
        """Takes over what other engines changed in a shared store."""
        if self._directory is None:
            return
        models = str(self._directory / "models")
        try:
            changed_ns = os.stat(models).st_mtime_ns  # noqa: PTH116 (between every two requests)
        except OSError:
            return
        if changed_ns == self._seen_ns:
            return
        self._seen_ns = changed_ns if time.time_ns() - changed_ns > _SETTLED_NS else 0
        files: dict[str, tuple[tuple[int, int], SimModel | None]] = {}
        with os.scandir(models) as entries:
            for entry in entries:
                known = self._files.get(entry.name)
                with suppress(OSError, ValueError):
                    status = entry.stat()
                    stamp = (status.st_ino, status.st_mtime_ns)
                    if entry.name.startswith("."):
                        continue
                    # The same file gives the same object: loads compare models by identity.
                    same = known is not None and known[0] == stamp
                    files[entry.name] = known if same and known else (stamp, _read(entry.path))
        if files != self._files:
            self._files = files
            self._changes = {unquote(name[:-5]): found for name, (_, found) in files.items()}
            self._merge()

    def _merge(self) -> None:
        merged: dict[str, SimModel | None] = {**self._base, **self._changes}
        self._models = {name: model for name, model in merged.items() if model is not None}


def listing(directory: str) -> list[dict[str, Any]]:
    """What the store of a simulated node holds, as `catalogue()` lists it."""
    return [model.fields() for model in Shelf(open_catalogue(None), directory).all()]


def _read(path: str) -> SimModel | None:
    value = json.loads(Path(path).read_bytes())
    return None if value is None else from_json(value)


def _write(path: Path, text: str) -> None:
    """Replaces a file: a reader sees the old or the new text."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=str(path.parent), prefix=".")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(name).replace(path)
