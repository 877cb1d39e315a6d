"""What an intervention does: take one unit of an input latent away and see how an output latent changes.

Here: the intervention, and a summary of how well the Jacobian predicts it. Not here: which elements are sampled
(`samples.py`), whole curves of an output latent (`linearity.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.jacobian import check_input, gather_jacobian
from jsae_core.measures.samples import Ranks, Samples, draw_samples, joined, table
from jsae_core.measures.top_k import among_top_k
from jsae_core.memory import piece_factor
from jsae_core.sae import active_latents, inputs_at_once, largest_pre_activations
from jsae_core.sae_pair import SAEPair

ABSOLUTE_TOLERANCE = 0.1  # the published criterion: |J + change| below it
RELATIVE_TOLERANCE = 0.1  # |J + change| below this share of |J|
ROUNDING = 1e-12  # equal elements computed in float32 have a variance of up to this share of their mean square
NOTEWORTHY = 0.01  # most |J| are so small that the absolute criterion passes by itself; those above it decide
AGREEMENTS = ("line", "cluster", "off")
SAMPLES_AT_ONCE = 2**17
RIVALS = 32  # times k: the output latents, TopK included, that are looked at after an intervention
SHARED, WORTHWHILE = 4, 8  # it pays from so many interventions a token, and with so many times as many latents in all
GATHER_BYTES = 2**24  # of the rivals' encoder rows at once


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
        (the output latent's after it; 0 where it left the TopK), `agreement`: "cluster" if neither |J| nor |change|
        exceeds 0.01, else "line" if |J + change| is below a tenth of |J|, else "off".

    Raises:
        ValueError: the stream is empty, not finite, or holds fewer elements than `n_samples`, or `ranks` is unknown.
    """
    x = joined(stream)
    check_input(pair, x)
    samples = draw_samples(len(x), pair.config.k, n_samples, ranks, seed)
    parts = [_ablate(pair, x, part) for part in _by_tokens(samples, inputs_at_once(pair.input_sae))]
    return pd.concat(parts, ignore_index=True)


def ablation_summary(samples: pd.DataFrame) -> dict[str, float]:
    """How well -J predicts the change: over all samples, and (suffix `_noteworthy`) over those with |J| above 0.01.

    `slope` and `correlation` of change against -J (0 where one of them does not vary); `on_line_absolute`: share with
    |J + change| below 0.1, which nearly anything passes since most |J| are smaller; `on_line_relative`: share with
    |J + change| below a tenth of |J|; `samples`: how many. All 0 where there is no sample. Over all samples also the
    share of each `agreement`.
    """
    noteworthy = samples[samples["jacobian"].abs() > NOTEWORTHY]
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


def _ablate(pair: SAEPair, x: Tensor, samples: Samples) -> pd.DataFrame:
    samples = Samples(*(column.to(x.device) for column in samples))
    tokens, row = samples.token.unique_consecutive(return_inverse=True)
    x, k = x[tokens], pair.config.k
    # an intervention that several samples share is done once
    interventions, of_sample = (row * k + samples.input_rank).unique(return_inverse=True)
    of_token = interventions // k
    closely = len(interventions) >= SHARED * len(x) and WORTHWHILE * RIVALS * k <= pair.config.d_sae

    response = pair.mlp.respond(x)
    input_activations, input_latents = active_latents(pair.input_sae, x)
    rivals = largest_pre_activations(pair.output_sae, response.output, RIVALS * k if closely else k)
    before, output_latents = rivals[0][:, :k].relu(), rivals[1][:, :k]
    jacobian = gather_jacobian(pair.tables(), input_latents, output_latents, response.slopes)
    ablated = x[of_token] - pair.input_sae.W_dec[input_latents[of_token, interventions % k]]
    if closely:
        after, undecided = _among_rivals(
            pair, response.output, rivals, ablated, of_token, of_sample, samples.output_rank
        )
    else:
        after, undecided = torch.zeros_like(row, dtype=x.dtype), torch.ones_like(row, dtype=torch.bool)
    encoded, which = of_sample[undecided].unique(return_inverse=True)
    activations, latents = _encoded(pair, ablated[encoded])
    wanted = output_latents[row, samples.output_rank][undecided]
    after[undecided] = (activations[which] * (latents[which] == wanted[:, None])).sum(dim=1)

    occurred = before[row, samples.output_rank]
    columns = {
        "token": samples.token,
        "output_rank": samples.output_rank,
        "input_rank": samples.input_rank,
        "drawn": samples.drawn,
        "output_latent": output_latents[row, samples.output_rank],
        "input_latent": input_latents[row, samples.input_rank],
        "jacobian": jacobian[row, samples.output_rank, samples.input_rank],
        "change": after - occurred,
        "input_activation": input_activations[row, samples.input_rank],
        "output_activation": occurred,
        "ablated_activation": after,
    }
    frame = table(columns)
    return frame.assign(agreement=_agreement(frame["jacobian"], frame["change"]))


