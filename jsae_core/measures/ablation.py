"""Interventions: lower the activation of an input latent and see how an output latent changes.

Here: the intervention, and a summary of how well the Jacobian predicts it. Not here: which elements are sampled
(`samples.py`), what output latents are after it (`nearby.py`), whole curves of an output latent (`linearity.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from jsae_core.checkpoints import Checkpoint
from jsae_core.jacobian import check_input, run_sandwich
from jsae_core.measures.moments import Estimate, flat
from jsae_core.measures.nearby import Lines, activations
from jsae_core.measures.resuming import Computation, Parts, Sums
from jsae_core.measures.samples import (
    KeptInputs,
    Ranks,
    Samples,
    at_least_float32,
    draw_samples,
    elements,
    moments_of,
    named,
    table,
    with_document,
)
from jsae_core.sae import active_latents, inputs_at_once
from jsae_core.sae_pair import SAEPair
from jsae_core.terms import AGREEMENTS, DOSES, NOTEWORTHY, NOTEWORTHY_SHARE, PUBLISHED_AGREEMENTS, is_above

RELATIVE_TOLERANCE = 0.1  # a change that differs from J's prediction by less than this share of it is on the line
# the paper's criteria: a sample is on the line if |J + change| is below the first number, otherwise in the cluster if J
# is below the second and the change below the third
ABSOLUTE_TOLERANCE, CLUSTER_JACOBIAN, CLUSTER_CHANGE = 0.1, 0.04, -0.5
ROUNDING = 1e-12  # float32 gives equal elements a variance of up to this share of their mean square
SAMPLES_AT_ONCE = 2**17
LINE, OFF, DROPPED, NEGLIGIBLE = range(len(AGREEMENTS))  # their places in AGREEMENTS


@torch.no_grad()
def ablation_samples(
    pair: SAEPair,
    stream: Iterable[Tensor],
    n_samples: int | None = None,
    ranks: Ranks = "random",
    seed: int = 0,
    doses: Sequence[str] = ("unit",),
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Subtract a dose of an input latent's decoder row from the MLP's input, run the MLP and the output SAE with its
    TopK again, and take the change of an output latent. To first order the change is -J times the dose.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]. They are read once, and kept in memory.
        n_samples: the number of rows; None takes every element.
        ranks: which elements of the k x k Jacobians are sampled. "random": drawn without replacement from the elements
            of all tokens; "diagonal": the i-th input with the i-th output latent, in token order (as in the original);
            "all": every element.
        seed: the seed for drawing.
        doses: "unit" (1, always included), "whole" (the input latent's activation), "double" (twice that).
        checkpoint: as for `jacobian_histogram`; it holds the rows, and the part of the stream that was read.

    Returns:
        One row a sample, in token order: `token` (place in the stream), `output_rank`, `input_rank` (place in the
        descending order of activations), `drawn` (place in the order of drawing), `output_latent`, `input_latent`,
        `jacobian`, `change`, `input_activation`, `output_activation` (before the intervention), `ablated_activation`
        (the output latent's after it), `typical_activation` (the output latent's mean over the tokens of the stream in
        which it is active), `n_typical` (in how many that is), `agreement`, `relative_agreement`, `published` and
        `document` (that the token is from).

        `agreement` is "dropped" if the output latent was active before and no longer is; otherwise "negligible" if both
        |J| times the dose and |change| are below 0.01; otherwise "line" if the change differs from J's prediction by
        less than a tenth of the prediction; otherwise "off". `relative_agreement` is the same on any scale: negligible
        is what is below 1% of the output latent's typical activation. `published` is by the paper's criteria: "line" if
        |J + change| is below 0.1, otherwise "cluster" if J is below 0.04 and the change below -0.5, otherwise "other".

        For each further dose there are `change_{dose}` and `agreement_{dose}`.

        Of merged shards (`merge_shards`) `typical_activation` is a sum in another order, in float32 the same to 1e-6,
        and so is what `relative_agreement` compares with; all else is the same.

    Raises:
        ValueError: the stream is empty, not finite, or holds fewer elements than `n_samples`, or `ranks` or a dose is
            unknown.
    """
    unknown = [dose for dose in doses if dose not in DOSES]
    if unknown:
        raise ValueError(f"unknown dose {unknown[0]!r}; expected some of {', '.join(DOSES)}")
    further = [dose for dose in DOSES if dose in doses and dose != "unit"]
    settings = {"n_samples": n_samples, "ranks": ranks, "seed": seed, "doses": further}
    work = Computation(checkpoint, "ablation_samples 2", pair, stream, settings, shardable=True)
    inputs = KeptInputs(pair)
    x = inputs.read(work, stream)
    check_input(pair, x)
    activity = _activity(work, pair, x)
    work.merge_shards()
    x = inputs.all()
    samples = draw_samples(len(x), pair.config.k, n_samples, ranks, seed, x.device)
    parts, kept = _by_tokens(samples, inputs_at_once(pair.input_sae)), Parts(pair.device)
    for part in work.steps(parts, {"rows": kept}, "samples", len(samples.token), lambda part: len(part.token)):
        kept.append(_ablate(pair, x, part, further))
    columns = {name: at_least_float32(values) for name, values in kept.joined().items()}
    # 0 where there is none
    typical = activity["sums"] / activity["counts"].clamp(min=1)
    columns["typical_activation"] = typical[columns["output_latent"]]
    columns["n_typical"] = activity["counts"][columns["output_latent"]].long()
    classes = {"agreement": _agreement(columns, "unit")}
    classes["relative_agreement"] = _agreement(columns, "unit", _relative_threshold(columns))
    classes |= {f"agreement_{dose}": _agreement(columns, dose) for dose in further}
    published = {"published": _published(columns)}
    frame = table(columns | classes | published)
    for names, of in ((AGREEMENTS, classes), (PUBLISHED_AGREEMENTS, published)):
        frame = frame.assign(**{name: named(frame[name], names) for name in of})
    return with_document(frame, stream)


