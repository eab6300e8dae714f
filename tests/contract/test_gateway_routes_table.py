"""Every route of the gateway, over every kind of engine: status, content type, shape.

One row a request. Over engines that keep a store (simulated, as Ollama) and over engines that
serve one file (the embedded one, llama-server where it is there).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from olol_tui.fleet.snapshot import EngineKind
from olol_tui.gateway.routes import INFERENCE, dialect_of
from tests.contract.gateway_rig import engine_node, gateway_over
from tests.contract.runner_process import MODEL as REAL
from tests.contract.runner_process import runner
from tests.contract.serve_rig import Instance
from tests.contract.sim_process import sim_engine

SIMULATED, EMBEDDER = "llama3.2:3b", "nomic-embed-text:latest"
NEW = "tinyllama:1.1b"
FAST = {"load_bytes_s": 1e12, "decode_tps": 1000.0, "prefill_tps": 1e6, "pull_bytes_s": 1e10}
TEXT, JSON = "text/plain; charset=utf-8", "application/json; charset=utf-8"
NDJSON, SSE = "application/x-ndjson", "text/event-stream"
USER: list[Any] = [{"role": "user", "content": "Hi"}]
BLOB = b"GGUF" + bytes(2000)
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


@dataclass
class Service:
    http: httpx.AsyncClient
    real: bool
    model: str
    embedder: str


@pytest.fixture(
    scope="module",
    params=[
        "simulated",
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("llama-server", marks=pytest.mark.llama_server),
    ],
)
def kind(request: pytest.FixtureRequest) -> EngineKind:
    found: EngineKind = request.param
    return found


@pytest.fixture
async def service(kind: EngineKind) -> AsyncIterator[Service]:
    if kind == "simulated":
        async with sim_engine(**FAST) as engine:
            node = engine_node("n1", engine.address, SIMULATED, EMBEDDER)
            async with gateway_over(node) as (_, _, http):
                yield Service(http, False, SIMULATED, EMBEDDER)
    else:
        with runner(kind) as node:
            async with gateway_over(node) as (_, _, http):
                http.timeout = httpx.Timeout(90)
                yield Service(http, True, REAL, REAL)


Check = Callable[[httpx.Response, Service], bool]


@dataclass(frozen=True)
class Row:
    method: str
    path: str
    body: dict[str, Any] | bytes | None = None
    status: int = 200
    runner_status: int | None = None
    """Over an engine without a store, where that differs."""
    kind: str = JSON
    check: Check = lambda reply, service: True
    form: bool = False


def has(*keys: str) -> Check:
    return lambda reply, service: set(keys) <= set(reply.json())


def names(reply: httpx.Response, service: Service) -> bool:
    return service.model in {model["name"] for model in reply.json()["models"]}


def lines(*last: str) -> Check:
    """NDJSON: every line an object, the last with these keys, and it says that it is done."""

    def check(reply: httpx.Response, service: Service) -> bool:
        parts = [json.loads(line) for line in reply.text.splitlines()]
        whole = set(last) <= set(parts[-1]) and parts[-1]["done"] is True
        return whole and not any(part["done"] for part in parts[:-1])

    return check


def events(mark: str) -> Check:
    """SSE: every event well formed, and the last one the mark of a whole reply."""

    def check(reply: httpx.Response, service: Service) -> bool:
        data = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
        parsed = [json.loads(one) for one in data if one != "[DONE]"]
        return len(parsed) > 1 and mark in data[-1]

    return check


def progress(reply: httpx.Response, service: Service) -> bool:
    return [json.loads(line) for line in reply.text.splitlines()][-1] == {"status": "success"}


def vectors(key: str) -> Check:
    def check(reply: httpx.Response, service: Service) -> bool:
        found = reply.json()[key]
        vector = (
            found[0]["embedding"] if key == "data" else found if key == "embedding" else found[0]
        )
        return len(vector) > 100 and all(isinstance(x, float | int) for x in vector)

    return check


def error(reply: httpx.Response, service: Service) -> bool:
    """In the shape of the path's dialect, with a sentence."""
    body = reply.json()
    dialect = dialect_of(reply.request.url.path)
    if dialect == "ollama":
        return list(body) == ["error"] and isinstance(body["error"], str) and bool(body["error"])
    if dialect == "anthropic":
        return bool(body["type"] == "error" and body["error"]["type"] and body["error"]["message"])
    return set(body["error"]) == {"message", "type", "param", "code"} and body["error"]["message"]


