"""Changes to `cluster.toml` by the program: comments and order stay, nothing invalid is written.

The new text is parsed and validated before it replaces the file, in one step.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from olol_tui.config.load import load, parse
from olol_tui.config.schema import ClusterConfig
from olol_tui.errors import ConfigError
from olol_tui.files import write_atomic

_NEW_FILE_MODE = 0o600
"""It may come to hold secrets."""


def add_nodes(path: Path, nodes: Mapping[str, Mapping[str, Any]]) -> ClusterConfig:
    """Write a table `[nodes.NAME]` for each node; returns the configuration as it is then.

    Raises:
        ConfigError: the file is not valid, a name is taken, or the result would not be valid;
            nothing was changed.
    """
    with _editing(path) as edit:
        taken = [name for name in nodes if name in edit.table("nodes")]
        if taken:
            raise ConfigError(
                f"{path} already has the node {taken[0]}",
                hint=f"Give another name: --name NAME. Or first: olol-tui node remove {taken[0]}",
            )
        for name, fields in nodes.items():
            edit.put("nodes", name, fields)
        return edit.write()


def remove_nodes(path: Path, names: list[str]) -> ClusterConfig:
    """Take `[nodes.NAME]` out, with what is in it.

    Raises:
        ConfigError: there is no such node; nothing was changed.
    """
    with _editing(path) as edit:
        for name in names:
            if name not in edit.table("nodes"):
                raise ConfigError(f"{path} has no node {name}", hint="See: olol-tui node list")
            edit.drop("nodes", name)
        return edit.write()


def set_roles(path: Path, node: str, roles: Mapping[str, str]) -> ClusterConfig:
    """Write what GPUs of a node are for, by index or UUID; "" takes an entry out.

    Raises:
        ConfigError: as above.
    """
    with _editing(path) as edit:
        table = edit.table("nodes").get(node)
        if table is None:
            raise ConfigError(f"{path} has no node {node}", hint="See: olol-tui node list")
        found = table.setdefault("roles", tomlkit.table())
        for device, role in roles.items():
            if role:
                found[device] = role
            else:
                found.pop(device, None)
        if not found:
            del table["roles"]
        return edit.write()


class _Edit:
    """A file's text as a document, until it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # It says what is wrong by line and field, which tomlkit does not.
        load(path)
        self._text = path.read_text("utf-8-sig") if path.exists() else ""
        try:
            self._document = tomlkit.parse(self._text)
        except TOMLKitError as error:
            raise ConfigError(f"{path} cannot be edited: {error}") from error

    def table(self, name: str) -> Any:
        return self._document.get(name, {})

    def put(self, name: str, key: str, fields: Mapping[str, Any]) -> None:
        if name not in self._document:
            self._document[name] = tomlkit.table(is_super_table=True)
        parent: Any = self._document[name]
        is_inline = isinstance(parent, InlineTable)
        new: Any = tomlkit.inline_table() if is_inline else tomlkit.table()
        for field, value in fields.items():
            new[field] = _item(value)
        if not is_inline:
            new.add(tomlkit.nl())
        parent[key] = new

    def drop(self, name: str, key: str) -> None:
        del self._document[name][key]
        if not self._document[name]:
            del self._document[name]

    def write(self) -> ClusterConfig:
        text = tomlkit.dumps(self._document).strip("\n")
        content = (text + "\n").encode() if text else b""
        try:
            config = parse(content, self._path)
        except ConfigError as error:
            raise ConfigError(f"this would not be valid: {error.message}") from error
        try:
            # The file may be a link into somebody's collection of dotfiles.
            real = self._path.resolve()
            mode = stat.S_IMODE(real.stat().st_mode) if real.exists() else _NEW_FILE_MODE
            write_atomic(real, content, mode)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return config


def _item(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    table = tomlkit.inline_table()
    table.update(value)
    return table


@contextmanager
def _editing(path: Path) -> Iterator[_Edit]:
    """One editor at a time, by a lock on the directory: no file is left for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _Edit(path)
    finally:
        os.close(lock)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror or error}", hint=f"Look at it: ls -l {path}"
    )
