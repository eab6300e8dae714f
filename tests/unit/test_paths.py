"""Where files and sockets lie."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from olol_tui.paths import SOCKET_PATH_MAX_BYTES, Paths, UnsafeDirectory


@pytest.fixture
def xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    runtime = tmp_path / "r"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    for kind in ("CONFIG", "STATE", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    return runtime


def test_by_default_files_are_where_the_system_wants_them(xdg: Path) -> None:
    paths = Paths.resolve()
    assert paths.config_file == xdg.parent / "config/olol-tui/cluster.toml"
    assert paths.state_dir == xdg.parent / "state/olol-tui"
    assert paths.user_themes == xdg.parent / "config/olol-tui/themes"


def test_a_state_directory_holds_everything_but_the_sockets(xdg: Path, tmp_path: Path) -> None:
    state = tmp_path / "mine"
    paths = Paths.resolve(state)
    for path in (paths.config_file, paths.cache_dir, paths.models_dir, paths.log_file):
        assert path.is_relative_to(state)
    assert paths.agent_state("n1").is_relative_to(state)
    assert not paths.control_socket.is_relative_to(state)
    assert Paths.resolve(state, Path("/etc/c.toml")).config_file == Path("/etc/c.toml")


def test_two_state_directories_never_share_a_socket(xdg: Path, tmp_path: Path) -> None:
    one, other = Paths.resolve(tmp_path / "a"), Paths.resolve(tmp_path / "b")
    assert one.control_socket != other.control_socket
    assert one.agent_socket("local") != other.agent_socket("local")
    assert one == Paths.resolve(tmp_path / "b/../a"), "the same directory, however written"


def test_sockets_lie_in_a_directory_of_ours_alone(xdg: Path, tmp_path: Path) -> None:
    paths = Paths.resolve(tmp_path / "s")
    assert stat.S_IMODE(paths.runtime_dir.stat().st_mode) == 0o700
    paths.runtime_dir.chmod(0o755)
    Paths.resolve(tmp_path / "s")
    assert stat.S_IMODE(paths.runtime_dir.stat().st_mode) == 0o700


def test_a_link_in_place_of_the_runtime_directory_is_refused(xdg: Path, tmp_path: Path) -> None:
    paths = Paths.resolve(tmp_path / "s")
    paths.runtime_dir.rmdir()
    (tmp_path / "elsewhere").mkdir()
    paths.runtime_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeDirectory, match="is not a directory of user"):
        Paths.resolve(tmp_path / "s")


def test_socket_paths_fit_into_an_address(
    xdg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = "n" * 64
    paths = Paths.resolve(tmp_path / "s")
    assert len(os.fsencode(paths.agent_socket(node))) < SOCKET_PATH_MAX_BYTES
    assert paths.agent_socket(node) != paths.agent_socket(node + "x")
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    paths = Paths.resolve(tmp_path / "s")
    assert len(os.fsencode(paths.agent_socket("local"))) < SOCKET_PATH_MAX_BYTES
    assert paths.runtime_dir.is_relative_to("/tmp")
    paths.runtime_dir.rmdir()