M, E = "{model}", "{embedder}"
GENERATE = {"model": M, "prompt": "Hi", "options": {"num_predict": 4}}
CHAT = {"model": M, "messages": USER, "options": {"num_predict": 4}}
OPENAI = {"model": M, "messages": USER, "max_tokens": 4}
COMPLETION = {"model": M, "prompt": "Hi", "max_tokens": 4}
MESSAGE = {"model": M, "messages": USER, "max_tokens": 4}
RESPONSE = {"model": M, "input": "Hi", "max_output_tokens": 4}
SOUND = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n--x--\r\n'
)

ANSWERED = [
    Row("GET", "/", kind=TEXT, check=lambda r, s: r.text == "Ollama is running"),
    Row("HEAD", "/", kind=TEXT, check=lambda r, s: r.content == b""),
    Row("GET", "/health", check=has("status")),
    Row("HEAD", "/health"),
    Row("GET", "/api/version", check=has("version")),
    Row("HEAD", "/api/version", check=lambda r, s: int(r.headers["content-length"]) > 0),
    Row("GET", "/api/tags", check=names),
    Row("HEAD", "/api/tags", check=lambda r, s: r.content == b""),
    Row("GET", "/api/ps", check=has("models")),
    Row("GET", "/api/status", check=has("cloud", "servers", "queue")),
    Row("GET", "/api/models", check=has("count", "models")),
    Row("GET", "/api/servers", check=has("count", "servers")),
    Row("GET", "/v1/models", check=lambda r, s: s.model in {m["id"] for m in r.json()["data"]}),
    Row("GET", "/v1/models/{model}", check=lambda r, s: r.json()["id"] == s.model),
    Row("GET", "/v1/models/none", status=404, check=error),
    Row("GET", "/olol/v1/fleet", check=has("nodes", "gateway")),
    Row("GET", "/olol/v1/requests", check=has("requests")),
    Row("GET", "/metrics", kind="text/plain", check=lambda r, s: "# TYPE olol_" in r.text),
    Row("POST", "/api/show", {"model": M}, check=has("details", "model_info", "capabilities")),
    Row("POST", "/api/show", {"model": "none"}, status=404, check=error),
]

COMPUTED = [
    Row("POST", "/api/generate", GENERATE, kind=NDJSON, check=lines("eval_count", "done_reason")),
    Row("POST", "/api/generate", GENERATE | {"stream": False}, check=has("response", "eval_count")),
    Row("POST", "/api/generate", {"model": M}, kind="", check=lines("done_reason")),
    Row("POST", "/api/chat", CHAT, kind=NDJSON, check=lines("eval_count", "message")),
    Row("POST", "/api/chat", CHAT | {"stream": False}, check=has("message", "eval_count")),
    Row("POST", "/api/embed", {"model": E, "input": ["a", "b"]}, check=vectors("embeddings")),
    Row("POST", "/api/embeddings", {"model": E, "prompt": "a"}, check=vectors("embedding")),
    Row("POST", "/v1/chat/completions", OPENAI, check=has("choices", "usage", "model")),
    Row("POST", "/v1/chat/completions", OPENAI | {"stream": True}, kind=SSE, check=events("[DONE]")),
    Row("POST", "/v1/completions", COMPLETION, check=has("choices", "usage")),
    Row("POST", "/v1/completions", COMPLETION | {"stream": True}, kind=SSE, check=events("[DONE]")),
    Row("POST", "/v1/embeddings", {"model": E, "input": "a"}, check=vectors("data")),
    Row("POST", "/v1/responses", RESPONSE, check=has("output", "usage", "status")),
    Row("POST", "/v1/responses", RESPONSE | {"stream": True}, kind=SSE,
        check=events('"type":"response.')),
    Row("POST", "/v1/messages", MESSAGE, check=has("content", "stop_reason", "usage")),
    Row("POST", "/v1/messages", MESSAGE | {"stream": True}, kind=SSE, check=events("message_stop")),
    Row("POST", "/v1/messages/count_tokens", MESSAGE, check=has("input_tokens")),
    Row("POST", "/v1/audio/transcriptions", SOUND, runner_status=501, form=True,
        check=lambda r, s: error(r, s) if s.real else "text" in r.json()),
]  # fmt: skip

