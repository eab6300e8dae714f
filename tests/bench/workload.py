"""What the routing benchmark asks for: arrivals and lengths of a real trace, models by Zipf.

Lengths and gaps are those of the Azure LLM inference trace 2023 (see data/README.md); the
trace names no models, so each request draws one.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

TRACE = Path(__file__).parent / "data" / "azure_llm_2023_conv_head.csv"
MODELS = (
    "qwen3:8b",
    "gemma3:4b",
    "gpt-oss:20b",
    "mistral:7b",
    "deepseek-r1:14b",
    "qwen3:32b",
)
"""Of the simulated store, 3 to 21 GB; the most wanted first."""
LONGEST_PROMPT = 3000
"""Tokens: context and reply have to fit into 4096."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. Times in seconds of the trace, lengths in tokens."""

    at_s: float
    model: str
    prompt_tokens: int
    reply_tokens: int


def arrivals(count: int, rate: float, *, seed: int = 1, trace: Path = TRACE) -> list[Arrival]:
    """The first `count` requests of the trace, coming `rate` times as fast.

    Args:
        trace: a file in the form of the extract, or of the original.
    """
    dice = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(MODELS))]
    found = []
    for at_s, prompt, reply in _rows(trace)[:count]:
        model = dice.choices(MODELS, weights)[0]
        prompt = min(prompt, LONGEST_PROMPT)
        found.append(Arrival(at_s / rate, model, prompt, max(1, min(reply, 4000 - prompt))))
    return found


def _rows(trace: Path) -> list[tuple[float, int, int]]:
    from datetime import datetime

    with trace.open(newline="") as file:
        reader = csv.reader(file)
        heading = next(reader)
        if heading[0] == "offset_ms":
            return [(int(at) / 1000, int(prompt), int(reply)) for at, prompt, reply in reader]
        rows = []
        for at, prompt, reply in reader:
            whole, _, rest = at.partition(".")
            seconds = datetime.fromisoformat(whole).timestamp() + float(f"0.{rest or 0}")
            rows.append((seconds, int(prompt), int(reply)))
        return [(at_s - rows[0][0], prompt, reply) for at_s, prompt, reply in rows]
