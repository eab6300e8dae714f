"""A real Ollama kept by the agent, where one is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from tests.contract.agent_rig import agent, alive

pytestmark = [
    pytest.mark.ollama,
    pytest.mark.skipif(not shutil.which("ollama"), reason="no ollama on PATH"),
]


def test_a_real_ollama_is_started_asked_and_stopped(tmp_path: Path) -> None:
    store = tmp_path / "models"
    store.mkdir()
    with agent(tmp_path, env={"HOME": str(tmp_path)}) as node:
        inventory = node.http.get("/v1/inventory").json()
        device = inventory["devices"][0]["uuid"]
        spec = {
            "id": "local/ollama",
            "kind": "ollama",
            "devices": [device],
            "models_dir": str(store),
            "prune": True,
        }
        assert node.put(spec).status_code == 200
        status = node.until_state("local/ollama", "ready", timeout_s=90)
        assert status["version"] in inventory["engines"]["ollama"]["version"]
        assert status["loaded"] == []
        url = f"http://{status['address']}/api/tags"
        assert httpx.get(url, timeout=30, trust_env=False).json() == {"models": []}
        urls = [f["url"] for f in node.http.get("/v1/inventory").json()["foreign"]]
        assert f"http://{status['address']}" not in urls, "our own engine is not foreign"
        node.put(generation=2)
        node.until(lambda: not node.engines(), "it stopped")
        assert not alive(status["pid"])
