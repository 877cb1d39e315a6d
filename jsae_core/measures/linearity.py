"""The shapes of output latents as functions of one input latent, with the rest of the input held fixed.

Here: curves, their classes, and the classes of a sample. Not here: which elements are sampled (`samples.py`), what an
output latent is along a line (`nearby.py`), single interventions (`ablation.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.checkpoints import Checkpoint
from jsae_core.jacobian import Sandwich, run_sandwich
from jsae_core.measures.nearby import Lines, activations, own_pre_activations
from jsae_core.measures.resuming import Computation, Parts
from jsae_core.measures.samples import KeptInputs, Samples, draw_samples, elements, named, table, with_document
from jsae_core.sae import active_latents, inputs_at_once
from jsae_core.sae_pair import SAEPair
from jsae_core.terms import (
    FLAT_WITHIN_SHARE,
    FUNCTION_SHAPES,
    RELATIVE_SHAPES,
    STRAIGHT_WITHIN,
    STRAIGHT_WITHIN_SHARE,
)

POINTS = 100
LEAST_RANGE = 5.0  # curves reach at least this activation of the input latent
USUAL = 0.99  # curves of the relative rule reach up to this quantile of the input latent's activations
CURVES = ["input_values", "output_values"]
RULES = ("published", "relative")
KEPT_OF_EACH_SHAPE = 30  # curves that are kept in any case, so that rare shapes can be looked at


def function_curves(
    pair: SAEPair, mlp_input: Tensor, output_ranks: Tensor, input_ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """Sweep the activation of an input latent and read an output latent after its TopK.

    Args:
        mlp_input: [n, d_model]; only the contribution of the input latent to a row changes.
        output_ranks, input_ranks: [n], places in the descending order of activations.

    Returns:
        input_values [n, 100], evenly spaced over [0, max(5, s + 1)], where s is the activation at this input; and
        output_values [n, 100], 0 where the output latent is outside the TopK.

    Raises:
        ValueError: a rank is outside 0 to k - 1, or the lengths differ.
    """
    n, k = len(mlp_input), pair.config.k
    for name, ranks in (("output_ranks", output_ranks), ("input_ranks", input_ranks)):
        if len(ranks) != n or (n and not (0 <= int(ranks.min()) and int(ranks.max()) < k)):
            raise ValueError(f"{name} must be {n} whole numbers from 0 to {k - 1}, one for each row of mlp_input")
    if not n:
        return mlp_input.new_empty(0, POINTS), mlp_input.new_empty(0, POINTS)
    x, row = mlp_input.unique(dim=0, return_inverse=True)  # one sweep serves all output latents of a row
    sweeps = _sweeps(pair, x, run_sandwich(pair, x), row, input_ranks.to(row))
    return sweeps.input_values[sweeps.of_sample], activations(
        sweeps.lines, sweeps.of_sample, sweeps.output_latents[row, output_ranks.to(row)]
    )


class _Sweeps(NamedTuple):
    """Sweeps of input latents, each done once for all samples that share it."""

    lines: Lines
    of_sample: Tensor  # [n_samples], the line of each sample
    input_values: Tensor  # [n_lines, POINTS]
    output_latents: Tensor  # [n_tokens, k]


@torch.no_grad()
def _sweeps(
    pair: SAEPair, x: Tensor, sandwich: Sandwich, row: Tensor, input_rank: Tensor, usual: Tensor | None = None
) -> _Sweeps:
    """The sweeps of samples, given by their row of x [n_tokens, d_model] and their ranks, [n_samples] each. A sweep
    ends where the paper's does, or at the `usual` [d_sae] activation of its input latent."""
    k = pair.config.k
    places, of_sample = (row * k + input_rank).unique(return_inverse=True)
    of_row, rank = places // k, places % k
    occurred, latents = sandwich.input_activations[of_row, rank], sandwich.input_latents[of_row, rank]
    top = (occurred + 1).clamp(min=LEAST_RANGE) if usual is None else usual[latents]
    input_values = torch.linspace(0, 1, POINTS, dtype=x.dtype, device=x.device) * top[:, None]
    steps = input_values - occurred[:, None]
    lines = Lines(pair, pair.mlp.branch_values(x), token=of_row, input_latent=latents, steps=steps)
    return _Sweeps(lines, of_sample, input_values, sandwich.output_latents)


