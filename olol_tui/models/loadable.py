"""Whether upstream llama.cpp loads a file, told from its header before anything starts.

Ollama's library holds conversions that only Ollama's own build of llama.cpp loads: vision and
audio parts in the same file, architectures under other names, fields that upstream demands left
out. A file pulled from elsewhere (`hf.co/…`) has upstream's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UPSTREAM = frozenset(
    {
        "afmoe", "apertus", "arcee", "arctic", "arwkv7", "baichuan", "bailingmoe", "bailingmoe2",
        "bailingmoe3", "bert", "bitnet", "bloom", "chameleon", "chatglm", "clef", "codeshell",
        "cogvlm", "cohere2", "cohere2moe", "command-r", "dbrx", "deci", "deepseek", "deepseek2",
        "deepseek2-ocr", "deepseek32", "deepseek4", "dots1", "dots3note", "dream", "ernie4_5",
        "ernie4_5-moe", "eurobert", "exaone", "exaone-moe", "exaone4", "falcon", "falcon-h1",
        "gemma", "gemma-embedding", "gemma2", "gemma3", "gemma3n", "gemma4", "glm-dsa", "glm4",
        "glm4moe", "glm5-next", "gpt-oss", "gpt2", "gptj", "gptneox", "granite", "granite_swa",
        "granitehybrid", "granitemoe", "graniteswitch", "grok", "grovemoe", "hrm_text",
        "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3", "hy_v4", "internlm2", "jais",
        "jais2", "jamba", "jina-bert-v2", "jina-bert-v3", "kimi-k3", "kimi-linear", "laguna",
        "lfm2", "lfm2moe", "llada", "llada-moe", "llama", "llama-embed", "llama4", "maincoder",
        "mamba", "mamba2", "maple", "mellum", "mimo2", "minicpm", "minicpm3", "minimax-01",
        "minimax-m2", "minimax-m3", "mistral3", "mistral4", "modern-bert", "mpt", "muse-glimmer",
        "nanbeige", "nemotron", "nemotron_h", "nemotron_h_moe", "neo-bert", "nomic-bert",
        "nomic-bert-moe", "olmo", "olmo2", "olmoe", "openelm", "orion", "paddleocr",
        "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "plamo2", "plamo3", "plm", "qwen",
        "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next",
        "qwen3vl", "qwen3vlmoe", "qwen4exp", "refact", "rnd1", "rwkv6", "rwkv6qwen2", "rwkv7",
        "seed_oss", "smallthinker", "smollm3", "spark2_5", "stablelm", "starcoder", "starcoder2",
        "step35", "t5", "t5encoder", "talkie", "xverse",
    }
)  # fmt: skip
"""Language models of llama.cpp in October 2026."""
_OLLAMAS_NAMES = {
    "gptoss": "gpt-oss",
    "qwen25vl": "qwen2vl",
    "deepseekocr": "deepseek2-ocr",
    "glm4moelite": "deepseek2",
    "glmocr": "",
    "mllama": "",
    "nemotron_h_omni": "",
    "olmo3": "olmo2",
}
"""Architectures that only Ollama names so, and what llama.cpp calls them."""
_FOREIGN_PARTS = {"v": "vision", "mm": "projector", "a": "audio", "s": "vision", "mtp": "draft"}
"""First part of the names of tensors that upstream expects in a file of their own."""
_DEMANDED = {
    "gemma3": ("attention.layer_norm_rms_epsilon",),
    "gemma4": (
        "attention.layer_norm_rms_epsilon",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "embedding_length_per_layer_input",
    ),
    "gpt-oss": ("expert_feed_forward_length", "attention.sliding_window"),
    "qwen35": ("ssm.conv_kernel", "rope.dimension_sections"),
    "qwen35moe": ("ssm.conv_kernel", "rope.dimension_sections"),
    "qwen3vl": ("rope.dimension_sections",),
    "qwen3vlmoe": ("rope.dimension_sections",),
}
"""Fields without which llama.cpp refuses the file, and that Ollama's conversions lack."""

_OWN_FORM = frozenset({"gemma3n", "laguna", "lfm2", "nemotron_h_moe", "qwen3next"})
"""Ollama's library may name their tensors otherwise, which only loading them tells."""
_LIBRARY = "registry.ollama.ai"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a split can be tried with a file."""

    loads: bool | None
    """None when only trying tells: an architecture that is newer than this program."""
    reason: str = ""
    """One sentence; empty when it loads."""


def verdict(facts: Mapping[str, Any]) -> Verdict:
    """What upstream llama.cpp will say to a file with these facts."""
    architecture = str(facts.get("architecture") or "")
    fields = facts.get("fields") or {}
    if architecture in _OLLAMAS_NAMES:
        upstream = _OLLAMAS_NAMES[architecture]
        also = f" (llama.cpp calls it {upstream!r})" if upstream else ""
        return _ollamas(f"its architecture is {architecture!r}, Ollama's own name{also}")
    parts = sorted(
        {
            _FOREIGN_PARTS[prefix]
            for name in (*(facts.get("others") or {}), *(facts.get("tensors") or {}))
            if (prefix := name.partition(".")[0]) in _FOREIGN_PARTS
        }
    )
    if parts:
        return _ollamas(f"{' and '.join(parts)} tensors lie in the same file as the language model")
    missing = [key for key in _DEMANDED.get(architecture, ()) if key not in fields]
    if missing:
        return _ollamas(f"the header lacks {architecture}.{missing[0]}")
    if architecture in _OWN_FORM and (facts.get("layers") or {}).get("host") == _LIBRARY:
        return Verdict(None, f"Ollama's library may hold {architecture} in a form of its own")
    if architecture not in UPSTREAM:
        return Verdict(None, f"{architecture!r} is no architecture that this program knows")
    return Verdict(True)


def _ollamas(reason: str) -> Verdict:
    return Verdict(
        False, f"only Ollama's own build of llama.cpp loads this file: {reason}; it cannot be split"
    )
