"""Time to plan the splits of a large fleet's models.

    python -m tests.bench.planning [--gpus 1000] [--models 200] [--rounds 9]

Every model is planned on the same ground, as after a change of the fleet: small ones that fit
one GPU, ones that need the GPUs of a node, and ones that need several nodes. Prints the median
and the best of the rounds in CPU time, and the share of each kind of plan.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter

from olol_tui.models.memory import Settings
from olol_tui.models.shape import Shape
from olol_tui.placement.split import Ground, Link, SplitDevice

GIB = 2**30
MIB = 2**20
LIMIT_S = 0.050
_SIZES_GIB = (1, 2, 5, 9, 20, 40, 70, 130, 240, 400)


def fleet(gpus: int, pick: random.Random) -> tuple[list[SplitDevice], dict[tuple[str, str], Link]]:
    """Nodes of eight GPUs of three sizes, more or less in use, with measured links."""
    devices = []
    for index in range(gpus):
        node = f"n{index // 8:03}"
        size = (24, 48, 80)[(index // 8) % 3]
        free = int(size * GIB * pick.uniform(0.3, 0.97))
        devices.append(SplitDevice(node, f"gpu-{index}", f"gpu{index % 8}", free))
    nodes = sorted({device.node for device in devices})
    links = {
        (a, b): Link(pick.choice((0.0002, 0.0004, 0.001)), 1.2e9)
        for a in nodes
        for b in nodes
        if a != b
    }
    return devices, links


def library(
    count: int, nodes: list[str], pick: random.Random
) -> list[tuple[Shape, frozenset[str]]]:
    """Models from 1 to 400 GiB, each on a few nodes."""
    found = []
    for index in range(count):
        layers = pick.choice((24, 32, 48, 64, 80, 96))
        total = _SIZES_GIB[index % len(_SIZES_GIB)] * GIB
        width = 1024 * pick.choice((2, 4, 8))
        found.append(
            (
                Shape(
                    architecture="llama",
                    file_bytes=total,
                    layers=tuple(
                        int(total / layers * pick.uniform(0.9, 1.1)) for _ in range(layers)
                    ),
                    embedding_bytes=256 * MIB,
                    output_bytes=256 * MIB,
                    vocabulary=128_256,
                    embedding_length=width,
                    feed_forward=3 * width,
                    query_elements=width,
                    key_elements=(1024,) * layers,
                    value_elements=(1024,) * layers,
                    windows=(0,) * layers,
                    recurrent_bytes=(0,) * layers,
                ),
                frozenset(pick.sample(nodes, min(len(nodes), 3))),
            )
        )
    return found


def measure(gpus: int, models: int, rounds: int) -> tuple[list[float], Counter[str]]:
    """CPU seconds of each round (the machine may be shared) and what came out."""
    pick = random.Random(5)
    devices, links = fleet(gpus, pick)
    shapes = library(models, sorted({device.node for device in devices}), pick)
    settings = Settings(ctx=8192)
    took, kinds = [], Counter[str]()
    for _ in range(rounds):
        kinds.clear()
        began = time.process_time()
        ground = Ground(devices, links)
        for shape, blobs in shapes:
            plan = ground.plan(shape, settings, blobs)
            kinds[getattr(plan, "level", "refused")] += 1
        took.append(time.process_time() - began)
    return took, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    took, kinds = measure(args.gpus, args.models, args.rounds)
    print(f"{args.models} models on {args.gpus} GPUs: {dict(kinds)}")
    print(
        f"median {statistics.median(took) * 1000:.1f} ms, best {min(took) * 1000:.1f} ms, "
        f"limit {LIMIT_S * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