def _encoded(pair: SAEPair, x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations and output latents at MLP inputs [n, d_model], some at a time: two [n, k]."""
    parts = [active_latents(pair.output_sae, pair.mlp(part)) for part in x.split(inputs_at_once(pair.output_sae))]
    return torch.cat([activations for activations, _ in parts]), torch.cat([latents for _, latents in parts])


def _among_rivals(
    pair: SAEPair,
    mlp_output: Tensor,
    rivals: tuple[Tensor, Tensor],
    ablated: Tensor,
    of_token: Tensor,
    of_sample: Tensor,
    output_rank: Tensor,
) -> tuple[Tensor, Tensor]:
    """Activation of each sample's output latent after its intervention, and whether that stays undecided.

    An intervention that moves what the output SAE is fed by D moves a pre-activation by at most |D| times the norm of
    its encoder row (Cauchy-Schwarz). So latents that were far below the TopK stay below it, and only the token's next
    ones, its rivals, are encoded: 16 times fewer at d_sae 16384, from rows that are gathered once a token.

    Args:
        mlp_output: [n_tokens, d_model]; rivals: their largest pre-activations and latents, two [n_tokens, m].
        ablated: MLP inputs of the interventions, [n, d_model], in the order of their tokens `of_token` [n].
        of_sample, output_rank: [n_samples], the intervention and the output latent of each sample.
    """
    sae, k = pair.output_sae, pair.config.k
    encoder_rows = sae.W_enc.T.contiguous()
    reach = encoder_rows.norm(dim=1).max()
    after = mlp_output.new_zeros(len(of_sample))
    undecided = torch.zeros_like(of_sample, dtype=torch.bool)
    place = torch.arange(len(of_token), device=of_token.device)
    place = place - torch.searchsorted(of_token, of_token)  # of an intervention among those of its token
    order = of_sample.argsort()
    tokens = max(1, piece_factor(mlp_output.device) * GATHER_BYTES // (rivals[0].shape[1] * encoder_rows[0].nbytes))
    for start in range(0, len(mlp_output), tokens):
        first, last = torch.searchsorted(of_token, torch.tensor([start, start + tokens], device=of_token.device))
        moved = sae.process_sae_in(pair.mlp(ablated[first:last]))
        token, column = of_token[first:last] - start, place[first:last]
        fed = sae.process_sae_in(mlp_output[start : start + tokens])
        distance = (moved - fed[token]).norm(dim=1)
        padded = moved.new_zeros(len(fed), int(column.max()) + 1, moved.shape[1])
        padded[token, column] = moved
        latents = rivals[1][start : start + tokens]
        pre_activations = torch.baddbmm(sae.b_enc[latents][:, None], padded, encoder_rows[latents].transpose(1, 2))

        bounds = torch.searchsorted(of_sample[order], torch.stack([first, last]))
        sample = order[bounds[0] : bounds[1]]
        which, rank = of_sample[sample] - first, output_rank[sample][:, None]
        competing = pre_activations[token[which], column[which]]
        value = competing.gather(1, rank)[:, 0]
        others = torch.arange(competing.shape[1], device=rank.device) != rank
        ceiling = rivals[0][start + token, -1][which] + reach * distance[which]
        inside, undecided[sample] = among_top_k(value, competing, others, 0.0, ceiling, k)
        after[sample] = torch.where(inside, value, 0).relu()
    return after, undecided


def _agreement(jacobian: pd.Series, change: pd.Series) -> np.ndarray:
    line, cluster, off = AGREEMENTS
    close = (jacobian + change).abs() < RELATIVE_TOLERANCE * jacobian.abs()
    small = (jacobian.abs() <= NOTEWORTHY) & (change.abs() <= NOTEWORTHY)
    return np.select([small, close], [cluster, line], off)
