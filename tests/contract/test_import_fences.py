"""Who may import whom, seen in the processes themselves.

import-linter checks the contracts of pyproject.toml on the source; these tests see what a
process has really loaded, through whatever road.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.serve_rig import Instance

ROOT = Path(__file__).parents[2]
DUMP = """
import atexit, json, os, sys

@atexit.register
def _dump():
    with open(os.environ["OLOL_TEST_MODULES"], "w") as out:
        json.dump(sorted(sys.modules), out)
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """An instance whose processes write down what they had imported when they ended."""
    one = Instance(tmp_path / "state")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(DUMP)
    one.env |= {
        "PYTHONPATH": f"{site}:{ROOT}",
        "OLOL_TEST_MODULES": str(tmp_path / "modules.json"),
    }
    yield one
    one.close()


def loaded(tmp_path: Path) -> set[str]:
    return set(json.loads((tmp_path / "modules.json").read_text()))


def test_serve_draws_nothing(instance: Instance, tmp_path: Path) -> None:
    instance.serve()
    assert instance.run("status").returncode == 0
    assert instance.end() == 0
    modules = loaded(tmp_path)
    assert "olol_tui.gateway.gateway" in modules, "this is the list of the core"
    assert not {"textual", "rich", "click", "olol_tui.console"} & modules


def test_serve_on_hardware_draws_nothing(instance: Instance, tmp_path: Path) -> None:
    """The agent may import what it wants in its own process; the core must not follow."""
    (instance.state_dir / "cluster.toml").write_text("")
    instance.serve()
    assert instance.end() == 0
    assert not {"textual", "rich", "xllamacpp", "pynvml"} & loaded(tmp_path)


def test_status_loads_little(instance: Instance, tmp_path: Path) -> None:
    instance.serve()
    assert instance.run("status").returncode == 0
    heavy = {"textual", "rich", "pydantic", "asyncssh", "uvloop", "olol_tui.core"}
    assert not heavy & loaded(tmp_path)


def test_the_contracts_of_pyproject_are_kept() -> None:
    lint = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if lint is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
