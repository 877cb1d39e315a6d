"""Measures how the histogram's time and memory grow with the number of tokens, with d_sae and with k.

Each series starts from one shape and changes one of these numbers. Only `jsae_core` is measured. Not here: comparisons
with the original's procedure (`cases.py`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.cases import Row
from benchmarks.machine import Rates
from benchmarks.shapes import Shape, random_inputs, random_pair
from benchmarks.timing import peak_memory, per_unit, spread
from jsae_core.measures import jacobian_histogram
from jsae_core.memory import usual_batch

FEWEST_TOKENS, TIMES_MORE_TOKENS = 8192, (1, 4, 16)
TOKENS = 4096  # in the series of d_sae and k
TIMES_D_SAE = (1 / 4, 1 / 2, 1, 2, 4)
TIMES_K = (1 / 2, 1, 2, 4)
ROUNDS = 2


def growth(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Return the rows of the three series `tokens`, `d_sae` and `k`."""
    by_tokens = [("tokens", times * FEWEST_TOKENS, shape, times * FEWEST_TOKENS) for times in TIMES_MORE_TOKENS]
    by_d_sae = [("d_sae", size, replace(shape, d_sae=size), TOKENS) for size in _sizes(shape.d_sae, TIMES_D_SAE)]
    by_k = [("k", size, replace(shape, k=size), TOKENS) for size in _sizes(shape.k, TIMES_K)]
    return [_measured(*point, device) for point in (*by_tokens, *by_d_sae, *by_k)]


def _sizes(usual: int, times: tuple[float, ...]) -> list[int]:
    return [int(usual * factor) for factor in times]


def _measured(series: str, value: int, shape: Shape, n_tokens: int, device: torch.device) -> Row:
    pair = random_pair(shape, device)
    batches = random_inputs(shape, n_tokens, device).split(usual_batch(device))
    _, memory = peak_memory(lambda: jacobian_histogram(pair, batches), device)
    measure = per_unit(lambda: jacobian_histogram(pair, batches), n_tokens, device)
    return {
        "part": "growth",
        "shape": shape.name,
        "setting": f"{series} {value}",
        "series": series,
        "value": value,
        "unit": "token",
        "ours_seconds": spread([measure() for _ in range(ROUNDS)])._asdict(),
        "peak_memory_bytes": memory,
        "note": "",
    }
