"""Engines through their whole life: started, watched, crashed, adopted, replaced, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.agent_rig import QUICK, Agent, agent, alive, fake_ollama, left_behind, spec

ID = "n/ollama-cpu"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Agent]:
    with agent(tmp_path) as running:
        yield running


@pytest.fixture
def binary(tmp_path: Path) -> str:
    return fake_ollama(tmp_path / "bin")


def test_an_engine_becomes_ready_and_is_told_what_it_needs(
    node: Agent, binary: str, tmp_path: Path
) -> None:
    dump = tmp_path / "dump.json"
    wanted = spec(ID, binary, slots=3, num_ctx=8192, env={"FAKE_DUMP": str(dump), "EXTRA": "1"})
    assert node.put(wanted, generation=7).json() == {"generation": 7}
    status = node.until_state(ID, "ready")
    assert status["version"] == "0.99.1"
    assert status["slots"] == 3
    assert status["error"] == ""
    assert alive(status["pid"])
    seen = json.loads(dump.read_text())
    assert seen["argv"][1:] == ["serve"]
    env = seen["env"]
    assert env["OLLAMA_HOST"] == status["address"]
    assert env["OLLAMA_NO_CLOUD"] == "1"
    assert env["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert env["OLLAMA_NUM_PARALLEL"] == "3"
    assert env["OLLAMA_NOPRUNE"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == env["ROCR_VISIBLE_DEVICES"] == "-1"
    assert env["EXTRA"] == "1"
    assert os.getsid(status["pid"]) == status["pid"], "an engine leads its own session"
    assert os.readlink(f"/proc/{status['pid']}/fd/0") == "/dev/null"


def test_its_port_is_outside_the_ephemeral_range(node: Agent, binary: str) -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    node.put(spec("n/a", binary), spec("n/b", binary))
    ports = {
        int(node.until_state(i, "ready")["address"].rpartition(":")[2]) for i in ("n/a", "n/b")
    }
    assert len(ports) == 2
    assert not any(low <= port <= high for port in ports)


def test_an_unchanged_spec_keeps_its_process_and_a_changed_one_replaces_it(
    node: Agent, binary: str
) -> None:
    node.put(spec(ID, binary))
    first = node.until_state(ID, "ready")
    node.put(spec(ID, binary), spec("n/other", binary), generation=2)
    node.until_state("n/other", "ready")
    assert node.engine(ID)["pid"] == first["pid"]
    node.put(spec(ID, binary, num_ctx=1024), generation=3)
    second = node.until(
        lambda: (e := node.engine(ID))["state"] == "ready" and e["pid"] != first["pid"] and e,
        "it runs again with the new spec",
    )
    assert not alive(first["pid"])
    assert second["restarts"] == 0, "a wish is not a crash"


def test_what_is_loaded_is_read_from_the_engine(node: Agent, binary: str, tmp_path: Path) -> None:
    ps = tmp_path / "ps.json"
    ps.write_text('{"models": []}')
    node.put(spec(ID, binary, env={"FAKE_PS": str(ps)}))
    assert node.until_state(ID, "ready")["loaded"] == []
    row = {"name": "qwen3:8b", "digest": "ab" * 32, "size": 90, "size_vram": 60}
    rows = [
        {**row, "context_length": 4096, "expires_at": "2030-01-02T03:04:05.123456789+02:00"},
        {**row, "name": "pinned:1b", "expires_at": "2318-01-02T03:04:05Z"},
    ]
    part = tmp_path / "part"
    part.write_text(json.dumps({"models": rows}))
    part.rename(ps)
    loaded = node.until(lambda: node.engine(ID)["loaded"], "the models are seen")
    assert loaded[0] == {
        "name": "qwen3:8b",
        "digest": "sha256:" + "ab" * 32,
        "size_bytes": 90,
        "vram_bytes": 60,
        "context_length": 4096,
        "expires_at": "2030-01-02T03:04:05.123456789+02:00",
    }
    assert loaded[1]["expires_at"] == "", "a date centuries ahead means never"


def test_a_change_of_state_is_told_at_once(node: Agent, binary: str) -> None:
    """A console that looks once in a hundred seconds still sees the engine become ready."""
    states = []
    with node.http.stream("GET", "/v1/telemetry/stream?hz=0.01") as reply:
        lines = reply.iter_lines()
        assert json.loads(next(lines))["engines"] == []
        node.put(spec(ID, binary))
        while "ready" not in states:
            frame = json.loads(next(lines))
            states += [e["state"] for e in frame["engines"]]
    assert states[0] == "starting"
    assert frame["generation"] == 1


def test_a_killed_engine_comes_back_and_says_why(node: Agent, binary: str) -> None:
    node.put(spec(ID, binary))
    first = node.until_state(ID, "ready")
    os.kill(first["pid"], signal.SIGKILL)
    back = node.until(
        lambda: (e := node.engine(ID))["state"] == "ready" and e["pid"] != first["pid"] and e,
        "it is back",
    )
    assert back["restarts"] == 1
    assert back["address"] == first["address"], "its address is kept when it is free"
    assert "was killed by SIGKILL" in (node.root / "agent.err").read_text()


def test_an_engine_that_falls_silent_is_told_but_not_killed(tmp_path: Path) -> None:
    """It may be busy in a driver: killing it would lose what it computes."""
    binary = fake_ollama(tmp_path / "bin")
    with agent(tmp_path, policy={**QUICK, "answer_s": 0.5}) as node:
        node.put(spec(ID, binary))
        pid = node.until_state(ID, "ready")["pid"]
        os.kill(pid, signal.SIGSTOP)
        error = node.until(lambda: node.engine(ID)["error"], "its silence is told")
        assert "does not answer" in error
        assert node.engine(ID)["state"] == "ready"
        os.kill(pid, signal.SIGCONT)
        node.until(lambda: not node.engine(ID)["error"], "it answers again")
        assert node.engine(ID)["pid"] == pid


def test_a_crash_loop_ends_with_the_last_lines(node: Agent, binary: str) -> None:
    node.put(spec(ID, binary, env={"FAKE_CRASH": "1"}))
    status = node.until_state(ID, "backoff")
    assert status["retry_in_s"] is not None
    assert status["error"] == "exited with status 7: cannot find my cards"
    assert status["pid"] is None
    assert status["address"] == ""
    status = node.until_state(ID, "failed")
    assert status["restarts"] == 5
    assert status["error"] == "crashed 5 times: exited with status 7: cannot find my cards"
    assert status["log_tail"].count("cannot find my cards") == 5
    assert status["retry_in_s"] is None
    node.restart_engine(ID)
    assert node.until_state(ID, "backoff")["restarts"] == 6, "a restart by hand tries again"


def test_a_program_that_is_not_there_fails_with_what_to_do(node: Agent, tmp_path: Path) -> None:
    node.put(spec(ID, str(tmp_path / "nowhere")))
    status = node.until_state(ID, "failed")
    assert "nowhere does not exist" in status["error"]
    assert status["restarts"] == 0


def test_an_engine_that_never_answers_is_started_again(tmp_path: Path) -> None:
    binary = fake_ollama(tmp_path / "bin")
    with agent(tmp_path, policy={**QUICK, "start_timeout_s": 1}) as node:
        node.put(spec(ID, binary, env={"FAKE_MUTE": "1"}))
        assert "did not answer within 1 s" in node.until_state(ID, "backoff")["error"]


def test_restart_replaces_the_process(node: Agent, binary: str) -> None:
    node.put(spec(ID, binary))
    first = node.until_state(ID, "ready")
    assert node.restart_engine(ID).json() == {}
    node.until(
        lambda: (e := node.engine(ID))["state"] == "ready" and e["pid"] != first["pid"],
        "another process",
    )
    assert not alive(first["pid"])


def test_removed_engines_stop_with_everything_they_started(
    node: Agent, binary: str, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    node.put(spec(ID, binary, env={"FAKE_CHILD": str(child)}))
    pid = node.until_state(ID, "ready")["pid"]
    helper = int(child.read_text())
    assert alive(helper)
    node.put(generation=2)
    node.until(lambda: not node.engines(), "it is gone from the list")
    assert not alive(pid)
    assert not alive(helper)


def test_a_crash_takes_the_helpers_along(node: Agent, binary: str, tmp_path: Path) -> None:
    """A runner that outlives its Ollama would still hold the GPU's memory."""
    child = tmp_path / "child"
    node.put(spec(ID, binary, env={"FAKE_CHILD": str(child)}))
    pid = node.until_state(ID, "ready")["pid"]
    helper = int(child.read_text())
    os.kill(pid, signal.SIGKILL)
    node.until(lambda: not alive(helper), "the helper is gone")


