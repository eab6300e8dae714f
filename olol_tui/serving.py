"""Runs a core in this process: without a console (`--serve`), behind one, or for a moment.

Owns what belongs to the process and not to the core: the lock that keeps a second core
off the same state directory, signals, the event loop, the «ready» line.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Literal, TextIO

from olol_tui.errors import LinkError, OlolError
from olol_tui.jsonlog import logging_to
from olol_tui.paths import Paths
from olol_tui.ports import command_of
from olol_tui.remote import RemoteLink, find_running

if TYPE_CHECKING:
    from olol_tui.config import ClusterConfig
    from olol_tui.console.app import ConsoleOptions
    from olol_tui.core import Core
    from olol_tui.demo import DemoOptions
    from olol_tui.fleet.snapshot import Fleet
    from olol_tui.link import Link

log = logging.getLogger(__name__)

STARTS_WITHIN_S = 30.0
"""A core that holds the lock but does not listen yet is waited for so long."""
FACTS_WITHIN_S = 15.0
"""How long «ready» and `--once` wait for the nodes' first facts; a node that cannot be
reached must not keep the others from serving."""


class AlreadyRunning(OlolError):
    title = "olol-tui is already running"


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def serve(config: ClusterConfig, paths: Paths, demo: DemoOptions | None = None) -> int:
    """The core alone, until SIGTERM or SIGINT; a second signal does not wait for requests."""
    stays = _is_to_outlive_its_terminal()
    with logging_to(None), _only_core(paths), _stop_signals() as stop:
        async with _core(config, paths, demo) as core:
            _reload_on_hangup(core, None if stays else stop)
            await _first_facts(core, stop)
            print(f"ready {core.address}", flush=True)
            log.info("ready", extra={"address": core.address, "pid": os.getpid()})
            await stop.wait()
            log.info("draining")
            await core.drain()
        log.info("stopped")
    return 0


async def embed(
    config: ClusterConfig, paths: Paths, options: ConsoleOptions, demo: DemoOptions | None = None
) -> int:
    """Core and console together; the core outlives a console that fails or is told to go.

    It outlives its terminal too, unless it is a demonstration, which nobody would miss.
    """
    ends = demo is not None and not _is_to_outlive_its_terminal()
    with logging_to(paths.log_file), _only_core(paths), _stop_signals(on_hangup=ends) as stop:
        async with _core(config, paths, demo) as core:
            if not ends:
                _reload_on_hangup(core, None)
            ended = await _console(core.link, options, stop)
            if ended == "quit":
                # The console's words for it are «Stop everything».
                core.stop_engines = True
                return 0
            if ended == "crashed":
                _tell(f"The console failed; see {paths.log_file}")
            if ends and not _has_terminal():
                stop.set()
            if not stop.is_set():
                _tell(f"Serving at {core.address} without a console; ctrl+c stops.")
            await stop.wait()
            await core.drain()
    return 1 if ended == "crashed" else 0


async def attach(paths: Paths, options: ConsoleOptions) -> int:
    """A console for the core that runs in another process."""
    log_file = paths.log_file.with_name("console.log")
    with logging_to(log_file), _stop_signals() as stop:
        async with RemoteLink(paths.control_socket) as link:
            ended = await _console(link, options, stop)
    if ended == "crashed":
        _tell(f"The console failed; see {log_file}")
        return 1
    return 0


async def snapshot(config: ClusterConfig, paths: Paths) -> Fleet:
    """One snapshot: of the running core, else of one that is started for it."""
    if find_running(paths):
        async with RemoteLink(paths.control_socket) as link:
            return link.fleet
    quiet = config.model_copy(update={"gateway": config.gateway.model_copy(update={"port": 0})})
    with logging_to(paths.log_file), _only_core(paths):
        # Whoever only looks leaves nothing running behind.
        async with _core(quiet, paths, None, stop_engines=True) as core:
            await _first_facts(core, asyncio.Event())
            return core.link.fleet


async def _first_facts(core: Core, stop: asyncio.Event) -> None:
    """Return when every node has said what it has, or the time is up, or `stop` is set.

    Until then the gateway would answer «no such model» about models that are there.
    """

    async def heard() -> None:
        async for fleet in core.link.changes():
            if all(node.state != "connecting" for node in fleet.nodes):
                return

    tasks = {asyncio.create_task(heard()), asyncio.create_task(stop.wait())}
    await asyncio.wait(tasks, timeout=FACTS_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _reload_on_hangup(core: Core, stop: asyncio.Event | None) -> None:
    """SIGHUP reads the configuration again, as servers do.

    Args:
        stop: set instead when the signal says that our terminal is gone.
    """
    had_terminal = _has_terminal()

    def on_hangup() -> None:
        if stop is not None and had_terminal and not _has_terminal():
            stop.set()
        else:
            core.reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)


def _is_to_outlive_its_terminal() -> bool:
    """Whether we were started with `nohup`, or as it does; to be asked before we listen."""
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def stop(paths: Paths, out: TextIO) -> int:
    """End what an earlier core left running.

    Raises:
        AlreadyRunning: a core still uses it.
    """
    from olol_tui.leftovers import stop_all

    with _only_core(paths):
        return await stop_all(paths, out)


async def wait_for_core(paths: Paths) -> bool:
    """Whether there is a core to attach to; one that is just starting is waited for.

    Raises:
        LinkError: a core holds the state directory and does not answer.
    """
    if find_running(paths):
        return True
    waited = 0.0
    while (holder := _holder(paths)) is not None:
        if waited >= STARTS_WITHIN_S:
            raise LinkError(
                f"pid {holder} holds {paths.state_dir} and does not answer",
                hint=f"If it hangs, end it: kill {holder}",
            )
        # Nothing announces a socket that another process is about to open.
        await asyncio.sleep(0.1)
        waited += 0.1
        if find_running(paths):
            return True
    return False


async def _console(
    link: Link, options: ConsoleOptions, stop: asyncio.Event
) -> Literal["quit", "keep-serving", "crashed", "stopped"]:
    """The console until it ends, or until `stop` is set: then it is closed ("stopped")."""
    from olol_tui.console.app import run_console

    console = asyncio.create_task(run_console(link, options), name="console")
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({console, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if not console.done():
            console.cancel()
            await asyncio.wait({console})
    if console.cancelled():
        return "stopped"
    if error := console.exception():
        # The gateway's clients must not pay for a fault in the drawing.
        log.error("the console failed", exc_info=error)
        return "crashed"
    return console.result()


def _tell(text: str) -> None:
    """A line on stderr, whose terminal may be gone."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def _core(
    config: ClusterConfig,
    paths: Paths,
    demo: DemoOptions | None,
    *,
    stop_engines: bool = False,
) -> AsyncIterator[Core]:
    """A core. Real engines outlive it, for the next one to adopt; simulated ones do not."""
    from olol_tui.core import Core

    ends = stop_engines or demo is not None
    async with Core(config, paths, demo=demo, stop_engines=ends) as core:
        yield core


