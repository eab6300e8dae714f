"""The zipapp on every Python of this machine that it promises to run on."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from olol_tui import agent_zip
from tests.contract.agent_rig import agent

_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def interpreters() -> dict[str, str]:
    """{"3.8": path, …} of what is installed: this one, on PATH, system, pyenv."""
    places = [Path(sys.executable)]
    places += [Path(p) for n in range(4, 20) if (p := shutil.which(f"python3.{n}"))]
    places += sorted(Path("/usr/bin").glob("python3.*"))
    places += [Path("/usr/libexec/platform-python")]
    places += sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python"))
    found: dict[str, str] = {}
    for path in places:
        if not path.is_file() or re.search(r"config|\.so$", path.name):
            continue
        try:
            done = subprocess.run(
                [str(path), "-I", "-c", _VERSION], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), str(path))
    return found


ALL = interpreters()
MODERN = {v: p for v, p in ALL.items() if tuple(map(int, v.split("."))) >= (3, 8)}
OLD = {v: p for v, p in ALL.items() if v not in MODERN}


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_zip.cached(tmp_path_factory.mktemp("zip"))


@pytest.mark.parametrize("version", MODERN)
def test_it_runs(version: str, tmp_path: Path) -> None:
    with agent(tmp_path, python=MODERN[version], simulated={"gpus": 2}) as node:
        hello = node.http.get("/v1/hello").json()
        assert hello["python"].startswith(version)
        assert len(node.http.get("/v1/inventory").json()["devices"]) == 2
        devices = [d["uuid"] for d in node.http.get("/v1/inventory").json()["devices"]]
        spec = {"id": "n/sim", "kind": "simulated", "devices": devices[:1]}
        assert node.put(spec).status_code == 200
        pid = node.until_state("n/sim", "ready")["pid"]
        node.kill()
        node.start()
        assert node.until_state("n/sim", "ready")["pid"] == pid


@pytest.mark.parametrize("version", MODERN)
def test_it_checks_itself(version: str, pyz: Path) -> None:
    argv = [MODERN[version], "-I", "-W", "error", str(pyz), "--selfcheck"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["devices"] >= 1


_COUNTED = """
import collections, runpy, sys
seen = collections.Counter()
sys.addaudithook(lambda event, args: event == "compile" and seen.update([str(args[1])]))
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print({name: count for name, count in seen.items() if "olol_agent/" in name}, file=sys.stderr)
"""


@pytest.mark.parametrize("version", MODERN)
def test_it_compiles_each_module_once(version: str, pyz: Path) -> None:
    argv = [MODERN[version], "-I", "-c", _COUNTED, str(pyz), "--selfcheck"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stderr)
    # The importer itself is loaded by Python's own.
    twice = {Path(name).name for name, count in counts.items() if count > 1}
    assert twice <= {"__init__.py", "importer.py"}
    assert len(counts) > 50


@pytest.mark.parametrize("version", OLD)
def test_an_older_python_is_told_what_is_missing(version: str, pyz: Path) -> None:
    done = subprocess.run([OLD[version], str(pyz), "serve"], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"needs Python 3.8 or newer" in done.stderr


def test_every_build_has_the_same_bytes(pyz: Path, tmp_path: Path) -> None:
    code = "import sys; from olol_tui import agent_zip; sys.stdout.buffer.write(agent_zip.build())"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    ).stdout
    assert other == agent_zip.build() == pyz.read_bytes()


def test_the_cache_is_by_content_and_heals(tmp_path: Path) -> None:
    first = agent_zip.cached(tmp_path / "cache")
    mark = first.stat().st_mtime_ns
    assert agent_zip.cached(tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == mark, "an unchanged file is not written again"
    good = first.read_bytes()
    first.chmod(0o700)
    first.write_bytes(b"cut")
    assert agent_zip.cached(tmp_path / "cache").read_bytes() == good
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_it_carries_licences_and_nothing_of_the_rest(pyz: Path) -> None:
    names = zipfile.ZipFile(pyz).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"__main__.py", "olol_agent", "h11", "pynvml.py", "licenses"}
    for name in ("licenses/h11/LICENSE.txt", "licenses/nvidia-ml-py/LICENSE"):
        assert b"opyright" in zipfile.ZipFile(pyz).read(name)
    sources = [zipfile.ZipFile(pyz).read(n) for n in names if n.startswith("olol_agent/")]
    assert not any(b"import olol_tui" in s or b"from olol_tui" in s for s in sources)
