"""Measures time and peak memory of calls. Not here: what is measured (`cases.py`)."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from jsae_core.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

T = TypeVar("T")
LEAST_SECONDS = 0.2  # shorter calls are repeated until they took this long, since clock and scheduler add 1 ms of noise


class Spread(NamedTuple):
    """The median and the range of a number over the rounds of one run."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of one call, waiting for the device's work before and after it."""
    _finish(device)
    start = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - start


def per_unit(
    call: Callable[[], object], units: int, device: torch.device, prepare: Callable[[], None] = keep_freed_memory
) -> Callable[[], float]:
    """Return a function that calls `prepare` and then measures how many seconds `call` takes per unit."""

    def measure() -> float:
        prepare()
        seconds, calls = 0.0, 0
        while seconds < LEAST_SECONDS:
            seconds += seconds_of(call, device)
            calls += 1
        return seconds / (calls * units)

    return measure


def alternating(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each measure in each round. The measures alternate (A B A B ...), so that a machine that
    becomes slower or faster meanwhile affects all of them. Each must have run once before, to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            seconds[name].append(measure())
    return seconds


def ratios(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """Return the spread of the ratios of each round, since a disturbance of a round affects both of its times."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def peak_memory(call: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """Return the call's result, and by how many bytes its peak exceeded the memory in use before. The number is None on
    a machine that cannot measure it (neither Linux nor CUDA)."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        return result, torch.cuda.max_memory_allocated(device) - before
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type != "cpu" or not (status.exists() and references.exists()):
        return call(), None
    _give_back_freed_memory()
    references.write_text("5")  # resets the peak (VmHWM) to the memory that is in use now
    before = _kib(status, "VmRSS")
    result = call()
    return result, 1024 * max(0, _kib(status, "VmHWM") - before)


def usual_memory() -> None:
    """Undo `keep_freed_memory` before a call of the original, since that is an optimisation of `jsae_core`. The values
    are those that glibc adapts to by itself when large blocks are allocated repeatedly: blocks below 32 MiB are reused,
    and at most 64 MiB are kept."""
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        c_library.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        c_library.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
    _give_back_freed_memory()


def _give_back_freed_memory() -> None:
    """Return freed memory from the C library to the system. A call that reuses it would not raise the measured peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _kib(status: Path, name: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