def classify_curves(input_values: Tensor, output_values: Tensor, rule: str = "published") -> list[str]:
    """The shape of each of n curves, given as [n, points] input and output values.

    Args:
        rule: "published", the paper's: "linear" if every residual of the least-squares line is below 0.01; otherwise
            "jumprelu" if the exact zeros are one run that touches an end, and the remaining points, at least two, are
            linear in the same sense; otherwise "other". "relative" is the same on any scale: no residual may exceed 5%
            of the curve's range, and curves whose range is at most 1% of their largest value are "flat".

    Raises:
        ValueError: the rule is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; expected one of {', '.join(RULES)}")
    return np.asarray(RELATIVE_SHAPES)[_classes(input_values, output_values, rule).cpu().numpy()].tolist()


def _classes(input_values: Tensor, output_values: Tensor, rule: str) -> Tensor:
    """The shapes that `classify_curves` returns, as places in RELATIVE_SHAPES: [n], on the curves' device."""
    x, y = input_values.double(), output_values.double()
    reach, relative = _reach(y), rule == "relative"
    within = STRAIGHT_WITHIN_SHARE * reach if relative else torch.full_like(reach, STRAIGHT_WITHIN)
    zero = y == 0
    left = (~zero).sum(dim=1)
    jump = torch.zeros_like(reach, dtype=torch.bool)
    for run in (_leading(zero), _leading(zero.flip(1)).flip(1)):
        one_run = (run.sum(dim=1) == zero.sum(dim=1)) & (left > 1) & zero.any(dim=1)
        jump |= one_run & _is_linear(x, y, ~run, within, relative)
    linear_place, jump_place, other_place, flat_place = range(len(RELATIVE_SHAPES))
    classes = torch.where(jump, jump_place, other_place)
    classes[_is_linear(x, y, torch.ones_like(zero), within, relative)] = linear_place
    if relative and y.numel():
        classes[reach <= FLAT_WITHIN_SHARE * y.abs().amax(dim=1)] = flat_place
    return classes


