"""The agent's parts of a split without llama.cpp: specs, permits, logs, the watch over tokens."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from olol_tui.agent import permits, pulse, rpcprobe, tensorcache
from olol_tui.agent.door import owner_of
from olol_tui.agent.engines import Advance, NotYet, kind_of
from olol_tui.agent.engines.chain import check_workers, layout
from olol_tui.agent.errors import BadRequest, EngineError
from olol_tui.agent.pulse import Meter, Pulse, Watch
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


def test_a_worker_that_stands_still_is_told_from_one_that_computes_long() -> None:
    policy = Policy(stopped_s=5, stuck_s=10)
    looks = {
        "stopped": ([Pulse("T", 70, "do_signal_stop")] * 2, "it is stopped for 5 s"),
        "frozen": ([Pulse("S", 70, "do_freezer_trap")] * 2, "it is frozen for 5 s"),
        "locked": ([Pulse("S", 70, "futex_wait_queue")] * 2, "waits in futex_wait_queue"),
        "computes": ([Pulse("S", 70, "futex_wait_queue"), Pulse("S", 71, "futex_wait_queue")], ""),
        "stopped and let go": ([Pulse("T", 70, "do_signal_stop"), Pulse("T", 71, "x")], ""),
        "idle": ([Pulse("S", 70, "wait_woken")] * 2, ""),
        "slow disk": ([Pulse("D", 70, "folio_wait_bit_common")] * 2, ""),
        "hidden": ([Pulse("S", 70, "")] * 2, ""),
        "gone": ([None, None], ""),
    }
    for name, (pulses, told) in looks.items():
        watch = Watch(policy, computes=True)
        assert watch.seen(pulses[0], 100.0) == "", name
        verdict = watch.seen(pulses[1], 111.0)
        assert told in verdict and bool(told) == bool(verdict), name
    on_gpu = Watch(policy, computes=False)
    for now_s in (100.0, 200.0):
        assert not on_gpu.seen(Pulse("S", 70, "futex_wait_queue"), now_s), "the GPU computes"


def test_a_road_is_as_fast_as_when_it_is_never_idle() -> None:
    meter = Meter()
    mib = 2**20
    # A burst that is over before the next look says nothing: nobody knows how long it took.
    for now_s, written in ((0.0, 0), (1.0, 40 * mib), (2.0, 40 * mib), (3.0, 41 * mib)):
        meter.seen(written, now_s)
    assert meter.peak_bytes_s is None
    for now_s, written in ((4.0, 60), (4.1, 70), (5.0, 160), (6.0, 250), (7.0, 280)):
        meter.seen(written * mib, now_s)
    assert meter.peak_bytes_s == 100 * mib
    meter.seen(None, 8.0)
    assert meter.peak_bytes_s == 100 * mib


def test_the_kernel_tells_how_a_process_is() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            deadline_s = time.monotonic() + 10
            while (found := pulse.take(process.pid)) is None or found.state != "T":
                assert time.monotonic() < deadline_s, found
            assert pulse.holds_open(process.pid)
            counted = pulse.take(process.pid, counts=True)
            assert counted is not None and counted.written_bytes is not None
        finally:
            process.kill()
    assert pulse.take(process.pid) is None and pulse.holds_open(process.pid) is None


def test_cached_tensors_give_way_to_a_disk_that_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, other = tmp_path / "pool", tensorcache.directory_of(tmp_path, "b") / "rpc"
    assert tensorcache.prepare(tmp_path, "b", 0)
    for age, name in enumerate(("new", "old")):
        (pool / name).write_bytes(bytes(1000))
        os.utime(pool / name, (1000 - age, 1000 - age))
        os.link(pool / name, other / name)
    usage = type(shutil.disk_usage(tmp_path))

    def free(count: int) -> None:
        disk = usage(100_000, 100_000 - count, count)
        monkeypatch.setattr(tensorcache.shutil, "disk_usage", lambda _: disk)

    monkeypatch.setattr(tensorcache, "RESERVE_BYTES", 10_000)
    free(50_000)
    assert tensorcache.prepare(tmp_path, "a", 20_000)
    assert sorted(cached(tmp_path, "a")) == ["new", "old"]
    free(9_500)
    assert tensorcache.prepare(tmp_path, "a", 500)
    assert cached(tmp_path, "a") == ["new"], "the longest unused goes first"
    assert [path.name for path in other.iterdir()] == ["new"], "with all links to it"
    assert not tensorcache.prepare(tmp_path, "a", 20_000)


def test_only_whole_tensors_are_ever_served_again(tmp_path: Path) -> None:
    """llama.cpp would read back what a dying worker cut short, and compute with it."""
    assert tensorcache.prepare(tmp_path, "a", 0)
    place = tensorcache.directory_of(tmp_path, "a") / "rpc"
    code = "import sys, time; f = open(sys.argv[1], 'wb'); f.write(b'h'); print(flush=True); "
    argv = [sys.executable, "-c", code + "time.sleep(60)", str(place / "half")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (place / "whole").write_bytes(b"w")
            tensorcache.keep(tmp_path, "a", process.pid)
            # What another worker was sent too is kept once.
            assert tensorcache.prepare(tmp_path, "b", 0)
            (tensorcache.directory_of(tmp_path, "b") / "rpc" / "more").write_bytes(b"m")
            (place / "more").write_bytes(b"m")
            tensorcache.keep(tmp_path, "b", process.pid)
            tensorcache.keep(tmp_path, "a", process.pid)
            assert (tmp_path / "pool" / "more").stat().st_nlink == 3
        finally:
            process.kill()
    (place / "late").write_bytes(b"l")
    tensorcache.keep(tmp_path, "a", process.pid)
    assert tensorcache.prepare(tmp_path, "a", 0)
    assert sorted(cached(tmp_path, "a")) == ["more", "whole"]


def cached(cache: Path, name: str) -> list[str]:
    """What a worker finds at its start."""
    return [path.name for path in (tensorcache.directory_of(cache, name) / "rpc").iterdir()]


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
