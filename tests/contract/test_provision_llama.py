"""llama.cpp brought to a node for splits: out of the operator's archive, without root."""

from __future__ import annotations

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
from tests.contract.llama_archives import HEAD, OTHER_MACHINE, VERSION, WORKER, digest, pack
from tests.contract.llama_archives import programs as held
from tests.contract.provision_rig import AgentCalls, Told, agent_file, job, wishes
from tests.contract.sshd_host import SshdHost, needs_sshd, sshd_host

pytestmark = [
    needs_sshd,
    pytest.mark.skipif(shutil.which("llama-server") is not None, reason="one is on PATH here"),
]

NAME = "llama-b11434.tgz"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshdHost]:
    with sshd_host(tmp_path / "h1") as host:
        yield host


def run(host: SshdHost, place: Path, wanted: LlamaWanted, told: Told | None = None) -> Provisioning:
    what = wishes(agent_file(place), simulated=None, engine="llama-server", llama=wanted)
    return Provisioning(job(host.shell, what), Archives(place / "cache"), told or Told())


def the_step(report: Report) -> StepResult:
    return next(one for one in report.steps if one.name == "llama")


@pytest.mark.parametrize(
    ("top", "worker"),
    [
        ("build/bin", ""),
        ("llama-b11434", "rpc-server"),
        (".", ""),
        ("bin", ""),
    ],
)
async def test_it_is_installed_found_by_the_agent_and_not_twice(
    host: SshdHost, tmp_path: Path, top: str, worker: str
) -> None:
    archive = pack(tmp_path / "dist", NAME, held(top, name=worker))
    wanted = LlamaWanted(archive=archive)
    plan = (await run(host, tmp_path, wanted).run(dry_run=True)).plan
    assert plan is not None and plan["llama"].text.startswith(f"install {NAME} into ")
    report = await run(host, tmp_path, wanted).run()
    assert report.ok, report.failure
    assert f"llama.cpp {VERSION} installed" in the_step(report).message
    base = host.home / ".local/share/olol-agent"
    assert not list(base.rglob("*.part"))
    with AgentCalls(report.socket) as agent:
        found = agent.http.get("/v1/inventory").json()["engines"]
    assert found["llama-server"]["version"] == VERSION
    assert Path(found["rpc-server"]["path"]).name == "ggml-rpc-server"
    assert base in Path(found["rpc-server"]["path"]).resolve().parents

    again = await run(host, tmp_path, wanted).run()
    assert again.ok and not again.changed, again.steps
    assert the_step(again).message.startswith(f"llama.cpp ({VERSION}) at ")
    off = Provisioning(run(host, tmp_path, wanted).job, Archives(tmp_path), order=UNINSTALL_STEPS)
    assert (await off.run()).ok
    assert not base.exists()


async def test_a_hash_of_the_configuration_stands_for_the_list(
    host: SshdHost, tmp_path: Path
) -> None:
    archive = pack(tmp_path / "dist", NAME, held(), sums=False)
    report = await run(host, tmp_path, LlamaWanted(archive=archive)).run()
    assert report.failure is not None and "sha256sum.txt" in report.failure.message
    assert "llama_sha256" in report.failure.hint
    wrong = LlamaWanted(archive=archive, sha256="0" * 64)
    report = await run(host, tmp_path, wrong).run()
    assert report.failure is not None
    assert "is not what its checksum says" in report.failure.message
    report = await run(host, tmp_path, LlamaWanted(archive=archive, sha256=digest(archive))).run()
    assert report.ok, report.failure


@pytest.mark.parametrize(
    ("files", "why", "hint"),
    [
        (held(worker=None), "has llama-server and no ggml-rpc-server", "-DGGML_RPC=ON"),
        ({"bin/llama-cli": HEAD}, "the archive has no llama-server", "Pack llama.cpp's build/bin"),
        (held(head=OTHER_MACHINE), f"this llama-server is not for {os.uname().machine}", "{arch}"),
        (held(worker=OTHER_MACHINE), "this ggml-rpc-server is not for", "{arch}"),
        (
            held(head=HEAD.replace(b"11434", b"11000")),
            "expected build 11434 of llama.cpp, this llama-server is 0.6.0-dev (build 11000",
            "one build",
        ),
        (
            held(head=b"#!/bin/sh\necho 'error while loading shared libraries: libx.so'\nexit 127"),
            "llama-server misses a library there",
            ".so files",
        ),
        (held(worker=b"#!/bin/sh\nkill -ILL $$\n"), "instructions that this", "GGML_NATIVE=OFF"),
    ],
)
async def test_what_cannot_run_there_is_named_and_not_installed(
    host: SshdHost, tmp_path: Path, files: dict[str, bytes], why: str, hint: str
) -> None:
    archive = pack(tmp_path / "dist", NAME, files)
    report = await run(host, tmp_path, LlamaWanted(archive=archive)).run()
    assert report.failure is not None and report.failure.name == "llama"
    assert why in report.failure.message and hint in report.failure.hint, report.failure
    base = host.home / ".local/share/olol-agent"
    assert [p.name for p in (base / "engines").iterdir() if not p.name.endswith(".part")] == []
    assert not list(base.glob("state/*/llama"))


