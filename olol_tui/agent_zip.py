"""Builds the agent's zipapp: the same bytes on every build.

Inside: `olol_agent/` (the package `olol_tui.agent` under a name of its own), h11 and
pynvml with their licences, and a `__main__.py` that even an ancient Python can parse far
enough to say what it needs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from itertools import takewhile
from pathlib import Path

from olol_tui.errors import NodeError

PACKAGE = "olol_agent"

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Earliest time a zip can hold: build time must not change the bytes."""

_SHEBANG = b"#!/usr/bin/env python3\n"

_MAIN = b"""import sys

if sys.version_info < (3, 8):
    sys.exit("olol-agent needs Python 3.8 or newer, this is " + sys.version.split()[0])

from olol_agent.importer import install

install(sys.path[0])

from olol_agent.__main__ import main

sys.exit(main())
"""

_VENDORED = {"h11": "h11", "pynvml": "nvidia-ml-py"}
"""Import name: distribution that carries it."""

_LICENCE_NAMES = ("license", "licence", "copying", "notice")


def build() -> bytes:
    """The zipapp as bytes.

    Raises:
        NodeError: a part is not installed here.
    """
    entries = {"__main__.py": _MAIN}
    entries.update(_tree(Path(__file__).parent / "agent", PACKAGE))
    for module in _VENDORED:
        entries.update(_vendored(module))
        entries.update(_licences(module))
    buffer = io.BytesIO()
    buffer.write(_SHEBANG)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, entries[name])
    return buffer.getvalue()


def cached(directory: Path) -> Path:
    """The zipapp as a file in `directory`, named by its content; written only when new.

    Raises:
        NodeError: a part is not installed, or the directory cannot be written.
    """
    data = build()
    digest = hashlib.sha256(data).hexdigest()
    path = directory / f"olol-agent-{digest[:16]}.pyz"
    try:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, data)
    except OSError as error:
        raise NodeError(
            f"the agent cannot be written to {directory}: {error.strerror}",
            hint="choose another --state-dir",
        ) from error
    return path


def _write(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".olol-agent-")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o500)
        part.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise


def _tree(root: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(root.rglob("*.py")):
        yield f"{name}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _vendored(module: str) -> Iterator[tuple[str, bytes]]:
    origin = _origin(module)
    if origin.name == "__init__.py":
        yield from _tree(origin.parent, module)
    else:
        yield f"{module}.py", origin.read_bytes()


def _licences(module: str) -> Iterator[tuple[str, bytes]]:
    """Licence files as the wheel ships them, else the notice at the top of the module."""
    distribution = _VENDORED[module]
    count = 0
    for file in metadata.distribution(distribution).files or []:
        if file.name.lower().startswith(_LICENCE_NAMES):
            count += 1
            yield f"licenses/{distribution}/{file.name}", file.read_binary()
    if not count:
        source = _origin(module).read_text(encoding="utf-8").splitlines()
        notice = [line.lstrip("# ") for line in takewhile(lambda x: x.startswith("#"), source)]
        yield f"licenses/{distribution}/LICENSE", ("\n".join(notice).strip() + "\n").encode()


def _origin(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise NodeError(
            f"{module} is not installed, the agent cannot be built",
            hint=f"pip install {_VENDORED[module]}",
        )
    return Path(spec.origin)
