"""A real Ollama behind the gateway: lost, cancelled, adopted, shared by slots; and two as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.at_hand import smollm2
from tests.contract.model_registry import registry
from tests.contract.ollama_process import create, plain_ollama, program
from tests.contract.serve_rig import Instance

pytestmark = [pytest.mark.ollama, pytest.mark.timeout(600)]

REPLY_S = 120.0
MODEL = "small:latest"
SLOTS, CONTEXT, MORE = 2, 2048, 8192
LONG = {
    "model": MODEL,
    "prompt": "One sheep, two sheep,",
    "raw": True,
    "options": {"num_predict": 1500, "temperature": 2.0},
}
"""Without a template it does not come to an end of its own; minutes on a slow CPU."""
SHORT = {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 3}}


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Not pytest's own directory: a UNIX socket's path must stay under 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="olol-real-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@dataclass
class Served:
    instance: Instance
    url: str


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Served]:
    program()
    node = f'local = true\nengine = "ollama"\nslots = {SLOTS}\nnum_ctx = {CONTEXT}\n'
    store = json.dumps(str(root / "models"))
    one = Instance(root / "s", f"[nodes.local]\n{node}models_dir = {store}\n")
    try:
        served = Served(one, one.serve())
        create(served.url, "small", smollm2())
        yield served
    finally:
        one.close()


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=REPLY_S, trust_env=False) as client:
        yield client


def until(true: Callable[[], Any], what: str, within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return value


class Stream:
    """A long reply that is read in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.cut: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()

    def _read(self, url: str) -> None:
        try:
            with httpx.stream(
                "POST", f"{url}/api/generate", json=LONG, timeout=REPLY_S, trust_env=False
            ) as reply:
                for line in reply.iter_lines():
                    self.lines.append(json.loads(line))
        except httpx.TransportError as error:
            self.cut = error

    def end(self) -> dict[str, Any]:
        """The last line."""
        self._thread.join(REPLY_S)
        assert not self._thread.is_alive(), "the stream goes on"
        return self.lines[-1]


def engine(http: httpx.Client) -> dict[str, Any]:
    (node,) = http.get("/olol/v1/fleet").json()["nodes"]
    (one,) = node["engines"]
    found: dict[str, Any] = one
    return found


