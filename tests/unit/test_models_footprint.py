"""A footprint says what the memory model says of the whole shape, at any context."""

from __future__ import annotations

import pytest

from olol_tui.fleet.snapshot import Model
from olol_tui.models.footprint import footprint
from olol_tui.models.learned import Learned
from olol_tui.models.memory import Settings, need
from olol_tui.models.shape import Shape
from olol_tui.placement.fit import estimate

MIB = 2**20


def shape(window: int = 0, *, tied: bool = True) -> Shape:
    layers = 24
    return Shape(
        architecture="llama",
        file_bytes=500 * MIB,
        layers=(16 * MIB,) * layers,
        embedding_bytes=100 * MIB,
        output_bytes=100 * MIB,
        vocabulary=32000,
        embedding_length=1024,
        feed_forward=4096,
        query_elements=1024,
        key_elements=(256,) * layers,
        value_elements=(256,) * layers,
        windows=tuple(window if index % 2 else 0 for index in range(layers)),
        recurrent_bytes=(0,) * layers,
        is_tied=tied,
    )


@pytest.mark.parametrize("window", [0, 1024])
@pytest.mark.parametrize("ctx", [4096, 8192, 32768, 131072])
def test_it_is_the_memory_model_at_every_context(window: int, ctx: int) -> None:
    whole = need(shape(window), Settings(ctx))
    found = footprint(shape(window))
    assert found.weights_bytes == whole.weights_bytes
    assert found.kv_at(ctx) == whole.kv_bytes
    assert found.compute_at(ctx) == pytest.approx(whole.most_compute_bytes, rel=0.001)
    assert found.kv_at(ctx, slots=3) == 3 * whole.kv_bytes


def test_on_a_cpu_the_embedding_lies_in_the_same_memory() -> None:
    tied, apart = footprint(shape()), footprint(shape(tied=False))
    assert apart.total_at(4096, "cpu") - tied.total_at(4096, "cpu") == 100 * MIB
    assert apart.total_at(4096, "nvidia") == tied.total_at(4096, "nvidia")


def test_an_estimate_says_whether_it_is_a_guess() -> None:
    guessed = Model("m:1b", size_bytes=500 * MIB)
    known = Model("m:1b", size_bytes=500 * MIB, footprint=footprint(shape()))
    assert estimate(guessed, num_ctx=8192).words().startswith("about ")
    sure = estimate(known, num_ctx=8192, vendor="nvidia")
    assert sure.words().endswith(" by its header")
    whole = need(shape(), Settings(8192))
    assert (sure.weights_bytes, sure.kv_bytes) == (whole.weights_bytes, whole.kv_bytes)
    overhead = Learned().overhead_bytes("nvidia")
    assert sure.compute_bytes == pytest.approx(whole.most_compute_bytes + overhead, rel=0.001)
    measured = estimate(known, num_ctx=8192, measured_bytes=600 * MIB)
    assert measured.sentence() == "about 600 MiB (measured)"
