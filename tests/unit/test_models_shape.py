"""From a header's facts to bytes a layer: each rule against what llama.cpp does."""

from __future__ import annotations

from typing import Any

import pytest

from olol_tui.models.memory import Settings, kv_bytes, need
from olol_tui.models.shape import Shape, ShapeError, shape_of

MIB = 2**20


def facts(architecture: str = "llama", layers: int = 4, **fields: Any) -> dict[str, Any]:
    own = {
        "block_count": layers,
        "embedding_length": 1024,
        "feed_forward_length": 4096,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        **{key.replace("__", "."): value for key, value in fields.items()},
    }
    return {
        "architecture": architecture,
        "size_bytes": 100 * MIB,
        "fields": own,
        "blocks": [10 * MIB] * layers,
        "tensors": {"token_embd.weight": 20 * MIB, "output_norm.weight": 4096},
        "vocabulary": 32000,
    }


def per_layer(shape: Shape, ctx: int = 4096, **settings: Any) -> tuple[float, ...]:
    return tuple(size / MIB for size in kv_bytes(shape, Settings(ctx=ctx, **settings)))


def test_grouped_heads_and_cache_types() -> None:
    shape = shape_of(facts())
    assert per_layer(shape) == (4096 * 2 * 128 * 2 * 2 / MIB,) * 4
    assert per_layer(shape, cache_type="q8_0") == (2 * 34 / 32,) * 4
    assert per_layer(shape, cache_type="q4_0") == (2 * 18 / 32,) * 4
    assert per_layer(shape, slots=3) == (12.0,) * 4
    assert per_layer(shape, ctx=4097) == (4.25,) * 4, "contexts are padded to 256 cells"
    assert per_layer(shape, ctx=100, slots=3, is_unified=True) == (0.5,) * 4


def test_heads_may_differ_by_layer() -> None:
    shape = shape_of(facts(attention__head_count_kv=[8, 4, 0, 1]))
    assert per_layer(shape) == (16.0, 8.0, 0.0, 2.0)


def test_a_tied_model_holds_its_embedding_twice() -> None:
    tied = shape_of(facts())
    assert tied.is_tied
    assert tied.output_bytes == 20 * MIB + 4096
    assert tied.embedding_bytes == 20 * MIB
    given = facts()
    given["tensors"]["output.weight"] = 30 * MIB
    own = shape_of(given)
    assert not own.is_tied
    assert own.output_bytes == 30 * MIB + 4096
    assert need(own, Settings(ctx=512)).embedding_bytes == 20 * MIB


@pytest.mark.parametrize(
    ("architecture", "whole"),
    [
        ("gemma2", [1, 3, 5, 7]),
        ("gemma3", [5]),
        ("gpt-oss", [1, 3, 5, 7]),
        ("cohere2", [3, 7]),
        ("cohere2moe", [0, 4]),
        ("llama", range(8)),
        ("phi3", range(8)),
        ("qwen2", range(8)),
    ],
)
def test_layers_with_a_window(architecture: str, whole: Any) -> None:
    shape = shape_of(facts(architecture, 8, attention__sliding_window=512))
    full, windowed = 32.0, (512 + 512) / 1024
    expected = tuple(full if il in whole else windowed for il in range(8))
    assert per_layer(shape, ctx=32768) == expected


def test_a_listed_pattern_wins_over_the_usual_one() -> None:
    pattern = [True, False, True, True]
    given = facts(
        "gemma3", attention__sliding_window=256, attention__sliding_window_pattern=pattern
    )
    assert shape_of(given).windows == (256, 0, 256, 256)
    given["fields"]["attention.sliding_window_pattern"] = 2
    assert shape_of(given).windows == (256, 0, 256, 0)


def test_windows_grow_with_a_cache_that_slots_share() -> None:
    shape = shape_of(facts("gemma3", 6, attention__sliding_window=512))
    assert per_layer(shape, ctx=8192, slots=4)[0] == 4.0
    assert per_layer(shape, ctx=8192, slots=4, is_unified=True)[0] == (512 * 4 + 512) / 1024
    assert per_layer(shape, ctx=512, slots=1)[0] == 0.5, "no larger than the context"


