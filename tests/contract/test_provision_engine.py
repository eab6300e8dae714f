"""Ollama brought to a node that has none: from the console's archive, without root."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from olol_tui.provision import facts
from olol_tui.provision.archive import Archives
from olol_tui.provision.helper import Helper
from olol_tui.provision.runner import Provisioning
from olol_tui.provision.steps import StepResult, Wishes
from tests.contract.provision_rig import AgentCalls, Told, agent_file, job, wishes
from tests.contract.sshd_host import SshdHost, needs_sshd, sshd_host

pytestmark = [
    needs_sshd,
    pytest.mark.skipif(shutil.which("ollama") is not None, reason="an Ollama is installed here"),
]

OLLAMA = b"#!/bin/sh\necho 'Warning: could not connect'\necho ollama version is 0.12.3\n"


def release(folder: Path, name: str, program: bytes = OLLAMA, ballast: int = 0) -> str:
    """An archive like Ollama's, with its checksum beside it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data, mode in (
            ("./bin/ollama", program, 0o755),
            ("./lib/ollama/libggml.so.1", os.urandom(ballast), 0o644),
        ):
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    packer = ["zstd", "-qc"] if name.endswith("zst") else ["gzip", "-1c"]
    data = subprocess.run(packer, input=buffer.getvalue(), capture_output=True, check=True).stdout
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    (folder / "sha256sum.txt").write_text(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    return str(folder / name)


def wanting(tmp_path: Path, archive: str) -> Wishes:
    return wishes(agent_file(tmp_path), simulated=None, archive=archive)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshdHost]:
    with sshd_host(tmp_path / "h1") as host:
        yield host


def step(report_steps: tuple[StepResult, ...], name: str) -> StepResult:
    return next(one for one in report_steps if one.name == name)


@pytest.mark.parametrize("name", ["ollama-linux-{arch}.tgz", "ollama-linux-{arch}.tar.zst"])
async def test_it_is_installed_found_by_the_agent_and_not_twice(
    host: SshdHost, tmp_path: Path, name: str
) -> None:
    if name.endswith("zst") and shutil.which("zstd") is None:
        pytest.skip("needs zstd")
    arch = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    release(tmp_path / "dist", name.replace("{arch}", arch))
    what = wanting(tmp_path, str(tmp_path / "dist" / name))
    report = await Provisioning(job(host.shell, what), Archives(tmp_path)).run()
    assert report.ok, report.failure
    assert "Ollama 0.12.3 installed" in step(report.steps, "engine").message
    base = host.home / ".local/share/olol-agent"
    assert not list(base.rglob("*.part"))
    (program,) = base.glob("engines/ollama-*/bin/ollama")
    with AgentCalls(report.socket) as agent:
        found = agent.http.get("/v1/inventory").json()["engines"]["ollama"]
    assert found["version"] == "0.12.3"
    assert Path(found["path"]).resolve() == program.resolve()

    again = await Provisioning(job(host.shell, what), Archives(tmp_path)).run()
    assert again.ok
    assert not again.changed
    assert "Ollama (0.12.3) at" in step(again.steps, "engine").message


async def test_an_engine_that_comes_later_is_found_without_a_restart(
    host: SshdHost, tmp_path: Path
) -> None:
    without = await Provisioning(job(host.shell, wanting(tmp_path, "")), Archives(tmp_path)).run()
    assert without.ok, without.failure
    what = wanting(tmp_path, release(tmp_path / "dist", "ollama.tgz"))
    report = await Provisioning(job(host.shell, what), Archives(tmp_path)).run()
    assert report.ok, report.failure
    assert (report.pid, step(report.steps, "service").state) == (without.pid, "unchanged")
    with AgentCalls(report.socket) as agent:
        assert agent.http.get("/v1/inventory").json()["engines"]["ollama"] is not None


