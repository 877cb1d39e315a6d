"""Profiles a training step or a measure by operator, to see what takes its time.

    python -m benchmarks.operators [training|histogram|quality] [--shape NAME] [--batch TOKENS] [--device cpu|cuda]

On a CUDA device it shows the device's kernels, and the share of the time in which the device computes; in the remaining
time it waits for the CPU. On a CPU, the records of the profiler fragment the freed memory, so operators that write much
(`fill_`, `copy_`, `_log_softmax`) take longer than without a profiler. Not here: times without a profiler (`cases.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule
from transformers.utils.logging import disable_progress_bar

from benchmarks.cases import CUDA_FACTOR, REPORTS, TRAINING_BATCHES, WARM_UP_STEPS, steps_between_reports
from benchmarks.machine import chosen_device
from benchmarks.shapes import SHAPES, Shape, language_model, random_documents, random_inputs, random_mlp, random_pair
from jsae_core import TrainingConfig, train_pair
from jsae_core.measures import jacobian_histogram, pair_quality
from jsae_core.memory import keep_freed_memory, usual_batch

REPEATS = 5
SHOWN = 12  # operators in the table
NAME_WIDTH = 70  # kernels of a GPU have the names of C++ templates
HISTOGRAM_TOKENS, QUALITY_DOCUMENTS = 8192, 4


class Profile(NamedTuple):
    """The result of the profiler: means over the repeats.

    Attributes:
        milliseconds: the time of one repeat, under the profiler.
        operators: for each operator, or each kernel of a CUDA device: its name, its own time in milliseconds (without
            operators that it calls), and the number of its calls; sorted by time, the longest first.
    """

    milliseconds: float
    operators: list[tuple[str, float, int]]

    @property
    def busy(self) -> float:
        return sum(milliseconds for _, milliseconds, _ in self.operators)


def profile_all(shape: Shape, device: torch.device) -> None:
    profile_histogram(shape, device)
    profile_quality(shape, device)
    profile_training(shape, TRAINING_BATCHES[-1], device)


def profile_training(shape: Shape, batch: int, device: torch.device) -> None:
    x, mlp = random_inputs(shape, batch, device), random_mlp(shape).to(device)
    at_once = steps_between_reports(device)
    steps = REPORTS * at_once if at_once > 1 else WARM_UP_STEPS + REPEATS
    title = f"{at_once} training steps" if at_once > 1 else "a training step"
    for coefficient in (1.0, 0.0):
        config = TrainingConfig(shape.d_sae, shape.k, coefficient, steps=steps, batch_tokens=batch)

        def run(done: Callable[[], None], config: TrainingConfig = config) -> None:
            # a report that comes between, because the steps are slow, is none of the repeats
            train_pair(x, mlp, config, report=lambda progress: done() if progress.step % at_once == 0 else None)

        show(f"{title} of {shape.name}, batch {batch}, lambda {coefficient:g}", profiled(run, device), device)


def profile_histogram(shape: Shape, device: torch.device) -> None:
    pair, x = random_pair(shape, device), random_inputs(shape, HISTOGRAM_TOKENS * _times(device), device)
    result = profiled(repeated(lambda: jacobian_histogram(pair, x.split(usual_batch(device)))), device)
    show(f"histogram of {len(x):,} tokens, {shape.name}", result, device)


def profile_quality(shape: Shape, device: torch.device) -> None:
    documents = random_documents(shape, QUALITY_DOCUMENTS * _times(device))
    with language_model(shape, device) as lm:
        pair = random_pair(shape, device, lm.mlp(shape.layer))
        result = profiled(repeated(lambda: pair_quality(pair, lm, documents)), device)
    show(f"quality over {sum(map(len, documents)):,} tokens, {shape.name}", result, device)


def _times(device: torch.device) -> int:
    return CUDA_FACTOR if device.type == "cuda" else 1


def repeated(call: Callable[[], object]) -> Callable[[Callable[[], None]], None]:
    def run(done: Callable[[], None]) -> None:
        for _ in range(WARM_UP_STEPS + REPEATS):
            call()
            done()

    return run


def profiled(run: Callable[[Callable[[], None]], object], device: torch.device) -> Profile:
    """Profile REPEATS repeats of `run`, after those that warm it up. It must call the function that it is given after
    each repeat."""
    on_gpu = device.type == "cuda"
    steps = schedule(wait=0, warmup=WARM_UP_STEPS, active=REPEATS, repeat=1)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    clock = []
    with profile(activities=activities, schedule=steps, acc_events=True) as profiler:

        def done() -> None:
            if on_gpu:
                torch.cuda.synchronize(device)
            clock.append(time.perf_counter())
            profiler.step()

        run(done)
    first, last = clock[WARM_UP_STEPS - 1], clock[WARM_UP_STEPS + REPEATS - 1]
    milliseconds = 1e3 * (last - first) / REPEATS
    rows = profiler.key_averages()
    if on_gpu:
        kernels = [row for row in rows if row.device_type == DeviceType.CUDA and not row.is_user_annotation]
        times = [(row.key, row.self_device_time_total, row.count) for row in kernels]
    else:
        times = [(row.key, row.self_cpu_time_total, row.count) for row in rows]
    operators = [(name, microseconds / 1e3 / REPEATS, count // REPEATS) for name, microseconds, count in times]
    return Profile(milliseconds, sorted(operators, key=lambda row: -row[1]))


def show(title: str, result: Profile, device: torch.device) -> None:
    if device.type == "cuda":
        share = 100 * result.busy / result.milliseconds
        title += f": {result.milliseconds:.1f} ms, the device is busy {result.busy:.1f} ms ({share:.0f}%)"
    digits = 2 if device.type == "cuda" else 0
    rows = [
        (name[:NAME_WIDTH], f"{ms:.{digits}f}", f"{100 * ms / result.busy:.0f}%", str(calls))
        for name, ms, calls in result.operators[:SHOWN]
    ]
    table = tabulate(rows, ("operator", "ms", "share", "calls"), tablefmt="plain", disable_numparse=True)
    print(title, table, sep="\n", end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="?", choices=("training", "histogram", "quality"), default="training")
    parser.add_argument("--shape", choices=SHAPES, default="pythia-70m")
    parser.add_argument("--batch", type=int, default=1024, help="tokens of a training step")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N")
    options = parser.parse_args()
    keep_freed_memory()
    disable_progress_bar()
    shape, device = SHAPES[options.shape], chosen_device(options.device)
    if options.what == "training":
        profile_training(shape, options.batch, device)
    elif options.what == "histogram":
        profile_histogram(shape, device)
    else:
        profile_quality(shape, device)


if __name__ == "__main__":
    main()
