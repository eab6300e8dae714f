"""`olol-tui keys`: makes, lists, revokes and rotates API keys. No core needs to run.

A new key is the only thing on stdout, so that a script can keep it; everything for people is
on stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olol_tui.paths import Paths
from olol_tui.units import parse_duration

if TYPE_CHECKING:
    from olol_tui.gateway.keys import Key, KeyStore

_SCOPES = ("infer", "read", "admin")


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `keys` and its own commands."""
    keys = commands.add_parser("keys", help="API keys of the gateway")
    actions = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)

    create = actions.add_parser("create", parents=[shared], help="make a key; it is shown once")
    create.add_argument("name", metavar="NAME", type=_name, help="shown as client of its requests")
    create.add_argument(
        "--scopes",
        type=_scopes,
        default=("infer", "read"),
        metavar="LIST",
        help="of infer, read and admin, with commas; default: infer,read",
    )
    create.add_argument(
        "--models",
        type=_models,
        default=(),
        metavar="LIST",
        help="models it may use, with commas and * as in qwen3:*; default: all",
    )
    create.add_argument("--requests-per-min", type=_positive, metavar="N")
    create.add_argument("--tokens-per-min", type=_positive, metavar="N")
    create.add_argument(
        "--concurrency", type=_positive, metavar="N", help="requests at once, waiting ones too"
    )
    create.add_argument("--weight", type=_weight, default=1.0, metavar="X", help="default: 1")
    create.add_argument("--class", dest="priority", choices=("interactive", "batch"))
    create.add_argument("--expires", type=_duration, metavar="DURATION", help="such as 90d")
    create.set_defaults(run=_create)

    listing = actions.add_parser("list", parents=[shared], help="all keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_list)

    revoke = actions.add_parser("revoke", parents=[shared], help="end a key and its requests")
    revoke.add_argument("key", metavar="KEY", help="id or name")
    revoke.set_defaults(run=_revoke)

    rotate = actions.add_parser("rotate", parents=[shared], help="give a key a new secret")
    rotate.add_argument("key", metavar="KEY", help="id or name")
    rotate.add_argument(
        "--grace",
        type=_duration,
        default=0.0,
        metavar="DURATION",
        help="how long the old secret still works; default: not at all",
    )
    rotate.set_defaults(run=_rotate)


def _create(args: argparse.Namespace) -> int:
    from olol_tui.gateway.keys import Key

    store = _store(args)
    first = not store.required
    token = store.create(
        Key(
            id="",
            name=args.name,
            digest="",
            scopes=args.scopes,
            models=args.models,
            requests_per_min=args.requests_per_min,
            tokens_per_min=args.tokens_per_min,
            concurrency=args.concurrency,
            weight=args.weight,
            priority=args.priority or "interactive",
            expires_wall_s=None if args.expires is None else time.time() + args.expires,
        )
    )
    _show(token)
    if first:
        _tell("From now on the gateway asks every client for a key.")
    return 0


def _show(token: str) -> None:
    print(token, flush=True)
    _tell("This is shown once: only its digest is kept.")


def _list(args: argparse.Namespace) -> int:
    import msgspec

    store = _store(args)
    keys = sorted(store.keys, key=lambda key: key.created_wall_s)
    if args.json:
        shown = [
            {k: v for k, v in msgspec.to_builtins(key).items() if k not in ("digest", "previous")}
            | {"state": _state(key)}
            for key in keys
        ]
        print(msgspec.json.encode(shown).decode())
        return 0
    if not keys:
        _tell("There are no keys: everybody who reaches the gateway may use it.")
        return 0
    rows = [("ID", "NAME", "STATE", "SCOPES", "MODELS", "LIMITS", "EXPIRES")]
    rows += [
        (
            key.id,
            key.name,
            _state(key),
            ",".join(key.scopes),
            ",".join(key.models) or "all",
            _limits(key),
            _day(key.expires_wall_s),
        )
        for key in keys
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def _state(key: Key) -> str:
    if key.revoked_wall_s is not None:
        return "revoked"
    return "expired" if key.refusal(time.time()) else "active"


def _limits(key: Key) -> str:
    parts = [
        f"{value}{unit}"
        for value, unit in (
            (key.requests_per_min, " req/min"),
            (key.tokens_per_min, " tok/min"),
            (key.concurrency, " at once"),
        )
        if value is not None
    ]
    if key.weight != 1.0:
        parts.append(f"weight {key.weight:g}")
    if key.priority != "interactive":
        parts.append(key.priority)
    return ", ".join(parts) or "none"


def _day(wall_s: float | None) -> str:
    return "never" if wall_s is None else f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%d %H:%MZ}"


def _revoke(args: argparse.Namespace) -> int:
    key = _store(args).revoke(args.key)
    _tell(f"{key.name} ({key.id}) is revoked; its requests end within a second or two.")
    return 0


def _rotate(args: argparse.Namespace) -> int:
    key, token = _store(args).rotate(args.key, args.grace)
    _show(token)
    if args.grace:
        _tell(f"The old secret of {key.name} works until {_day(key.previous_until_wall_s)}.")
    return 0


def _store(args: argparse.Namespace) -> KeyStore:
    from olol_tui.gateway.keys import FILE_NAME, KeyStore

    store = KeyStore(Paths.resolve(args.state_dir, args.config).state_dir / Path(FILE_NAME))
    store.load()
    return store


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _name(text: str) -> str:
    if 0 < len(text) <= 64 and text.isprintable() and text.isascii() and " " not in text:
        return text
    raise argparse.ArgumentTypeError(
        f"expected a name of up to 64 letters, digits and signs without spaces, got {text!r}"
    )


def _scopes(text: str) -> tuple[str, ...]:
    scopes = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for one in scopes:
        if one not in _SCOPES:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(_SCOPES)}, got {one!r}")
    return scopes


def _models(text: str) -> tuple[str, ...]:
    from olol_tui.models.names import canonical

    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected model names with commas, got {text!r}")
    return tuple(name if "*" in name else canonical(name) for name in names)


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if 0 < weight <= 1000:
        return weight
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
