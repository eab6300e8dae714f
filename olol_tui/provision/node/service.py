"""The agent kept alive: as a systemd unit of the user, or on its own.

`state/MACHINE/run` starts it either way. Engines are never in its fate: the unit has
`KillMode=process`, and without systemd the agent is a session of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from . import base, survey, systemd, turns

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 25.0
KILL_AFTER_S = 2.0
"""Between SIGTERM and SIGKILL for an agent that has let calls wait in vain already."""
_POLL_S = 0.02
"""Between looks at a socket that is about to appear: no event tells of it."""

_RUN = """\
#!/bin/sh
# Written by olol-tui at every start: the agent of the machine {machine}.
umask 077
cd /
# A session's limits and traces are nothing for a service.
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)" 2>/dev/null
unset SSH_CLIENT SSH_CONNECTION SSH_TTY SSH_AUTH_SOCK
PATH="${{PATH:-/usr/local/bin:/usr/bin:/bin}}:"{engine}
export PATH
exec {command}
"""


def ensure(ask: dict[str, Any]) -> dict[str, Any]:
    """Have the wanted agent running and answering.

    Args:
        ask: `directory`, `sha256`, `version`, `simulated` (dict or null), `python`,
            `keep` (unit or detached), `controller` (id of the console that asks), `fresh`: also
            where nothing of ours is.

    Returns:
        `hello`, `socket`, `did` (nothing, started, upgraded, restarted), `log`, `record`.
    """
    layout = base.Layout(str(ask["directory"]))
    fresh = bool(ask["fresh"])
    if fresh:
        base.make_base(layout)
        for directory in (layout.states, layout.state):
            base.make_private(directory)
    log: list[str] = []
    with turns.only_one(layout, fresh=fresh):
        record = layout.read_record()
        wanted = _wanted(layout, ask, record, log)
        did = _bring(layout, record, wanted, str(ask.get("controller", "")), log)
        record = layout.read_record()
        answer = base.hello(str(record["socket"]))
    return {
        "hello": answer,
        "socket": record["socket"],
        "did": did,
        "log": log,
        "record": record,
    }


def stop(ask: dict[str, Any]) -> dict[str, Any]:
    """End the agent. Args: `directory`, `engines` (keep or stop)."""
    layout = base.Layout(str(ask["directory"]))
    log: list[str] = []
    if layout.state.is_dir():
        with turns.only_one(layout):
            stop_agent(layout, layout.read_record(), str(ask["engines"]), log)
    return {"log": log}


def _wanted(
    layout: base.Layout, ask: dict[str, Any], record: dict[str, Any], log: list[str]
) -> dict[str, Any]:
    """The record of the agent that should run."""
    socket = str(survey.runtime_dir(layout, record, survey.has_linger()) / "agent.sock")
    if ask["keep"] == "unit" and not survey.has_linger():
        systemd.enable_linger(log)
    unit = ""
    if ask["keep"] == "unit" and survey.has_linger() and survey.has_user_units():
        unit = systemd.unit_name(layout)
        socket = str(survey.runtime_dir(layout, record, True) / "agent.sock")
    return {
        "sha256": str(ask["sha256"]),
        "version": str(ask["version"]),
        "python": str(ask["python"]),
        "simulated": ask["simulated"],
        "socket": socket,
        "unit": unit,
        "we_enabled_linger": bool(record.get("we_enabled_linger")) or "linger enabled" in log,
    }


def _bring(
    layout: base.Layout,
    record: dict[str, Any],
    wanted: dict[str, Any],
    controller: str,
    log: list[str],
) -> str:
    """From whatever there is to the wanted agent; what had to be done."""
    build = layout.bin / (wanted["sha256"] + ".pyz")
    if not build.is_file():
        raise base.Trouble("absent", f"{build} is not there", "Provision this node again.")
    try:
        running = base.hello(str(record.get("socket", "")))
    except OSError as error:
        log.append(f"the agent does not answer ({error}): ending it, engines stay")
        _kill(layout, log)
        running = None
    if running is None and base.agent_pid(layout) is not None:
        log.append("an agent runs without its socket: ending it, engines stay")
        _kill(layout, log)
    same_place = all(record.get(k) == wanted[k] for k in ("socket", "unit"))
    if running is not None:
        if not same_place or record.get("simulated") != wanted["simulated"]:
            # An upgrade in place harms nobody; anything else ends engines or moves the socket.
            _refuse_if_managed(running.get("controller"), controller)
        if record.get("simulated") != wanted["simulated"]:
            stop_agent(layout, record, "stop", log)
        elif not same_place:
            stop_agent(layout, record, "keep", log)
        elif running.get("sha256") == wanted["sha256"]:
            return systemd.enable_again(wanted["unit"], log)
        else:
            return _upgrade(layout, record, wanted, build, log)
    _write(layout, wanted)
    base.point(layout.current, os.path.relpath(str(build), str(layout.state)))
    base.make_private(Path(wanted["socket"]).parent.parent)
    base.make_private(Path(wanted["socket"]).parent)
    _start(layout, wanted, log)
    return "started" if running is None else "restarted"


def _refuse_if_managed(holder: dict[str, Any] | None, controller: str) -> None:
    """Two consoles that want different agents would restart each other's for ever."""
    if holder is None or holder.get("id") == controller:
        return
    raise base.Trouble(
        "managed",
        "{} manages this machine and wants other devices there".format(holder.get("name")),
        "Attach a console there, or stop it and provision again 15 s later.",
    )


