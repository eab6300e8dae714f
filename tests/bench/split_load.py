"""What the workers' caches save a split that is loaded again, over SSH and a link of one Gbit/s.

    python -m tests.bench.split_load --llama /opt/llama [--layers 6] [--mbit 1000] [--rounds 3]

Two hosts of a lab hold a model of real size (`big_gguf`), half each; the link of each carries
so many Mbit/s either way. A round: caches emptied, loaded, given back, loaded again, and a
worker killed. The file is in the head's page cache all the time, so that the first load is no
slower than it must be. Needs root, 8 GiB of memory, and disk for the file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from olol_tui.fleet.snapshot import Fleet, Split
from olol_tui.units import link_words
from tests.bench import big_gguf
from tests.e2e.cluster import Operator, operator
from tests.e2e.product import console, kill_on
from tests.lab import Host, Lab

_PATIENCE_S = 600.0
_CACHES = "$HOME/.local/share/olol-agent"
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Load:
    """One load, from the question to the answer that it is there."""

    took_s: float
    sent_mib: float
    """Over the link of the head's host."""


@contextlib.contextmanager
def narrow(lab: Lab, mbit: int) -> Iterator[None]:
    """Links that carry so much; each end of each, as a switch and a card would."""
    what = ["tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
    for host in lab.hosts.values():
        inside = ["nsenter", f"--net=/proc/{host.init}/ns/net"]
        for enter, link in (([], host.record.port), (inside, "eth0")):
            subprocess.run(
                [*enter, "tc", "qdisc", "replace", "dev", link, "root", *what], check=True
            )
    yield


def sent_bytes(host: Host) -> int:
    """By the host, counted at the other end of its cable."""
    return int(Path(f"/sys/class/net/{host.record.port}/statistics/rx_bytes").read_text())


def cached_mib(host: Host) -> float:
    said = host.exec(
        f"find {_CACHES} -path '*/cache/pool/*' -type f -printf '%s\\n' || true"
    ).stdout
    return sum(map(int, said.split())) / _MIB


def forget(host: Host) -> None:
    """As if it had never held a tensor; nothing of a split runs there now."""
    host.exec(f"find {_CACHES} -path '*/cache/*' -type f -delete")


class Bench:
    def __init__(self, lab: Lab, ops: Operator, http: httpx.AsyncClient, model: str) -> None:
        self._lab, self._ops, self._http, self._model = lab, ops, http, model

    async def load(self) -> Load:
        before = {name: sent_bytes(host) for name, host in self._lab.hosts.items()}
        began_s = time.monotonic()
        reply = await self._http.post("/api/generate", json={"model": self._model})
        reply.raise_for_status()
        took_s = time.monotonic() - began_s
        split = self.split(self._ops.fleet)
        sent = sent_bytes(self._lab.hosts[split.node]) - before[split.node]
        return Load(took_s, sent / _MIB)

    async def give_back(self) -> None:
        await self._http.post("/api/generate", json={"model": self._model, "keep_alive": 0})
        await self._until(lambda f: not f.splits and not any(n.helpers for n in f.nodes))

    async def killed_worker(self) -> Load:
        """From the death of the worker across the link until the split answers again."""
        split = self.split(self._ops.fleet)
        part = next(part for part in split.parts if part.road == "ssh")
        host, head = self._lab.hosts[part.node], self._lab.hosts[split.node]
        node = next(node for node in self._ops.fleet.nodes if node.name == part.node)
        pid = next(helper.pid for helper in node.helpers if helper.id == part.engine)
        before, began_s = sent_bytes(head), time.monotonic()
        await asyncio.to_thread(kill_on, host, [pid])
        # Whoever asks now finds that out, and waits for it.
        body = {"model": self._model, "prompt": "a", "raw": True, "options": {"num_predict": 1}}
        while (await self._http.post("/api/generate", json={**body, "stream": False})).is_error:
            pass
        return Load(time.monotonic() - began_s, (sent_bytes(head) - before) / _MIB)

    @property
    def fleet(self) -> Fleet:
        return self._ops.fleet

    def split(self, fleet: Fleet) -> Split:
        return fleet.splits[0]

    async def _until(self, condition: object) -> None:
        assert callable(condition)
        await self._ops.until(condition, _PATIENCE_S)


@contextlib.asynccontextmanager
async def benches(lab: Lab, place: Path, models: Path, share: float) -> AsyncIterator[Bench]:
    """Args: share: of the file that each of two hosts may hold."""
    size = next(models.glob("*.gguf")).stat().st_size
    limit = int(size * share / _MIB) + 300
    nodes = "\n".join(
        f'[nodes.{name}]\nengine = "llama-server"\nbinary = "/opt/llama"\nnum_ctx = 512\n'
        f'models_dir = "/opt/models"\nvram_limit = "{limit}MiB"\n'
        for name in lab.hosts
    )
    with console(lab, place, nodes) as product:
        product.provision()
        product.start()
        async with (
            operator(product.state_dir) as ops,
            httpx.AsyncClient(base_url=product.url, timeout=_PATIENCE_S, trust_env=False) as http,
        ):
            fleet = await ops.until(
                lambda f: all(n.state == "ready" and n.library for n in f.nodes), _PATIENCE_S
            )
            yield Bench(lab, ops, http, fleet.nodes[0].library[0].name)


async def measure(lab: Lab, place: Path, models: Path, rounds: int) -> None:
    ratios = []
    async with benches(lab, place, models, 0.62) as bench:
        for number in range(rounds):
            for host in lab.hosts.values():
                forget(host)
            first = await bench.load()
            kept = {name: cached_mib(host) for name, host in lab.hosts.items()}
            await bench.give_back()
            second = await bench.load()
            third = await bench.killed_worker()
            await bench.give_back()
            ratios.append(second.took_s / first.took_s)
            print(
                f"round {number + 1}: first {first.took_s:6.2f} s {first.sent_mib:7.1f} MiB sent"
                f"   again {second.took_s:6.2f} s {second.sent_mib:7.1f} MiB sent"
                f"   ratio {ratios[-1]:.2f}"
                f"   after a killed worker {third.took_s:6.2f} s {third.sent_mib:7.1f} MiB sent",
                flush=True,
            )
            print("         kept: " + ", ".join(f"{n} {mib:.0f} MiB" for n, mib in kept.items()))
        for node in bench.fleet.nodes:
            for link in node.links:
                words = link_words(link.rtt_s, link.bytes_s)
                print(f"{node.name} to {link.node}, as measured by the load itself: {words}")
    print(f"second load to first, median of {rounds}: {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--llama", type=Path, required=True, help="directory of llama.cpp's programs"
    )
    parser.add_argument("--layers", type=int, default=6, help="of 205 MiB each")
    parser.add_argument("--mbit", type=int, default=1000, help="of each link, either way")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)  # other users read the model there
        models = place / "models"
        models.mkdir()
        size = big_gguf.write(models / "noise.gguf", options.layers)
        print(f"{size / _MIB:.0f} MiB in {options.layers} layers, links of {options.mbit} Mbit/s")
        share = {"/opt/llama": options.llama, "/opt/models": models}
        with Lab(2, share=share, disk="4g") as lab, narrow(lab, options.mbit):
            asyncio.run(measure(lab, place / "console", models, options.rounds))


if __name__ == "__main__":
    main()