def function_shapes(
    pair: SAEPair,
    stream: Iterable[Tensor],
    n_samples: int,
    seed: int = 0,
    n_curves: int = 0,
    rules: Sequence[str] = ("published",),
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Classes of the curves of randomly drawn tokens, output and input latents: the first `n_samples` elements that
    `ablation_samples` draws from the same stream with the same seed.

    Args:
        n_curves: how many curves to keep; if this is not 0, 30 curves of each shape are kept as well.
        rules: "published" (always included), and "relative", which takes sweeps of its own.
        checkpoint: as for `ablation_samples`.

    Returns:
        One row a sample: `token`, `output_rank`, `input_rank`, `drawn` (place in the order of drawing),
        `output_latent`, `input_latent`, `shape`, `flat` (the curve's range is below 0.01, whatever its class),
        `input_activation`, `output_activation` (what occurred), `document` (that the token is from) and `input_values`,
        `output_values`: the curve, [100] each, of the samples drawn first; None for the others.

        By the relative rule, over sweeps from 0 to the 99th percentile of the input latent's activations in the stream:
        `relative_shape`; `n_usual`, of how many activations above zero that is a percentile; and `curvature`, the
        largest residual of the least-squares line through the output latent's pre-activation (before TopK and ReLU), as
        a share of its range (0 if it does not vary).

    Raises:
        ValueError: the stream is empty, not finite, or holds fewer elements than `n_samples`, or a rule is unknown.
    """
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise ValueError(f"unknown rule {unknown[0]!r}; expected some of {', '.join(RULES)}")
    settings = {"n_samples": n_samples, "seed": seed, "n_curves": n_curves, "rules": sorted(rules)}
    work = Computation(checkpoint, "function_shapes 2", pair, stream, settings, shardable=True)
    inputs = KeptInputs(pair)
    x = inputs.read(work, stream)
    active = _active(work, pair, x) if "relative" in rules else None
    work.merge_shards()
    x = inputs.all()
    samples = draw_samples(len(x), pair.config.k, n_samples, "random", seed, x.device)
    usual, n_usual = (None, None) if active is None else _usual_activations(pair, active, x)
    parts, kept = samples.split(inputs_at_once(pair.input_sae)), Parts(pair.device)
    for part in work.steps(parts, {"rows": kept}, "samples", n_samples, lambda part: len(part.token)):
        kept.append(_shapes(pair, x, part, usual, n_curves))
    columns = dict(kept.joined())
    if n_usual is not None:
        columns["n_usual"] = n_usual[columns["input_latent"]]
    curves = _kept_curves(columns, n_curves) if n_curves else {}
    frame = table({name: column for name, column in columns.items() if name not in ("has_curve", *CURVES)})
    for name in {"shape", "relative_shape"} & columns.keys():
        frame[name] = named(frame[name], RELATIVE_SHAPES)
    return with_document(frame, stream).assign(**curves)


@torch.no_grad()
def _active(work: Computation, pair: SAEPair, x: Tensor) -> Parts:
    """The active input latents of each token, and their activations."""
    active = Parts(x.device)
    parts = x.split(inputs_at_once(pair.input_sae)) if len(x) else ()
    for part in work.steps(parts, {"active": active}, "tokens", len(x), len):
        activations_, latents = active_latents(pair.input_sae, part)
        active.append({"activations": activations_, "latents": latents})
    return active


def _usual_activations(pair: SAEPair, active: Parts, x: Tensor) -> tuple[Tensor, Tensor]:
    """The 99th percentile of each input latent's activations above zero, [d_sae], 0 where there is none; and how many
    there are, [d_sae] int64."""
    activations_, latents = (tensor.flatten().cpu() for tensor in active.joined().values())
    above = activations_ > 0
    percentiles = pd.Series(activations_[above].double().numpy()).groupby(latents[above].numpy()).quantile(USUAL)
    usual = torch.zeros(pair.config.d_sae, dtype=x.dtype)
    usual[torch.tensor(percentiles.index.to_numpy(copy=True))] = torch.tensor(
        percentiles.to_numpy(copy=True), dtype=x.dtype
    )
    counts = latents[above].bincount(minlength=pair.config.d_sae)
    return usual.to(x.device), counts.to(x.device)


def _drawn_first(drawn: Tensor, shape: Tensor, n_curves: int) -> Tensor:
    """Whether the curve of each sample is kept, [n_samples]: those drawn first of all, and those drawn first of each
    shape."""
    order = drawn.argsort()
    before = torch.empty_like(drawn)  # the number of samples of the same shape that were drawn before
    for place in range(len(FUNCTION_SHAPES)):
        of_shape = order[shape[order] == place]
        before[of_shape] = torch.arange(len(of_shape), device=drawn.device)
    return (drawn < n_curves) | (before < KEPT_OF_EACH_SHAPE)


def _kept_curves(columns: Mapping[str, Tensor], n_curves: int) -> dict[str, np.ndarray]:
    """Columns of curves, [POINTS] each or None. A curve that is not kept among some of the samples is not kept among
    all of them either."""
    kept = _drawn_first(columns["drawn"], columns["shape"], n_curves)
    among_those_there = kept[columns["has_curve"]]
    curves = {}
    for name in CURVES:
        rows = columns[name][among_those_there]
        curves[name] = np.full(len(kept), None, dtype=object)
        for place, row in zip(kept.nonzero()[:, 0].tolist(), rows.float().cpu().numpy(), strict=True):
            curves[name][place] = row
    return curves


def _shapes(pair: SAEPair, x: Tensor, samples: Samples, usual: Tensor | None, n_curves: int) -> dict[str, Tensor]:
    """The columns of the table for some samples, [n_samples] each, with shapes as places; `has_curve` [n_samples], and
    the curves that may be kept, [n_curves, POINTS] each."""
    tokens, row = samples.token.unique(return_inverse=True)
    sandwich = run_sandwich(pair, x[tokens])
    columns = elements(samples, sandwich, row)
    output_latent = columns["output_latent"]
    sweeps = _sweeps(pair, x[tokens], sandwich, row, samples.input_rank)
    input_values = sweeps.input_values[sweeps.of_sample]
    output_values = activations(sweeps.lines, sweeps.of_sample, output_latent)
    columns |= {
        "shape": _classes(input_values, output_values, "published"),
        "flat": _reach(output_values) < STRAIGHT_WITHIN,
        "input_activation": sandwich.input_activations[row, samples.input_rank],
        "output_activation": sandwich.output_activations[row, samples.output_rank],
    }
    has_curve = (
        _drawn_first(samples.drawn, columns["shape"], n_curves) if n_curves else torch.zeros_like(columns["flat"])
    )
    columns |= {
        "has_curve": has_curve,
        "input_values": input_values[has_curve],
        "output_values": output_values[has_curve],
    }
    if usual is not None:
        sweeps = _sweeps(pair, x[tokens], sandwich, row, samples.input_rank, usual)
        input_values = sweeps.input_values[sweeps.of_sample]
        output_values = activations(sweeps.lines, sweeps.of_sample, output_latent)
        unclipped = own_pre_activations(sweeps.lines, sweeps.of_sample, output_latent)
        columns["relative_shape"] = _classes(input_values, output_values, "relative")
        columns["curvature"] = _curvature(input_values.double(), unclipped.double())
    return columns


def _curvature(x: Tensor, y: Tensor) -> Tensor:
    """The largest residual of each row's least-squares line, as a share of the row's range; 0 where it has none."""
    reach = _reach(y)
    largest = _residuals(x, y, torch.ones_like(y, dtype=torch.bool)).abs().amax(dim=1)
    return torch.where(reach > 0, largest / reach, 0)


def _reach(y: Tensor) -> Tensor:
    """The range of each row."""
    return y.amax(dim=1) - y.amin(dim=1)


def _leading(mask: Tensor) -> Tensor:
    """True up to the first False of each row."""
    return mask.long().cumprod(dim=1).bool()


def _is_linear(x: Tensor, y: Tensor, mask: Tensor, within: Tensor, inclusive: bool) -> Tensor:
    """Whether all residuals of the least-squares line through the masked points of a row are below `within` [rows], or,
    if that is asked for, at most `within`."""
    residuals = _residuals(x, y, mask).abs()
    return (residuals <= within[:, None] if inclusive else residuals < within[:, None]).all(dim=1)


def _residuals(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Of a least-squares line through the masked points of each row, and 0 at the others."""
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    dx, dy = ((values - (values * mask).sum(dim=1, keepdim=True) / count) * mask for values in (x, y))
    spread = dx.square().sum(dim=1, keepdim=True)
    slope = torch.where(spread > 0, (dx * dy).sum(dim=1, keepdim=True) / spread, 0)
    return dy - slope * dx
