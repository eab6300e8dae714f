"""The gateway's routing beside plain routers, over real HTTP and a simulated fleet.

    python tests/bench/routing.py                 # all of them, some minutes
    python tests/bench/routing.py saturated       # cold and warmed, with limits
    python tests/bench/routing.py light           # below saturation, with limits
    python tests/bench/routing.py broken          # one engine answers 500 at once
    python tests/bench/routing.py mixed           # half of the GPUs are four times slower
    python tests/bench/routing.py conversations   # 20 users, 10 rounds each
    ... --requests N --rate R --speedup S --trace FILE

Each policy gets a fleet of its own: agent and engines of `engine = "simulated"`, 8 GPUs of
24 GiB, six models of 3 to 20 GB; the references are policies inside the same gateway (see
references.py). Lengths and gaps are those of a published trace (workload.py); time runs
`--speedup` times as fast, and figures are given in seconds of the fleet. A reply by another
model than the one asked for, or an error, fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))

from tests.bench.references import REFERENCES, reference  # noqa: E402
from tests.bench.workload import MODELS, TRACE, Arrival, arrivals  # noqa: E402

TOKENS_PER_PIECE = 8
SLOTS = 2
LIMITS = {"cold": (0.7, 0.8), "warmed": (0.35, 0.6)}
"""(p95 TTFT, makespan) as shares of the best reference."""
LIGHT = 1.05


@dataclass
class Result:
    """One pass. Seconds of the fleet's time."""

    ttft_s: list[float] = field(default_factory=list)
    makespan_s: float = 0.0
    errors: list[str] = field(default_factory=list)

    def p(self, share: float) -> float:
        if not self.ttft_s:
            return math.inf
        return sorted(self.ttft_s)[min(len(self.ttft_s) - 1, int(len(self.ttft_s) * share))]

    def line(self, name: str) -> str:
        shown = f"{name:18} TTFT p50 {self.p(0.5):6.2f} p95 {self.p(0.95):6.2f} s"
        shown += f", makespan {self.makespan_s:6.1f} s, {len(self.ttft_s)} replies"
        return shown + (f", ERRORS {len(self.errors)}: {self.errors[0]}" if self.errors else "")


async def serve(policy: str, config_file: str, state: str) -> None:
    """A core in this process, until SIGTERM."""
    from olol_tui.config import load
    from olol_tui.core import Core
    from olol_tui.paths import Paths

    paths = Paths.resolve(Path(state), Path(config_file))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Core(load(Path(config_file)), paths, stop_engines=True) as core:
        if policy in REFERENCES:
            chosen = reference(policy)
            core._gateway.queue.policy_of = lambda _: chosen
        print(f"ready {core.address}", flush=True)
        await stop.wait()


@contextlib.asynccontextmanager
async def fleet(
    policy: str, args: argparse.Namespace, *, mixed: bool = False
) -> AsyncIterator[str]:
    """The URL of a gateway over a fresh fleet."""
    with tempfile.TemporaryDirectory() as name:
        config = Path(name, "cluster.toml")
        nodes = {"a": (8, args.speedup)}
        if mixed:
            nodes = {"fast": (4, args.speedup), "slow": (4, args.speedup / 4)}
        tables = "".join(_node(node, gpus, speed) for node, (gpus, speed) in nodes.items())
        gateway = "[gateway]\nport = 0\nmax_queue = 100000\n"
        if policy not in REFERENCES:
            gateway += f'policy = "{policy}"\n'
        config.write_text(gateway + tables)
        command = [sys.executable, __file__, "serve", "--policy", policy]
        command += ["--config", str(config), "--state", str(Path(name, "state"))]
        log = Path(name, "log").open("w")  # noqa: SIM115 (closed below)
        core = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=log, env=os.environ
        )
        assert core.stdout is not None
        try:
            async with asyncio.timeout(60):
                words = (await core.stdout.readline()).decode().split()
            if len(words) != 2:
                raise SystemExit(f"no core: {Path(name, 'log').read_text()[-2000:]}")
            await _settled(words[1])
            yield words[1]
        finally:
            if core.returncode is None:
                core.terminate()
            await core.wait()
            log.close()