@contextlib.contextmanager
def _only_core(paths: Paths) -> Iterator[None]:
    """Hold the state directory for this process; the kernel lets go when it ends.

    Raises:
        AlreadyRunning: another process holds it.
    """
    with paths.lock_file.open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip()
            command = command_of(int(pid)) if pid.isdigit() else ""
            raise AlreadyRunning(
                f"{paths.state_dir} is held by pid {pid or 'unknown'}"
                + (f" ({command})" if command else ""),
                hint=f"Attach a console to it with olol-tui, end it with kill {pid}, "
                "or use another --state-dir.",
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _holder(paths: Paths) -> int | None:
    """Pid of the process that holds the state directory."""
    try:
        with _only_core(paths):
            return None
    except AlreadyRunning:
        text = paths.lock_file.read_text(encoding="ascii").strip()
        return int(text) if text.isdigit() else 0


@contextlib.contextmanager
def _stop_signals(*, on_hangup: bool = True) -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second one cancels.

    Args:
        on_hangup: SIGHUP counts as one; otherwise it is ignored, for a core that shall
            outlive the terminal of its console.
    """
    stop = asyncio.Event()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    handlers: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: on_signal,
        signal.SIGINT: on_signal,
        signal.SIGHUP: on_signal if on_hangup else lambda: None,
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield stop
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
