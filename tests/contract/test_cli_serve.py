"""`olol-tui --serve` and the commands that work on it, as real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.contract.serve_rig import Instance, processes_with

MODEL = "llama3.2:1b"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    one = Instance(tmp_path / "state")
    yield one
    one.close()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.load(reply)


def ask(url: str, model: str = MODEL, predict: int = 3) -> list[dict[str, Any]]:
    body = {"model": model, "prompt": "hi", "options": {"num_predict": predict}}
    with urllib.request.urlopen(f"{url}/api/generate", json.dumps(body).encode(), 60) as reply:
        return [json.loads(line) for line in reply]


def until(condition: Callable[[], Any], within_s: float = 30.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_a_core_lives_from_ready_to_sigterm(instance: Instance) -> None:
    url = instance.serve()
    assert MODEL in [model["name"] for model in get(f"{url}/api/tags")["models"]]
    assert ask(url)[-1]["done"] is True
    status = instance.run("status")
    assert status.returncode == 0
    assert f"olol-tui 0.1.0 · local · {url}" in status.stdout
    assert "sim/simulated-gpu0" in status.stdout
    assert instance.end() == 0
    entries = [json.loads(line) for line in instance.log.splitlines()]
    assert [one["message"] for one in entries if one["logger"] == "olol_tui.serving"] == [
        "ready",
        "draining",
        "stopped",
    ]
    after = instance.run("status")
    assert after.returncode == 1
    assert after.stderr.splitlines()[-1] == "Start one: olol-tui --serve"


def test_engines_outlive_the_core_and_are_adopted(instance: Instance) -> None:
    """A killed gateway must cost nobody the minutes that loading a model takes."""
    instance.serve()
    ready = until(lambda: all(e["state"] == "ready" for e in instance.engines().values()))
    assert ready
    before = {name: engine["pid"] for name, engine in instance.engines().items()}
    assert instance.end(signal.SIGKILL) == -signal.SIGKILL
    url = instance.serve()
    assert {name: engine["pid"] for name, engine in instance.engines().items()} == before
    assert ask(url)[-1]["done"] is True
    assert instance.end(signal.SIGINT) == 0
    stopped = instance.run("stop")
    assert "● sim: agent" in stopped.stdout
    assert "with 2 engines" in stopped.stdout
    assert processes_with(str(instance.state_dir)) == []


def test_stop_finds_engines_whose_agent_is_dead_too(instance: Instance) -> None:
    instance.serve()
    until(lambda: all(e["state"] == "ready" for e in instance.engines().values()))
    instance.end(signal.SIGKILL)
    agents = [pid for pid in processes_with(str(instance.state_dir)) if _is_agent(pid)]
    assert len(agents) == 1
    os.kill(agents[0], signal.SIGKILL)
    until(lambda: not Path(f"/proc/{agents[0]}/cmdline").exists() or not _is_agent(agents[0]))
    assert processes_with(str(instance.state_dir)), "the engines are still there"
    stopped = instance.run("stop")
    assert "with 2 engines" in stopped.stdout, stopped.stderr
    assert processes_with(str(instance.state_dir)) == []
    assert "nothing runs" in instance.run("stop").stdout


def test_one_state_directory_has_one_core(instance: Instance) -> None:
    instance.serve()
    for command in (("--serve", "--port", "0"), ("stop",)):
        second = instance.run(*command)
        assert second.returncode == 2
        assert f"is held by pid {instance.process.pid} (" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_names_who_has_it(instance: Instance) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        done = instance.run("--serve", "--port", str(port))
    assert done.returncode == 2
    assert f"127.0.0.1:{port} is in use by pid {os.getpid()} (" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "not ready"


def test_an_address_that_is_not_ours_is_refused(instance: Instance) -> None:
    done = instance.run("--serve", "--port", "0", "--host", "192.0.2.1")
    assert done.returncode == 2
    assert "192.0.2.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_configuration_stops_nobody_who_runs(instance: Instance) -> None:
    url = instance.serve()
    config = instance.state_dir / "cluster.toml"
    config.write_text("[gateway]\nport = 'eighty'\n")
    done = instance.run("--serve")
    assert done.returncode == 2
    assert f"{config}, line 2, gateway.port: expected a whole number" in done.stderr
    assert ask(url)[-1]["done"] is True


def test_a_configuration_that_was_named_must_exist(instance: Instance) -> None:
    done = instance.run("--serve", "--config", "/nonexistent/cluster.toml")
    assert done.returncode == 2
    assert "/nonexistent/cluster.toml does not exist" in done.stderr


def test_models_are_placed_moved_pinned_and_unloaded_from_the_shell(instance: Instance) -> None:
    instance.serve()

    def where() -> list[str]:
        return sorted(
            name
            for name, engine in instance.engines().items()
            if any(loaded["name"] == MODEL for loaded in engine["loaded"])
        )

    placed = instance.run("place", MODEL, "sim/gpu0")
    assert placed.returncode == 0, placed.stderr
    assert placed.stdout.splitlines()[-1].startswith(f"● load {MODEL} on sim/gpu0")
    assert where() == ["sim/simulated-gpu0"]

    assert instance.run("move", MODEL, "sim/gpu0", "sim/gpu1").returncode == 0
    assert where() == ["sim/simulated-gpu1"]

    assert instance.run("pin", MODEL, "sim/1").returncode == 0
    assert [pin["model"] for pin in instance.fleet()["pins"]] == [MODEL]
    assert instance.run("unpin", MODEL, "sim/1").returncode == 0
    assert instance.fleet()["pins"] == []

    assert instance.run("unload", MODEL, "sim/gpu1").returncode == 0
    assert where() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("place", "nobody-has-this", "sim/gpu0"), "nobody-has-this"),
        (("place", MODEL, "sim/gpu9"), "gpu9"),
        (("place", MODEL, "elsewhere/gpu0"), "elsewhere"),
        (("place", "llama3.3:70b", "sim/gpu0"), "GiB"),
        (("cancel", "r999"), "r999"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    served: Instance, arguments: tuple[str, ...], told: str
) -> None:
    done = served.run(*arguments)
    assert done.returncode == 1
    assert told in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    one = Instance(tmp_path_factory.mktemp("served"))
    one.serve()
    yield one
    one.close()


def test_a_request_is_cancelled_by_its_id(served: Instance) -> None:
    import threading

    url = served.fleet()["gateway"]["address"]
    lines: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: lines.extend(ask(url, predict=3000)))
    asking.start()

    def running() -> str:
        live = [r["id"] for r in served.fleet()["requests"] if r["state"] in ("prefill", "decode")]
        return live[0] if live else ""

    request = until(running)
    done = served.run("cancel", request)
    assert done.returncode == 0, done.stderr
    asking.join(30)
    assert not asking.is_alive()
    assert "error" in lines[-1]
    states = {r["id"]: r["state"] for r in served.fleet()["requests"]}
    assert states[request] == "cancelled"


def test_a_model_is_paused_and_resumed_from_the_shell(served: Instance) -> None:
    done = served.run("pause", MODEL)
    assert done.returncode == 0, done.stderr
    assert "its requests wait" in done.stdout
    assert served.fleet()["paused"] == [MODEL]
    url = served.fleet()["gateway"]["address"]
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(ask, url)
        request = until(lambda: [r for r in served.fleet()["requests"] if r["state"] == "queued"])
        assert "paused" in request[0]["why"]
        where = served.run("reroute", request[0]["id"], "--to", "nowhere")
        assert where.returncode == 1
        assert "nowhere has no engine that could run" in where.stderr
        assert "sim" in where.stderr, "it says where it could go"
        assert served.run("reroute", request[0]["id"], "--to", "sim").returncode == 0
        assert not reply.done()
        assert served.run("resume", MODEL).returncode == 0
        assert reply.result(60)[-1]["done"]
    assert served.fleet()["paused"] == []
    unknown = served.run("pause", "no-such-model")
    assert unknown.returncode == 1
    assert "no node has no-such-model" in unknown.stderr


def test_once_prints_a_snapshot_of_the_running_core(served: Instance) -> None:
    done = served.run("--once", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gateway"]["address"].startswith("http://127.0.0.1:")
    text = served.run("--once")
    assert "sim/simulated-gpu1" in text.stdout


def test_once_without_a_core_looks_and_leaves_nothing_running(instance: Instance) -> None:
    done = instance.run("--once", "--json")
    assert done.returncode == 0, done.stderr
    (node,) = json.loads(done.stdout)["nodes"]
    assert (node["name"], node["state"], len(node["devices"])) == ("sim", "ready", 2)
    assert processes_with(str(instance.state_dir)) == []


def test_a_demo_serves_and_leaves_nothing_running(instance: Instance) -> None:
    url = instance.serve("demo", "--serve", "--port", "0", "--nodes", "2", "--gpus", "1")
    fleet = instance.fleet()
    assert fleet["name"] == "demo"
    assert [node["name"] for node in fleet["nodes"]] == ["n1", "n2"]
    until(lambda: get(f"{url}/olol/v1/fleet")["gateway"]["requests_total"] > 0)
    assert instance.end() == 0
    assert processes_with(str(instance.state_dir)) == []


def test_a_demo_without_traffic_is_silent(instance: Instance) -> None:
    arguments = ("demo", "--serve", "--port", "0", "--nodes", "1", "--gpus", "1", "--no-traffic")
    url = instance.serve(*arguments)
    assert get(f"{url}/olol/v1/fleet")["gateway"]["requests_total"] == 0


def test_the_console_wants_a_terminal(instance: Instance) -> None:
    done = instance.run()
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr


def _is_agent(pid: int) -> bool:
    try:
        return b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
