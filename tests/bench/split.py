"""Tokens a second of a split beside the same llama.cpp typed by hand.

    python -m tests.bench.split --llama /opt/llama --model FILE.gguf [--rounds 12]

Both are up at once with one worker each on loopback; rounds alternate between them, so that
both see the same noise. Printed is the median of the ratios of paired rounds. What the caches
of workers save at a second load is told by `split_load`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.contract.serve_rig import Instance

TOKENS = 48
_READY_S = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until_healthy(port: int) -> None:
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the engine typed by hand does not get ready")


@contextlib.contextmanager
def by_hand(llama: Path, model: Path, layers: int) -> Iterator[str]:
    """A worker and a head as a manual would have them typed; yields the URL."""
    worker_port, port = free_port(), free_port()
    worker = [str(llama / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(worker_port)]
    head = [str(llama / "llama-server"), "-m", str(model), "--port", str(port), "-c", "512"]
    head += ["-np", "1", "--jinja", "--no-webui", "-ngl", "999", "-fit", "off", "-t", "1"]
    head += ["--rpc", f"127.0.0.1:{worker_port}", "--tensor-split", str(layers)]
    processes = []
    try:
        for argv in (worker, head):
            processes.append(
                subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            time.sleep(0.5)
        until_healthy(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def decode_tps(http: httpx.Client, url: str, model: str) -> float:
    """Of one streamed reply: between its first and its last token, as a client sees them."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "stream": True,
        "ignore_eos": True,
    }
    with http.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        marks = [time.monotonic() for line in reply.iter_lines() if _is_token(line)]
    return (len(marks) - 1) / (marks[-1] - marks[0])


def _is_token(line: str) -> bool:
    return line.startswith("data: {") and bool(json.loads(line[6:])["choices"])


def load(http: httpx.Client, url: str, model: str) -> None:
    http.post(f"{url}/api/generate", json={"model": model, "stream": False}).raise_for_status()


def measure(llama: Path, model: Path, rounds: int, place: Path) -> None:
    models = place / "models"
    models.mkdir()
    shutil.copy(model, models)
    instance = Instance(
        place / "state",
        f'[nodes.local]\nlocal = true\nengine = "llama-server"\nbinary = "{llama}"\n'
        f'models_dir = "{models}"\nnum_ctx = 512\n',
    )
    try:
        url = instance.serve()
        with httpx.Client(timeout=300, trust_env=False) as http:
            name = str(http.get(f"{url}/api/tags").json()["models"][0]["name"])
            with (place / "state" / "cluster.toml").open("a") as file:
                file.write(f'[models."{name}"]\nsplit = "always"\n')
            time.sleep(3.0)  # the file is looked at once a second
            load(http, url, name)
            status = instance.run("status").stdout
            layers = sum(
                int(x.split(" layers")[0].split()[-1])
                for x in status.splitlines()
                if " layers" in x
            )
            with by_hand(llama, model, layers + 1) as hand:
                pairs = []
                for number in range(rounds + 1):
                    pair = (decode_tps(http, url, name), decode_tps(http, hand, name))
                    if number:  # the first warms both up
                        pairs.append(pair)
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / two for one, two in pairs)
        print(f"decode      {ours:6.1f} tok/s   by hand {theirs:6.1f} tok/s   ratio {ratio:.3f}")
    finally:
        instance.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--llama", type=Path, required=True, help="directory of llama.cpp's programs"
    )
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        measure(options.llama, options.model, options.rounds, Path(place))


if __name__ == "__main__":
    main()