def test_what_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    binary = fake_ollama(tmp_path / "bin")
    with agent(tmp_path, policy={**QUICK, "stop_grace_s": 0.5}) as node:
        node.put(spec(ID, binary, env={"FAKE_IGNORE_TERM": "1"}))
        pid = node.until_state(ID, "ready")["pid"]
        node.put(generation=2)
        assert node.until_state(ID, "stopping")["pid"] == pid
        node.until(lambda: not node.engines(), "it is gone")
        assert not alive(pid)


def test_engines_survive_the_agent_and_are_adopted(node: Agent, binary: str) -> None:
    node.put(spec("n/a", binary), spec("n/b", binary), generation=4)
    before = {i: node.until_state(i, "ready") for i in ("n/a", "n/b")}
    node.kill()
    assert all(alive(e["pid"]) for e in before.values())
    node.start()
    assert node.http.get("/v1/engines").json()["generation"] == 4
    for identity, old in before.items():
        new = node.until_state(identity, "ready")
        assert (new["pid"], new["address"]) == (old["pid"], old["address"])
        assert new["version"] == "0.99.1"
    os.kill(before["n/a"]["pid"], signal.SIGKILL)
    back = node.until(lambda: (e := node.engine("n/a"))["restarts"] == 1 and e, "it was noticed")
    assert back["pid"] != before["n/a"]["pid"]


