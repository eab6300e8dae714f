"""Fuzz one target with atheris, which is not among the requirements: `pip install atheris`.

    python -m tests.fuzz.run http /tmp/found -max_total_time=600     # libFuzzer's own options

New inputs are kept in the directory. `python -m tests.fuzz.run --pack http /tmp/found` then
writes those of them that reach something new into the corpus, which every test run replays.
To begin with what is known: `python -m tests.fuzz.run --unpack http /tmp/found`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Step = tuple[str, int, int, int]
CORPUS = Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """The corpus of a target: a bytes literal a line."""
    import ast

    file = CORPUS / f"{target}.txt"
    return [ast.literal_eval(line) for line in file.read_text().splitlines() if line]


def pack(target: str, found: Path) -> None:
    """Add what reaches something that the corpus does not, the shortest first."""
    from tests.fuzz.targets import TARGETS

    kept = load(target)
    inputs = {file.read_bytes() for file in found.iterdir()} - {b"", *kept}
    seen: set[Step] = set()
    for one in kept:  # What once was worth keeping stays: it may have been a crash.
        seen |= _steps(lambda data=one: TARGETS[target](data))
    for one in sorted(inputs, key=lambda data: (len(data), data)):
        steps = _steps(lambda data=one: TARGETS[target](data))
        if not steps <= seen:
            seen |= steps
            kept.append(one)
    (CORPUS / f"{target}.txt").write_text("".join(f"{one!r}\n" for one in kept))
    print(f"{target}: {len(kept)} inputs, {len(seen)} steps from line to line")


def _steps(work: Callable[[], None]) -> set[Step]:
    """From which line of ours to which it goes, and how often, roughly."""
    counts: Counter[tuple[str, int, int]] = Counter()
    last: dict[object, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if "olol_tui" not in name:
            return None
        if event == "line":
            counts[name, last.get(frame, 0), frame.f_lineno] += 1
            last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return {(*step, count.bit_length()) for step, count in counts.items()}


def unpack(target: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(load(target)):
        (directory / str(number)).write_bytes(one)


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
    elif sys.argv[1] == "--unpack":
        unpack(sys.argv[2], Path(sys.argv[3]))
    else:
        fuzz(sys.argv[1], sys.argv[2:])
