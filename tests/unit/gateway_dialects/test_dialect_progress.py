"""Several stores' progress as one: totals that stay, bars that only grow, ends that are true."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from olol_tui.gateway.dialects.progress import Merge

DIGEST = "sha256:" + "ab" * 32
SUCCESS = {"status": "success"}


def layer(completed: int | None = None, total: int = 100, digest: str = DIGEST) -> dict[str, Any]:
    line: dict[str, Any] = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": total}
    return line if completed is None else line | {"completed": completed}


def test_one_store_is_passed_on_as_it_speaks() -> None:
    merge = Merge("pull", ["a"])
    odd = {"status": "removing unused layers", "extra": [1]}
    for line in ({"status": "pulling manifest"}, layer(), layer(7), layer(7), odd):
        assert merge.line("a", line) == [line]
    assert merge.line("a", SUCCESS) == []
    assert merge.finished and merge.error is None


def test_a_layer_is_complete_when_every_store_has_it() -> None:
    merge = Merge("pull", ["a", "b"])
    assert merge.line("a", layer()) == [layer()]
    assert merge.line("a", layer(100)) == [layer(50)]
    assert merge.line("b", layer(50)) == [layer(75)]
    assert merge.line("b", layer(40)) == [], "a bar never shrinks"
    assert merge.line("b", layer(100)) == [layer(100)]


def test_the_total_is_the_first_one() -> None:
    merge = Merge("pull", ["a", "b"])
    merge.line("a", layer(10, total=100))
    assert merge.line("b", layer(900, total=1000)) == [layer(55, total=100)]


def test_steps_are_said_once_and_late_ones_together() -> None:
    merge = Merge("pull", ["a", "b"])
    verify, write = {"status": "verifying sha256 digest"}, {"status": "writing manifest"}
    assert merge.line("a", {"status": "pulling manifest"}) == [{"status": "pulling manifest"}]
    assert merge.line("b", {"status": "pulling manifest"}) == []
    assert merge.line("a", verify) == []
    assert merge.line("a", write) == []
    assert merge.line("b", verify) == [verify]
    assert merge.line("a", SUCCESS) == []
    assert merge.line("b", write) == [write]
    assert merge.line("b", SUCCESS) == []
    assert merge.finished


def test_a_store_that_ends_frees_what_it_held_back() -> None:
    merge = Merge("pull", ["a", "b"])
    merge.line("a", layer(100))
    merge.line("a", {"status": "verifying sha256 digest"})
    freed = merge.lost("b", 500, "no space left on device")
    assert freed == [layer(100), {"status": "verifying sha256 digest"}]
    merge.line("a", SUCCESS)
    assert merge.finished
    assert merge.error == (
        500,
        "pull failed on b: no space left on device (it succeeded on a)",
    )


def test_a_store_that_had_everything_counts_as_complete() -> None:
    merge = Merge("pull", ["a", "b"])
    merge.line("b", layer(10))
    assert merge.line("a", SUCCESS) == [layer(55)]


def test_errors() -> None:
    merge = Merge("pull", ["a", "b"])
    merge.line("a", {"error": "file does not exist"})
    merge.line("b", {"error": "file does not exist"})
    assert merge.error == (500, "file does not exist"), "one sentence that all say stays as it is"
    merge = Merge("pull", ["a", "b"])
    merge.lost("a", 400, "invalid model name")
    merge.lost("b", 400, "invalid model name")
    assert merge.error == (400, "invalid model name")
    merge = Merge("pull", ["a", "b"])
    merge.lost("a", 400, "x")
    merge.ended("b")
    assert merge.error is not None and merge.error[0] == 500
    assert merge.error[1] == "pull failed on a: x; b: the reply ended before it was complete"


def test_what_comes_after_an_end_is_ignored() -> None:
    merge = Merge("pull", ["a", "b"])
    merge.line("a", SUCCESS)
    for late in (layer(1), {"error": "x"}, SUCCESS):
        assert merge.line("a", late) == []
    assert merge.ended("a") == merge.lost("a", 500, "x") == []
    assert not merge.finished


def test_a_layer_of_unknown_length_draws_no_bar() -> None:
    merge = Merge("pull", ["a", "b"])
    assert merge.line("a", {"status": "pulling x", "digest": "x", "total": -1}) == [
        {"status": "pulling x"}
    ]


STORES = ["a", "b", "c"]
_lines = st.one_of(
    st.builds(layer, st.one_of(st.none(), st.integers(-5, 120)), st.integers(1, 100),
              st.sampled_from(["sha256:" + c * 64 for c in "12"])),
    st.sampled_from([{"status": "pulling manifest"}, {"status": "verifying sha256 digest"},
                     {"status": "writing manifest"}, {"status": "x"}, SUCCESS, {"error": "e"}]),
    st.dictionaries(st.sampled_from(["status", "digest", "total", "completed"]),
                    st.one_of(st.none(), st.integers(), st.text(max_size=3))),
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(STORES), _lines), max_size=60))
def test_whatever_stores_say_bars_keep_their_total_and_never_shrink(
    said: list[tuple[str, dict[str, Any]]],
) -> None:
    merge = Merge("pull", STORES)
    shown: dict[str, tuple[int, int]] = {}
    for store, line in said:
        for out in merge.line(store, line):
            assert out != SUCCESS and "error" not in out, "the end is not told in between"
            if isinstance(out.get("digest"), str) and isinstance(out.get("total"), int):
                total, completed = shown.get(out["digest"], (out["total"], -1))
                assert out["total"] == total
                assert completed < out.get("completed", 0) <= total
                shown[out["digest"]] = (total, out.get("completed", 0))
    for store in STORES:
        merge.ended(store)
    assert merge.finished
    assert (merge.error is None) == (len(merge.succeeded) == 3)
