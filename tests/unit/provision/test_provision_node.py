"""The errands on the node, called directly: paths, archives, units. No agent runs here."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from olol_tui.provision import helper
from olol_tui.provision.node import base, image, place, survey, systemd

ASK = {"directory": ""}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return home


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def file(name: str, data: bytes = b"", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mode = mode
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_what_travels_is_small_and_whole() -> None:
    """The first errand is an argument of a command: Linux takes 128 KiB."""
    for module in ("survey", "place", "service", "remove"):
        line = helper.errand(module, "f", {"directory": "'\"\\ü\n"})
        assert "\n" not in line
        text = helper.program(line, helper.new_mark())
        compile(text, module, "exec")
        assert len(text) < 100_000


@pytest.mark.parametrize(
    "member",
    [
        file("../evil"),
        file("/etc/evil"),
        file("lib/../../evil"),
        link("lib/evil", "../../etc/passwd"),
        link("evil", "/etc/passwd"),
        link("evil", "../outside", tarfile.LNKTYPE),
        link("evil", "", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    path = archive(tmp_path / "a.tgz", file("bin/ollama", b"x", 0o755), member)
    with pytest.raises(base.Trouble, match=r"reaches outside|holds a device"):
        place.unpack(path, "tgz", into)
    assert not (tmp_path / "evil").exists()


def test_links_inside_an_archive_and_modes_are_kept_safe(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    path = archive(
        tmp_path / "a.tgz",
        file("./bin/ollama", b"program", 0o4777),
        file("lib/ollama/libggml.so.1", b"library"),
        link("lib/ollama/libggml.so", "libggml.so.1"),
    )
    place.unpack(path, "tgz", into)
    assert stat.S_IMODE((into / "bin/ollama").stat().st_mode) == 0o700
    assert (into / "lib/ollama/libggml.so").read_bytes() == b"library"


def test_an_upload_that_was_damaged_is_thrown_away(home: Path) -> None:
    ask = {**ASK, "sha256": "a" * 64, "size": 10}
    there = place.prepare(ask)
    Path(there["part"]).write_bytes(b"0123456789")
    install = {**ASK, "part": there["part"], "sha256": "a" * 64, "kind": "tgz", "id": "0" * 16}
    with pytest.raises(base.Trouble, match="damaged on its way") as caught:
        place.install_ollama(install)
    assert caught.value.kind == "damaged"
    assert place.prepare(ask)["size"] == 0


def test_a_part_is_gone_on_with_unless_it_cannot_be_ours(home: Path) -> None:
    ask = {**ASK, "sha256": "b" * 64, "size": 10}
    part = Path(place.prepare(ask)["part"])
    part.write_bytes(b"01234")
    assert place.prepare(ask)["size"] == 5
    part.write_bytes(b"longer than it could be")
    assert place.prepare(ask)["size"] == 0


def test_old_agents_go_but_not_those_in_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = base.Layout("")
    for directory in (layout.bin, layout.state, layout.states / "other"):
        directory.mkdir(parents=True)
    for age in range(8):
        build = layout.bin / f"{age:064x}.pyz"
        build.touch()
        os.utime(build, (1000 - age, 1000 - age))
    # A machine of this home starts from one; an engine runs from another.
    (layout.states / "other/current.pyz").symlink_to(layout.bin / f"{5:064x}.pyz")
    monkeypatch.setattr(image, "running", lambda: f"{6:064x}.pyz\0sim-engine".encode())
    removed = image._collect_builds(layout, keep=layout.bin / f"{0:064x}.pyz")
    assert removed == [f"{age:064x}.pyz" for age in (3, 4, 7)]


def test_the_socket_goes_where_it_survives_the_logout(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    layout = base.Layout("")
    tag = layout.socket_tag
    assert survey.runtime_dir(layout, {}, linger=False) == Path(f"/tmp/olol-{os.getuid()}/{tag}")
    if len(str(runtime)) < 60:
        assert survey.runtime_dir(layout, {}, linger=True) == runtime / "olol-agent" / tag
    runtime.chmod(0o777)
    assert survey.runtime_dir(layout, {}, linger=True) == Path(f"/tmp/olol-{os.getuid()}/{tag}")


def test_a_place_in_tmp_that_others_have_taken_is_not_used(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = base.Layout("")
    monkeypatch.setattr(survey, "_is_private", lambda path: False)
    monkeypatch.setattr(os.path, "lexists", lambda path: True)
    assert survey.runtime_dir(layout, {}, linger=False) == layout.state / "sock"


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "theirs"
    target.mkdir()
    trap = tmp_path / "trap"
    trap.symlink_to(target)
    with pytest.raises(base.Trouble, match="is not a directory of"):
        base.make_private(trap)
    (tmp_path / "open").mkdir(mode=0o755)
    base.make_private(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_the_unit_is_the_same_on_every_machine_of_a_home(home: Path) -> None:
    layout = base.Layout("~/with $dollar and 100%")
    text = systemd.unit_text(layout)
    run = f"{home}/with $$dollar and 100%%/state/%m/run"
    assert f'ExecStart=/bin/sh "{run}"\n' in text
    assert f"ConditionPathExists={run}\n" in text
    assert "KillMode=process\n" in text
    assert "Delegate=yes\n" in text
    assert layout.machine_id not in text


@pytest.mark.parametrize(
    ("text", "kills"),
    [
        ("[Login]\n#KillUserProcesses=no\n", False),
        ("[Login]\nKillUserProcesses=yes\n", True),
        ("[Login]\nKillUserProcesses=yes\nKillUserProcesses = no\n", False),
    ],
)
def test_logind_that_ends_what_a_session_leaves_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kills: bool
) -> None:
    conf = tmp_path / "logind.conf"
    conf.write_text(text)
    monkeypatch.setattr(survey, "_logind_files", lambda: iter([conf]))
    assert survey._kills_user_processes() is kills


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("ollama version is 0.12.3\n", "0.12.3"),
        ("Warning: could not connect\nWarning: client version is 0.12.3\n", "0.12.3"),
        ("ollama version is 0.11.0\nWarning: client version is 0.12.3\n", "0.12.3"),
        ("segmentation fault\n", ""),
    ],
)
def test_an_ollama_tells_its_own_version_whatever_server_runs(said: str, version: str) -> None:
    assert base.ollama_version(said) == version


def test_directories_that_were_made_are_remembered_once(home: Path) -> None:
    layout = base.Layout("~/a/b/c")
    base.make_base(layout)
    base.make_base(layout)
    assert base.made_directories(layout) == [str(home / "a"), str(home / "a/b")]
