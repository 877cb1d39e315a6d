"""The clock and the memory gauge. Not here: what is timed."""

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
LEAST_SECONDS = 0.2  # what is quicker is repeated until it took as long: the clock's and the scheduler's noise is 1 ms


class Spread(NamedTuple):
    """Of the rounds of one run."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, with the device's work finished before and after."""
    _finish(device)
    start = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - start


def per_unit(
    call: Callable[[], object], units: int, device: torch.device, prepare: Callable[[], None] = keep_freed_memory
) -> Callable[[], float]:
    """What measures the seconds that one of the `units` of a call takes, after `prepare`."""

    def measure() -> float:
        prepare()
        seconds, calls = 0.0, 0
        while seconds < LEAST_SECONDS:
            seconds += seconds_of(call, device)
            calls += 1
        return seconds / (calls * units)

    return measure


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """A B A B ...: a machine that becomes slower or faster on the way does so for all of them. Each is expected to have
    run before."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            seconds[name].append(measure())
    return seconds


def ratios(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """Round by round: what disturbs a round disturbs both."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def peak_memory(call: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """The call's result, and by how many bytes it went at most above what was in use before; None where this machine
    cannot say (it takes Linux, or CUDA)."""
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
    references.write_text("5")  # sets the high-water mark down to what is in use now
    before = _kib(status, "VmRSS")
    result = call()
    return result, 1024 * max(0, _kib(status, "VmHWM") - before)


def usual_memory() -> None:
    """Undo `keep_freed_memory`, which is one of our means, before a call of the original: as glibc comes to do by
    itself where large blocks are allocated again and again (those below 32 MiB are used again, at most 64 MiB kept).
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        c_library.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        c_library.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
    _give_back_freed_memory()


def _give_back_freed_memory() -> None:
    """To the system: the C library keeps freed memory, which the call would fill without being seen."""
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
