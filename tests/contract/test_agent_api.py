"""The agent's HTTP surface: what it says of itself, and what it refuses."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.agent_rig import REPOSITORY, Agent, agent
from tests.contract.gguf_files import write_gguf


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent(tmp_path_factory.mktemp("node")) as running:
        yield running


def raw(node: Agent, data: bytes, timeout_s: float = 30) -> bytes:
    """Everything the agent answers to these bytes until it closes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(node.socket))
        connection.sendall(data)
        received = b""
        while block := connection.recv(65536):
            received += block
    return received


def test_hello_names_build_boot_and_machine(node: Agent) -> None:
    hello = node.http.get("/v1/hello").json()
    assert hello["protocol"] == 1
    assert hello["pid"] == node.process.pid  # type: ignore[union-attr]
    assert hello["sha256"][:16] in node.pyz.name
    assert hello["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert hello["machine_id"]
    assert hello["started_wall"] > 1_600_000_000


def test_the_agent_has_the_version_of_the_package(node: Agent) -> None:
    from olol_tui import __version__

    assert node.http.get("/v1/hello").json()["version"] == __version__


def test_inventory_lists_devices_and_engines(node: Agent) -> None:
    inventory = node.http.get("/v1/inventory").json()
    assert inventory["devices"]
    assert {d["vendor"] for d in inventory["devices"]} <= {"nvidia", "amd", "cpu"}
    kinds = {"ollama", "llama-server", "rpc-server", "embedded", "simulated"}
    assert set(inventory["engines"]) == kinds
    assert inventory["engines"]["simulated"] is None
    assert inventory["cpus"] >= 1
    assert inventory["memory_bytes"] > 1 << 28


def test_telemetry_beats_and_counts(node: Agent) -> None:
    frames = []
    with node.http.stream("GET", "/v1/telemetry/stream?hz=20") as reply:
        for line in reply.iter_lines():
            frames.append(json.loads(line))
            if len(frames) == 4:
                break
    assert [f["seq"] for f in frames] == [0, 1, 2, 3]
    marks = [f["t_mono"] for f in frames]
    assert marks == sorted(marks)
    device = frames[-1]["devices"][0]
    assert device["uuid"]
    assert None not in device.values(), "a fact that is not supported is absent"
    assert frames[-1]["memory_bytes"] >= frames[-1]["memory_used_bytes"] > 0


def test_the_shape_of_a_file(node: Agent, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    reply = node.http.post("/v1/shape", json={"path": str(path)})
    assert reply.status_code == 200
    assert reply.json()["blocks"] == [64 * 64 * 4]
    assert reply.json()["fields"]["block_count"] == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v1/nothing", None, 404, "there is no /v1/nothing"),
        ("POST", "/v1/hello", None, 405, "takes GET"),
        ("POST", "/v1/models", b"{", 400, "not JSON"),
        ("POST", "/v1/models", b"[]", 400, "JSON object"),
        ("POST", "/v1/models", b'{"dirs": "x"}', 400, "dirs: expected a list"),
        ("POST", "/v1/shape", b"{}", 400, "expected the path"),
        ("POST", "/v1/shape", b'{"path": "/nowhere.gguf"}', 404, "/nowhere.gguf"),
        ("PUT", "/v1/engines", b"{}", 400, "generation"),
        ("PUT", "/v1/engines", b'{"generation": 1}', 400, "engines: expected a list"),
        ("POST", "/v1/engines/n%2Fx/restart", None, 404, "'n/x'"),
        ("GET", "/v1/engines/n%2Fx/logs", None, 404, "'n/x'"),
        ("GET", "/v1/telemetry/stream?hz=-1", None, 400, "hz: expected a number"),
        ("GET", "/v1/telemetry/stream?hz=nan", None, 400, "hz: expected a number"),
        ("GET", "/v1/logs?tail=many", None, 400, "tail: expected a number"),
        ("POST", "/v1/shutdown", b'{"engines": "burn"}', 400, "keep or stop"),
    ],
)
def test_what_is_wrong_is_said(
    node: Agent, method: str, path: str, body: bytes | None, status: int, words: str
) -> None:
    reply = node.http.request(method, path, content=body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert words in error["message"]
    assert set(error) == {"title", "message", "hint"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "vllm"}, "unknown kind 'vllm'"),
        ({"devices": ["GPU-0"]}, "no device 'GPU-0'"),
        ({"devices": "cpu"}, "devices: expected a list of strings"),
        ({"slots": 0}, "slots: expected a whole number"),
        ({"slots": True}, "slots: expected a whole number"),
        ({"num_ctx": "4k"}, "num_ctx: expected a whole number"),
        ({"env": {"A": 1}}, "env: expected names and strings"),
        ({"id": ""}, "id: expected"),
        ({"id": "a\nb"}, "id: expected"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"kind": "embedded"}, "needs the model it serves"),
        ({"model": {"name": "m", "path": "/m"}}, "serves many models"),
    ],
)
def test_a_bad_spec_changes_nothing(node: Agent, change: dict[str, object], words: str) -> None:
    good = {"id": "n/good", "kind": "ollama", "devices": ["cpu"]}
    reply = node.put(good, {**good, "id": "n/bad", **change}, generation=9)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    assert node.http.get("/v1/engines").json() == {"generation": 0, "engines": []}


