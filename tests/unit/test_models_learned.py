"""What engines log of their memory, and estimates that learn from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olol_tui.models.learned import Learned, Observed, learn, learn_load
from olol_tui.models.logged import Buffers, offloaded, read_buffers
from olol_tui.models.memory import Settings, load_key, need
from tests.unit.test_placement_split import shape

MIB = 2**20
TRIAL = """\
0.00.100.000 I load_tensors:   CPU_Mapped model buffer size =     0.00 MiB
0.00.100.001 I load_tensors: RPC0[127.0.0.1:37531] model buffer size =     0.00 MiB
0.00.100.002 I llama_kv_cache: RPC0[127.0.0.1:37531] KV buffer size =     0.00 MiB
0.00.100.003 I sched_reserve: RPC0[127.0.0.1:37531] compute buffer size =     0.00 MiB
"""
REAL = """\
0.00.010.282 I cmn  common_param:   - RPC0    : 127.0.0.1:52523 (24105 MiB, 24105 MiB free)
0.01.213.300 I load_tensors: offloaded 19/19 layers to GPU
0.01.213.300 I load_tensors:   CPU_Mapped model buffer size =   170.00 MiB
0.01.213.301 I load_tensors: RPC0[127.0.0.1:37531] model buffer size =   202.77 MiB
0.01.213.302 I load_tensors:        CUDA0 model buffer size =    32.39 MiB
0.02.600.655 I llama_context:        CPU  output buffer size =     1.00 MiB
0.02.600.884 I llama_kv_cache: RPC0[127.0.0.1:37531] KV buffer size =     4.00 MiB
0.02.602.053 I llama_kv_cache:      CUDA0 KV buffer size =     2.00 MiB
0.02.602.079 I llama_kv_cache: size =    6.00 MiB (  2048 cells,   3 layers), K (f16):    3.00 MiB
0.02.605.040 I llama_kv_cache: RPC0[127.0.0.1:37531] KV buffer size =     7.00 MiB
0.02.605.188 I llama_kv_cache:      CUDA0 KV buffer size =     8.00 MiB
0.02.605.200 I llama_memory_recurrent:      CUDA0 RS buffer size =     0.50 MiB
0.02.619.536 I sched_reserve: RPC0[127.0.0.1:37531] compute buffer size =    99.00 MiB
0.02.619.561 I sched_reserve: RPC0[127.0.0.1:37531] compute buffer size =    33.57 MiB
0.02.619.575 I sched_reserve:      CUDA0 compute buffer size =    44.84 MiB
"""


def mib(*sizes: float) -> Buffers:
    return Buffers(*(round(size * MIB) for size in sizes))


@pytest.mark.parametrize("log", [REAL, TRIAL + REAL])
def test_buffers_by_device_of_the_last_account(log: str) -> None:
    found = read_buffers(log.splitlines())
    assert found["127.0.0.1:37531"] == mib(202.77, 11, 33.57)
    assert found["CUDA0"] == mib(32.39, 10.5, 44.84)
    assert found["CPU_Mapped"].weights_bytes == 170 * MIB
    assert offloaded(log.splitlines()) == (19, 19)


def test_a_log_that_says_nothing() -> None:
    assert read_buffers(["srv load_model: loading"]) == {}
    assert offloaded([]) is None


def seen(logged_mib: int, estimated_mib: int = 100, overhead: int | None = None) -> Observed:
    return Observed("llama", "nvidia", estimated_mib * MIB, logged_mib * MIB, overhead)


def test_more_is_believed_at_once_and_less_slowly() -> None:
    higher = learn(Learned(), seen(150))
    assert higher.compute_factor("llama") == 1.5
    assert higher.compute_factor("other") == 1.5, "the best guess for what was never loaded"
    lower = learn(higher, seen(100))
    assert 1.3 < lower.compute_factor("llama") < 1.5
    assert learn(lower, seen(170)).compute_factor("llama") == 1.7


def test_what_a_process_takes_by_itself_is_learned_by_vendor() -> None:
    found = learn(Learned(), seen(100, overhead=700 * MIB))
    assert found.overhead_bytes("nvidia") == 700 * MIB
    assert found.overhead_bytes("amd") == Learned().overhead_bytes("amd")


def test_the_next_estimate_uses_it_for_buffers_alone() -> None:
    settings = Settings(4096)
    before = need(shape(), settings)
    after = need(shape(), settings, learn(Learned(), seen(150)))
    assert after.rows_bytes == pytest.approx(before.rows_bytes * 1.5, abs=1)
    assert (after.weights, after.kv) == (before.weights, before.kv)


def test_what_was_loaded_before_is_known_by_itself() -> None:
    """The fullest of its devices counts, and a build that takes less is believed too."""
    settings = Settings(4096)
    load = load_key(shape(), settings)
    known = learn_load(Learned(), load, [seen(120), seen(150), seen(90)])
    assert known.knows(load) and known.compute_factor("llama", load) == 1.5
    bare = need(shape(), settings)
    assert need(shape(), settings, known).rows_bytes == pytest.approx(bare.rows_bytes * 1.5, abs=1)
    again = learn_load(known, load, [seen(80), seen(70)])
    assert again.compute_factor("llama", load) == 0.8
    other = load_key(shape(), Settings(8192))
    assert not again.knows(other), "another context"
    assert again.compute_factor("llama", other) > 1.1, "what is known of the architecture"
    assert learn_load(again, load, []) == again


def test_only_the_latest_loads_are_remembered() -> None:
    known = Learned()
    for number in range(600):
        known = learn_load(known, f"load {number}", [seen(100)])
    assert len(known.loads) == 512 and known.knows("load 599") and not known.knows("load 0")


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(-9, 2**45))))
def test_no_log_makes_an_estimate_absurd(observations: list[tuple[int, int, int]]) -> None:
    known = Learned()
    for estimated, logged, overhead in observations:
        known = learn(known, seen(logged, estimated, overhead))
    assert 0.5 <= known.compute_factor("llama") <= 8
    assert 0 <= known.overhead_bytes("nvidia") <= 4 * 2**30