def _upgrade(
    layout: base.Layout,
    record: dict[str, Any],
    wanted: dict[str, Any],
    build: Path,
    log: list[str],
) -> str:
    """The running agent replaces itself: same pid, same engines, same socket."""
    status, answer = base.ask_agent(
        wanted["socket"], "/v1/upgrade", {"path": str(build), "sha256": wanted["sha256"]}, 60.0
    )
    if status == 404:
        log.append("the agent is too old to replace itself: restarting it, engines stay")
        stop_agent(layout, record, "keep", log)
        _write(layout, wanted)
        base.point(layout.current, os.path.relpath(str(build), str(layout.state)))
        _start(layout, wanted, log)
        return "restarted"
    if status != 200:
        told = answer.get("error", {})
        raise base.Trouble(
            "upgrade", str(told.get("message", f"status {status}")), str(told.get("hint", ""))
        )
    answered = _await_hello(
        wanted["socket"], START_TIMEOUT_S, wanted["sha256"], same_pid=answer.get("pid")
    )
    if answered is None or answered.get("sha256") != wanted["sha256"]:
        raise base.Trouble(
            "upgrade",
            "the new agent did not answer, the old one is back",
            f"Its log: {layout.state / 'logs/agent.log'}",
        )
    base.point(layout.current, os.path.relpath(str(build), str(layout.state)))
    _write(layout, wanted)
    log.append("the agent replaced itself, pid {}".format(answered.get("pid")))
    return "upgraded"


def _write(layout: base.Layout, wanted: dict[str, Any]) -> None:
    """The record and the starting script: after them a restart does the same again."""
    command = [wanted["python"], "-I", str(layout.current), "serve", "--socket", wanted["socket"]]
    command += ["--state-dir", str(layout.states), "--machine-id", layout.machine_id, "--quiet"]
    if wanted["simulated"] is not None:
        command += ["--simulated", json.dumps(wanted["simulated"])]
    script = _RUN.format(
        machine=layout.machine_id,
        engine=shlex.quote(str(layout.ollama / "bin")),
        command=" ".join(shlex.quote(word) for word in command),
    )
    base.write_atomic(layout.run, script.encode(), 0o600)
    base.write_atomic(layout.record, json.dumps(wanted, indent=1).encode(), 0o600)


# -- start


def _start(layout: base.Layout, wanted: dict[str, Any], log: list[str]) -> None:
    child = None
    if wanted["unit"]:
        systemd.start(layout, wanted["unit"], log)
    else:
        systemd.remove(layout)
        child = _start_detached(layout)
    answer = _await_hello(wanted["socket"], START_TIMEOUT_S, "", child=child)
    if answer is None:
        raise base.Trouble(
            "start",
            f"the agent was started and does not answer: {_last_words(layout)}",
            "Its logs: {}, {}".format(layout.start_log, layout.state / "logs/agent.log"),
        )
    log.append("agent {} runs as pid {}".format(answer.get("version"), answer.get("pid")))


def _start_detached(layout: base.Layout) -> int:
    """In a session of its own with nothing of ours open; returns its pid, a child of us.

    It becomes init's child when this errand ends, a moment after it answers.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = os.open(str(layout.start_log), flags, 0o600)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.closerange(3, 1024)
        for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.chdir("/")
        os.execv("/bin/sh", ["/bin/sh", str(layout.run)])
    finally:
        os._exit(127)


def _await_hello(
    socket: str,
    timeout_s: float,
    sha256: str,
    *,
    child: int | None = None,
    same_pid: int | None = None,
) -> dict[str, Any] | None:
    """The agent's answer; None when time is up or the child is gone.

    Args:
        sha256: wait until this very image answers; else any.
        same_pid: of an agent that replaces itself: any other one came after its failure.
    """
    deadline = time.monotonic() + timeout_s
    answer = None
    while time.monotonic() < deadline:
        try:
            answer = base.hello(socket, 2.0)
        except OSError:
            answer = None
        if answer is not None and sha256 in ("", answer.get("sha256")):
            return answer
        if answer is not None and same_pid is not None and answer.get("pid") != same_pid:
            return answer
        if child is not None and os.waitpid(child, os.WNOHANG)[0]:
            return None
        time.sleep(_POLL_S)
    return answer


def _last_words(layout: base.Layout) -> str:
    try:
        lines = layout.start_log.read_text("utf-8", "replace").split("\n")
    except OSError:
        lines = []
    return " | ".join(line.strip() for line in lines if line.strip())[-400:] or "it said nothing"


# -- stop


def stop_agent(layout: base.Layout, record: dict[str, Any], engines: str, log: list[str]) -> None:
    """End the agent orderly, by force if it does not hear."""
    pid = base.agent_pid(layout)
    unit = str(record.get("unit") or "")
    try:
        base.ask_agent(str(record.get("socket", "")), "/v1/shutdown", {"engines": engines})
    except OSError:
        if pid is not None:
            _kill(layout, log)
    else:
        # systemd restarts what fails, not what ends by itself.
        if pid is not None and not _gone(pid, STOP_TIMEOUT_S):
            _kill(layout, log)
        log.append("the agent ended, engines " + ("too" if engines == "stop" else "stay"))
    if unit and engines == "stop":
        systemd.run_tool("systemctl", "--user", "stop", unit)


def _kill(layout: base.Layout, log: list[str]) -> None:
    """SIGTERM, then SIGKILL: engines live in sessions of their own and stay."""
    pid = base.agent_pid(layout)
    if pid is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if _gone(pid, KILL_AFTER_S):
            log.append(f"ended pid {pid} by {number.name}")
            return
    raise base.Trouble(
        "stuck", f"the agent (pid {pid}) cannot be ended", "It may hang in the GPU driver."
    )


def _gone(pid: int, timeout_s: float) -> bool:
    started = base.starttime(pid)
    deadline = time.monotonic() + timeout_s
    while started is not None and base.starttime(pid) == started:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