def test_one_id_twice_is_refused(node: Agent) -> None:
    twice = {"id": "n/x", "kind": "ollama", "devices": ["cpu"]}
    assert "given twice" in node.put(twice, twice).json()["error"]["message"]


def test_a_body_over_one_mebibyte_is_refused(node: Agent) -> None:
    reply = node.http.post("/v1/models", content=b" " * (1024 * 1024 + 1))
    assert reply.status_code == 413
    chunks = (b" " * 65536 for _ in range(17))
    reply = node.http.post("/v1/models", content=chunks)
    assert reply.status_code == 413, "chunked bodies are counted as they come"


def test_a_request_that_is_not_http_gets_400(node: Agent) -> None:
    assert raw(node, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_slow_head_is_cut_off(node: Agent) -> None:
    assert raw(node, b"GET /v1/hello HTTP/1.1\r\nHost:") == b""


def test_one_connection_serves_many_requests(node: Agent) -> None:
    ask = b"GET /v1/hello HTTP/1.1\r\nHost: a\r\n"
    answer = raw(node, ask + b"\r\n" + ask + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 2


def test_only_the_owner_can_reach_the_socket(node: Agent) -> None:
    assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.socket.parent.stat().st_mode) == 0o700


STRANGER = """
import os, socket, sys
os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(20)
try:
    peer.connect(sys.argv[1])
    peer.sendall(b"GET /v1/hello HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    print(peer.recv(100))
except PermissionError:
    print("kept out")
except (BrokenPipeError, ConnectionResetError):
    print("hung up")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_another_user_gets_no_answer(node: Agent) -> None:
    """File modes keep others out; should they be loosened, the kernel still names the peer."""

    def stranger() -> str:
        argv = [sys.executable, "-c", STRANGER, str(node.socket)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    assert stranger() == "kept out"
    closed = [p for p in (node.socket, *node.socket.parents) if not p.stat().st_mode & 0o001]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in closed}
    try:
        for path in closed:
            path.chmod(modes[path] | 0o077)
        assert stranger() in ("hung up", "b''")
    finally:
        for path in closed:
            path.chmod(modes[path])


def test_a_second_agent_on_the_same_state_refuses_to_start(node: Agent) -> None:
    argv = [a.replace("a.sock", "b.sock") for a in node.argv]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert f"pid {node.process.pid}" in done.stderr  # type: ignore[union-attr]


def test_a_socket_directory_open_to_others_is_refused(node: Agent, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    argv = [*node.argv[:4], "--socket", str(tmp_path / "open" / "a"), "--state-dir", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "chmod 700" in done.stderr


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--simulated", "{"], "not JSON"),
        (["--simulated", '{"gpus": "four"}'], "--simulated"),
        (["--policy", '{"patience": 1}'], "no field 'patience'"),
        (["--policy", '{"poll_s": 0}'], "positive number"),
    ],
)
def test_bad_options_end_with_2(node: Agent, tmp_path: Path, option: list[str], words: str) -> None:
    argv = [*node.argv[:4], "--socket", str(tmp_path / "s"), "--state-dir", str(tmp_path), *option]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr


def test_it_runs_from_the_source_tree_too(tmp_path: Path) -> None:
    running = Agent(tmp_path)
    running.argv[1:3] = ["-m", "olol_tui.agent"]
    running.env["PYTHONPATH"] = str(REPOSITORY)
    try:
        assert running.start().http.get("/v1/hello").json()["sha256"] == ""
    finally:
        running.close()


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        assert node.kill(15) == 0
        assert not node.socket.exists()


def test_the_agent_tells_its_own_log(node: Agent) -> None:
    lines = [json.loads(x)["line"] for x in node.http.get("/v1/logs?tail=5").text.splitlines()]
    assert any("serves" in line for line in lines)


def test_one_controller_at_a_time(tmp_path: Path) -> None:
    """Two consoles must not start and stop each other's engines."""
    ops = {"X-Olol-Controller": "ops-console-1 ops@laptop"}
    eve = {"X-Olol-Controller": "eve-console-2 eve@desk"}
    wanted = {"generation": 1, "engines": []}
    with agent(tmp_path) as node:
        claim = node.http.post("/v1/claim", headers=ops).json()
        assert claim["controller"]["name"] == "ops@laptop"
        assert node.http.get("/v1/hello").json()["controller"]["name"] == "ops@laptop"
        for headers in (eve, {}):
            refused = node.http.put("/v1/engines", json=wanted, headers=headers)
            assert refused.status_code == 409
            assert refused.json()["held_by"]["name"] == "ops@laptop"
            assert "managed by ops@laptop since" in refused.json()["error"]["message"]
        assert node.http.post("/v1/shutdown", headers=eve).status_code == 409
        assert node.http.post("/v1/engines/n%2Fx/restart", headers=eve).status_code == 409
        assert node.http.put("/v1/engines", json=wanted, headers=ops).status_code == 200
        node.kill()
        node.start()
        assert node.http.post("/v1/claim", headers=eve).status_code == 409
        node.http.post("/v1/release", headers=ops)
        assert node.http.post("/v1/claim", headers=eve).status_code == 200
        nonsense = {"X-Olol-Controller": "?"}
        assert node.http.post("/v1/claim", headers=nonsense).status_code == 400
