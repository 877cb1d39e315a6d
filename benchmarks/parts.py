"""Runs one part of the benchmark at one shape, in a process of its own.

A process of its own has its own peak of memory, and its failure does not affect other parts. Not here: what the parts
do (`cases.py`, `growth.py`), the command line (`__main__.py`).
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
    """Return `measured(...)`, computed in a process of its own. Raises the error of that process, or BrokenProcessPool
    if it was killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measured, part, shape_name, device_name).result()


def measured_quickly(part: str, shape_name: str, device_name: str) -> Results:
    """Return `measured(...)`, computed in this process with a single round. On a CPU, the peak of memory is that of all
    parts so far."""
    cases.ROUNDS, cases.DEFAULT_ROUNDS = {}, 1
    return measured(part, shape_name, device_name)


def measured(part: str, shape_name: str, device_name: str) -> Results:
    """Return the rows of one part at one shape, with the device and the versions that they were measured with."""
    disable_progress_bar()
    keep_freed_memory()  # as in runs of the asset graph
    shape, device = SHAPES[shape_name], machine.chosen_device(device_name)
    rates = machine.measured_rates(shape, device)
    circumstances = machine.provenance() | {"machine": asdict(rates)}
    return Results(machine.described_device(device), [row | circumstances for row in PARTS[part](shape, device, rates)])
