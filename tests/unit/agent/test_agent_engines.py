"""Command line and environment of each engine kind; nothing is started here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from olol_tui.agent.engines import Context, Launch, kind_of
from olol_tui.agent.engines.ollama import _expiry
from olol_tui.agent.errors import BadRequest, EngineError
from olol_tui.agent.spec import Policy, parse_spec
from olol_tui.agent.templates import jinja
from tests.contract.gguf_files import write_gguf

NVIDIA = "GPU-6f0e2b5c-1111-2222-3333-444455556666"
AMD = "GPU-a1b2c3d4e5f60718"

DEVICES: dict[str, dict[str, Any]] = {
    NVIDIA: {"uuid": NVIDIA, "index": 0, "vendor": "nvidia"},
    AMD: {"uuid": AMD, "index": 1, "vendor": "amd"},
    "0000:c3:00.0": {"uuid": "0000:c3:00.0", "index": 2, "vendor": "amd"},
    "SIM-1": {"uuid": "SIM-1", "index": 0, "vendor": "simulated", "vram_bytes": 1 << 34},
    "cpu": {"uuid": "cpu", "index": 0, "vendor": "cpu"},
}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A directory with programs that need not run."""
    for name in ("ollama", "llama-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def launch(tools: Path, shell: dict[str, str] | None = None, **spec: Any) -> Launch:
    wanted = parse_spec({"id": "n/e", "binary": str(tools), **spec}, "spec")
    environ = {"PATH": "/usr/bin", "HOME": "/home/x", **(shell or {})}
    context = Context(DEVICES, ("python", "-I", "agent.pyz"), 4, Policy(), environ)
    return kind_of(wanted.kind).launch(wanted, 9999, context)


def test_an_ollama_sees_its_own_card_and_no_other(tools: Path) -> None:
    env = launch(tools, kind="ollama", devices=[NVIDIA]).env
    assert env["CUDA_VISIBLE_DEVICES"] == NVIDIA
    assert env["ROCR_VISIBLE_DEVICES"] == "-1"
    assert env["GGML_VK_VISIBLE_DEVICES"] == "-1"
    env = launch(tools, kind="ollama", devices=[AMD, "0000:c3:00.0"]).env
    assert env["ROCR_VISIBLE_DEVICES"] == f"{AMD},2", "ROCm takes its own UUIDs, else indexes"
    assert env["CUDA_VISIBLE_DEVICES"] == "-1"
    env = launch(tools, kind="ollama", devices=["cpu"]).env
    assert env["CUDA_VISIBLE_DEVICES"] == env["ROCR_VISIBLE_DEVICES"] == "-1"


def test_an_engine_listens_on_loopback_unless_told(tools: Path) -> None:
    assert launch(tools, kind="ollama", devices=["cpu"]).env["OLLAMA_HOST"] == "127.0.0.1:9999"
    open_one = launch(tools, kind="ollama", devices=["cpu"], listen="0.0.0.0")
    assert open_one.env["OLLAMA_HOST"] == "0.0.0.0:9999"
    argv = launch(tools, kind="simulated", devices=["SIM-1"], listen="0.0.0.0").argv
    assert argv[argv.index("--host") + 1] == "0.0.0.0"
    with pytest.raises(BadRequest, match=r"listen: expected an IPv4 address"):
        parse_spec({"id": "n/e", "kind": "ollama", "listen": "all; rm"}, "spec")


def test_the_digest_of_a_spec_does_not_change_with_the_agent() -> None:
    """Else an upgrade of the agent would restart every engine."""
    spec = parse_spec({"id": "n1/ollama-gpu0", "kind": "ollama", "devices": ["GPU-1"]}, "spec")
    assert spec.digest.startswith("710c553fa62c5615")


def test_what_the_shell_selected_does_not_reach_an_engine(tools: Path) -> None:
    shell = {
        "CUDA_VISIBLE_DEVICES": "3",
        "HIP_VISIBLE_DEVICES": "1",
        "OLLAMA_ORIGINS": "*",
        "LLAMA_ARG_PORT": "1",
        "OLLAMA_HOST": "0.0.0.0",
        "OLLAMA_CONTEXT_LENGTH": "1",
    }
    env = launch(tools, shell, kind="ollama", devices=[NVIDIA], num_ctx=4096).env
    assert env["CUDA_VISIBLE_DEVICES"] == NVIDIA
    assert "HIP_VISIBLE_DEVICES" not in env
    assert "OLLAMA_ORIGINS" not in env
    assert env["OLLAMA_HOST"] == "127.0.0.1:9999"
    assert env["OLLAMA_CONTEXT_LENGTH"] == "4096"


def test_one_ollama_prunes_and_the_store_may_be_named(tools: Path) -> None:
    shell = {"OLLAMA_NOPRUNE": "1"}
    env = launch(tools, shell, kind="ollama", prune=True, models_dir="/big/models").env
    assert "OLLAMA_NOPRUNE" not in env
    assert env["OLLAMA_MODELS"] == "/big/models"
    assert launch(tools, kind="ollama").env["OLLAMA_NOPRUNE"] == "1"


def test_the_spec_has_the_last_word_on_environment_and_arguments(tools: Path) -> None:
    spec = {"env": {"OLLAMA_FLASH_ATTENTION": "1", "OLLAMA_NUM_PARALLEL": "9"}, "args": ["-x"]}
    found = launch(tools, kind="ollama", **spec)
    assert found.env["OLLAMA_FLASH_ATTENTION"] == "1"
    assert found.env["OLLAMA_NUM_PARALLEL"] == "9"
    assert found.argv[1:] == ("serve", "-x")


def model(path: Path, template: str = "") -> dict[str, str]:
    return {"name": "m:1b", "path": str(path), "chat_template": template}


def test_a_llama_server_gets_context_for_all_slots(tools: Path) -> None:
    path = write_gguf(tools / "m.gguf")
    found = launch(
        tools,
        {"LLAMA_ARG_PORT": "1"},
        kind="llama-server",
        devices=["cpu"],
        slots=3,
        num_ctx=1000,
        model=model(path, "gemma"),
        args=["--verbose"],
    )
    text = " ".join(found.argv)
    assert f"--host 127.0.0.1 --port 9999 -m {path} -c 3000 -np 3 --no-webui --jinja" in text
    assert "-ngl 0 -t 4" in text
    assert "<start_of_turn>" in found.argv[found.argv.index("--chat-template") + 1]
    assert found.argv[-1] == "--verbose"
    assert "LLAMA_ARG_PORT" not in found.env


def test_a_llama_server_on_a_gpu_offloads_everything(tools: Path) -> None:
    spec = {"devices": [NVIDIA], "model": model(write_gguf(tools / "m.gguf"))}
    found = launch(tools, kind="llama-server", **spec)
    assert found.argv[found.argv.index("-ngl") + 1] == "999"
    assert "--chat-template" not in found.argv
    assert found.env["CUDA_VISIBLE_DEVICES"] == NVIDIA
    assert "GGML_VK_VISIBLE_DEVICES" not in found.env, "its build may know Vulkan only"


def test_embedding_models_pool_as_they_say_themselves(tools: Path) -> None:
    path = write_gguf(tools / "e.gguf", llama__pooling_type=("I", 2))
    argv = launch(tools, kind="llama-server", model=model(path)).argv
    assert "--embeddings" in argv
    assert "--pooling" not in argv
    argv = launch(tools, kind="llama-server", model=model(write_gguf(tools / "m.gguf"))).argv
    assert argv[argv.index("--pooling") + 1] == "mean"


def test_a_simulated_engine_has_the_memory_of_its_devices(tools: Path) -> None:
    spec = {"devices": ["SIM-1"], "slots": 2, "simulated": {"decode_tps": 50}}
    argv = launch(tools, kind="simulated", **spec).argv
    assert argv[:4] == ("python", "-I", "agent.pyz", "sim-engine")
    assert argv[argv.index("--port") + 1] == "9999"
    config = json.loads(argv[argv.index("--config") + 1])
    assert config == {"vram_bytes": 1 << 34, "slots": 2, "num_ctx": 4096, "decode_tps": 50}


def test_a_simulated_engine_does_not_pretend_on_real_devices(tools: Path) -> None:
    with pytest.raises(EngineError, match="needs simulated devices"):
        launch(tools, kind="simulated", devices=[NVIDIA])


def test_programs_are_looked_for_where_the_spec_says(tools: Path) -> None:
    (tools / "bin").mkdir()
    (tools / "ollama").rename(tools / "bin" / "ollama")
    assert launch(tools, kind="ollama").argv[0] == str(tools / "bin" / "ollama")
    (tools / "bin" / "ollama").chmod(0o644)
    with pytest.raises(EngineError, match="is not executable"):
        launch(tools, kind="ollama")
    with pytest.raises(EngineError, match="does not exist"):
        launch(tools / "nowhere", kind="ollama")


def test_a_program_on_path_is_found(tools: Path) -> None:
    wanted = parse_spec({"id": "n/e", "kind": "ollama"}, "spec")
    context = Context(DEVICES, ("x",), 1, Policy(), {"PATH": str(tools)})
    assert kind_of("ollama").launch(wanted, 1, context).argv[0] == str(tools / "ollama")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("2026-11-23T21:27:48.845038Z", "2026-11-23T21:27:48.845038Z"),
        ("2318-03-05T01:02:03.123456789-07:00", ""),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("", ""),
        ("soon", ""),
    ],
)
def test_an_expiry_centuries_ahead_is_never(text: str, kept: str) -> None:
    assert _expiry(text) == kept


def test_templates_by_name_become_text_and_text_stays() -> None:
    assert "<start_of_turn>" in jinja("gemma")
    assert "<|im_start|>" in jinja("chatml")
    assert jinja("{{ messages }}") == "{{ messages }}"
    assert jinja("") == ""
