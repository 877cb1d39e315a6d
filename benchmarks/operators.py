"""Where the time of a training step goes, operator by operator: what stands between a step and its limit.

    python -m benchmarks.operators [--shape NAME] [--batch TOKENS]

Not here: how long a step takes without a profiler beside it (`cases.py`).
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.shapes import SHAPES, Shape, random_inputs, random_mlp
from jsae_assets.text_table import as_text
from jsae_core import TrainingConfig, train_pair
from jsae_core.memory import keep_freed_memory

STEPS = 5
SHOWN = 12


def operators(shape: Shape, batch: int, coefficient: float) -> list[tuple[str, float, int]]:
    """Name, milliseconds a step and calls a step of the operators that take the most time themselves."""
    device = torch.device("cpu")
    x, mlp = random_inputs(shape, batch, device), random_mlp(shape)
    config = TrainingConfig(shape.d_sae, shape.k, coefficient, steps=STEPS, batch_tokens=batch)
    train_pair(x, mlp, config)  # finds the memory that the steps below use again
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        train_pair(x, mlp, config)
    averages = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return [(row.key, row.self_cpu_time_total / 1e3 / STEPS, row.count // STEPS) for row in averages[:SHOWN]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="pythia-70m")
    parser.add_argument("--batch", type=int, default=1024)
    options = parser.parse_args()
    keep_freed_memory()
    for coefficient in (1.0, 0.0):
        rows = operators(SHAPES[options.shape], options.batch, coefficient)
        print(f"{options.shape}, batch {options.batch}, lambda {coefficient:g}")
        print(as_text([("operator", "ms a step", "calls"), *((name, f"{ms:.0f}", str(n)) for name, ms, n in rows)]))


if __name__ == "__main__":
    main()