MISSING = [
    Row("POST", path, body | {"model": "none"}, status=404, check=error)
    for path, body in {
        "/api/generate": GENERATE,
        "/api/chat": CHAT,
        "/api/embed": {"input": "a"},
        "/api/embeddings": {"prompt": "a"},
        "/v1/chat/completions": OPENAI,
        "/v1/completions": COMPLETION,
        "/v1/embeddings": {"input": "a"},
        "/v1/responses": RESPONSE,
        "/v1/messages": MESSAGE,
        "/v1/messages/count_tokens": MESSAGE,
    }.items()
]

STORED = [
    Row("HEAD", f"/api/blobs/{DIGEST}", status=404, runner_status=501),
    Row("POST", f"/api/blobs/{DIGEST}", BLOB, status=201, runner_status=501, kind=""),
    Row("HEAD", f"/api/blobs/{DIGEST}", runner_status=501, kind=""),
    Row("POST", f"/api/blobs/{DIGEST}", BLOB, runner_status=501, kind=""),
    Row("POST", "/api/create", {"model": "own", "files": {"m.gguf": DIGEST}}, kind=NDJSON,
        runner_status=501, check=progress),
    Row("POST", "/api/create", {"model": "own2", "from": "own", "stream": False},
        runner_status=501, check=has("status")),
    Row("POST", "/api/copy", {"source": "own", "destination": "own3"}, kind="", runner_status=501),
    Row("POST", "/api/copy", {"source": "none", "destination": "x"}, status=404,
        runner_status=501, check=error),
    Row("POST", "/api/push", {"model": "own"}, kind=NDJSON, runner_status=501, check=progress),
    Row("POST", "/api/pull", {"model": NEW}, kind=NDJSON, runner_status=501, check=progress),
    Row("POST", "/api/pull", {"model": NEW, "stream": False}, runner_status=501,
        check=has("status")),
    Row("DELETE", "/api/delete", {"model": NEW}, kind="", runner_status=501),
    Row("DELETE", "/api/delete", {"model": NEW}, status=404, runner_status=501, check=error),
    # Whose account a push would use: of a real Ollama's, where nothing else has one.
    Row("POST", "/api/me", {}, status=403, check=error),
]  # fmt: skip

REFUSED = [
    Row("POST", "/api/signout", {}, status=403, check=error),
    Row("DELETE", "/api/user/keys/abc", status=403, check=error),
    Row("POST", "/api/experimental/web_search", {}, status=403, check=error),
    Row("POST", "/api/experimental/web_fetch", {}, status=403, check=error),
    Row("GET", "/api/experimental/model-recommendations", status=403, check=error),
    Row("GET", "/debug/pprof/", status=404, check=error),
    Row("POST", "/v1/none", {}, status=404, check=error),
    Row("POST", "/api/chat", GENERATE | {"model": "x:cloud"}, status=403, check=error),
    Row("POST", "/v1/messages", MESSAGE | {"model": "x:cloud"}, status=403, check=error),
    Row("POST", "/api/pull", {"model": "x:cloud"}, status=403, check=error),
]

POST_ONLY = [*INFERENCE, "/v1/messages/count_tokens", "/api/show", "/api/pull", "/api/push",
             "/api/create", "/api/copy"]  # fmt: skip
WRONG = [
    *(Row(method, path, status=405, check=error) for path in POST_ONLY for method in ("GET", "PUT")),
    *(
        Row("POST", path, {}, status=405, check=error)
        for path in ("/", "/health", "/api/version", "/api/tags", "/api/ps", "/v1/models",
                     "/v1/models/x", "/api/delete", "/olol/v1/fleet")
    ),
    Row("GET", f"/api/blobs/{DIGEST}", status=405, check=error),
    *(Row("OPTIONS", path, status=204, kind="") for path in ("/", "/api/chat", "/v1/messages")),
]  # fmt: skip


def filled(value: Any, service: Service) -> Any:
    """A row's body or path with the names of this service's models."""
    if isinstance(value, str):
        return value.replace(M, service.model).replace(E, service.embedder)
    if isinstance(value, bytes):
        return value.replace(M.encode(), service.model.encode())
    if isinstance(value, dict):
        return {key: filled(item, service) for key, item in value.items()}
    return value


def _missing_marks(row: Row, reply: httpx.Response) -> str:
    """Headers that every reply of its sort has."""
    expected = {"content-length", "transfer-encoding"}
    if reply.status_code != 204 and not expected & set(reply.headers):
        return "a length or chunks"
    is_computed = row in COMPUTED and row.path in INFERENCE and "error" not in reply.text[:20]
    if is_computed:
        return ", ".join({"x-olol-request", "x-olol-engine"} - set(reply.headers))
    return ""