def _node(name: str, gpus: int, speedup: float) -> str:
    return (
        f'[nodes.{name}]\nlocal = true\nengine = "simulated"\nslots = {SLOTS}\n'
        f'simulated = {{ gpus = {gpus}, vram = "24GiB", load_bytes_s = 1.5e9, '
        f"speedup = {speedup}, tokens_per_piece = {TOKENS_PER_PIECE}, reply_tokens = 600 }}\n"
    )


async def _settled(url: str) -> None:
    """Until all engines are ready."""
    async with asyncio.timeout(60):
        while len(await engines(url)) < 8:
            await asyncio.sleep(0.2)


async def engines(url: str) -> list[str]:
    """Addresses of the engines that are ready."""
    nodes = (await asyncio.to_thread(_get, f"{url}/olol/v1/fleet"))["nodes"]
    ready = (e for node in nodes for e in node["engines"] if e["state"] == "ready")
    return [engine["address"] for engine in ready]


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


async def ask(url: str, path: str, body: dict[str, Any], result: Result) -> str:
    """One streamed request on a connection of its own; the text of its reply."""
    host, _, port = url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    text = []
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(raw)}\r\n\r\n"
        writer.write(head.encode() + raw)
        status = (await reader.readline()).split()[1]
        first_s = None
        wanted = f'"model":"{body["model"]}"'.encode()
        while line := await reader.readline():
            if not line.startswith(b"{"):
                continue
            if wanted not in line or status != b"200":
                raise ValueError(f"{body['model']}: {status.decode()} {line[:120].decode()}")
            first_s = first_s or loop.time()
            if b'"done":true' in line:
                result.ttft_s.append(first_s - began_s)
                break
            text.append(json.loads(line).get("message", {}).get("content", ""))
        else:
            raise ValueError(f"{body['model']}: the reply has no end")
        writer.close()
    except (OSError, ValueError, IndexError) as error:
        result.errors.append(str(error) or repr(error))
    return "".join(text)


