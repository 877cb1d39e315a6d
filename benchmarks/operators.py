"""Where the time of a training step goes, operator by operator: what stands between a step and its limit.

    python -m benchmarks.operators [--shape NAME] [--batch TOKENS]

Beside the profiler, whose records break up the memory that steps free, a step must find some of it anew: part of
`fill_` and `copy_` is that. Not here: how long a step takes without a profiler (`cases.py`).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks.cases import WARM_UP_STEPS
from benchmarks.shapes import SHAPES, Shape, random_inputs, random_mlp
from jsae_assets.text_table import as_text
from jsae_core import TrainingConfig, train_pair
from jsae_core.memory import keep_freed_memory
from jsae_core.mlp import MLP

STEPS = 5
SHOWN = 12


def operators(x: Tensor, mlp: MLP, shape: Shape, coefficient: float) -> list[tuple[str, float, int]]:
    """Name, milliseconds a step and calls a step of the operators that take the most time themselves."""
    config = TrainingConfig(shape.d_sae, shape.k, coefficient, steps=WARM_UP_STEPS + STEPS, batch_tokens=len(x))
    steps = schedule(wait=0, warmup=WARM_UP_STEPS, active=STEPS, repeat=1)
    with profile(activities=[ProfilerActivity.CPU], schedule=steps) as profiler:
        train_pair(x, mlp, config, report=lambda progress: profiler.step())
    averages = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return [(row.key, row.self_cpu_time_total / 1e3 / STEPS, row.count // STEPS) for row in averages[:SHOWN]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="pythia-70m")
    parser.add_argument("--batch", type=int, default=1024)
    options = parser.parse_args()
    keep_freed_memory()
    shape = SHAPES[options.shape]
    x, mlp = random_inputs(shape, options.batch, torch.device("cpu")), random_mlp(shape)
    for coefficient in (1.0, 0.0):
        rows = operators(x, mlp, shape, coefficient)
        print(f"{shape.name}, batch {options.batch}, lambda {coefficient:g}")
        print(as_text([("operator", "ms a step", "calls"), *((name, f"{ms:.0f}", str(n)) for name, ms, n in rows)]))


if __name__ == "__main__":
    main()
