"""Every input that a fuzzer found worth keeping, once more; see `run.py` for finding others."""

from __future__ import annotations

import pytest

from tests.fuzz.run import load
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_breaks_a_promise(target: str) -> None:
    inputs = load(target)
    assert inputs
    for one in inputs:
        try:
            TARGETS[target](one)
        except BaseException as error:
            error.add_note(f"input: {one!r}")
            raise
