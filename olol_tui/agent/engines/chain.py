"""What is particular about the head of a split model: its flags, its workers, its log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .. import client, rpcprobe
from ..errors import EngineError
from ..splitspec import Chain
from .base import Advance, NotYet

_GREET_S = 2.0
_MIB = 1024 * 1024
_MAX_LOG_BYTES = 4 * _MIB
_START = b"olol-agent: "
"""How the agent marks each start in an engine's log."""
_BUFFER = re.compile(
    r"(load_tensors|llama_kv_cache[a-z_]*|llama_memory_recurrent|sched_reserve):\s+"
    r"(\S+)\s+(model|KV|RS|compute) buffer size\s*=\s*([0-9.]+) MiB"
)
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_ENDPOINT = re.compile(r"^RPC\d+\[([^\]]+)\]$")


def arguments(chain: Chain) -> list[str]:
    """Flags that put the layers where the plan wants them, and nowhere else."""
    return [
        *("--rpc", ",".join(chain.workers)),
        *("--tensor-split", ",".join(str(count) for count in chain.layers)),
        *("-ngl", "999", "-fit", "off"),
        # Says which device took how much; the next level would log what people write.
        *("-lv", "4"),
    ]


def check_workers(chain: Chain, version: str) -> None:
    """Greet every worker; none has a client while its head is not there. Blocks.

    Raises:
        NotYet: one does not answer.
        EngineError: another build.
    """
    if chain.build and version and chain.build != version:
        raise EngineError(
            f"this llama-server is {version}, the workers are {chain.build}",
            "use the same build of llama.cpp on every node",
        )
    protocols: dict[str, str] = {}
    for address in chain.workers:
        host, _, port = address.rpartition(":")
        try:
            protocols[address] = rpcprobe.greet(host, int(port), _GREET_S)
        except rpcprobe.NoAnswer as error:
            raise NotYet(f"the worker at {address} does not answer: {error}") from error
    if len(set(protocols.values())) > 1:
        told = ", ".join(f"{address} speaks RPC {one}" for address, one in protocols.items())
        raise EngineError(
            f"the workers are of different builds: {told}",
            "use the same build of llama.cpp on every node",
        )


async def advance(port: int, timeout_s: float) -> Advance | None:
    """How far the running requests are, by `/slots`.

    Raises:
        client.CallError: no usable answer.
    """
    reply = await client.call(port, "/slots", timeout_s=timeout_s)
    rows = reply.json()
    if reply.status != 200 or not isinstance(rows, list):
        raise client.CallError(f"/slots answered {reply.status}")
    steps = []
    in_prefill = False
    for row in rows:
        if not isinstance(row, dict) or not row.get("is_processing"):
            continue
        following = row.get("next_token") or [{}]
        decoded = following[0].get("n_decoded") if isinstance(following[0], dict) else None
        steps.append((row.get("id_task"), row.get("n_prompt_tokens_processed"), decoded))
        in_prefill = in_prefill or not decoded
    return Advance(tuple(steps), in_prefill) if steps else None


def layout(log: Path) -> dict[str, Any]:
    """What the last start of a head says of its buffers: bytes by worker address or device.

    With several lines for one buffer the last one counts: earlier ones are dry runs.
    """
    text = _last_start(log)
    found: dict[str, dict[str, int]] = {}
    for _, device, kind, size in _BUFFER.findall(text):
        match = _ENDPOINT.match(device)
        name = match.group(1) if match else device
        field = {"model": "weights_bytes", "compute": "compute_bytes"}.get(kind, "kv_bytes")
        found.setdefault(name, {})
        if field == "kv_bytes":
            # Sliding-window and full layers, and recurrent state, have a buffer each.
            found[name][field] = found[name].get(field, 0) + int(float(size) * _MIB)
        else:
            found[name][field] = int(float(size) * _MIB)
    counts = _OFFLOADED.findall(text)
    return {
        "buffers": [{"device": name, **sizes} for name, sizes in found.items()],
        "offloaded": int(counts[-1][0]) if counts else None,
        "layers": int(counts[-1][1]) if counts else None,
    }


def _last_start(log: Path) -> str:
    """The end of the log, from the agent's last mark on."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _MAX_LOG_BYTES))
            raw = file.read()
    except OSError:
        return ""
    return raw[max(0, raw.rfind(_START)) :].decode("utf-8", "replace")