def requests(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/olol/v1/requests").json()["requests"]
    return [one for one in found if one["state"] in ("queued", "prefill", "decode")]


def runners_of(pid: int) -> set[int]:
    """Processes of an engine's runners, where models are computed."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found = {int(child) for children in tasks for child in children.read_text().split()}
    return found.union(*map(runners_of, found))


def cpu_s(pid: int) -> float:
    """CPU time of an engine's runners."""
    ticks = 0
    for runner in runners_of(pid):
        after_name = Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def is_idle(pid: int) -> bool:
    before = cpu_s(pid)
    time.sleep(0.5)
    return cpu_s(pid) - before < 0.05


def test_slots_are_what_ollama_was_told_and_what_is_sent_at_once(
    served: Served, http: httpx.Client
) -> None:
    one = engine(http)
    environ = Path(f"/proc/{one['pid']}/environ").read_bytes().split(b"\0")
    assert f"OLLAMA_NUM_PARALLEL={SLOTS}".encode() in environ
    streams = [Stream(served.url) for _ in range(SLOTS + 1)]
    until(lambda: sum(bool(each.lines) for each in streams) == SLOTS, "the slots are not used")
    states = sorted(each["state"] for each in requests(http))
    assert states == ["decode"] * SLOTS + ["queued"]
    for each in requests(http):
        assert http.delete(f"/olol/v1/requests/{each['id']}").status_code == 200
    for stream in streams:
        assert "cancelled" in stream.end()["error"]
    # The engine itself stops, long before the replies would have been whole.
    until(lambda: is_idle(one["pid"]), "the engine goes on with cancelled requests", 20)
    assert engine(http)["pid"] == one["pid"]


def _lasts(http: httpx.Client, expected_s: float) -> bool:
    """Whether ps tells so of what is loaded, less what a slow machine takes to ask."""
    (loaded,) = http.get("/api/ps").json()["models"]
    left = (datetime.fromisoformat(loaded["expires_at"]) - datetime.now(UTC)).total_seconds()
    if expected_s == float("inf"):
        return left > 10 * 365 * 86400
    return expected_s - 60 < left <= expected_s + 1


def test_keep_alive_in_every_form_is_what_ps_tells(http: httpx.Client) -> None:
    forms: list[tuple[Any, float]] = [
        ("47m", 47 * 60),
        (90, 90),
        ("1h30m", 5400),
        ("2.5h", 9000),
        (200.9, 200),
        (-1, float("inf")),
        ("-1m", float("inf")),
    ]
    for form, expected_s in forms:
        http.post("/api/generate", json={**SHORT, "keep_alive": form}).raise_for_status()
        # Ollama itself counts from a moment after the reply.
        until(lambda form=form, s=expected_s: _lasts(http, s), f"keep_alive {form}", 5)  # type: ignore[misc]
    refused = http.post("/api/generate", json={**SHORT, "keep_alive": "soon"})
    assert refused.status_code == 400 and "error" in refused.json()
    for form in (0, "0", "0s"):
        reply = http.post("/api/generate", json={**SHORT, "keep_alive": 60})
        assert reply.status_code == 200
        gone = http.post(
            "/api/generate", json={"model": MODEL, "stream": False, "keep_alive": form}
        )
        assert (gone.status_code, gone.json()["done_reason"]) == (200, "unload"), form
        until(lambda: http.get("/api/ps").json() == {"models": []}, f"keep_alive {form}", 10)


def test_the_context_stays_as_it_is_loaded(http: httpx.Client) -> None:
    """A smaller one must not cost a reload; a larger one cannot be had without."""
    http.post("/api/generate", json=SHORT).raise_for_status()
    pid = engine(http)["pid"]
    runners = runners_of(pid)
    (loaded,) = http.get("/api/ps").json()["models"]
    assert loaded["context_length"] == CONTEXT
    smaller = {**SHORT, "options": {"num_predict": 3, "num_ctx": 1024}}
    reply = http.post("/api/generate", json=smaller)
    assert reply.status_code == 200 and reply.json()["done"]
    assert runners_of(pid) == runners
    # The first is less than an Ollama gives without being told, and more than this one does.
    for tokens in (3072, MORE):
        larger = {**SHORT, "options": {"num_predict": 3, "num_ctx": tokens}}
        http.post("/api/generate", json=larger).raise_for_status()
        (loaded,) = http.get("/api/ps").json()["models"]
        assert loaded["context_length"] == tokens
    http.post("/api/generate", json=SHORT).raise_for_status()
    (loaded,) = http.get("/api/ps").json()["models"]
    assert loaded["context_length"] == MORE, "who does not ask for one takes what is there"


def test_a_killed_engine_is_an_error_line_and_comes_back(
    served: Served, http: httpx.Client
) -> None:
    stream = Stream(served.url)
    until(lambda: len(stream.lines) > 2, "no token")
    pid = engine(http)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert "upstream lost" in stream.end()["error"]
    assert not any(line.get("done") for line in stream.lines)
    reply = http.post("/api/generate", json=SHORT)
    assert reply.status_code == 200 and reply.json()["done"], reply.text
    assert until(lambda: engine(http)["pid"], "no engine") != pid


def test_a_new_core_adopts_the_engine_with_what_it_holds(
    served: Served, http: httpx.Client
) -> None:
    http.post("/api/generate", json={**SHORT, "keep_alive": "47m"}).raise_for_status()
    pid = engine(http)["pid"]
    runners = runners_of(pid)
    assert served.instance.end(signal.SIGKILL) == -signal.SIGKILL
    served.url = served.instance.serve()
    with httpx.Client(base_url=served.url, timeout=REPLY_S, trust_env=False) as again:
        (loaded,) = again.get("/api/ps").json()["models"]
        assert loaded["name"] == MODEL
        assert again.post("/api/generate", json=SHORT).json()["done"]
        assert engine(again)["pid"] == pid
    assert runners_of(pid) == runners


def test_two_ollamas_are_one_store(root: Path) -> None:
    program()
    with (
        registry() as models,
        plain_ollama(root / "a") as one,
        plain_ollama(root / "b") as two,
    ):
        remote = f"{models.host}/team/small:v1"
        create(one.url, remote, smollm2())
        push = {"model": remote, "insecure": True, "stream": False}
        assert httpx.post(f"{one.url}/api/push", json=push, timeout=REPLY_S).status_code == 200
        httpx.request("DELETE", f"{one.url}/api/delete", json={"model": remote}).raise_for_status()
        config = f'[gateway]\nregistries = ["http://{models.host}"]\n'
        for name, each in (("a", one), ("b", two)):
            config += f'[endpoints.{name}]\nurl = "{each.url}"\nslots = 1\nvram = "4GiB"\n'
        config += '[nodes.local]\nlocal = true\nengine = "embedded"\n'
        instance = Instance(root / "two", config)
        try:
            with httpx.Client(base_url=instance.serve(), timeout=REPLY_S, trust_env=False) as http:
                _fan_out(http, remote, (one.url, two.url))
        finally:
            instance.close()


def _fan_out(http: httpx.Client, remote: str, urls: tuple[str, str]) -> None:
    def held(url: str) -> set[str]:
        return {each["name"] for each in httpx.get(f"{url}/api/tags").json()["models"]}

    reply = http.post("/api/pull", json={"model": remote, "insecure": True})
    said = [json.loads(line) for line in reply.text.splitlines()]
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert said[-1] == {"status": "success"}, said[-1]
    assert [line["status"] for line in said].count("success") == 1
    totals: dict[str, set[int]] = {}
    completed: dict[str, list[int]] = {}
    for line in said:
        if "digest" in line:
            totals.setdefault(line["digest"], set()).add(line["total"])
            completed.setdefault(line["digest"], []).append(line.get("completed", 0))
    # One bar a layer, that never goes back, whole when both stores have it.
    assert max(max(each) for each in totals.values()) == smollm2().stat().st_size
    for digest, each in completed.items():
        assert each == sorted(each) and each[-1] == max(totals[digest]), (digest, each)
    assert all(remote in held(url) for url in urls)

    copied = http.post("/api/copy", json={"source": remote, "destination": "small"})
    assert copied.status_code == 200, copied.text
    assert all({remote, MODEL} <= held(url) for url in urls)
    names = [each["name"] for each in http.get("/api/tags").json()["models"]]
    assert names.count(MODEL) == 1
    assert http.post("/api/generate", json=SHORT).json()["done"]

    gone = http.request("DELETE", "/api/delete", json={"model": remote})
    assert gone.status_code == 200, gone.text
    assert all(held(url) == {MODEL} for url in urls)
    missing = http.request("DELETE", "/api/delete", json={"model": remote})
    assert missing.status_code == 404 and "not found" in missing.json()["error"]