def ablation_summary(samples: pd.DataFrame) -> dict[str, float]:
    """How well J predicts the change. Each number has its standard error over documents under its name with `_se`.

    `agreement_{class}`: the share of each class among all samples; `noteworthy_{class}`: its share among the samples
    that are not negligible; `relative_agreement_{class}` and `relative_noteworthy_{class}`: the same by the relative
    rule. `slope` and `correlation` of the change against J's prediction, without dropped samples (0 if one of the two
    does not vary); with `_noteworthy` over those of them whose |J| is 0.01 or more. `on_line_relative`: the share of
    all samples, dropped ones included, whose change differs from J's prediction by less than a tenth of the prediction.
    `published_{class}`: shares by the paper's criteria. `samples`: the number of samples. For each further dose, all of
    these but the relative, the `_noteworthy` and the published ones, with `_{dose}`.
    """
    return flat(ablation_estimates(samples)) | {"samples": float(len(samples))}


def ablation_estimates(samples: pd.DataFrame) -> dict[str, Estimate]:
    """`ablation_summary`, with what each document adds to each number. Raises ValueError if there is no sample."""
    estimates: dict[str, Estimate] = {}
    columns = {name: torch.tensor(samples[name].to_numpy()) for name in samples if is_numeric_dtype(samples[name])}
    for dose in (dose for dose in DOSES if _column("change", dose) in columns):
        agreement, suffix = _agreement(columns, dose), "" if dose == "unit" else f"_{dose}"
        estimates |= {f"{name}{suffix}": share for name, share in _shares(samples, agreement).items()}
        estimates |= {f"{name}{suffix}": of for name, of in _line(samples, columns, dose, agreement != DROPPED).items()}
    relative = _agreement(columns, "unit", _relative_threshold(columns))
    estimates |= {f"relative_{name}": share for name, share in _shares(samples, relative).items()}
    published = _each(_published(columns), [f"published_{name}" for name in PUBLISHED_AGREEMENTS])
    estimates |= moments_of(samples, published).estimates()
    large = (_agreement(columns, "unit") != DROPPED) & is_above(columns["jacobian"].abs(), NOTEWORTHY)
    estimates |= {f"{name}_noteworthy": of for name, of in _line(samples, columns, "unit", large).items()}
    on_line = _is_on_line(_predicted(columns, "unit"), columns["change"])
    return estimates | moments_of(samples, {"on_line_relative": on_line.numpy()}).estimates()


