"""Nodes over SSH as they age: another release of their engine, a clock that goes wrong."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from olol_tui import agent_zip
from olol_tui.config import ClusterConfig, EnginesConfig
from olol_tui.fleet.commands import Place, Provision, TrustHostKey
from olol_tui.fleet.engine_client import EngineClient
from olol_tui.routing.roster import way_to
from olol_tui.ssh.http import DialTransport
from tests.contract.agent_rig import FAKE_OLLAMA
from tests.contract.fleet_rig import rig
from tests.contract.ssh_rig import Sshd, needs_sshd
from tests.contract.test_fleet_over_ssh import (
    STATE,
    fleet_of,
    is_up,
    node_config,
    provisioned,
    sshd_with_a_node,
    uninstalled,
)

pytestmark = needs_sshd


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd_with_a_node(tmp_path) as running:
        yield running


def ollama_release(folder: Path, version: str) -> str:
    """An archive with a server that says this version."""
    program = FAKE_OLLAMA.format(python=sys.executable).replace("0.99.1", version)
    head, rest = program.split("\n", 1)
    told = f"import sys\nif '--version' in sys.argv: sys.exit(print('ollama version is {version}'))"
    data = f"{head}\n{told}\n{rest}".encode()
    folder.mkdir()
    path = folder / "ollama.tgz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("bin/ollama")
        info.size, info.mode = len(data), 0o755
        tar.addfile(info, io.BytesIO(data))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "sha256sum.txt").write_text(f"{digest}  ollama.tgz\n")
    return str(path)


@pytest.mark.skipif(shutil.which("ollama") is not None, reason="an Ollama is installed here")
async def test_engines_follow_a_newer_archive_one_by_one(server: Sshd, tmp_path: Path) -> None:
    node = node_config(server, tmp_path).model_copy(update={"simulated": None, "engine": "ollama"})
    for version in ("0.12.3", "0.13.0"):
        archive = ollama_release(tmp_path / version, version)
        cluster = ClusterConfig(nodes={"h1": node}, engines=EnginesConfig(ollama_archive=archive))
        async with rig(tmp_path / STATE, cluster, keep=True) as fleet:
            if version == "0.12.3":
                asked = await fleet.until(lambda f: f.nodes[0].question)
                assert asked.nodes[0].question is not None
                await fleet.do(TrustHostKey("h1", asked.nodes[0].question.fingerprint))
                await fleet.do(Provision("h1"))
                await fleet.ready()
                before = fleet.node("h1").engines
                continue
            await fleet.ready()
            # Only a human's word changes an engine.
            assert [e.pid for e in fleet.node("h1").engines] == [e.pid for e in before]
            done = await fleet.do(Provision("h1"))
            assert "changed: engine" in done.message
            now = fleet.node("h1").engines
            assert [e.version for e in now] == ["0.13.0"] * len(before)
            assert not {e.pid for e in now} & {e.pid for e in before}
            steps = {step.name: step for step in fleet.node("h1").steps}
            assert "Ollama 0.12.3 → 0.13.0" in steps["engine"].message
            assert now[0].id in steps["engines"].message
            assert len(list((tmp_path / "node/engines").glob("ollama-*"))) == 1, "the old one went"
            again = await fleet.do(Provision("h1"))
            assert "nothing had to be changed" in again.message
            await uninstalled(fleet)


async def test_a_clock_that_is_a_day_off_breaks_nothing(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of ours on the node reads a clock that is a day ahead."""
    skewed = b"import time\nreal = time.time\ntime.time = lambda: real() + 86400.0\n"
    monkeypatch.setattr(agent_zip, "_MAIN", skewed + agent_zip._MAIN)
    async with fleet_of(server, tmp_path) as fleet:
        await provisioned(fleet)
        node = fleet.node("h1")
        assert abs(node.clock_ahead_s - 86400) < 60
        assert node.age_s < 5 and not node.stale
        await fleet.do(Place("qwen3:8b", "h1", "gpu0"))
        await fleet.until(lambda f: any(e.loaded for e in f.nodes[0].engines))
        engine = next(e for e in fleet.node("h1").engines if e.loaded)
        address = way_to(fleet.node("h1"), engine)
        async with EngineClient(
            DialTransport(fleet.controller.dial, address), "http://engine", engine.id
        ) as client:
            (there,) = await client.ps()
        shown = engine.loaded[0].expires_at
        assert there.expires_at
        off = datetime.fromisoformat(there.expires_at) - datetime.fromisoformat(shown)
        assert abs(off - timedelta(days=1)) < timedelta(minutes=1)
        left = datetime.fromisoformat(shown) - datetime.now(UTC)
        assert timedelta() < left < timedelta(hours=1)
        # Leases do not care: another console is kept away, and ours goes on after a restart.
        async with fleet_of(server, tmp_path, "other") as second:
            asked = await second.until(lambda f: f.nodes[0].question)
            assert asked.nodes[0].question is not None
            await second.do(TrustHostKey("h1", asked.nodes[0].question.fingerprint))
            seen = await second.until(lambda f: f.nodes[0].managed_by)
            since = seen.nodes[0].managed_by.rpartition(" since ")[2]
            assert len(since) == len("12:03"), "of today"
    async with fleet_of(server, tmp_path) as fleet:
        await fleet.until(lambda f: is_up(f.node("h1")))
        assert not fleet.node("h1").managed_by
        again = await fleet.do(Provision("h1"))
        assert "nothing had to be changed" in again.message
        await uninstalled(fleet)
