"""The whole product on a lab: nodes added and provisioned from the shell, served, spoken to.

One `Product` is one console's state directory over the hosts of a lab. Tests open it for a
while (`opened`), send paced streams, break hosts and read how each stream ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import olol_tui
from olol_tui.fleet.snapshot import Engine, Node
from tests.contract.serve_rig import COMMAND, Instance
from tests.e2e.cluster import MODEL, Operator, operator
from tests.lab import Host, Lab

SILENT_S = 7.0
SUDDEN_S = 1.0
BOUND_S = 60.0
DECODE_TPS = 20
ENDLESS = "reply_tokens = 4000"
SIMULATED = f"gpus = 1, load_bytes_s = 1e11, decode_tps = {DECODE_TPS}, slots = 8, {ENDLESS}"
"""Slow enough that a reply is under way when its host breaks, quick enough to load at once."""
FOREVER_TOKENS = 100_000


def told(fault: str, figure_s: float, promise_s: float, what: str = "") -> None:
    """A line of the table of promises; shown by `pytest -s` and beside a failure."""
    print(f"\n  {fault:<34} {figure_s:7.2f} s  (≤ {promise_s:g} s) {what}", flush=True)


@dataclass
class Product:
    lab: Lab
    instance: Instance
    url: str = ""

    @property
    def state_dir(self) -> Path:
        return self.instance.state_dir

    def start(self) -> str:
        """Serve; its port stays the same over restarts, as an operator's would."""
        port = self.url.rpartition(":")[2] or str(free_port())
        self.url = self.instance.serve("--serve", "--port", port)
        return self.url

    def provision(self, *args: str) -> str:
        done = self.instance.run("node", "provision", *(args or ("--all",)), "--accept-new")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_other(self, source: Path, *args: str) -> str:
        """A command of another olol-tui than ours, by its source tree."""
        done = subprocess.run(
            [*COMMAND, *args, "--state-dir", str(self.state_dir)],
            env={**self.instance.env, "PYTHONPATH": str(source)},
            cwd=source,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @asynccontextmanager
    async def opened(self, *, warm: bool = True) -> AsyncIterator[tuple[Operator, Client]]:
        """An operator and a client, every node up and the model on every GPU."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with (
            operator(self.state_dir) as ops,
            httpx.AsyncClient(base_url=self.url, timeout=BOUND_S, limits=limits) as http,
        ):
            if warm:
                await ops.all_up()
                await ops.warm()
            yield ops, Client(http)


def newer_source(directory: Path, version: str) -> Path:
    """A source tree of olol-tui whose agent is of another version."""
    package = Path(olol_tui.__file__).parent
    shutil.copytree(package, directory / package.name, ignore=shutil.ignore_patterns("*.pyc"))
    agent = directory / package.name / "agent" / "__init__.py"
    agent.write_text(f'{agent.read_text()}\n__version__ = "{version}"\n')
    return directory


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def ssh_home(lab: Lab, directory: Path) -> Path:
    """A home whose ~/.ssh/config knows the lab's hosts by name."""
    (directory / ".ssh").mkdir(parents=True, mode=0o700)
    (directory / ".ssh" / "config").write_text(lab.ssh_config.read_text())
    return directory


def config(names: Iterable[str], simulated: str = SIMULATED) -> str:
    """Nodes that only ~/.ssh/config knows how to reach."""
    return "\n".join(f"[nodes.{name}]\nsimulated = {{ {simulated} }}" for name in names)


@contextmanager
def console(lab: Lab, place: Path, text: str = "") -> Iterator[Product]:
    """A console's state directory and home; what it left running on this machine is ended."""
    instance = Instance(place / "state", text or config(lab.hosts))
    instance.env |= {"HOME": str(ssh_home(lab, place / "home"))}
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK"):
        instance.env.pop(name, None)
    # An installed product has its bytecode; its start is timed here.
    instance.env.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        yield Product(lab, instance)
    finally:
        instance.close()


@contextmanager
def product(lab: Lab, place: Path, text: str = "") -> Iterator[Product]:
    """Provisioned and serving."""
    with console(lab, place, text) as one:
        one.provision()
        one.start()
        yield one


@dataclass
class Stream:
    """One streamed chat: where it ran, what came and when, how it ended."""

    began_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    """When the latest line came."""
    ended_s: float = 0.0
    status: int = 0
    engine: str = ""
    why: str = ""
    """X-Olol-Why, when the client asked for it."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    broken: str = ""
    """How the connection failed, when HTTP itself did not end cleanly."""
    clean_end: bool = False
    """HTTP's own end of the body came."""
    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def host(self) -> str:
        return self.engine.partition("/")[0]

    @property
    def error(self) -> str:
        return str(self.lines[-1].get("error", "")) if self.lines else ""

    @property
    def is_done(self) -> bool:
        return any(line.get("done") for line in self.lines)

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.is_done and not self.error and not self.broken

    @property
    def is_unhurt(self) -> bool:
        """It goes on, or came to its own end."""
        return self.is_whole or not self.ended.is_set()

    @property
    def is_told_broken(self) -> bool:
        """It ended with an error line, and nothing says that this was all of the answer: neither
        a last line nor the end of the body in HTTP."""
        return bool(self.error) and not self.is_done and not self.clean_end

    def __str__(self) -> str:
        last = self.lines[-1] if self.lines else None
        return f"{self.engine} {self.status} {len(self.lines)} lines, {last}, {self.broken}"


class Client:
    """Sends chats to the gateway."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self._tasks: set[asyncio.Task[None]] = set()

    async def chat(self, tokens: int = 3) -> Stream:
        """A chat to its end."""
        stream = Stream()
        await self._run(stream, tokens)
        return stream

    async def chats(self, count: int, tokens: int = 3) -> list[Stream]:
        return list(await asyncio.gather(*(self.chat(tokens) for _ in range(count))))

    @asynccontextmanager
    async def streams(
        self, count: int, tokens: int = FOREVER_TOKENS
    ) -> AsyncIterator[list[Stream]]:
        """So many streams that flow; those still under way are left at the end."""
        streams = [Stream() for _ in range(count)]
        tasks = [asyncio.create_task(self._run(stream, tokens)) for stream in streams]
        try:
            async with asyncio.timeout(BOUND_S):
                await asyncio.gather(*(stream.began.wait() for stream in streams))
            assert all(stream.status == 200 for stream in streams), [str(s) for s in streams]
            yield streams
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, stream: Stream, tokens: int) -> None:
        stream.began_s = time.monotonic()
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Tell me of the sea."}],
            "options": {"num_predict": tokens},
        }
        try:
            async with self.http.stream("POST", "/api/chat", json=body) as reply:
                stream.status = reply.status_code
                stream.engine = reply.headers.get("x-olol-engine", "")
                stream.why = reply.headers.get("x-olol-why", "")
                async for line in reply.aiter_lines():
                    stream.last_s = time.monotonic()
                    stream.first_s = stream.first_s or stream.last_s
                    stream.lines.append(json.loads(line))
                    stream.began.set()
            stream.clean_end = True
        except httpx.HTTPError as error:
            stream.broken = repr(error)
        stream.ended_s = time.monotonic()
        stream.began.set()
        stream.ended.set()


async def ends(streams: Sequence[Stream], bound_s: float = BOUND_S) -> None:
    """Returns when every stream has ended."""
    try:
        async with asyncio.timeout(bound_s):
            await asyncio.gather(*(stream.ended.wait() for stream in streams))
    except TimeoutError:
        left = [str(stream) for stream in streams if not stream.ended.is_set()]
        raise AssertionError(f"still under way after {bound_s} s: {left}") from None


def assert_told_broken(streams: Sequence[Stream], fault: str) -> None:
    assert streams, f"{fault}: no stream ran there"
    for stream in streams:
        assert stream.is_told_broken, f"{fault}: {stream}"


def counted(metrics: str, name: str, engine: str = "") -> float:
    """The sum of a counter's samples, of those of an engine if one is named."""
    samples = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", metrics, re.MULTILINE)
    mark = f'engine="{engine}"'
    return sum(float(value) for labels, value in samples if not engine or mark in labels)


def only_engine(node: Node) -> Engine:
    assert len(node.engines) == 1, node.engines
    return node.engines[0]


def pids(ops: Operator, *names: str) -> dict[str, int | None]:
    return {
        engine.id: engine.pid
        for node in ops.fleet.nodes
        if not names or node.name in names
        for engine in node.engines
    }


def agent_pids(host: Host) -> list[int]:
    """Of agents that serve, as the host sees them."""
    return [p.pid for p in host.processes() if ".pyz serve" in p.command]


def engine_pids(host: Host) -> list[int]:
    return [p.pid for p in host.processes() if "sim-engine" in p.command]


def kill_on(host: Host, pids_there: Iterable[int | None], number: str = "KILL") -> None:
    host.exec(["kill", f"-{number}", *(str(pid) for pid in pids_there)], "root")


def reachable_listeners(host: Host) -> set[str]:
    """Programs that listen where others can reach them, by `ss` and by the kernel's tables."""
    lines = host.exec(["ss", "-Hltnp"], "root").stdout.splitlines()
    loopback = ("127.", "[::1]")
    seen = {line for line in lines if not line.split()[3].startswith(loopback)}
    assert all('"sshd"' in line for line in seen), lines
    return {
        Path(listener.command.split()[0].rstrip(":")).name
        for listener in host.listening()
        if not listener.address.startswith(("127.", "::1"))
    }


def ask_engine(host: Host, engine: Engine, path: str, body: dict[str, Any] | None = None) -> Any:
    """A question to a simulated engine itself, asked on its host."""
    data = None if body is None else json.dumps(body).encode()
    call = (
        "import urllib.request as r; "
        f"q = r.Request('http://{engine.address}{path}', data={data!r}, "
        "headers={'Content-Type': 'application/json'}); print(r.urlopen(q).read().decode())"
    )
    return json.loads(host.exec(["python3", "-c", call]).stdout)


def waited_s(pid: int) -> float:
    """How long the kernel let a process wait for a CPU that others had: not the product's time."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def own_s(took_s: float, promise_s: float, waited: float) -> float:
    """The product's own time: only what breaks a promise is freed of what the machine took."""
    return took_s if took_s <= promise_s else took_s - waited


def lossy_s() -> float:
    return float(os.environ.get("LOSSY_S", "20"))