def _shares(samples: pd.DataFrame, agreement: Tensor) -> dict[str, Estimate]:
    """The share of each class among all samples, and among those that are not negligible."""
    moments = moments_of(samples, _each(agreement, AGREEMENTS))
    noteworthy = {name: 1.0 for name in AGREEMENTS if name != "negligible"}
    return {f"agreement_{name}": share for name, share in moments.estimates().items()} | {
        f"noteworthy_{name}": moments.ratio({name: 1.0}, noteworthy) for name in noteworthy
    }


def _line(samples: pd.DataFrame, columns: Mapping[str, Tensor], dose: str, counted: Tensor) -> dict[str, Estimate]:
    """Slope and correlation of the change against J's prediction, over some of the samples."""
    predicted, change = _predicted(columns, dose).double(), columns[_column("change", dose)].double()
    x, y = (
        torch.where(counted, values - values[counted].mean() if counted.any() else 0, 0)
        for values in (predicted, change)
    )
    moments = moments_of(samples, {"xx": (x * x).numpy(), "xy": (x * y).numpy(), "yy": (y * y).numpy()})
    xx, xy, yy = (estimate.value for estimate in moments.estimates().values())
    if not xx > ROUNDING * (counted * predicted.square()).mean():
        return dict.fromkeys(("slope", "correlation"), moments.ratio({}, {}))
    if not yy > ROUNDING * (counted * change.square()).mean():
        return {"slope": moments.ratio({"xy": 1.0}, {"xx": 1.0}), "correlation": moments.ratio({}, {})}
    correlation = xy / math.sqrt(xx * yy)
    # to first order xy / sqrt(xx yy) varies as this mean does
    weights = {"xy": 1 / math.sqrt(xx * yy), "xx": -correlation / (2 * xx), "yy": -correlation / (2 * yy)}
    return {
        "slope": moments.ratio({"xy": 1.0}, {"xx": 1.0}),
        "correlation": moments.estimate(correlation, weights),
    }