def test_an_engine_that_died_while_the_agent_was_away_is_started(node: Agent, binary: str) -> None:
    node.put(spec(ID, binary))
    pid = node.until_state(ID, "ready")["pid"]
    node.kill()
    os.kill(pid, signal.SIGKILL)
    node.start()
    assert node.until_state(ID, "ready")["pid"] != pid


def test_a_record_of_another_process_with_that_pid_is_not_believed(
    node: Agent, binary: str
) -> None:
    node.put(spec(ID, binary))
    status = node.until_state(ID, "ready")
    node.kill()
    record = next(node.state.glob("*/engines/*.json"))
    data = json.loads(record.read_text())
    bystander = os.getpid()
    record.write_text(json.dumps({**data, "pid": bystander}))
    os.kill(status["pid"], signal.SIGKILL)
    node.start()
    assert node.until_state(ID, "ready")["pid"] not in (bystander, status["pid"])


@pytest.mark.parametrize("damage", ["", "{", '{"generation": "x"}', "[]"])
def test_a_damaged_engine_list_is_reported_and_ends_the_engines(
    node: Agent, binary: str, damage: str
) -> None:
    node.put(spec(ID, binary))
    pid = node.until_state(ID, "ready")["pid"]
    node.kill()
    desired = next(node.state.glob("*/desired.json"))
    desired.write_text(damage)
    node.start()
    errors = node.http.get("/v1/inventory").json()["errors"]
    assert any("desired.json" in error for error in errors)
    node.until(lambda: not alive(pid), "an engine that nobody wants is ended")
    assert node.put(spec(ID, binary)).status_code == 200
    node.until_state(ID, "ready")


def test_an_engine_without_a_record_is_found_and_ended(node: Agent, binary: str) -> None:
    """The agent may die between starting an engine and writing its record."""
    node.put(spec(ID, binary))
    pid = node.until_state(ID, "ready")["pid"]
    node.kill()
    next(node.state.glob("*/engines/*.json")).unlink()
    node.start()
    node.until(lambda: not alive(pid), "the stray is gone")
    assert node.until_state(ID, "ready")["pid"] != pid


