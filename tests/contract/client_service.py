"""`olol-tui --serve` as a user runs it, over one kind of engine, for official clients.

llama-server takes part when it is on PATH or OLOL_TEST_LLAMA_SERVER names one, Ollama when it is
on PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from olol_tui.fleet.snapshot import RUNNERS
from tests.at_hand import LLAMA_SERVER, NO_LLAMA_SERVER, has, smollm2
from tests.contract.ollama_process import create, program

START_S = 60.0
REPLY_S = 90.0
"""For a first request that loads its model on a busy machine."""
KINDS: list[Any] = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("llama-server", marks=pytest.mark.llama_server),
    pytest.param("ollama", marks=pytest.mark.ollama),
    "simulated",
]
_TEMPLATE = Path(__file__).parents[1] / "unit/gateway_dialects/recorded/tools.jinja"


@dataclass(frozen=True)
class Service:
    url: str
    kind: str
    model: str
    embedding_model: str
    tool_model: str
    vision_model: str = ""
    """Empty where no model here can see."""

    @property
    def real(self) -> bool:
        return self.kind != "simulated"

    @property
    def refuses_images(self) -> bool:
        """Given to a model that cannot see. A simulated engine has such models as if they could,
        and Ollama until 0.17 at least leaves the image out and answers."""
        return self.kind in RUNNERS


@contextlib.contextmanager
def serving(kind: str, *, more: str = "", models: bool = True, **env: str) -> Iterator[Service]:
    """Skips where that kind of engine is not at hand.

    Args:
        more: TOML after the node's.
        models: whether a store gets the models of the service.
        env: of the core and its engines, beside what there is.
    """
    environ = _environ(kind) | env
    # Not pytest's own directory: a UNIX socket's path must stay under 108 bytes.
    state = Path(tempfile.mkdtemp(prefix="olol-clients-"))
    config = state / "cluster.toml"
    config.write_text(_config(kind, state) + more)
    common = ["--state-dir", str(state / "s"), "--config", str(config)]
    log = (state / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "olol_tui", "--serve", "--port", "0", *common],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environ,
    )
    try:
        url = _ready_url(process, state / "serve.log")
        real, tools = "smollm2:135m", "smollm2-tools:135m"
        if kind == "simulated":
            yield Service(url, kind, "llama3.2:1b", "nomic-embed-text", "llama3.2:1b", "gemma3:4b")
        elif kind == "ollama":
            if models:
                create(url, real, smollm2())
                create(url, tools, smollm2(), template=_TOOLS_OF_OLLAMA)
            yield Service(url, kind, real, real, tools)
        else:
            yield Service(url, kind, real, real, tools)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        log.close()
        stopped = subprocess.run(
            [sys.executable, "-m", "olol_tui", "stop", *common],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            text=True,
        )
        shutil.rmtree(state, ignore_errors=True)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr


def _environ(kind: str) -> dict[str, str]:
    environ = dict(os.environ)
    if kind == "embedded" and not has("xllamacpp"):
        pytest.skip("xllamacpp is not installed")
    if kind == "ollama":
        program()
    if kind == "llama-server":
        if not LLAMA_SERVER:
            pytest.skip(NO_LLAMA_SERVER)
        environ["PATH"] = f"{Path(LLAMA_SERVER).parent}{os.pathsep}{environ['PATH']}"
    return environ


def _config(kind: str, state: Path) -> str:
    text = f'[nodes.local]\nlocal = true\nengine = "{kind}"\n'
    if kind == "ollama":
        return text + f"models_dir = {json.dumps(str(state / 'models'))}\n"
    if kind == "simulated":
        return text
    # The model's own template knows no tools.
    template = json.dumps(_TEMPLATE.read_text())
    path = json.dumps(str(smollm2()))
    return f'{text}\n[models."smollm2-tools:135m"]\npath = {path}\nchat_template = {template}\n'


_TOOLS_OF_OLLAMA = """{{- if .Tools }}{{ end }}{{- range .Messages }}<|im_start|>{{ .Role }}
{{ if .ToolCalls }}{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ "{" }}\
{{ range $key, $value := .Function.Arguments }}"{{ $key }}": {{ json $value }}{{ end }}}}{{ end }}\
{{ else }}{{ .Content }}{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""With blanks in the JSON: without, SmolLM2 leaves out a quote of its own, and a plain Ollama, too,
finds no call in that."""


def _ready_url(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if selector.select(START_S):
            line = process.stdout.readline().decode().strip()
            if line.startswith("ready http://"):
                return line.removeprefix("ready ")
    process.kill()
    pytest.fail("--serve did not get ready:\n" + log.read_text(errors="replace")[-3000:])
