"""What an intervention does: take one unit of an input latent away and see how an output latent changes.

Here: the intervention, and a summary of how well the Jacobian predicts it. Not here: which elements are sampled
(`samples.py`), what output latents are after it (`nearby.py`), whole curves of an output latent (`linearity.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.jacobian import check_input, run_sandwich
from jsae_core.measures.nearby import Lines, activations
from jsae_core.measures.samples import Ranks, Samples, draw_samples, joined, table
from jsae_core.sae import inputs_at_once
from jsae_core.sae_pair import SAEPair
from jsae_core.terms import AGREEMENTS, NOTEWORTHY, is_above

ABSOLUTE_TOLERANCE = 0.1  # the paper's criterion: |J + change| below it
RELATIVE_TOLERANCE = 0.1  # |J + change| below this share of |J|
ROUNDING = 1e-12  # equal elements computed in float32 have a variance of up to this share of their mean square
SAMPLES_AT_ONCE = 2**17


@torch.no_grad()
def ablation_samples(
    pair: SAEPair, stream: Iterable[Tensor], n_samples: int | None = None, ranks: Ranks = "random", seed: int = 0
) -> pd.DataFrame:
    """Subtract one unit of an input latent's decoder row from the MLP's input, run the MLP and the output SAE with its
    TopK again, and take the change of an output latent. To first order the change is -J.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]; read once, and kept in memory.
        n_samples: rows; None: every element there is.
        ranks: which elements of the k x k Jacobians. "random": drawn without replacement from all of all tokens;
            "diagonal": the i-th input with the i-th output latent, in token order (the original's); "all": every one.
        seed: of the drawing.

    Returns:
        One row a sample, in token order: `token` (place in the stream), `output_rank`, `input_rank` (place in the
        descending order of activations), `drawn` (place in the order of drawing), `output_latent`, `input_latent`,
        `jacobian`, `change`, `input_activation`, `output_activation` (before the intervention), `ablated_activation`
        (the output latent's after it; 0 where it left the TopK), `agreement`: "cluster" if both |J| and |change|
        are below 0.01, else "line" if |J + change| is below a tenth of |J|, else "off".

    Raises:
        ValueError: the stream is empty, not finite, or holds fewer elements than `n_samples`, or `ranks` is unknown.
    """
    x = joined(stream)
    check_input(pair, x)
    samples = draw_samples(len(x), pair.config.k, n_samples, ranks, seed)
    parts = [_ablate(pair, x, part) for part in _by_tokens(samples, inputs_at_once(pair.input_sae))]
    frame = table({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return frame.assign(agreement=_agreement(frame["jacobian"], frame["change"]))


def ablation_summary(samples: pd.DataFrame) -> dict[str, float]:
    """How well -J predicts the change: over all samples, and (suffix `_noteworthy`) over those with |J| from 0.01 on.

    `slope` and `correlation` of change against -J (0 where one of them does not vary); `on_line_absolute`: share with
    |J + change| below 0.1, which nearly anything passes since most |J| are smaller; `on_line_relative`: share with
    |J + change| below a tenth of |J|; `samples`: how many. All 0 where there is no sample. Over all samples also the
    share of each `agreement`.
    """
    noteworthy = samples[is_above(samples["jacobian"].abs(), NOTEWORTHY)]
    agreement = _agreement(samples["jacobian"], samples["change"])
    return (
        _line(samples)
        | {f"{name}_noteworthy": value for name, value in _line(noteworthy).items()}
        | {f"agreement_{name}": float((agreement == name).mean()) if len(agreement) else 0.0 for name in AGREEMENTS}
    )


def _line(samples: pd.DataFrame) -> dict[str, float]:
    names = ("slope", "correlation", "on_line_absolute", "on_line_relative", "samples")
    if samples.empty:
        return dict.fromkeys(names, 0.0)
    predicted, change = -samples["jacobian"].to_numpy(np.float64), samples["change"].to_numpy(np.float64)
    error = np.abs(change - predicted)
    (spread, together), (_, change_spread) = np.cov(predicted, change, bias=True)
    varies = spread > ROUNDING * np.mean(predicted**2)
    both_vary = varies and change_spread > ROUNDING * np.mean(change**2)
    values = (
        together / spread if varies else 0.0,
        together / np.sqrt(spread * change_spread) if both_vary else 0.0,
        np.mean(error < ABSOLUTE_TOLERANCE),
        np.mean(error < RELATIVE_TOLERANCE * np.abs(predicted)),
        len(samples),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _by_tokens(samples: Samples, n_tokens: int) -> list[Samples]:
    """Samples in parts of at most `n_tokens` tokens, each with all its samples, and of about SAMPLES_AT_ONCE."""
    _, counts = samples.token.unique_consecutive(return_counts=True)
    tokens = max(1, min(n_tokens, SAMPLES_AT_ONCE // int(counts.max())))
    return samples.split([int(part.sum()) for part in counts.split(tokens)])


def _ablate(pair: SAEPair, x: Tensor, samples: Samples) -> dict[str, Tensor]:
    """The columns of the table that are computed on the pair's device, each [n_samples]."""
    token, output_rank, input_rank, drawn = (values.to(x.device) for values in samples)
    tokens, row = token.unique_consecutive(return_inverse=True)
    x, k = x[tokens], pair.config.k
    sandwich = run_sandwich(pair, x)
    # an intervention that several samples share is done once
    interventions, of_sample = (row * k + input_rank).unique(return_inverse=True)
    of_row = interventions // k
    lines = Lines(
        pair,
        pair.mlp.branch_values(x),
        token=of_row,
        input_latent=sandwich.input_latents[of_row, interventions % k],
        steps=-x.new_ones(len(interventions), 1),
    )
    output_latent = sandwich.output_latents[row, output_rank]
    before = sandwich.output_activations[row, output_rank]
    after = activations(lines, of_sample, output_latent)[:, 0]
    return {
        "token": token,
        "output_rank": output_rank,
        "input_rank": input_rank,
        "drawn": drawn,
        "output_latent": output_latent,
        "input_latent": sandwich.input_latents[row, input_rank],
        "jacobian": sandwich.jacobian[row, output_rank, input_rank],
        "change": after - before,
        "input_activation": sandwich.input_activations[row, input_rank],
        "output_activation": before,
        "ablated_activation": after,
    }


def _agreement(jacobian: pd.Series, change: pd.Series) -> np.ndarray:
    line, cluster, off = AGREEMENTS
    close = (jacobian + change).abs() < RELATIVE_TOLERANCE * jacobian.abs()
    small = ~is_above(jacobian.abs(), NOTEWORTHY) & ~is_above(change.abs(), NOTEWORTHY)
    return np.select([small, close], [cluster, line], off)
