"""One part of the benchmark at one shape, in a process of its own.

Such a process has a peak of memory of its own, and takes no other part with it when it fails. Not here: what the parts
do (`cases.py`, `growth.py`), which are asked for (`__main__.py`).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks import cases, machine
from benchmarks.growth import growth
from benchmarks.results import Results
from benchmarks.shapes import SHAPES, Shape
from jsae_core.memory import keep_freed_memory

PARTS: dict[str, Callable[[Shape, torch.device, machine.Rates], list[cases.Row]]] = {
    "histogram": cases.histogram,
    "ablation": cases.ablation,
    "function_shapes": cases.shapes_of_functions,
    "quality": cases.quality,
    "training": cases.training,
    "examples": cases.examples,
    "loading": cases.loading,
    "growth": growth,
}


def measured_apart(part: str, shape_name: str, device_name: str) -> Results:
    """`measured`, in a process of its own. Raises what it raised, or BrokenProcessPool if it was killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measured, part, shape_name, device_name).result()


def measured_quickly(part: str, shape_name: str, device_name: str) -> Results:
    """`measured` in this process and in one round. Its peak of memory on a CPU is that of all parts so far."""
    cases.ROUNDS, cases.DEFAULT_ROUNDS = {}, 1
    return measured(part, shape_name, device_name)


def measured(part: str, shape_name: str, device_name: str) -> Results:
    """The rows of one part at one shape, with what they were measured on."""
    disable_progress_bar()
    keep_freed_memory()  # as the asset graph's runs do
    shape, device = SHAPES[shape_name], machine.chosen_device(device_name)
    rates = machine.measured_rates(shape, device)
    known = machine.provenance() | {"machine": asdict(rates)}
    return Results(machine.described_device(device), [row | known for row in PARTS[part](shape, device, rates)])