@pytest.mark.parametrize("settings", ["Subsystem none", "Subsystem sftp /bin/false"])
async def test_without_sftp_the_engine_goes_through_a_session(
    tmp_path: Path, settings: str
) -> None:
    with sshd_host(tmp_path / "h1", settings=f"{settings}\nMaxSessions 1") as host:
        path = release(tmp_path / "dist", "ollama.tgz", ballast=6 * 2**20)
        run = Provisioning(job(host.shell, wanting(tmp_path, path)), Archives(tmp_path))
        report = await run.run()
        assert report.ok, report.failure
        assert "by cat" in step(report.steps, "engine").message


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
async def test_a_node_without_zstd_gets_the_archive_packed_anew(
    host: SshdHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = facts.survey

    async def without(helper: Helper, directory: str) -> facts.Facts:
        found = await real(helper, directory)
        return replace(found, tools=found.tools - {"zstd"})

    monkeypatch.setattr(facts, "survey", without)
    what = wanting(tmp_path, release(tmp_path / "dist", "ollama.tar.zst"))
    report = await Provisioning(job(host.shell, what), Archives(tmp_path / "cache")).run()
    assert report.ok, report.failure
    assert any("packed anew" in line for line in step(report.steps, "engine").log)


async def test_an_upload_that_is_cut_off_goes_on_where_it_was(
    host: SshdHost, tmp_path: Path
) -> None:
    path = release(tmp_path / "dist", "ollama.tgz", ballast=16 * 2**20)
    cuts = [0.4]

    def react(one: StepResult) -> None:
        if one.name == "engine" and one.progress and cuts and one.progress > cuts[0]:
            cuts.clear()
            host.cut()

    run = Provisioning(job(host.shell, wanting(tmp_path, path)), Archives(tmp_path), Told(react))
    first = await run.run()
    assert first.failure is not None
    assert first.failure.name == "engine"
    assert "SSH" in first.failure.message, first.failure
    told = Told()
    run.told = told
    second = await run.run()
    assert second.ok, second.failure
    progress = [s.progress for s in told.steps if s.name == "engine" and s.progress is not None]
    assert 0.2 < progress[0] < 1.0, "what was there was sent again"
    assert step(second.steps, "agent") == step(first.steps, "agent"), "it was done before"


async def test_a_run_that_is_cancelled_leaves_what_the_next_one_goes_on_from(
    host: SshdHost, tmp_path: Path
) -> None:
    path = release(tmp_path / "dist", "ollama.tgz", ballast=16 * 2**20)
    half_way = asyncio.Event()
    told = Told(lambda one: half_way.set() if (one.progress or 0) > 0.4 else None)
    run = Provisioning(job(host.shell, wanting(tmp_path, path)), Archives(tmp_path), told)
    task = asyncio.create_task(run.run())
    # The agent's own upload is small and counts up to 1.0 before.
    await half_way.wait()
    while not any(s.name == "engine" and (s.progress or 0) > 0.2 for s in told.steps):
        half_way.clear()
        await half_way.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert step(run.results, "engine").state == "cancelled"
    report = await run.run()
    assert report.ok, report.failure


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"\x7fELF not for this machine", "this ollama is not for"),
        (b"#!/bin/sh\necho cannot load libstdc++ >&2\nexit 3\n", "cannot load libstdc"),
    ],
)
async def test_an_engine_that_does_not_run_there_is_not_installed(
    host: SshdHost, tmp_path: Path, program: bytes, why: str
) -> None:
    path = release(tmp_path / "dist", "ollama.tgz", program)
    report = await Provisioning(job(host.shell, wanting(tmp_path, path)), Archives(tmp_path)).run()
    assert report.failure is not None
    assert report.failure.name == "engine"
    assert why in report.failure.message
    engines = host.home / ".local/share/olol-agent/engines"
    assert [p.name for p in engines.iterdir() if not p.name.endswith(".part")] == []


async def test_another_release_takes_the_place_of_ours_and_the_old_one_goes(
    host: SshdHost, tmp_path: Path
) -> None:
    old = wanting(tmp_path, release(tmp_path / "0.12.3", "ollama.tgz"))
    report = await Provisioning(job(host.shell, old), Archives(tmp_path)).run()
    assert report.ok, report.failure
    newer = release(tmp_path / "0.13.0", "ollama.tgz", OLLAMA.replace(b"0.12.3", b"0.13.0"))
    new = Provisioning(job(host.shell, wanting(tmp_path, newer)), Archives(tmp_path))
    plan = (await new.run(dry_run=True)).plan
    assert plan is not None
    assert plan["engine"].text.startswith("upgrade Ollama 0.12.3 → 0.13.0 in ")
    report = await new.run()
    assert report.ok, report.failure
    assert step(report.steps, "engine").message.startswith("Ollama 0.12.3 → 0.13.0, engines")
    assert report.ollama is not None
    assert report.ollama.version == "0.13.0"
    base = host.home / ".local/share/olol-agent"
    (release_now,) = base.glob("engines/ollama-*")
    assert b"0.13.0" in (release_now / "bin/ollama").read_bytes()
    again = await Provisioning(job(host.shell, wanting(tmp_path, newer)), Archives(tmp_path)).run()
    assert again.ok
    assert not again.changed
    # A mirror that is away is no reason to fail over an Ollama that works.
    shutil.rmtree(tmp_path / "0.13.0")
    away = await Provisioning(job(host.shell, wanting(tmp_path, newer)), Archives(tmp_path)).run()
    assert away.ok
    assert not away.changed
    assert "is not known" in step(away.steps, "facts").log[0]


async def test_an_ollama_that_is_not_ours_is_left_as_it_is(tmp_path: Path) -> None:
    theirs = tmp_path / "their-bin" / "ollama"
    theirs.parent.mkdir()
    theirs.write_bytes(OLLAMA.replace(b"0.12.3", b"0.9.0"))
    theirs.chmod(0o755)
    with sshd_host(tmp_path / "h1", path=f"{theirs.parent}:/usr/bin:/bin") as host:
        what = wanting(tmp_path, release(tmp_path / "0.13.0", "ollama.tgz"))
        report = await Provisioning(job(host.shell, what), Archives(tmp_path)).run()
        assert report.ok, report.failure
        assert step(report.steps, "engine").message == f"Ollama (0.9.0) at {theirs}"
        assert not (host.home / ".local/share/olol-agent/engines").exists()
