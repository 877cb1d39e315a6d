"""What shape the functions have: an output latent as a function of one input latent, the rest of the input held fixed.

Here: curves, their classes, and the classes of a sample. Not here: which elements are sampled (`samples.py`), single
interventions (`ablation.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.jacobian import Sandwich, run_sandwich
from jsae_core.measures.samples import Samples, draw_samples, joined, table
from jsae_core.measures.top_k import among_top_k
from jsae_core.memory import piece_factor
from jsae_core.sae import active_latents, inputs_at_once, pre_activations
from jsae_core.sae_pair import SAEPair

POINTS = 100
LEAST_RANGE = 5.0  # curves reach at least this activation of the input latent
TOLERANCE = 0.01  # the published rule: every residual of the line below it
SHAPES = ("linear", "jumprelu", "other")
CURVES = ["input_values", "output_values"]
NODES = 4  # points of a curve at which all latents are encoded
RIVALS = 4  # times k: the latents of a node that may be in the TopK on the way to the next
HIDDEN_BYTES = 2**23  # of hidden layers along curves at once: they stay in a CPU's cache
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
    sweeps, of_sample = (row * k + input_rank).unique(return_inverse=True)
    of_row, rank = sweeps // k, sweeps % k
    activation, latent = sandwich.input_activations[of_row, rank], sandwich.input_latents[of_row, rank]
    top = (activation + 1).clamp(min=LEAST_RANGE)
    input_values = torch.linspace(0, 1, POINTS, dtype=x.dtype, device=x.device) * top[:, None]
    reach = pair.tables().outputs.norm(dim=1).max()
    branch_values = pair.mlp.branch_values(x)
    output_values = x.new_empty(len(row), POINTS)
    at_once = max(1, inputs_at_once(pair.output_sae) // NODES)
    memory = x.new_empty(min(at_once, len(sweeps)) * NODES, pair.config.d_sae)  # for pre-activations: new costs more
    for part in torch.arange(len(sweeps), device=x.device).split(at_once):
        sweep = _Sweep(
            pair,
            [values[of_row[part]] for values in branch_values],
            latent[part],
            input_values[part] - activation[part, None],
        )
        samples = ((of_sample >= part[0]) & (of_sample <= part[-1])).nonzero()[:, 0]
        output_latent = sandwich.output_latents[row[samples], output_rank[samples]]
        output_values[samples] = _swept(pair, sweep, reach, memory, of_sample[samples] - part[0], output_latent)
    return input_values[of_sample], output_values


class _Sweep:
    """Input latents that are moved, each at one MLP input, and the hidden layer on the way.

    An input latent enters each branch of the MLP through its row of the table W_dec_in W_b, so that the moved input
    need not be multiplied again."""

    def __init__(self, pair: SAEPair, branch_values: Sequence[Tensor], latent: Tensor, steps: Tensor):
        """branch_values: each [n, d_mlp], at what occurred; latent [n]; steps [n, points], from what occurred."""
        self.mlp, self.steps, self._values = pair.mlp, steps, branch_values
        self._directions = pair.tables().inputs[latent].view(len(latent), len(branch_values), -1).unbind(dim=1)

    def hidden(self, which: Tensor | slice, points: Tensor | slice) -> Tensor:
        """[n_which, n_points, d_mlp]."""
        steps = self.steps[which][:, points, None]
        return self.mlp.hidden(
            [
                torch.addcmul(value[which, None], steps, direction[which, None])
                for value, direction in zip(self._values, self._directions, strict=True)
            ]
        )


def _swept(
    pair: SAEPair, sweep: _Sweep, reach: Tensor, memory: Tensor, of_sample: Tensor, output_latent: Tensor
) -> Tensor:
    """Output latents' activations along their sweeps: `of_sample` (which sweep) and `output_latent` [n] -> [n, points].

    The pre-activation p of an output latent is affine in the hidden layer h, so a point costs one row of the table
    E = (W_out W_enc_out)^T instead of a whole encode. Whether the latent is in the TopK depends on the others. They
    are encoded at a few points, the nodes, and h is interpolated between them. Where it is off by a vector of length
    r, each pre-activation is off by at most r times the norm of its row of E (Cauchy-Schwarz): h is so smooth along a
    line that this tells, at nearly all points, how many are above p. What stays undecided is encoded in full.

    Args:
        reach: the largest norm of E's rows.
        memory: [at least n_sweeps * NODES, d_sae], for pre-activations.
    """
    sae, E, k = pair.output_sae, pair.tables().outputs, pair.config.k
    offset = pre_activations(sae, pair.mlp.b_out[None])[0]
    nodes = torch.linspace(0, POINTS - 1, NODES, device=E.device).round().long()
    node_hidden = sweep.hidden(slice(None), nodes)
    at_nodes = pre_activations(sae, pair.mlp.project(node_hidden).flatten(0, 1), memory)
    rivals = _Rivals(at_nodes.view(-1, NODES, sae.cfg.d_sae), nodes, min(RIVALS * k, sae.cfg.d_sae))

    values = E.new_empty(len(of_sample), POINTS)
    places, left = [], []
    order = of_sample.argsort()
    at_once = max(1, piece_factor(E.device) * HIDDEN_BYTES // (POINTS * node_hidden[0, 0].nbytes))
    for which in torch.arange(len(node_hidden), device=E.device).split(at_once):
        sample = order[torch.isin(of_sample[order], which)]
        own, latent = of_sample[sample] - which[0], output_latent[sample]
        hidden = sweep.hidden(which, slice(None))
        off_line, off_curve = (
            reach * torch.baddbmm(hidden, weights.expand(len(which), -1, -1), node_hidden[which], alpha=-1).norm(dim=2)
            for weights in (rivals.line, rivals.curve)
        )
        # mostly each sweep has one sample, and its hidden layers need not be copied
        swept = hidden if len(own) == len(which) else hidden[own]
        value = torch.bmm(swept, E[latent, :, None])[:, :, 0] + offset[latent, None]
        inside, undecided = among_top_k(
            value,
            rivals.at_points(of_sample[sample]),
            rivals.counts(of_sample[sample], latent),
            off_curve[own],
            rivals.ceiling(of_sample[sample]) + off_line[own],
            k,
        )
        values[sample] = torch.where(inside, value, 0).relu()
        of_left, point = undecided.nonzero(as_tuple=True)
        places.append((sample[of_left], point))
        left.append(swept[of_left, point])
    sample, point = (torch.cat(parts) for parts in zip(*places, strict=True))
    activations, latents = active_latents(sae, pair.mlp.project(torch.cat(left)))
    values[sample, point] = (activations * (latents == output_latent[sample, None])).sum(dim=1)
    return values


class _Rivals:
    """The output latents that may be in the TopK between two nodes: the largest at either of them, and what is known of
    them and of the rest."""

    def __init__(self, at_nodes: Tensor, nodes: Tensor, n_rivals: int):
        """at_nodes: pre-activations [n_sweeps, n_nodes, d_sae]; nodes: [n_nodes], the points they are at."""
        points = torch.arange(POINTS, device=nodes.device)
        self._interval = (torch.searchsorted(nodes, points, right=True) - 1).clamp(max=len(nodes) - 2)
        start, end = nodes[self._interval], nodes[self._interval + 1]
        # weights of the nodes in each point [points, n_nodes]: straight lines between neighbours, and the polynomial
        # through all nodes (Lagrange), which is nearer to smooth functions but bounds nothing that is not looked at
        self.line = at_nodes.new_zeros(POINTS, len(nodes))
        self.line[points, self._interval] = ((end - points) / (end - start)).to(self.line)
        self.line[points, self._interval + 1] = ((points - start) / (end - start)).to(self.line)
        others = [nodes[nodes != node] for node in nodes]
        factors = [(points[:, None] - other) / (node - other) for node, other in zip(nodes, others, strict=True)]
        self.curve = torch.stack([factor.prod(dim=1) for factor in factors], dim=1).to(self.line)

        largest, latents = at_nodes.topk(n_rivals, dim=2)
        self._latents = torch.cat([latents[:, :-1], latents[:, 1:]], dim=2)  # [n_sweeps, intervals, 2 n_rivals]
        n_intervals = self._latents.shape[1]
        self._at_nodes = (
            at_nodes[:, None]
            .expand(-1, n_intervals, -1, -1)
            .gather(3, self._latents[:, :, None].expand(-1, -1, len(nodes), -1))
        )
        # those of the second node that are among the first's as well count once
        first, second = self._latents[:, :, :n_rivals], self._latents[:, :, n_rivals:]
        again = (second[..., None] == first[:, :, None]).any(dim=3)
        self._twice = torch.cat([torch.zeros_like(again), again], dim=2)
        everyone = n_rivals == at_nodes.shape[2]
        least = torch.full_like(largest[:, :, -1], -torch.inf) if everyone else largest[:, :, -1]
        self._ceiling = torch.maximum(least[:, :-1], least[:, 1:])

    def at_points(self, which: Tensor) -> Tensor:
        """Interpolated pre-activations for sweeps `which` [n]: [n, points, 2 n_rivals]."""
        parts = [
            self.curve[self._interval == interval] @ self._at_nodes[which, interval]
            for interval in range(self._at_nodes.shape[1])
        ]
        return torch.cat(parts, dim=1)

    def counts(self, which: Tensor, latent: Tensor) -> Tensor:
        """Which of these are others than the sample's own latent [n], and not there twice."""
        return (~self._twice[which] & (self._latents[which] != latent[:, None, None]))[:, self._interval]

    def ceiling(self, which: Tensor) -> Tensor:
        """What no other latent exceeds if it moves on straight lines between the nodes: [n, points]."""
        return self._ceiling[which][:, self._interval]