async def test_another_archive_takes_the_place_of_ours_and_comes_back_without_an_upload(
    host: SshdHost, tmp_path: Path
) -> None:
    old = LlamaWanted(archive=pack(tmp_path / "old", NAME, held()))
    new_head = HEAD.replace(b"11434", b"11500")
    new = LlamaWanted(archive=pack(tmp_path / "new", "llama-b11500.tgz", held(head=new_head)))
    assert (await run(host, tmp_path, old).run()).ok
    base = host.home / ".local/share/olol-agent"
    (first,) = base.glob("engines/llama-*")
    dry = await run(host, tmp_path, new).run(dry_run=True)
    assert dry.plan is not None and f"in place of {VERSION}" in dry.plan["llama"].text
    report = await run(host, tmp_path, new).run()
    assert report.ok, report.failure
    (second,) = base.glob("engines/llama-*")
    assert second != first, "nothing runs from the first any more"
    # Another machine of this home points at it: then it is not sent again.
    other = base / "state" / "another-machine"
    other.mkdir()
    (other / "llama").symlink_to(f"../../engines/{second.name}")
    assert (await run(host, tmp_path, old).run()).ok
    told = Told()
    report = await run(host, tmp_path, new, told).run()
    assert report.ok, report.failure
    assert "it lay there already" in the_step(report).message
    assert not any(one.progress for one in told.steps if one.name == "llama")


async def test_an_upload_that_is_cut_off_goes_on_where_it_was(
    host: SshdHost, tmp_path: Path
) -> None:
    files = {**held(), "build/bin/libllama.so": os.urandom(16 * 2**20)}
    wanted = LlamaWanted(archive=pack(tmp_path / "dist", NAME, files))
    cuts = [0.4]

    def react(one: StepResult) -> None:
        if one.name == "llama" and one.progress and cuts and one.progress > cuts[0]:
            cuts.clear()
            host.cut()

    one = run(host, tmp_path, wanted, Told(react))
    first = await one.run()
    assert first.failure is not None and first.failure.name == "llama"
    told = one.told = Told()
    second = await one.run()
    assert second.ok, second.failure
    progress = [s.progress for s in told.steps if s.name == "llama" and s.progress is not None]
    assert 0.2 < progress[0] < 1.0, "what was there was sent again"


async def test_what_is_missing_is_said_with_the_three_ways_to_mend_it(
    host: SshdHost, tmp_path: Path
) -> None:
    report = await run(host, tmp_path, LlamaWanted()).run()
    assert report.ok
    step = the_step(report)
    assert (step.state, step.message) == ("skipped", "no llama.cpp there, which splits need")
    for way in ("llama_server", "llama_archive", "llama_build = true"):
        assert way in step.hint


async def test_one_that_is_there_already_is_left_and_one_of_another_build_goes_after_ours(
    tmp_path: Path,
) -> None:
    theirs = tmp_path / "their-bin"
    theirs.mkdir()
    for name, text in (("llama-server", HEAD), ("ggml-rpc-server", WORKER)):
        (theirs / name).write_bytes(text)
        (theirs / name).chmod(0o755)
    with sshd_host(tmp_path / "h1", path=f"{theirs}:/usr/bin:/bin") as host:
        found = await run(host, tmp_path, LlamaWanted()).run()
        assert the_step(found).message == f"llama.cpp ({VERSION}) at {theirs}"
        same = LlamaWanted(archive=pack(tmp_path / "same", NAME, held()))
        kept = await run(host, tmp_path, same).run()
        assert the_step(kept).message.endswith("build 11434 already")
        newer = held(head=HEAD.replace(b"11434", b"11500"))
        other = LlamaWanted(archive=pack(tmp_path / "other", "llama-b11500.tgz", newer))
        report = await run(host, tmp_path, other).run()
        assert report.plan is not None
        assert f"it goes before {theirs}/llama-server, which stays" in report.plan["llama"].text
        assert report.ok, report.failure
        with AgentCalls(report.socket) as agent:
            engines = agent.http.get("/v1/inventory").json()["engines"]
        assert "(build 11500" in engines["llama-server"]["version"]
        assert (theirs / "llama-server").exists()
