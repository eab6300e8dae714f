"""Fuzz one target with atheris, which is not among the requirements: `pip install atheris`.

    python -m tests.fuzz.run http /tmp/found -max_total_time=600     # libFuzzer's own options

New inputs are kept in the directory. `python -m tests.fuzz.run --pack http /tmp/found` then
writes those of them that reach something new into the corpus, which every test run replays.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """The corpus of a target: a bytes literal a line."""
    import ast

    file = CORPUS / f"{target}.txt"
    return [ast.literal_eval(line) for line in file.read_text().splitlines() if line]


def pack(target: str, found: Path) -> None:
    """The smallest set that reaches what corpus and findings reach."""
    with tempfile.TemporaryDirectory() as merged, tempfile.TemporaryDirectory() as known:
        unpack(target, Path(known))
        command = [sys.executable, "-m", "tests.fuzz.run", target, merged, known, str(found)]
        subprocess.run([*command, "-merge=1"], check=True)
        inputs = sorted({file.read_bytes() for file in Path(merged).iterdir()}, key=_order)
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{target}.txt").write_text("".join(f"{one!r}\n" for one in inputs))
    print(f"{target}: {len(inputs)} inputs")


def unpack(target: str, directory: Path) -> None:
    for number, one in enumerate(load(target)):
        (directory / str(number)).write_bytes(one)


def _order(one: bytes) -> tuple[int, bytes]:
    return len(one), one


def fuzz(target: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["olol_tui", "h11"]):
        from tests.fuzz.targets import TARGETS

    function = TARGETS[target]

    def one(data: bytes) -> None:
        if data:
            function(data)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "--pack":
        pack(sys.argv[2], Path(sys.argv[3]))
    else:
        fuzz(sys.argv[1], sys.argv[2:])