def _by_tokens(samples: Samples, n_tokens: int) -> list[Samples]:
    """Divide samples into parts of about SAMPLES_AT_ONCE, and at most `n_tokens` tokens with all their samples."""
    counts = samples.token.unique_consecutive(return_counts=True)[1].cpu()
    tokens = max(1, min(n_tokens, SAMPLES_AT_ONCE // int(counts.max())))
    return samples.split([int(part.sum()) for part in counts.split(tokens)])


def _ablate(pair: SAEPair, x: Tensor, samples: Samples, further: Sequence[str]) -> dict[str, Tensor]:
    """The columns of the table that are computed on the pair's device, each [n_samples]. `further` are the doses
    besides the unit."""
    token, output_rank, input_rank, _ = samples
    tokens, row = token.unique_consecutive(return_inverse=True)
    x, k = x[tokens], pair.config.k
    sandwich = run_sandwich(pair, x)
    # an intervention that several samples share is computed once
    interventions, of_sample = (row * k + input_rank).unique(return_inverse=True)
    of_row, rank = interventions // k, interventions % k
    occurred = sandwich.input_activations[of_row, rank]
    lines = Lines(
        pair,
        pair.mlp.branch_values(x),
        token=of_row,
        input_latent=sandwich.input_latents[of_row, rank],
        steps=-torch.stack([_size(dose, occurred) for dose in ("unit", *further)], dim=1),
    )
    columns = elements(samples, sandwich, row)
    before = sandwich.output_activations[row, output_rank]
    after = activations(lines, of_sample, columns["output_latent"])
    columns |= {
        "jacobian": sandwich.jacobian[row, output_rank, input_rank],
        "change": after[:, 0] - before,
        "input_activation": sandwich.input_activations[row, input_rank],
        "output_activation": before,
        "ablated_activation": after[:, 0],
    }
    return columns | {f"change_{dose}": after[:, place] - before for place, dose in enumerate(further, start=1)}


def _activity(work: Computation, pair: SAEPair, x: Tensor) -> Sums:
    """For each output latent, the sum of its activations (`sums` [d_sae]) and the number of tokens in which it is
    active (`counts` [d_sae])."""
    wide = torch.promote_types(x.dtype, torch.float32)
    activity = Sums({name: x.new_zeros(pair.config.d_sae, dtype=wide) for name in ("sums", "counts")})
    parts = x.split(inputs_at_once(pair.output_sae)) if len(x) else ()
    for part in work.steps(parts, {"activity": activity}, "tokens", len(x), len):
        values, latents = active_latents(pair.output_sae, pair.mlp(part))
        activity["sums"].index_add_(0, latents.flatten(), values.flatten().to(wide))
        activity["counts"].index_add_(0, latents.flatten(), (values > 0).flatten().to(wide))
    return activity


def _each(classes: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Whether each sample belongs to each class, by the class's place."""
    return {name: (classes == place).numpy() for place, name in enumerate(names)}


# --- The classes of samples, by columns of the table as tensors [n_samples]


def _column(name: str, dose: str) -> str:
    return name if dose == "unit" else f"{name}_{dose}"


def _size(dose: str, input_activation: Tensor) -> Tensor:
    return {"unit": torch.ones_like(input_activation), "whole": input_activation, "double": 2 * input_activation}[dose]


def _predicted(columns: Mapping[str, Tensor], dose: str) -> Tensor:
    """The change that J predicts, to first order."""
    return -columns["jacobian"] * _size(dose, columns["input_activation"])


def _is_on_line(predicted: Tensor, change: Tensor) -> Tensor:
    return (change - predicted).abs() < RELATIVE_TOLERANCE * predicted.abs()


def _relative_threshold(columns: Mapping[str, Tensor]) -> Tensor:
    return NOTEWORTHY_SHARE * columns["typical_activation"]


def _agreement(columns: Mapping[str, Tensor], dose: str, threshold: float | Tensor = NOTEWORTHY) -> Tensor:
    """The class of each sample, as a place in AGREEMENTS. A prediction or change of `threshold` or more is not
    negligible."""
    predicted, change = _predicted(columns, dose), columns[_column("change", dose)]
    before = columns["output_activation"]
    is_dropped = (before > 0) & (change == -before)
    small = ~is_above(predicted.abs(), threshold) & ~is_above(change.abs(), threshold)
    classes = torch.where(_is_on_line(predicted, change), LINE, OFF)
    return classes.masked_fill_(small, NEGLIGIBLE).masked_fill_(is_dropped, DROPPED)


def _published(columns: Mapping[str, Tensor]) -> Tensor:
    """The class of each sample by the paper's criteria, as a place in PUBLISHED_AGREEMENTS."""
    line, cluster, other = range(len(PUBLISHED_AGREEMENTS))
    jacobian, change = columns["jacobian"], columns["change"]
    in_cluster = (jacobian < CLUSTER_JACOBIAN) & (change < CLUSTER_CHANGE)
    classes = torch.where(in_cluster, cluster, other)
    return classes.masked_fill_((jacobian + change).abs() < ABSOLUTE_TOLERANCE, line)
