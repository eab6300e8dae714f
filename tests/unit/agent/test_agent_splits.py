"""The agent's parts of a split without llama.cpp: specs, permits, logs, the watch over tokens."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from olol_tui.agent import permits, rpcprobe, tensorcache
from olol_tui.agent.door import owner_of
from olol_tui.agent.engines import Advance, NotYet, kind_of
from olol_tui.agent.engines.chain import check_workers, layout
from olol_tui.agent.errors import BadRequest, EngineError
from olol_tui.agent.spec import Policy, Spec, parse_spec
from olol_tui.agent.splitspec import Chain
from olol_tui.agent.vigil import Vigil

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJTCf8kr2VNMJF7B"
HEAD = {
    "id": "n/head",
    "kind": "llama-server",
    "model": {"name": "m", "path": "/m.gguf"},
    "chain": {"workers": ["127.0.0.1:4000"], "layers": [20, 11], "build": "b1"},
}
FORWARD = {
    "id": "n/forward",
    "kind": "forward",
    "forward": {"host": "gpu2", "user": "ops", "port": 22, "target": 4000, "host_key": KEY},
}


def test_parts_of_a_split_survive_the_state_file() -> None:
    for given in (HEAD, FORWARD, {"id": "n/w", "kind": "rpc-server", "permit": [KEY]}):
        spec = parse_spec(given, "engines[0]")
        assert parse_spec(spec.to_json(), "again") == spec


def test_whom_a_worker_lets_in_is_no_reason_to_restart_it() -> None:
    worker = Spec("n/w", "rpc-server")
    assert Spec("n/w", "rpc-server", permit=(KEY,)).digest == worker.digest
    assert Spec("n/w", "rpc-server", devices=("cpu",)).digest != worker.digest


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({**HEAD, "kind": "rpc-server", "model": None}, "only a llama-server"),
        ({**HEAD, "chain": {"workers": ["gpu2:4000"], "layers": [1]}}, "chain.workers"),
        ({**HEAD, "chain": {"workers": ["127.0.0.1:4000"] * 2, "layers": [1]}}, "chain.layers"),
        ({**HEAD, "chain": {"workers": ["127.0.0.1:4000"] * 17, "layers": [1] * 17}}, "more than"),
        ({"id": "n/f", "kind": "forward"}, "forward"),
        ({**FORWARD, "forward": {**FORWARD["forward"], "host": "-oProxyCommand=x"}}, "host"),  # type: ignore[dict-item]
        ({**FORWARD, "forward": {**FORWARD["forward"], "user": "a b"}}, "user"),  # type: ignore[dict-item]
        ({**FORWARD, "forward": {**FORWARD["forward"], "target": 0}}, "target"),  # type: ignore[dict-item]
        ({"id": "n/w", "kind": "rpc-server", "permit": [f"{KEY}\nssh-rsa AAAA"]}, "permit"),
        ({"id": "n/w", "kind": "rpc-server", "permit": [f'command="x" {KEY}']}, "permit"),
    ],
)
def test_what_could_become_an_option_or_a_line_is_refused(given: Any, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        parse_spec(given, "engines[0]")


def test_permits_leave_every_other_byte_of_authorized_keys_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ssh" / "authorized_keys"
    own, other = owner_of(tmp_path / "a"), owner_of(tmp_path / "b")
    assert not permits.apply([], own, path) and not path.exists()
    path.parent.mkdir()
    path.write_text("# mine\nssh-rsa AAAA me@laptop")  # without a newline at its end
    path.chmod(0o640)
    line = permits.line(KEY, 4000, own)
    assert 'permitopen="127.0.0.1:4000"' in line and line.startswith("restrict,")
    assert permits.apply([line], own, path)
    assert not permits.apply([line], own, path)
    permits.apply([permits.line(KEY, 5000, other)], other, path)
    assert permits.apply([permits.line(KEY, 4001, own)], own, path)
    text = path.read_text()
    assert text.startswith("# mine\nssh-rsa AAAA me@laptop\n")
    assert "4001" in text and "4000" not in text and "5000" in text
    assert path.stat().st_mode & 0o777 == 0o640
    permits.apply([], own, path)
    permits.apply([], other, path)
    assert path.read_text() == "# mine\nssh-rsa AAAA me@laptop\n"


LOG = """\
olol-agent: 2026-01-01T00:00:00Z starting llama-server
0.1 I load_tensors: RPC0[127.0.0.1:1] model buffer size = 99.00 MiB
olol-agent: 2026-01-01T00:00:01Z starting llama-server
0.2 I load_tensors: offloaded 31/31 layers to GPU
0.2 I load_tensors:   CPU_Mapped model buffer size =    28.69 MiB
0.2 I load_tensors: RPC0[127.0.0.1:21151] model buffer size =    33.50 MiB
0.2 I load_tensors:        CUDA0 model buffer size =    58.25 MiB
0.9 I llama_kv_cache: RPC0[127.0.0.1:21151] KV buffer size =    12.00 MiB
0.9 I llama_kv_cache:        CUDA0 KV buffer size =     6.00 MiB
0.9 I llama_kv_cache:        CUDA0 KV buffer size =     4.00 MiB
0.9 I sched_reserve: RPC0[127.0.0.1:21151] compute buffer size =    31.00 MiB
"""


def test_a_heads_log_says_where_its_layers_are(tmp_path: Path) -> None:
    path = tmp_path / "head.log"
    path.write_text(LOG)
    found = layout(path)
    mib = 2**20
    assert (found["offloaded"], found["layers"]) == (31, 31)
    assert found["buffers"] == [
        {"device": "CPU_Mapped", "weights_bytes": int(28.69 * mib)},
        {
            "device": "127.0.0.1:21151",
            "weights_bytes": int(33.5 * mib),
            "kv_bytes": 12 * mib,
            "compute_bytes": 31 * mib,
        },
        {"device": "CUDA0", "weights_bytes": int(58.25 * mib), "kv_bytes": 10 * mib},
    ]
    assert layout(tmp_path / "none.log")["buffers"] == []


def test_requests_without_a_token_for_too_long_end_the_head() -> None:
    policy = Policy(stall_s=10, prefill_stall_s=100)
    vigil = Vigil(kind_of("llama-server"), Spec("n/head", "llama-server"), 1, policy)
    vigil.seen(Advance(((1, 5, 7),), in_prefill=False), 0.0)
    vigil.seen(Advance(((1, 5, 8),), in_prefill=False), 9.0)
    vigil.seen(Advance(((1, 5, 8),), in_prefill=False), 18.0)
    assert not vigil.verdict
    vigil.seen(None, 30.0)
    vigil.seen(Advance(((2, 512, 0),), in_prefill=True), 31.0)
    vigil.seen(Advance(((2, 512, 0),), in_prefill=True), 90.0)
    assert not vigil.verdict, "a batch of a long prompt is one step"
    vigil.seen(Advance(((2, 512, 1),), in_prefill=False), 91.0)
    vigil.seen(Advance(((2, 512, 1),), in_prefill=False), 102.0)
    assert "1 request runs without a token for 10 s" in vigil.verdict


def test_cached_tensors_give_way_to_a_disk_that_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "rpc"
    cache.mkdir(parents=True)
    for age, name in enumerate(("new", "old")):
        (cache / name).write_bytes(bytes(1000))
        os.utime(cache / name, (1000 - age, 1000 - age))
    usage = type(shutil.disk_usage(tmp_path))

    def free(count: int) -> None:
        disk = usage(100_000, 100_000 - count, count)
        monkeypatch.setattr(tensorcache.shutil, "disk_usage", lambda _: disk)

    monkeypatch.setattr(tensorcache, "RESERVE_BYTES", 10_000)
    free(50_000)
    assert tensorcache.prepare(tmp_path / "cache", 20_000)
    assert len(list(cache.iterdir())) == 2
    free(9_500)
    assert tensorcache.prepare(tmp_path / "cache", 500)
    assert [path.name for path in cache.iterdir()] == ["new"], "the longest unused goes first"
    assert not tensorcache.prepare(tmp_path / "cache", 20_000)


@contextmanager
def worker(reply: bytes | None) -> Iterator[int]:
    """Something that listens like a worker; None: it never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            # Whoever asked may leave, by a reset too, whenever it has heard enough.
            with suppress(OSError), server.accept()[0] as connection:
                connection.recv(64)
                if reply is not None:
                    connection.sendall(reply)
                connection.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
    thread.join(5)


