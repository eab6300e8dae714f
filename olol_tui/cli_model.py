"""`olol-tui model fit`: what a model takes, where it fits, and the split it would get.

A name is asked of the running core, which knows the devices; the path of a GGUF file is read
here, and then no cluster is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olol_tui.errors import OlolError
from olol_tui.paths import Paths

if TYPE_CHECKING:
    from olol_tui.placement.report import Report

_CACHE_TYPES = ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_USUAL_CTX = 4096


class NotAModel(OlolError):
    title = "The model cannot be planned"


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `model fit`."""
    model = commands.add_parser("model", help="what models need")
    actions = model.add_subparsers(dest="action", required=True, metavar="ACTION")
    fit = actions.add_parser(
        "fit", parents=[shared], help="bytes by part, where it fits and where not, its split"
    )
    fit.add_argument("model", metavar="MODEL", help="a name, or the path of a GGUF file")
    fit.add_argument("--ctx", type=_count, metavar="N", help="tokens of one slot")
    fit.add_argument("--slots", type=_count, metavar="N", help="requests at once")
    fit.add_argument("--cache-type", choices=_CACHE_TYPES, default="f16", metavar="TYPE",
                     help=f"of the KV cache: {', '.join(_CACHE_TYPES)}; default: f16")  # fmt: skip
    fit.add_argument("--json", action="store_true", help="as JSON")
    fit.set_defaults(run=_run)


def _count(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if not 0 < number < 1 << 28:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return number


def _run(args: argparse.Namespace) -> int:
    path = Path(args.model).expanduser()
    is_file = path.suffix.lower() == ".gguf" or ("/" in args.model and path.is_file())
    if is_file:
        found = _of_file(path, args)
    else:
        found = asyncio.run(_of_fleet(Paths.resolve(args.state_dir, args.config), args))
    from olol_tui.placement.report import lines

    if args.json:
        import msgspec

        whole = msgspec.to_builtins(found)
        whole["parts"]["total"] = found.parts.total
        print(json.dumps(whole))
    else:
        print("\n".join(lines(found)))
    return 0


def _of_file(path: Path, args: argparse.Namespace) -> Report:
    from olol_tui.agent.errors import Malformed
    from olol_tui.agent.shape import file_facts
    from olol_tui.models.memory import Settings
    from olol_tui.models.shape import ShapeError, shape_of
    from olol_tui.placement.report import report

    try:
        shape = shape_of(file_facts(str(path)))
    except Malformed as error:
        raise NotAModel(error.message) from error
    except OSError as error:
        raise NotAModel(f"{path}: {error.strerror or error}") from error
    except ShapeError as error:
        raise NotAModel(f"{path}: {error}") from error
    settings = Settings(args.ctx or _USUAL_CTX, args.slots or 1, args.cache_type)
    return report(str(path), shape, settings)


async def _of_fleet(paths: Paths, args: argparse.Namespace) -> Report:
    import msgspec

    from olol_tui.placement.report import Report
    from olol_tui.remote import RemoteLink

    async with RemoteLink(paths.control_socket) as link:
        raw = await link.fit(args.model, args.ctx, args.slots, args.cache_type)
    return msgspec.json.decode(raw, type=Report)