async def hold(rows: list[Row], service: Service) -> None:
    """All rows in order: what one stored the next may use."""
    wrong: list[str] = []
    for row in rows:
        body = filled(row.body, service)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        kind = {"Content-Type": "multipart/form-data; boundary=x"} if row.form else {}
        reply = await service.http.request(
            row.method, filled(row.path, service), content=raw, headers=kind
        )
        status, expected, check = row.status, row.kind, row.check
        if service.real and row.runner_status is not None:
            status, expected = row.runner_status, JSON
            check = error if row.method != "HEAD" else lambda r, s: True
        told = f"{row.method} {row.path}: {reply.status_code} {reply.headers.get('content-type')}"
        if reply.status_code != status:
            wrong.append(f"{told}, expected {status}: {reply.text[:200]}")
        elif (
            expected
            and reply.headers["content-type"].partition(";")[0] != expected.partition(";")[0]
        ):
            wrong.append(f"{told}, expected {expected}")
        elif marks := _missing_marks(row, reply):
            wrong.append(f"{told}, without {marks}")
        elif not check(reply, service):
            wrong.append(f"{told}, shape: {reply.text[:300]}")
        elif status == 405 and not reply.headers.get("allow"):
            wrong.append(f"{told}, no Allow")
    assert not wrong, "\n".join(wrong)


async def test_every_route_has_its_status_type_and_shape(service: Service) -> None:
    await hold([*ANSWERED, *COMPUTED, *MISSING, *STORED, *REFUSED, *WRONG], service)


async def test_the_table_leaves_no_route_out() -> None:
    computed = {row.path for row in [*COMPUTED, *MISSING]}
    assert set(INFERENCE) <= computed
    told = {row.path for row in [*ANSWERED, *STORED]} | computed
    async with gateway_over(engine_node("n1", "127.0.0.1:9", SIMULATED)) as (gateway, _, _http):
        assert gateway.api.paths - told == set(), "a new route belongs into the table"


# -- the same through the real fleet


@pytest.fixture
def instance(tmp_path: Any) -> Iterator[Instance]:
    one = Instance(tmp_path / "state")
    (one.state_dir / "cluster.toml").write_text(
        '[nodes.local]\nlocal = true\nengine = "simulated"\nsimulated = { gpus = 2 }\n'
    )
    yield one
    one.close()


def test_a_pulled_model_answers_at_once_on_every_gpu_and_stays(instance: Instance) -> None:
    """Through agents that look at the store only now and then: success means it can be used."""
    url = instance.serve()
    with httpx.Client(base_url=url, timeout=60) as http:
        before = {m["name"] for m in http.get("/api/tags").json()["models"]}
        assert EMBEDDER in before and "all-minilm:latest" not in before
        pulled = http.post("/api/pull", json={"model": "all-minilm"})
        assert pulled.text.splitlines()[-1] == '{"status":"success"}'
        found = http.post("/api/embed", json={"model": "all-minilm", "input": "a"})
        assert found.status_code == 200, found.text
        gone = http.request("DELETE", "/api/delete", json={"model": EMBEDDER})
        assert gone.status_code == 200
        missing = http.post("/api/embed", json={"model": EMBEDDER, "input": "a"})
        assert missing.status_code == 404
    assert instance.end() == 0
    with httpx.Client(base_url=instance.serve(), timeout=60) as http:
        after = {m["name"] for m in http.get("/api/tags").json()["models"]}
        assert after == before - {EMBEDDER} | {"all-minilm:latest"}


def test_what_is_loaded_is_told_as_it_is_in_the_next_moment(instance: Instance) -> None:
    """Agents tell it once a second; who runs or stops a model and asks must not see the past."""
    with httpx.Client(base_url=instance.serve(), timeout=60) as http:
        for keep_alive, minutes in (("2h", 119), ("20m", 19), (None, 19)):
            body = GENERATE | {"model": SIMULATED, "stream": False}
            http.post("/api/generate", json=body | {"keep_alive": keep_alive}).raise_for_status()
            (loaded,) = http.get("/api/ps").json()["models"]
            left = datetime.fromisoformat(loaded["expires_at"]) - datetime.now(UTC)
            assert loaded["name"] == SIMULATED and left.total_seconds() // 60 == minutes
        body = {"model": SIMULATED, "keep_alive": 0, "stream": False}
        assert http.post("/api/generate", json=body).json()["done_reason"] == "unload"
        assert http.get("/api/ps").json() == {"models": []}
