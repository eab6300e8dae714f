"""A llama-server that is older than ours: found out at its start, and served plainly."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.contract.agent_rig import agent
from tests.contract.gguf_files import write_gguf

OLD_LLAMA_SERVER = """#!{python}
import http.server, json, sys

plain = "--embeddings" not in sys.argv
port = int(sys.argv[sys.argv.index("--port") + 1])

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(200, {{"status": "ok"}})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = "This server does not support completions. Start it without `--embeddings`"
        body = {{"content": "b"}} if plain else {{"error": {{"code": 501, "message": message}}}}
        self.answer(200 if plain else 501, body)
    def log_message(self, *args):
        pass

print("embeddings", "off" if plain else "on", flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_one_that_cannot_embed_and_complete_at_once_completes(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "llama-server"
    binary.parent.mkdir()
    binary.write_text(OLD_LLAMA_SERVER.format(python=sys.executable))
    binary.chmod(0o755)
    model = write_gguf(tmp_path / "m.gguf")
    spec = {
        "id": "n/llama",
        "kind": "llama-server",
        "devices": ["cpu"],
        "binary": str(binary),
        "model": {"name": "m:latest", "path": str(model), "chat_template": ""},
    }
    with agent(tmp_path) as node:
        node.put(spec)
        status = node.until_state("n/llama", "ready")
        log = next(node.state.glob("*/logs/n%2Fllama.log")).read_text()
        starts = [x for x in log.splitlines() if not x.startswith("olol-agent")]
        assert starts == ["embeddings on", "embeddings off"]
        assert status["restarts"] == 0, "finding out is not a crash"
        node.kill()
        node.start()
        assert node.until_state("n/llama", "ready")["pid"] == status["pid"]
