"""Keys, records and reasons as a user meets them: `--serve` and the commands beside it."""

from __future__ import annotations

import csv
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.serve_rig import SIMULATED, Instance

MODEL = "llama3.2:1b"
CANARY = "the prompt that nobody may find"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    one = Instance(
        tmp_path / "state", f'[gateway]\naccess_log = "{tmp_path}/access.log"\n{SIMULATED}'
    )
    yield one
    one.close()


def call(url: str, key: str = "", body: dict[str, Any] | None = None, **headers: str) -> Any:
    """(status, headers, body)."""
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def until(condition: Any, within_s: float = 30.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


def test_a_key_is_made_used_explained_recorded_and_revoked(
    instance: Instance, tmp_path: Path
) -> None:
    made = instance.run("keys", "create", "ann")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    # Others may reach it now: it asks for keys.
    url = instance.serve("--serve", "--host", "0.0.0.0", "--port", "0")
    url = url.replace("0.0.0.0", "127.0.0.1")
    assert call(f"{url}/api/tags")[0] == 401
    assert call(f"{url}/health")[0] == 200
    ask = {"model": MODEL, "prompt": CANARY, "options": {"num_predict": 3}}
    status, headers, body = call(f"{url}/api/generate", key, ask, X_Olol_Why="1")
    assert status == 200, body
    assert MODEL in headers["X-Olol-Why"]
    request = headers["X-Olol-Request"]
    why = instance.run("why", request)
    assert f"{request}: {MODEL} for ann, done, sim/gpu" in why.stdout, why.stderr
    assert "● sim/gpu" in why.stdout
    assert call(f"{url}/olol/v1/fleet", key)[0] == 403
    assert b"olol_requests_total" in call(f"{url}/metrics", key)[2]

    def rows() -> Any:
        done = instance.run("requests", "--since", "5m", "--json")
        return json.loads(done.stdout) if done.returncode == 0 else []

    (row,) = until(rows)
    assert (row["client"], row["model"], row["state"], row["tokens"]) == ("ann", MODEL, "done", 3)
    table = list(csv.DictReader(io.StringIO(instance.run("requests", "--csv").stdout)))
    assert table[0]["id"] == request
    assert instance.run("keys", "revoke", "ann").returncode == 0
    until(lambda: call(f"{url}/api/tags", key)[0] == 401)
    assert instance.end() == 0
    # Also after the core has ended.
    assert f"{request}: {MODEL} for ann, done" in instance.run("why", request).stdout
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert {"id", "client", "tokens", "ttft_s"} <= next(x for x in lines if "id" in x).keys()
    assert {401, 403} <= {line["status"] for line in lines}
    for path in [*instance.state_dir.rglob("*"), tmp_path / "access.log"]:
        if path.is_file():
            raw = path.read_bytes()
            assert CANARY.encode() not in raw, path
            assert key.encode() not in raw, path


def test_keys_that_others_can_read_stop_the_start(instance: Instance) -> None:
    instance.run("keys", "create", "ann")
    (instance.state_dir / "keys.json").chmod(0o644)
    done = instance.run("--serve", "--port", "0")
    assert done.returncode == 2
    assert "chmod 600" in done.stderr
    (instance.state_dir / "keys.json").chmod(0o600)
