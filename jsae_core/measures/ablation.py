"""What an intervention does: take some of an input latent away and see how an output latent changes.

Here: the intervention, and a summary of how well the Jacobian predicts it. Not here: which elements are sampled
(`samples.py`), what output latents are after it (`nearby.py`), whole curves of an output latent (`linearity.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.jacobian import check_input, run_sandwich
from jsae_core.measures.moments import Estimate, flat
from jsae_core.measures.nearby import Lines, activations
from jsae_core.measures.samples import (
    Ranks,
    Samples,
    draw_samples,
    joined,
    moments_of,
    table,
    with_document,
)
from jsae_core.sae import inputs_at_once
from jsae_core.sae_pair import SAEPair
from jsae_core.terms import AGREEMENTS, DOSES, NOTEWORTHY, PUBLISHED_AGREEMENTS, is_above

RELATIVE_TOLERANCE = 0.1  # the change is on the line where it is off by less than this share of what J predicts
# the paper's criteria: on the line where |J + change| is below the first; else in the cluster where J and the change
# are below the others
ABSOLUTE_TOLERANCE, CLUSTER_JACOBIAN, CLUSTER_CHANGE = 0.1, 0.04, -0.5
ROUNDING = 1e-12  # equal elements computed in float32 have a variance of up to this share of their mean square
SAMPLES_AT_ONCE = 2**17


@torch.no_grad()
def ablation_samples(
    pair: SAEPair,
    stream: Iterable[Tensor],
    n_samples: int | None = None,
    ranks: Ranks = "random",
    seed: int = 0,
    doses: Sequence[str] = ("unit",),
) -> pd.DataFrame:
    """Subtract a dose of an input latent's decoder row from the MLP's input, run the MLP and the output SAE with its
    TopK again, and take the change of an output latent. To first order the change is -J times the dose.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]; read once, and kept in memory.
        n_samples: rows; None: every element there is.
        ranks: which elements of the k x k Jacobians. "random": drawn without replacement from all of all tokens;
            "diagonal": the i-th input with the i-th output latent, in token order (the original's); "all": every one.
        seed: of the drawing.
        doses: "unit" (1, always there), "whole" (the input latent's activation), "double" (twice that).

    Returns:
        One row a sample, in token order: `token` (place in the stream), `output_rank`, `input_rank` (place in the
        descending order of activations), `drawn` (place in the order of drawing), `output_latent`, `input_latent`,
        `jacobian`, `change`, `input_activation`, `output_activation` (before the intervention), `ablated_activation`
        (the output latent's after it), `agreement`, `document` (that the token is from) and `published`.

        `agreement` is "dropped" where the output latent was active before and is not any more; else "negligible" where
        both |J| times the dose and |change| are below 0.01; else "line" where the change is off by less than a tenth of
        what J predicts; else "off". `published` is by the paper's criteria: "line" where |J + change| is below 0.1,
        else "cluster" where J is below 0.04 and the change below -0.5, else "other".

        For each further dose `change_{dose}` and `agreement_{dose}`.

    Raises:
        ValueError: the stream is empty, not finite, or holds fewer elements than `n_samples`, or `ranks` or a dose is
            unknown.
    """
    unknown = [dose for dose in doses if dose not in DOSES]
    if unknown:
        raise ValueError(f"unknown dose {unknown[0]!r}; expected some of {', '.join(DOSES)}")
    further = [dose for dose in DOSES if dose in doses and dose != "unit"]
    x = joined(stream)
    check_input(pair, x)
    samples = draw_samples(len(x), pair.config.k, n_samples, ranks, seed, x.device)
    parts = [_ablate(pair, x, part, further) for part in _by_tokens(samples, inputs_at_once(pair.input_sae))]
    frame = table({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    changes = frame[[f"change_{dose}" for dose in further]]
    frame = frame.drop(columns=changes.columns).assign(agreement=_agreement(frame, "unit"))
    frame = with_document(frame, stream).assign(published=_published(frame))
    for dose in further:
        frame[f"change_{dose}"] = changes[f"change_{dose}"]
        frame[f"agreement_{dose}"] = _agreement(frame, dose)
    return frame


def ablation_summary(samples: pd.DataFrame) -> dict[str, float]:
    """How well J predicts the change, each number with its standard error over documents under its name with `_se`.

    `agreement_{class}`: the share of samples of each class, and `noteworthy_{class}` that of those that are not
    negligible. `slope` and `correlation` of the change against what J predicts, without the dropped (0 where one of
    them does not vary), and with `_noteworthy` over those of them whose |J| is from 0.01 on. `on_line_relative`: the
    share of all samples, dropped ones too, that are off by less than a tenth of what J predicts. `published_{class}`:
    shares by the paper's criteria. Where the samples have further doses, the first four for each, with `_{dose}`.
    `samples`: how many.
    """
    return flat(ablation_estimates(samples)) | {"samples": float(len(samples))}


def ablation_estimates(samples: pd.DataFrame) -> dict[str, Estimate]:
    """The same, with what each document adds to each number. Raises ValueError if there is no sample."""
    estimates: dict[str, Estimate] = {}
    for dose in (dose for dose in DOSES if _column("change", dose) in samples):
        agreement, suffix = _agreement(samples, dose), "" if dose == "unit" else f"_{dose}"
        moments = moments_of(samples, {name: agreement == name for name in AGREEMENTS})
        noteworthy = {name: 1.0 for name in AGREEMENTS if name != "negligible"}
        estimates |= {f"agreement_{name}{suffix}": share for name, share in moments.estimates().items()}
        estimates |= {f"noteworthy_{name}{suffix}": moments.ratio({name: 1.0}, noteworthy) for name in noteworthy}
        estimates |= {f"{name}{suffix}": of for name, of in _line(samples, dose, agreement != "dropped").items()}
    published = _published(samples)
    by_class = {f"published_{name}": published == name for name in PUBLISHED_AGREEMENTS}
    estimates |= moments_of(samples, by_class).estimates()
    large = (_agreement(samples, "unit") != "dropped") & is_above(samples["jacobian"].abs(), NOTEWORTHY)
    estimates |= {f"{name}_noteworthy": estimate for name, estimate in _line(samples, "unit", large.to_numpy()).items()}
    on_line = _is_on_line(_predicted(samples, "unit"), samples["change"])
    return estimates | moments_of(samples, {"on_line_relative": on_line}).estimates()


def _line(samples: pd.DataFrame, dose: str, counted: np.ndarray) -> dict[str, Estimate]:
    """Slope and correlation of the change against what J predicts, over some of the samples."""
    predicted = _predicted(samples, dose).to_numpy(np.float64)
    change = samples[_column("change", dose)].to_numpy(np.float64)
    x, y = (
        np.where(counted, values - values[counted].mean() if counted.any() else 0, 0) for values in (predicted, change)
    )
    moments = moments_of(samples, {"xx": x * x, "xy": x * y, "yy": y * y})
    xx, xy, yy = (estimate.value for estimate in moments.estimates().values())
    if not xx > ROUNDING * np.mean(counted * predicted**2):
        return dict.fromkeys(("slope", "correlation"), moments.ratio({}, {}))
    if not yy > ROUNDING * np.mean(counted * change**2):
        return {"slope": moments.ratio({"xy": 1.0}, {"xx": 1.0}), "correlation": moments.ratio({}, {})}
    correlation = xy / np.sqrt(xx * yy)
    # to first order xy / sqrt(xx yy) varies as this mean does
    weights = {"xy": 1 / np.sqrt(xx * yy), "xx": -correlation / (2 * xx), "yy": -correlation / (2 * yy)}
    return {
        "slope": moments.ratio({"xy": 1.0}, {"xx": 1.0}),
        "correlation": moments.estimate(float(correlation), weights),
    }


def _by_tokens(samples: Samples, n_tokens: int) -> list[Samples]:
    """Samples in parts of at most `n_tokens` tokens, each with all its samples, and of about SAMPLES_AT_ONCE."""
    counts = samples.token.unique_consecutive(return_counts=True)[1].cpu()
    tokens = max(1, min(n_tokens, SAMPLES_AT_ONCE // int(counts.max())))
    return samples.split([int(part.sum()) for part in counts.split(tokens)])


def _ablate(pair: SAEPair, x: Tensor, samples: Samples, further: Sequence[str]) -> dict[str, Tensor]:
    """The columns of the table that are computed on the pair's device, each [n_samples]; `further`: doses beside one
    unit."""
    token, output_rank, input_rank, drawn = samples
    tokens, row = token.unique_consecutive(return_inverse=True)
    x, k = x[tokens], pair.config.k
    sandwich = run_sandwich(pair, x)
    # an intervention that several samples share is done once
    interventions, of_sample = (row * k + input_rank).unique(return_inverse=True)
    of_row, rank = interventions // k, interventions % k
    occurred = sandwich.input_activations[of_row, rank]
    sizes = {"unit": torch.ones_like(occurred), "whole": occurred, "double": 2 * occurred}
    lines = Lines(
        pair,
        pair.mlp.branch_values(x),
        token=of_row,
        input_latent=sandwich.input_latents[of_row, rank],
        steps=-torch.stack([sizes[dose] for dose in ("unit", *further)], dim=1),
    )
    output_latent = sandwich.output_latents[row, output_rank]
    before = sandwich.output_activations[row, output_rank]
    after = activations(lines, of_sample, output_latent)
    return {
        "token": token,
        "output_rank": output_rank,
        "input_rank": input_rank,
        "drawn": drawn,
        "output_latent": output_latent,
        "input_latent": sandwich.input_latents[row, input_rank],
        "jacobian": sandwich.jacobian[row, output_rank, input_rank],
        "change": after[:, 0] - before,
        "input_activation": sandwich.input_activations[row, input_rank],
        "output_activation": before,
        "ablated_activation": after[:, 0],
    } | {f"change_{dose}": after[:, place] - before for place, dose in enumerate(further, start=1)}


def _column(name: str, dose: str) -> str:
    return name if dose == "unit" else f"{name}_{dose}"


def _predicted(samples: pd.DataFrame, dose: str) -> pd.Series:
    """The change to first order."""
    size = {"unit": 1.0, "whole": samples["input_activation"], "double": 2 * samples["input_activation"]}[dose]
    return -samples["jacobian"] * size


def _is_on_line(predicted: pd.Series, change: pd.Series) -> pd.Series:
    return (change - predicted).abs() < RELATIVE_TOLERANCE * predicted.abs()


def _agreement(samples: pd.DataFrame, dose: str) -> np.ndarray:
    line, off, dropped, negligible = AGREEMENTS
    predicted, change, before = (
        _predicted(samples, dose),
        samples[_column("change", dose)],
        samples["output_activation"],
    )
    is_dropped = (before > 0) & (change == -before)
    small = ~is_above(predicted.abs(), NOTEWORTHY) & ~is_above(change.abs(), NOTEWORTHY)
    return np.select([is_dropped, small, _is_on_line(predicted, change)], [dropped, negligible, line], off)


def _published(samples: pd.DataFrame) -> np.ndarray:
    line, cluster, other = PUBLISHED_AGREEMENTS
    jacobian, change = samples["jacobian"], samples["change"]
    in_cluster = (jacobian < CLUSTER_JACOBIAN) & (change < CLUSTER_CHANGE)
    return np.select([(jacobian + change).abs() < ABSOLUTE_TOLERANCE, in_cluster], [line, cluster], other)