def hello(*version: int) -> bytes:
    return struct.pack("<Q", len(version)) + bytes(version)


def test_a_worker_is_greeted_before_it_is_used() -> None:
    with worker(hello(7, 0, 0)) as port:
        assert rpcprobe.greet("127.0.0.1", port, 5) == "7.0.0"
    with worker(b"HTTP/1.1 400 Bad Request\r\n") as port, pytest.raises(rpcprobe.NoAnswer):
        rpcprobe.greet("127.0.0.1", port, 5)
    with worker(None) as port, pytest.raises(rpcprobe.NoAnswer):
        rpcprobe.greet("127.0.0.1", port, 0.2)


def test_a_head_is_not_started_onto_workers_that_do_not_answer_or_differ() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
    with pytest.raises(NotYet, match="does not answer"):
        check_workers(Chain((f"127.0.0.1:{closed}",), (1,)), "")
    with pytest.raises(EngineError, match="this llama-server is b2, the workers are b1"):
        check_workers(Chain((f"127.0.0.1:{closed}",), (1,), "b1"), "b2")
    with worker(hello(7, 0, 0)) as one, worker(hello(6, 1, 0)) as two:
        chain = Chain((f"127.0.0.1:{one}", f"127.0.0.1:{two}"), (1, 1))
        with pytest.raises(EngineError, match="different builds"):
            check_workers(chain, "")
