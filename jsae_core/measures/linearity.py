"""What shape the functions have: an output latent as a function of one input latent, the rest of the input held fixed.

Here: curves, their classes, and the classes of a sample. Not here: which elements are sampled (`samples.py`), what an
output latent is along a line (`nearby.py`), single interventions (`ablation.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.jacobian import Sandwich, run_sandwich
from jsae_core.measures.nearby import Lines, activations
from jsae_core.measures.samples import Samples, draw_samples, joined, table
from jsae_core.sae import inputs_at_once
from jsae_core.sae_pair import SAEPair
from jsae_core.terms import FUNCTION_SHAPES, STRAIGHT_WITHIN

POINTS = 100
LEAST_RANGE = 5.0  # curves reach at least this activation of the input latent
CURVES = ["input_values", "output_values"]
KEPT_OF_EACH_SHAPE = 30  # curves, whatever else is kept: rare shapes are worth a look


def function_curves(
    pair: SAEPair, mlp_input: Tensor, output_ranks: Tensor, input_ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """Sweep the activation of an input latent and read an output latent after its TopK.

    Args:
        mlp_input: [n, d_model]; the rest of each row is held fixed while its input latent moves.
        output_ranks, input_ranks: [n], places in the descending order of activations.

    Returns:
        input_values [n, 100] over [0, max(5, s + 1)], s being the activation that occurred, and output_values
        [n, 100], 0 where the output latent is outside the TopK.

    Raises:
        ValueError: a rank is outside 0 to k - 1, or the lengths differ.
    """
    n, k = len(mlp_input), pair.config.k
    for name, ranks in (("output_ranks", output_ranks), ("input_ranks", input_ranks)):
        if len(ranks) != n or (n and not (0 <= int(ranks.min()) and int(ranks.max()) < k)):
            raise ValueError(f"{name} must be {n} whole numbers from 0 to {k - 1}, one for each row of mlp_input")
    if not n:
        return mlp_input.new_empty(0, POINTS), mlp_input.new_empty(0, POINTS)
    x, row = mlp_input.unique(dim=0, return_inverse=True)  # sweeps of the same row serve all its output latents
    return _curves(pair, x, run_sandwich(pair, x), row, output_ranks.to(row), input_ranks.to(row))


@torch.no_grad()
def _curves(
    pair: SAEPair, x: Tensor, sandwich: Sandwich, row: Tensor, output_rank: Tensor, input_rank: Tensor
) -> tuple[Tensor, Tensor]:
    """`function_curves` for rows of x [n_tokens, d_model] with their sandwich; row and ranks [n_samples]."""
    k = pair.config.k
    # a sweep that several samples share is done once
    sweeps, of_sample = (row * k + input_rank).unique(return_inverse=True)
    of_row, rank = sweeps // k, sweeps % k
    occurred = sandwich.input_activations[of_row, rank]
    top = (occurred + 1).clamp(min=LEAST_RANGE)
    input_values = torch.linspace(0, 1, POINTS, dtype=x.dtype, device=x.device) * top[:, None]
    lines = Lines(
        pair,
        pair.mlp.branch_values(x),
        token=of_row,
        input_latent=sandwich.input_latents[of_row, rank],
        steps=input_values - occurred[:, None],
    )
    output_values = activations(lines, of_sample, sandwich.output_latents[row, output_rank])
    return input_values[of_sample], output_values


def classify_curves(input_values: Tensor, output_values: Tensor) -> list[str]:
    """The paper's rule, for curves [n, points] each: "linear" if a least-squares line leaves every residual below
    0.01; else "jumprelu" if one run of exact zeros touches an end and the rest is linear in the same sense; else
    "other"."""
    x, y = input_values.double().cpu().numpy(), output_values.double().cpu().numpy()
    linear = _is_linear(x, y, np.ones_like(y, dtype=bool))
    zero = y == 0
    leading = np.logical_and.accumulate(zero, axis=1)
    trailing = np.logical_and.accumulate(zero[:, ::-1], axis=1)[:, ::-1]
    jump = np.zeros(len(y), dtype=bool)
    for run in (leading, trailing):
        jump |= run.any(axis=1) & _is_linear(x, y, ~run)
    return np.select([linear, jump], FUNCTION_SHAPES[:2], FUNCTION_SHAPES[2]).tolist()


def function_shapes(
    pair: SAEPair, stream: Iterable[Tensor], n_samples: int, seed: int = 0, n_curves: int = 0
) -> pd.DataFrame:
    """Classes of the curves of randomly drawn tokens, output and input latents: the first `n_samples` elements that
    `ablation_samples` draws from the same stream with the same seed.

    Args:
        n_curves: how many curves to keep, beside 30 of each shape that are kept if any are.

    Returns:
        One row a sample: `token`, `output_rank`, `input_rank`, `drawn` (place in the order of drawing),
        `output_latent`, `input_latent`, `shape`, `flat` (the curve's range is below 0.01, whatever its class),
        `input_activation`, `output_activation` (what occurred) and `input_values`, `output_values`: the curve, [100]
        each, of the samples drawn first; None for the others.

    Raises:
        ValueError: the stream is empty, not finite, or holds fewer elements than `n_samples`.
    """
    x = joined(stream)
    samples = draw_samples(len(x), pair.config.k, n_samples, "random", seed)
    parts = (_shapes(pair, x, part) for part in samples.split(inputs_at_once(pair.input_sae)))
    # what a part need not keep, all of them together need not either
    frame = _with_curves_kept(pd.concat([_with_curves_kept(part, n_curves) for part in parts]), n_curves)
    return frame.reset_index(drop=True) if n_curves else frame.drop(columns=CURVES).reset_index(drop=True)


def _with_curves_kept(frame: pd.DataFrame, n_curves: int) -> pd.DataFrame:
    """The curves of the samples drawn first, and of those first among their shape; None in the place of the others."""
    order = frame["drawn"].argsort()
    first_of_shape = frame.iloc[order].groupby("shape").cumcount().to_numpy()[order.argsort()]
    kept = (frame["drawn"] < n_curves) | ((first_of_shape < KEPT_OF_EACH_SHAPE) & (n_curves > 0))
    return frame.assign(**{name: frame[name].where(kept, None) for name in CURVES})


def _shapes(pair: SAEPair, x: Tensor, samples: Samples) -> pd.DataFrame:
    token, output_rank, input_rank, _ = (values.to(x.device) for values in samples)
    tokens, row = token.unique(return_inverse=True)
    sandwich = run_sandwich(pair, x[tokens])
    input_values, output_values = _curves(pair, x[tokens], sandwich, row, output_rank, input_rank)
    frame = table(
        {
            "token": token,
            "output_rank": output_rank,
            "input_rank": input_rank,
            "drawn": samples.drawn,
            "output_latent": sandwich.output_latents[row, output_rank],
            "input_latent": sandwich.input_latents[row, input_rank],
            "flat": output_values.amax(dim=1) - output_values.amin(dim=1) < STRAIGHT_WITHIN,
            "input_activation": sandwich.input_activations[row, input_rank],
            "output_activation": sandwich.output_activations[row, output_rank],
        }
    )
    frame.insert(6, "shape", classify_curves(input_values, output_values))
    return frame.assign(
        input_values=list(input_values.float().cpu().numpy()), output_values=list(output_values.float().cpu().numpy())
    )


def _is_linear(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether a least-squares line through the masked points of each row leaves all their residuals small."""
    count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    x_mean = (x * mask).sum(axis=1, keepdims=True) / count
    y_mean = (y * mask).sum(axis=1, keepdims=True) / count
    dx, dy = (x - x_mean) * mask, (y - y_mean) * mask
    spread = (dx**2).sum(axis=1, keepdims=True)
    slope = np.divide((dx * dy).sum(axis=1, keepdims=True), spread, out=np.zeros_like(spread), where=spread > 0)
    return (np.abs(dy - slope * dx) < STRAIGHT_WITHIN).all(axis=1)
