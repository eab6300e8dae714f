"""Ask a real Ollama what its templates make of conversations, for the tests beside this file.

    python -m tests.unit.gotemplate.record --ollama PROGRAM --model FILE.gguf TEMPLATE...

Each TEMPLATE is a file of Go's text/template. Ollama (MIT, copyright Ollama) ships many with its
source, in `template/`; the others are written in the manner of its library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
PATIENCE_S = 60.0

USER = {"role": "user", "content": 'Hello <friend> & "you"\n'}
ANSWER = {"role": "assistant", "content": "  Hi there."}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "one": [USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "And then?"}],
    "system": [SYSTEM, USER, ANSWER, {"role": "user", "content": "And then?"}],
    "begun": [SYSTEM, USER, {"role": "assistant", "content": "Well"}],
    "merged": [SYSTEM, USER, USER, ANSWER, ANSWER, {**SYSTEM, "content": "Be long."}, USER],
}


def record(http: httpx.Client, name: str) -> dict[str, str]:
    found = {}
    for title, messages in CONVERSATIONS.items():
        body: dict[str, Any] = {"model": name, "messages": messages, "stream": False}
        reply = http.post("/api/chat", json={**body, "_debug_render_only": True})
        if reply.status_code != 200:
            print(f"  {name} {title}: {reply.text}")
            continue
        found[title] = reply.json()["_debug_info"]["rendered_template"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ollama", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("templates", type=Path, nargs="+")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": f"{place}/m"}
        env |= {"HOME": place}
        with subprocess.Popen([options.ollama, "serve"], env=env, stderr=subprocess.DEVNULL) as one:
            try:
                serve(f"http://127.0.0.1:{port}", options.model, options.templates)
            finally:
                one.terminate()


def serve(url: str, model: Path, templates: list[Path]) -> None:
    cases = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as http:
        deadline_s = time.monotonic() + PATIENCE_S
        while not _answers(http):
            if time.monotonic() > deadline_s:
                raise SystemExit("Ollama does not answer")
            time.sleep(0.1)
        data = model.read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        http.post(f"/api/blobs/{digest}", content=data).raise_for_status()
        for path in templates:
            text = path.read_text().replace("\r\n", "\n")
            body = {"model": "asked", "files": {"m.gguf": digest}, "template": text}
            http.post("/api/create", json={**body, "stream": False}).raise_for_status()
            cases.append({"name": path.stem, "template": text, "prompts": record(http, "asked")})
            print(path.stem, len(cases[-1]["prompts"]))
        version = http.get("/api/version").json()["version"]
    told = {"ollama": version, "conversations": CONVERSATIONS, "cases": cases}
    (HERE / "recorded.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/api/version").status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
