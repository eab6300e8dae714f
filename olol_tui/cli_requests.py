"""`olol-tui requests` and `olol-tui why`: what became of requests, and the reasons.

Ended requests are read from the records on disk, so that they can be seen when no core runs;
`why` asks the running core first, which knows the live ones.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sqlite3
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from olol_tui.errors import LinkError, OlolError
from olol_tui.paths import Paths
from olol_tui.units import parse_duration

_SHOWN = 50
_HEADINGS = (
    "TIME", "ID", "CLIENT", "MODEL", "WHERE", "STATE", "WAIT", "TTFT", "TOTAL", "TOKENS", "TOK/S",
)  # fmt: skip


class NoRecords(OlolError):
    title = "There are no records"


class NoSuchRequest(OlolError):
    title = "There is no such request"


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `requests` and `why`."""
    requests = commands.add_parser(
        "requests", parents=[shared], help="ended requests, from the records on disk"
    )
    requests.add_argument(
        "--since", type=_duration, default=3600.0, metavar="DURATION", help="default: 1h"
    )
    requests.add_argument(
        "--limit", type=_limit, metavar="N", help=f"the newest N; default: {_SHOWN} as text"
    )
    shape = requests.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="a list of objects")
    shape.add_argument("--csv", action="store_true", help="with a line of headings")
    requests.set_defaults(run=_run_requests)

    why = commands.add_parser("why", parents=[shared], help="why a request went where it did")
    why.add_argument("request", metavar="REQUEST", help="id, as in X-Olol-Request")
    why.add_argument("--json", action="store_true", help="as JSON")
    why.set_defaults(run=_run_why)


def _run_requests(args: argparse.Namespace) -> int:
    paths = Paths.resolve(args.state_dir, args.config)
    limit = args.limit if args.limit or args.json or args.csv else _SHOWN
    rows = _read(paths, since_wall_s=time.time() - args.since, limit=limit)
    if args.json:
        print(json.dumps(rows))
    elif args.csv:
        _write_csv(rows)
    else:
        _print_table(rows)
    return 0


def _read(paths: Paths, **which: Any) -> list[dict[str, Any]]:
    from olol_tui.gateway.archive import FILE_NAME, read

    path = paths.state_dir / Path(FILE_NAME)
    try:
        return read(path, **which)
    except FileNotFoundError:
        raise NoRecords(
            f"{path} does not exist: no request has ended yet, or records_max is 0"
        ) from None
    except sqlite3.Error as error:
        raise NoRecords(f"{path} cannot be read: {error}") from error


def _write_csv(rows: list[dict[str, Any]]) -> None:
    from olol_tui.gateway.archive import COLUMNS

    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        tried = "; ".join(row["tried"])
        shown = {**row, "tried": tried}
        writer.writerow({name: _harmless(value) for name, value in shown.items()})


def _harmless(value: Any) -> Any:
    """A spreadsheet takes a text that begins so for a formula, and clients choose some texts."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("No request ended in this time.", file=sys.stderr)
        return
    table = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(_HEADINGS))]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = str(row["state"])
    if row["cause"]:
        state += f" ({row['cause']})"
    if row["replays"]:
        state += f", replayed {_times(row['replays'])}"
    elif row["retries"]:
        state += f", retried {_times(row['retries'])}"
    return tuple(
        _plain(cell)
        for cell in (
            f"{datetime.fromtimestamp(row['arrived_wall_s']).astimezone():%m-%d %H:%M:%S}",
            row["id"],
            row["client"],
            row["model"],
            row["place"] or "–",
            state,
            _seconds(row["wait_s"]),
            _seconds(row["ttft_s"]),
            _seconds(row["total_s"]),
            str(row["tokens"]),
            "–" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.1f}",
        )
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _plain(text: str) -> str:
    """Nothing that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _run_why(args: argparse.Namespace) -> int:
    paths = Paths.resolve(args.state_dir, args.config)
    found = asyncio.run(_ask(paths, args.request))
    if found is None:
        try:
            rows = _read(paths, request=args.request, limit=1)
        except NoRecords:
            rows = []
        if not rows:
            raise NoSuchRequest(
                f"neither the core nor the records know {args.request}",
                hint="See: olol-tui requests",
            )
        found = rows[0]
    if args.json:
        print(json.dumps(found))
    else:
        print("\n".join(_plain(line) for line in why_lines(found)))
    return 0


async def _ask(paths: Paths, request: str) -> dict[str, Any] | None:
    """What the running core knows; None when there is none, or it does not know."""
    from urllib.parse import quote

    import httpx

    from olol_tui.unixhttp import UnixTransport

    transport = UnixTransport(paths.control_socket)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", timeout=10, trust_env=False
    ) as core:
        try:
            reply = await core.get(f"/olol/v1/requests/{quote(request, safe='')}")
        except httpx.ConnectError:
            return None
        except httpx.HTTPError as error:
            raise LinkError(f"the core at {paths.control_socket} broke off: {error}") from error
    if reply.status_code != 200:
        return None
    found: dict[str, Any] = reply.json()
    return found


def why_lines(found: dict[str, Any]) -> list[str]:
    """A request of the core or of the records, for people."""
    where = found.get("where") or found.get("place") or "nowhere yet"
    lines = [f"{found['id']}: {found['model']} for {found['client']}, {found['state']}, {where}"]
    if found.get("position"):
        lines.append(f"position {found['position']} in its queue")
    if found.get("error"):
        lines.append(f"{found['cause'] or 'retried'}: {found['error']}")
    lines += [f"tried before: {one}" for one in found.get("tried") or ()]
    if found.get("replays"):
        lines.append("the stream went on where it was lost: it was replayed")
    decision = found.get("decision")
    if decision is None:
        return [*lines, str(found.get("why") or "nothing was decided about it")]
    lines.append(decision["reason"])
    for one in sorted(decision["candidates"], key=lambda one: float(one["ttft_s"])):
        mark = "●" if one["where"] == decision["chosen"] else "○"
        lines.append(
            f"  {mark} {one['where']}: {one['ttft_s']:.2f} s to first token (wait "
            f"{one['wait_s']:.2f} + load {one['load_s']:.2f} + prefill {one['prefill_s']:.2f})"
        )
    lines += [f"  ✖ {one['where']}: {one['reason']}" for one in decision["rejected"]]
    return lines


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
