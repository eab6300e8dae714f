"""cluster.toml changed by the program: what the user wrote stays as it was."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from olol_tui.config.edit import add_nodes, remove_nodes, set_roles
from olol_tui.errors import ConfigError

MINE = """\
# my cluster
name = "lab"   # of mine

[nodes.a]
local = true  # this one

[gateway]
port = 8001
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "etc" / "cluster.toml"
    file.parent.mkdir()
    file.write_text(MINE)
    return file


def test_a_node_is_added_between_what_is_there(path: Path) -> None:
    config = add_nodes(path, {"h1": {"host": "gpu1.lan", "user": "ops"}})
    assert config.nodes["h1"].host == "gpu1.lan"
    assert path.read_text() == MINE.replace(
        "[gateway]", '[nodes.h1]\nhost = "gpu1.lan"\nuser = "ops"\n\n[gateway]'
    )


def test_names_with_dots_and_simulated_devices(path: Path) -> None:
    fields = {"host": "10.0.0.12", "simulated": {"gpus": 8, "vram": "24GiB"}}
    config = add_nodes(path, {"10.0.0.12": fields, "h2": {"host": "h2"}})
    assert config.nodes["10.0.0.12"].engine == "simulated"
    assert '[nodes."10.0.0.12"]' in path.read_text()
    assert 'simulated = {gpus = 8, vram = "24GiB"}' in path.read_text()


def test_a_file_that_is_not_there_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cluster.toml"
    add_nodes(path, {"h1": {"host": "h1"}})
    assert path.read_text() == '[nodes.h1]\nhost = "h1"\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "nodes = { a = { local = true } }\n",
        "nodes.a.local = true\n[gateway]\nport = 1\n",
        "[nodes]\n# none yet\n[gateway]\nport = 1",
        "[nodes.a]\nlocal = true\n[gateway]\nport = 1\n[nodes.b]\nhost = 'b'\n",
        "",
    ],
)
def test_whatever_way_the_nodes_are_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    assert add_nodes(path, {"h1": {"host": "x"}}).nodes["h1"].host == "x"
    assert "h1" not in remove_nodes(path, ["h1"]).nodes


def test_a_node_is_taken_out_with_its_roles(path: Path) -> None:
    add_nodes(path, {"h1": {"host": "h1"}})
    set_roles(path, "h1", {"1": "rpc", "2": "off"})
    assert set_roles(path, "h1", {"1": ""}).nodes["h1"].roles == {"2": "off"}
    assert "[nodes.h1.roles]\n2 = " in path.read_text()
    remove_nodes(path, ["h1"])
    assert path.read_text() == MINE
    add_nodes(path, {"h1": {"host": "h1"}})
    assert set_roles(path, "h1", {"0": ""}).nodes["h1"].roles == {}
    assert "roles" not in path.read_text()


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ({"a": {"host": "h"}}, "already has the node a"),
        ({"Big Name": {"host": "h"}}, "expected a name of lower-case letters"),
        ({"h1": {"host": "h", "port": 0}}, "nodes.h1.port: expected 1 or more"),
    ],
)
def test_what_would_not_be_valid_is_not_written(
    path: Path, nodes: dict[str, dict[str, object]], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        add_nodes(path, nodes)
    assert path.read_text() == MINE


def test_a_broken_file_is_not_touched(path: Path) -> None:
    path.write_text("[nodes.a\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        add_nodes(path, {"h1": {"host": "h1"}})
    assert path.read_text() == "[nodes.a\n"


def test_a_link_stays_a_link_and_the_mode_stays(path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "cluster.toml"
    link.symlink_to(path)
    add_nodes(link, {"h1": {"host": "h1"}})
    assert link.is_symlink()
    assert "[nodes.h1]" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_node_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(ConfigError, match="has no node h9"):
        remove_nodes(path, ["h9"])
    with pytest.raises(ConfigError, match="has no node h9"):
        set_roles(path, "h9", {"0": "off"})