def test_keys_of_windowed_layers_may_have_another_length() -> None:
    fields = {
        "attention__key_length": 512,
        "attention__value_length": 512,
        "attention__key_length_swa": 256,
        "attention__value_length_swa": 256,
        "attention__shared_kv_layers": 2,
        "attention__sliding_window": 512,
        "attention__sliding_window_pattern": [True, False, True, False],
        "attention__layer_norm_rms_epsilon": 1e-6,
        "embedding_length_per_layer_input": 256,
    }
    shape = shape_of(facts("gemma4", **fields))
    assert shape.key_elements == (512, 1024, 0, 0), "the last layers use the cache of others"
    assert shape.loads


def test_latent_attention_keeps_no_values() -> None:
    shape = shape_of(
        facts(
            "deepseek2",
            attention__head_count_kv=1,
            attention__key_length=576,
            attention__value_length=512,
            attention__key_length_mla=192,
            attention__value_length_mla=128,
        )
    )
    assert per_layer(shape) == (4096 * 576 * 2 / MIB,) * 4


def test_hybrids_keep_a_state_that_the_context_does_not_change() -> None:
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128}
    ssm["ssm__group_count"] = 16
    state = 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096) / MIB
    hybrid = shape_of(facts("qwen3next", 8, **ssm))
    assert per_layer(hybrid) == (state, state, state, 4.0) * 2
    assert per_layer(hybrid, ctx=8192, slots=2) == (2 * state, 2 * state, 2 * state, 16.0) * 2
    heads = shape_of(facts("granitehybrid", 3, attention__head_count_kv=[0, 2, 0], **ssm))
    assert per_layer(heads) == (state, 4.0, state)
    mamba = shape_of(facts("mamba2", attention__head_count=0, attention__head_count_kv=0, **ssm))
    assert per_layer(mamba) == (state,) * 4
    nemotron = facts("nemotron_h", 3, attention__head_count_kv=[0, 2, 0], **ssm)
    nemotron["fields"]["feed_forward_length"] = [0, 0, 8192]
    assert per_layer(shape_of(nemotron)) == (state, 4.0, 0.0)


def test_layers_that_predict_further_tokens_have_no_cache() -> None:
    shape = shape_of(facts("glm4moe", 4, nextn_predict_layers=1))
    assert per_layer(shape) == (4.0, 4.0, 4.0, 0.0)


def test_models_that_only_embed_have_none() -> None:
    assert per_layer(shape_of(facts("bert"))) == (0.0,) * 4


def test_a_token_reads_only_the_experts_it_uses() -> None:
    given = facts("qwen3moe", expert_count=64, expert_used_count=8)
    given["experts"] = [8 * MIB] * 4
    shape = shape_of(given)
    assert shape.weights_bytes - shape.read_bytes == 28 * MIB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_count": None}, "block_count"),
        ({"block_count": 0}, "no layers"),
        ({"block_count": 4096}, "no layers"),
        ({"block_count": 2}, "tensors of 4"),
        ({"embedding_length": "x"}, "embedding_length"),
        ({"embedding_length": 1 << 60}, "cannot be"),
        ({"attention.head_count_kv": [1, 2]}, "2 entries for 4"),
        ({"attention.head_count_kv": [1, -2, 1, 1]}, "cannot be"),
        ({"attention.key_length": 1 << 40}, "cannot be"),
        ({"feed_forward_length": [1.5] * 4}, "cannot be"),
    ],
)
def test_a_header_that_cannot_be_planned_says_why(change: dict[str, Any], words: str) -> None:
    given = facts()
    given["fields"].update(change)
    with pytest.raises(ShapeError, match=words):
        shape_of(given)


def test_a_cache_type_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="q8_0"):
        Settings(ctx=512, cache_type="q3_x")


@pytest.mark.parametrize(
    ("change", "loads", "words"),
    [
        ({}, True, ""),
        ({"architecture": "gptoss"}, False, "gpt-oss"),
        ({"architecture": "mllama"}, False, "mllama"),
        ({"others": {"v": 5}}, False, "vision tensors"),
        ({"others": {"a": 5, "mm": 1}}, False, "audio and projector"),
        ({"architecture": "gemma3"}, False, "layer_norm_rms_epsilon"),
        ({"architecture": "brand-new"}, None, "brand-new"),
        ({"architecture": "lfm2", "layers": {"host": "registry.ollama.ai"}}, None, "its own"),
        ({"architecture": "lfm2", "layers": {"host": "hf.co"}}, True, ""),
    ],
)
def test_files_that_only_ollamas_build_loads(
    change: dict[str, Any], loads: bool | None, words: str
) -> None:
    shape = shape_of({**facts(), **change})
    assert shape.loads is loads
    assert words in shape.caveat