async def play(url: str, trace: list[Arrival], speedup: float) -> Result:
    """All requests of a trace at their times."""
    result, loop = Result(), asyncio.get_running_loop()
    began_s = loop.time()

    async def one(number: int, arrival: Arrival) -> None:
        await asyncio.sleep(began_s + arrival.at_s / speedup - loop.time())
        prompt = f"{number:x} " + "abc " * (arrival.prompt_tokens - 1)
        pieces = max(1, arrival.reply_tokens // TOKENS_PER_PIECE)
        body = {"model": arrival.model, "prompt": prompt, "options": {"num_predict": pieces}}
        await ask(url, "/api/generate", body, result)

    await asyncio.gather(*(one(*numbered) for numbered in enumerate(trace)))
    result.makespan_s = (loop.time() - began_s) * speedup
    result.ttft_s = [ttft * speedup for ttft in result.ttft_s]
    return result


async def saturated(args: argparse.Namespace) -> bool:
    """From a cold fleet, then once more."""
    print(f"saturated: {args.requests} requests, {args.rate} times the trace's rate", flush=True)
    trace = arrivals(args.requests, args.rate, trace=args.trace)
    found: dict[str, list[Result]] = {}
    for policy in (*REFERENCES, "expected"):
        async with fleet(policy, args) as url:
            found[policy] = []
            for name in LIMITS:
                found[policy].append(await play(url, trace, args.speedup))
                print(f"  {name:7} {found[policy][-1].line(policy)}", flush=True)
    ours, good = found.pop("expected"), True
    for turn, (name, (ttft, makespan)) in enumerate(LIMITS.items()):
        p95 = ours[turn].p(0.95) / min(one[turn].p(0.95) for one in found.values())
        span = ours[turn].makespan_s / min(one[turn].makespan_s for one in found.values())
        print(
            f"  {name}: p95 TTFT {p95:.2f} of the best (wanted: at most {ttft}), "
            f"makespan {span:.2f} (wanted: at most {makespan})"
        )
        good &= p95 <= ttft and span <= makespan
    errors = [error for one in (*found.values(), ours) for turn in one for error in turn.errors]
    return good and not errors


async def light(args: argparse.Namespace) -> bool:
    """Below saturation, on a fleet that has seen the demand."""
    count = args.requests // 3
    print(f"light: {count} requests at 0.3 of the trace's rate, warmed", flush=True)
    trace = arrivals(count, 0.3, trace=args.trace)
    found: dict[str, Result] = {}
    for policy in (*REFERENCES, "expected"):
        async with fleet(policy, args) as url:
            await play(url, trace, args.speedup)
            found[policy] = await play(url, trace, args.speedup)
            print("  " + found[policy].line(policy), flush=True)
    ours = found.pop("expected")
    worst = max(ours.p(share) / min(r.p(share) for r in found.values()) for share in (0.5, 0.95))
    print(f"  p50 and p95 TTFT at most {worst:.2f} of the best (wanted: at most {LIGHT})")
    return worst <= LIGHT and not ours.errors


async def broken(args: argparse.Namespace) -> bool:
    """One of eight engines answers 500 at once."""
    print("broken: one engine of eight answers 500 to everything", flush=True)
    trace = arrivals(args.requests // 2, 1.0, trace=args.trace)
    good = True
    for policy in ("least-connections", "expected"):
        async with fleet(policy, args) as url:
            await play(url, trace[:60], args.speedup)
            address = (await engines(url))[0]
            fault = json.dumps({"fault": "500", "after_tokens": 0}).encode()
            await asyncio.to_thread(
                urllib.request.urlopen, f"http://{address}/sim/faults", fault, 10
            )
            result = await play(url, trace, args.speedup)
            print("  " + result.line(policy), flush=True)
            good &= policy != "expected" or not result.errors
    return good


async def mixed(args: argparse.Namespace) -> bool:
    """Four GPUs, and four that are four times slower."""
    print("mixed: four GPUs, and four at a quarter of the speed", flush=True)
    trace = arrivals(args.requests // 2, 1.0, trace=args.trace)
    found: dict[str, Result] = {}
    for policy in (*REFERENCES, "expected"):
        async with fleet(policy, args, mixed=True) as url:
            await play(url, trace, args.speedup)
            found[policy] = await play(url, trace, args.speedup)
            print("  " + found[policy].line(policy), flush=True)
    ours = found.pop("expected")
    ratio = ours.p(0.95) / min(one.p(0.95) for one in found.values())
    print(f"  p95 TTFT {ratio:.2f} of the best reference")
    return ratio <= 1.0 and not ours.errors


async def conversations(args: argparse.Namespace) -> bool:
    """Each round sends all that was said before."""
    print("conversations: 20 users, 10 rounds, two models", flush=True)
    shares = {}
    for policy in ("least-connections", "expected"):
        async with fleet(policy, args) as url:
            result, loop = Result(), asyncio.get_running_loop()

            async def user(number: int, url: str = url, result: Result = result) -> None:
                said = [{"role": "user", "content": f"{number} " + "abc " * 600}]
                for _ in range(10):
                    body = {"model": MODELS[number % 2], "messages": said, "options": {}}
                    body["options"] = {"num_predict": 20}
                    reply = await ask(url, "/api/chat", body, result)
                    said.append({"role": "assistant", "content": reply})
                    said.append({"role": "user", "content": "and then " * 20})
                    await asyncio.sleep(2.0 / args.speedup)

            began_s = loop.time()
            await asyncio.gather(*(user(number) for number in range(20)))
            result.makespan_s = (loop.time() - began_s) * args.speedup
            result.ttft_s = [ttft * args.speedup for ttft in result.ttft_s]
            metrics = await asyncio.to_thread(_metrics, f"{url}/metrics")
            hits, looked = metrics["olol_prefix_hits_total"], metrics["olol_prefix_lookups_total"]
            shares[policy] = hits / max(1.0, looked)
            mean = statistics.mean(result.ttft_s)
            print(f"  {result.line(policy)}, mean TTFT {mean:.2f} s, {hits:.0f}/{looked:.0f} hits")
            if result.errors:
                return False
    return shares["expected"] >= 0.6


def _metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "{" not in name}


RUNS = {
    "saturated": saturated,
    "light": light,
    "broken": broken,
    "mixed": mixed,
    "conversations": conversations,
}


async def main(args: argparse.Namespace) -> int:
    wanted = [args.run] if args.run else list(RUNS)
    good = [await RUNS[name](args) for name in wanted]
    return 0 if all(good) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", choices=[*RUNS, "serve"])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1.8)
    parser.add_argument("--speedup", type=float, default=6.0)
    parser.add_argument("--trace", type=Path, default=TRACE)
    for hidden in ("--policy", "--config", "--state"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run == "serve":
        asyncio.run(serve(given.policy, given.config, given.state))
        sys.exit(0)
    sys.exit(asyncio.run(main(given)))
