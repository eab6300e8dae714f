"""What a llama-server says of its memory in its log, by device.

Pure. Asked for with `-lv 4`. With `-fit on` every size is said twice, first of a trial that
allocates nothing: the last account wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_LINE = re.compile(
    r"(load_tensors|llama_kv_cache\w*|llama_memory_recurrent|sched_reserve): +"
    r"(\S+) +(model|KV|RS|compute) buffer size = +(\d+(?:\.\d+)?) MiB"
)
_RPC = re.compile(r"RPC\d+\[(.+)\]")
_LAYERS = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Buffers:
    """Of one device, in bytes as precise as the log: hundredths of a MiB."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


_FIELDS = {
    "model": "weights_bytes",
    "KV": "kv_bytes",
    "RS": "kv_bytes",
    "compute": "compute_bytes",
}


def read_buffers(lines: Iterable[str]) -> dict[str, Buffers]:
    """By device: `127.0.0.1:50052` of a worker (its address), else as llama.cpp names it.

    The head's own main memory is under `CPU`, `CPU_Mapped` and their like.
    """
    found: dict[str, Buffers] = {}
    was_weights = False
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        device, kind, mib = match[2], match[3], match[4]
        if rpc := _RPC.fullmatch(device):
            device = rpc[1]
        if kind == "model" and not was_weights:
            found.clear()  # The account begins anew: what came before was a trial.
        was_weights = kind == "model"
        name = _FIELDS[kind]
        before = found.get(device, Buffers())
        size = round(float(mib) * MIB)
        # A cache with windows is said in two parts; buffers are reserved anew, not added.
        total = size if kind == "compute" else getattr(before, name) + size
        found[device] = replace(before, **{name: total})
    return found


def offloaded(lines: Iterable[str]) -> tuple[int, int] | None:
    """Layers on devices and layers at all, the output counted as one; None until it is said."""
    found = None
    for line in lines:
        if match := _LAYERS.search(line):
            found = int(match[1]), int(match[2])
    return found