def test_shutdown_keeps_or_stops_engines(node: Agent, binary: str) -> None:
    node.put(spec(ID, binary))
    pid = node.until_state(ID, "ready")["pid"]
    node.http.post("/v1/shutdown", json={"engines": "keep"})
    assert node.process is not None
    assert node.process.wait(30) == 0
    assert alive(pid)
    node.start()
    assert node.until_state(ID, "ready")["pid"] == pid
    node.http.post("/v1/shutdown", json={"engines": "stop"})
    assert node.process.wait(30) == 0
    assert not alive(pid)
    assert left_behind(node.state) == []
    node.start()
    assert node.engines() == [], "stopped engines do not come back by themselves"


def test_a_port_taken_by_another_program_is_left_to_it(node: Agent, binary: str) -> None:
    node.put(spec(ID, binary))
    first = node.until_state(ID, "ready")
    port = int(first["address"].rpartition(":")[2])
    node.kill()
    os.kill(first["pid"], signal.SIGKILL)
    node.until(lambda: not alive(first["pid"]), "it is gone")
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind(("127.0.0.1", port))
        taker.listen()
        node.start()
        assert node.until_state(ID, "ready")["address"] != first["address"]


def test_logs_are_read_followed_and_kept_apart(node: Agent, binary: str) -> None:
    node.put(spec(ID, binary))
    node.until_state(ID, "ready")
    url = f"/v1/engines/{ID.replace('/', '%2F')}/logs"
    lines = [json.loads(x)["line"] for x in node.http.get(f"{url}?tail=1").text.splitlines()]
    assert lines == ["listening"]
    log = next(node.state.glob("*/logs/n%2Follama-cpu.log"))
    with node.http.stream("GET", f"{url}?tail=0&follow=1") as reply:
        with log.open("a") as file:
            file.write("\x1b[31mone\x1b[0m\ntwo")
        stream = reply.iter_lines()
        assert json.loads(next(stream)) == {"line": "one"}
        with log.open("a") as file:
            file.write(" three\n")
        assert json.loads(next(stream)) == {"line": "two three"}


def test_long_logs_are_rotated_under_the_engine(tmp_path: Path) -> None:
    binary = fake_ollama(tmp_path / "bin")
    policy = {**QUICK, "rotate_s": 0.1, "log_max_bytes": 2000, "log_files": 3}
    with agent(tmp_path, policy=policy) as node:
        node.put(spec(ID, binary))
        node.until_state(ID, "ready")
        log = next(node.state.glob("*/logs/n%2Follama-cpu.log"))
        for round_ in range(4):
            with log.open("a") as file:
                file.write(f"round {round_} " + "x" * 2000 + "\n")
            node.until(lambda: log.stat().st_size < 2000, "it was cut")
        assert sorted(p.name for p in log.parent.glob("n%2F*")) == [
            "n%2Follama-cpu.log",
            "n%2Follama-cpu.log.1",
            "n%2Follama-cpu.log.2",
        ]
        assert "round 3" in Path(f"{log}.1").read_text()
        assert "round 2" in Path(f"{log}.2").read_text()


def test_refresh_looks_now(tmp_path: Path) -> None:
    binary = fake_ollama(tmp_path / "bin")
    ps = tmp_path / "ps.json"
    ps.write_text('{"models": []}')
    with agent(tmp_path, policy={**QUICK, "poll_s": 300}) as node:
        node.put(spec(ID, binary, env={"FAKE_PS": str(ps)}))
        node.until_state(ID, "ready")
        ps.write_text('{"models": [{"name": "a:b", "size": 1, "size_vram": 1}]}')
        started = time.monotonic()
        assert node.http.post(f"/v1/engines/{ID.replace('/', '%2F')}/refresh").json() == {}
        node.until(lambda: node.engine(ID)["loaded"], "it was looked at")
        assert time.monotonic() - started < 60