def classify_curves(input_values: Tensor, output_values: Tensor) -> list[str]:
    """The published rule, for curves [n, points] each: "linear" if a least-squares line leaves every residual below
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
    return np.where(linear, "linear", np.where(jump, "jumprelu", "other")).tolist()


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
            "flat": output_values.amax(dim=1) - output_values.amin(dim=1) < TOLERANCE,
            "input_activation": sandwich.input_activations[row, input_rank],
            "output_activation": sandwich.output_activations[row, output_rank],
        }
    )
    frame.insert(6, "shape", classify_curves(input_values, output_values))
    return frame.assign(
        input_values=list(input_values.float().cpu().numpy()), output_values=list(output_values.float().cpu().numpy())
    )


def _is_linear(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether a least-squares line through the masked points of each row leaves all their residuals below TOLERANCE."""
    count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    x_mean = (x * mask).sum(axis=1, keepdims=True) / count
    y_mean = (y * mask).sum(axis=1, keepdims=True) / count
    dx, dy = (x - x_mean) * mask, (y - y_mean) * mask
    spread = (dx**2).sum(axis=1, keepdims=True)
    slope = np.divide((dx * dy).sum(axis=1, keepdims=True), spread, out=np.zeros_like(spread), where=spread > 0)
    return (np.abs(dy - slope * dx) < TOLERANCE).all(axis=1)
