"""Where the time of a training step or of a measure goes, operator by operator: what stands between it and its limit.

    python -m benchmarks.operators [training|histogram|quality] [--shape NAME] [--batch TOKENS]

Beside the profiler, whose records break up the memory that is freed, some of it must be found anew: part of what
operators take that write much (`fill_`, `copy_`, `_log_softmax`) is that. Not here: how long something takes without a
profiler (`cases.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile, schedule
from transformers.utils.logging import disable_progress_bar

from benchmarks.cases import BATCH_TOKENS, WARM_UP_STEPS
from benchmarks.shapes import SHAPES, Shape, language_model, random_documents, random_inputs, random_mlp, random_pair
from jsae_core import TrainingConfig, train_pair
from jsae_core.measures import jacobian_histogram, pair_quality
from jsae_core.memory import keep_freed_memory

CPU = torch.device("cpu")
REPEATS = 5
SHOWN = 12
HISTOGRAM_TOKENS, QUALITY_DOCUMENTS = 2 * BATCH_TOKENS, 4


def profile_training(shape: Shape, batch: int) -> None:
    x, mlp = random_inputs(shape, batch, CPU), random_mlp(shape)
    for coefficient in (1.0, 0.0):
        config = TrainingConfig(shape.d_sae, shape.k, coefficient, steps=WARM_UP_STEPS + REPEATS, batch_tokens=batch)
        operators = profiled(lambda done, c=config: train_pair(x, mlp, c, report=lambda progress: done()))
        show(f"a step of {shape.name}, batch {batch}, lambda {coefficient:g}", operators)


def profile_histogram(shape: Shape) -> None:
    pair, x = random_pair(shape, CPU), random_inputs(shape, HISTOGRAM_TOKENS, CPU)
    operators = profiled(repeated(lambda: jacobian_histogram(pair, x.split(BATCH_TOKENS))))
    show(f"histogram of {len(x):,} tokens, {shape.name}", operators)


def profile_quality(shape: Shape) -> None:
    documents = random_documents(shape, QUALITY_DOCUMENTS)
    with language_model(shape, CPU) as lm:
        pair = random_pair(shape, CPU, lm.mlp(shape.layer))
        operators = profiled(repeated(lambda: pair_quality(pair, lm, documents)))
    show(f"quality over {sum(map(len, documents)):,} tokens, {shape.name}", operators)


def repeated(call: Callable[[], object]) -> Callable[[Callable[[], None]], None]:
    def run(done: Callable[[], None]) -> None:
        for _ in range(WARM_UP_STEPS + REPEATS):
            call()
            done()

    return run


def profiled(run: Callable[[Callable[[], None]], object]) -> list[tuple[str, float, int]]:
    """Name, milliseconds that it takes itself, and calls of each operator, those that take the most first: means over
    REPEATS repeats, after each of which `run` calls what it is given."""
    steps = schedule(wait=0, warmup=WARM_UP_STEPS, active=REPEATS, repeat=1)
    with profile(activities=[ProfilerActivity.CPU], schedule=steps) as profiler:
        run(profiler.step)
    averages = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return [(row.key, row.self_cpu_time_total / 1e3 / REPEATS, row.count // REPEATS) for row in averages]


def show(title: str, operators: list[tuple[str, float, int]]) -> None:
    total = sum(milliseconds for _, milliseconds, _ in operators)
    rows = [(name, f"{ms:.0f}", f"{100 * ms / total:.0f}%", str(calls)) for name, ms, calls in operators[:SHOWN]]
    table = tabulate(rows, ("operator", "ms", "share", "calls"), tablefmt="plain", disable_numparse=True)
    print(title, table, sep="\n", end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="?", choices=("training", "histogram", "quality"), default="training")
    parser.add_argument("--shape", choices=SHAPES, default="pythia-70m")
    parser.add_argument("--batch", type=int, default=1024, help="tokens of a training step")
    options = parser.parse_args()
    keep_freed_memory()
    disable_progress_bar()
    shape = SHAPES[options.shape]
    if options.what == "training":
        profile_training(shape, options.batch)
    elif options.what == "histogram":
        profile_histogram(shape)
    else:
        profile_quality(shape)


if __name__ == "__main__":
    main()
