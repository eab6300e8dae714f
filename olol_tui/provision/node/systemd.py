"""systemd's own part: a unit of the user, where the user's services outlive the session."""

from __future__ import annotations

import json
import os
from pathlib import Path

from . import base, survey

SYSTEMCTL_TIMEOUT_S = 15.0

_UNIT = """\
# Written by olol-tui. The home may be shared: %m is the machine.
[Unit]
Description=olol-tui agent
ConditionPathExists={run}

[Service]
ExecStart=/bin/sh "{run}"
Environment=OLOL_AGENT_UNIT=1
Restart=on-failure
RestartSec=2
KillMode=process
Delegate=yes

[Install]
WantedBy=default.target
"""


def unit_name(layout: base.Layout) -> str:
    return f"olol-agent-{layout.socket_tag}.service"


def user_environment() -> dict[str, str]:
    """systemctl finds its manager through this; a session without PAM has none of it."""
    env = dict(os.environ)
    runtime = env.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    env.setdefault("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")
    return env


def run_tool(*argv: str) -> tuple[int, str]:
    """(status, what it said); 127 when it is not there, 124 when it hangs."""
    program = base.which(argv[0])
    if program is None:
        return 127, f"{argv[0]} is not there"
    import subprocess  # Without systemd nobody needs it.

    try:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=user_environment(),
            timeout=SYSTEMCTL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "{} does not end".format(" ".join(argv[:3]))
    return done.returncode, " ".join(done.stdout.decode("utf-8", "replace").split())


def enable_linger(log: list[str]) -> None:
    """Without a password only where polkit lets users do it for themselves."""
    status, said = run_tool("loginctl", "--no-ask-password", "enable-linger")
    log.append("linger enabled" if status == 0 else f"linger was refused: {said}")


def unit_file(name: str) -> Path:
    home = Path(os.environ.get("HOME", "/"))
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return config / "systemd/user" / name


def unit_text(layout: base.Layout) -> str:
    run = str(layout.states).replace("%", "%%").replace("$", "$$") + "/%m/run"
    return _UNIT.format(run=run)


def start(layout: base.Layout, name: str, log: list[str]) -> None:
    path = unit_file(name)
    text = unit_text(layout).encode()
    base.remember_made(layout, base.missing_above(path.parent / "default.target.wants/x"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != text:
        base.write_atomic(path, text, 0o644)
        log.append(f"wrote {path}")
    for words in (["daemon-reload"], ["enable", name], ["restart", name]):
        status, said = run_tool("systemctl", "--user", *words)
        if status:
            raise base.Trouble(
                "systemd",
                "systemctl --user {} failed: {}".format(" ".join(words), said),
                f"Look there: systemctl --user status {name}",
            )
    log.append(f"enabled and started {name}")


def remove(layout: base.Layout) -> bool:
    """Take our unit out, unless another machine of a shared home has it; whether it was there."""
    name = unit_name(layout)
    path = unit_file(name)
    if not path.is_file():
        return False
    for record in layout.states.glob("*/launch.json"):
        try:
            used = json.loads(record.read_bytes()).get("unit")
        except (OSError, ValueError, AttributeError):
            continue
        if used and record != layout.record:
            return False
    run_tool("systemctl", "--user", "disable", "--now", name)
    wants = path.parent / "default.target.wants" / name
    for file in (wants, path):
        if os.path.lexists(str(file)):
            file.unlink()
    run_tool("systemctl", "--user", "daemon-reload")
    return True


def enable_again(unit: str, log: list[str]) -> str:
    """The agent is the right one; is it also going to be after a reboot?"""
    if not unit or survey.is_enabled(unit):
        return "nothing"
    status, said = run_tool("systemctl", "--user", "enable", unit)
    if status:
        raise base.Trouble("systemd", f"systemctl --user enable {unit} failed: {said}")
    log.append(f"enabled {unit}")
    return "enabled"
