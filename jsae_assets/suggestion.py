"""`jsae suggest-lambda`: which λ to begin with, by a short local sweep at one layer of a model.

Here: which sweep that is, what its table says, and which of its λ is suggested. Not here: training, measuring and
storing its runs (`assets/sweeps.py`, which does it as for any local sweep), what makes a pair fit to be measured
(`checks.py`), the command line (`command.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from tabulate import tabulate

from jsae_assets.assets.sweeps import ASSET, HeldOut
from jsae_assets.catalog import Catalog, LocalSweep, Sweep
from jsae_assets.checks import examined
from jsae_assets.resources import Compute
from jsae_assets.sections import LONGEST_KEY
from jsae_assets.sources import ExplainedVariance, Recipe, TrainedPair

if TYPE_CHECKING:
    from pandas import DataFrame

    from jsae_assets.stored import StoredTensors
    from jsae_core import LanguageModel

STEPS = 300
AROUND_THE_RULE = (0, 1 / 3, 1, 3, 10)  # how much of the rule's λ is tried
KEPT = 0.9  # of the variance explained at λ = 0
COLUMNS = {
    "|J| ≥ 0.01": "above_0.01",
    "accounted": "accounted_share",
    "explained: input": "explained_variance_input",
    "output": "explained_variance_output",
    "CE score": "ce_score_pair",
    "KL score": "kl_score_pair",
}


class NothingToSuggest(ValueError):
    """There is no sweep to make, or none of its λ will do. The message says what to change."""


@dataclasses.dataclass(frozen=True)
class ShortSweep:
    """A sweep that is not in the catalog, and what its pairs are asked for.

    Attributes:
        catalog: with the sweep in it, under `key`.
        full_steps: those of the recipe that was shortened.
        least: what the check `faithful` asks for.
    """

    catalog: Catalog
    key: str
    full_steps: int
    least: ExplainedVariance

    @property
    def local(self) -> LocalSweep:
        return self.catalog.sweeps[self.key].local


def short_sweep(
    catalog: Catalog,
    model: str,
    layer: int,
    language_model: LanguageModel,
    coefficients: Sequence[float] = (),
    steps: int = STEPS,
) -> ShortSweep:
    """A sweep by the recipe that the catalog has for pairs of a model, at this layer if there is one, shortened.

    Args:
        coefficients: λ to try; without any the rule of thumb's, 0.5 k^2 / d_model, and less and more around it. λ = 0,
            which they are compared with, is always among them.

    Raises:
        NothingToSuggest: the catalog has no recipe for pairs of this model.
        ValueError: the model has no such layer.
    """
    if not 0 <= layer < language_model.n_layers:
        raise ValueError(f"{model} has layers 0 to {language_model.n_layers - 1}; there is no layer {layer}")
    recipe, least = _recipe(catalog, model, layer)
    full = recipe.config
    if not coefficients:
        rule = 0.5 * full.k**2 / language_model.d_model
        coefficients = [float(f"{share * rule:.2g}") for share in AROUND_THE_RULE]
    steps = min(steps, full.steps)
    shortened = {
        "text": recipe.text,
        "tokens": min(recipe.tokens, steps * full.batch_tokens),
        "config": dataclasses.replace(full, steps=steps, jacobian_coefficient=0.0),
    }
    local = LocalSweep(
        model=model, layer=layer, coefficients=sorted({0.0, *coefficients}), train=Recipe.model_validate(shortened)
    )
    key = f"suggest-lambda-{model[: LONGEST_KEY // 2]}-{layer}"
    with_it = catalog.model_copy(update={"sweeps": catalog.sweeps | {key: Sweep(local=local)}})
    return ShortSweep(with_it, key, full.steps, least)


def _recipe(catalog: Catalog, model: str, layer: int) -> tuple[Recipe, ExplainedVariance]:
    pairs = [pair for pair in catalog.pairs if isinstance(pair, TrainedPair) and pair.model == model]
    at_layer = [pair for pair in pairs if layer in pair.layers]
    for pair in [*at_layer, *pairs]:
        if catalog.variants[pair.variant].control_of is None:
            return pair.train, pair.least_explained_variance
    for sweep in catalog.sweeps.values():
        if sweep.local and sweep.local.model == model:
            return sweep.local.train, ExplainedVariance()
    raise NothingToSuggest(
        f"the catalog has no recipe for pairs of {model}: give it a pair with `train:` (text, tokens and config), at "
        "any layer; its λ does not matter"
    )


def suggested(sweep: ShortSweep, runs: DataFrame, faults: Sequence[Sequence[str]], keep: float) -> float:
    """The largest λ whose SAEs both explain at least this share of the variance that they explain at λ = 0, of those
    in whose pair the check `faithful` would find no fault.

    Args:
        runs: the table of the sweep.
        faults: of each of its rows, what the check says.

    Raises:
        NothingToSuggest: there is none above 0.
    """
    sides = ["explained_variance_input", "explained_variance_output"]
    steps = f"after {sweep.local.train.config.steps} steps"
    (reference,) = runs[runs["jacobian_coefficient"] == 0][sides].to_numpy()
    without_penalty = faults[runs["jacobian_coefficient"].tolist().index(0)]
    if without_penalty or not (reference > 0).all():
        why = "; ".join(without_penalty) or "one of its SAEs explains nothing"
        raise NothingToSuggest(
            f"No λ will do: {steps} the pair without a penalty is not fit to be measured itself ({why}). Give it more "
            "steps (--steps), or mend the recipe."
        )
    enough = (runs[sides].to_numpy() >= keep * reference).all(axis=1)
    good = [
        coefficient
        for coefficient, keeps, of_run in zip(runs["jacobian_coefficient"], enough, faults, strict=True)
        if keeps and not of_run
    ]
    largest = max(good, default=0.0)
    if largest > 0:
        return largest
    raise NothingToSuggest(
        f"Even the smallest λ costs too much {steps}: name smaller ones (--coefficients), give them more steps "
        "(--steps), or ask for less to be kept (--keep)."
    )


def faults_of(
    sweep: ShortSweep, runs: DataFrame, stored: Callable[[dg.AssetKey, str], StoredTensors], compute: Compute
) -> list[list[str]]:
    """What the check `faithful` would say of each run's pair. `stored`: an asset's partition in its store."""
    on = HeldOut(sweep.catalog, sweep.local, compute)
    pairs = (compute.pair(stored(dg.AssetKey([ASSET, sweep.key]), run_id)) for run_id in runs["run_id"])
    return [
        examined(pair, on.language_model, on.documents, on.mlp_inputs, sweep.least, compute, print).faults
        for pair in pairs
    ]


def table(runs: DataFrame, faults: Sequence[Sequence[str]]) -> str:
    """A line a λ."""
    rows = [
        [
            f"{run['jacobian_coefficient']:g}",
            *(f"{run[name]:.1%}" for name in COLUMNS.values()),
            "no" if found else "yes",
        ]
        for (_, run), found in zip(runs.iterrows(), faults, strict=True)
    ]
    ordered = sorted(rows, key=lambda row: float(row[0]))
    return tabulate(ordered, ["λ", *COLUMNS, "faithful"], tablefmt="plain", disable_numparse=True)


def advice(sweep: ShortSweep, runs: DataFrame, coefficient: float, keep: float) -> str:
    """What is suggested and why, and what to write."""
    explained = runs.set_index("jacobian_coefficient")["explained_variance_output"]
    steps, tried = sweep.local.train.config.steps, max(sweep.local.coefficients)
    accounted = runs.set_index("jacobian_coefficient")["accounted_share"]
    lines = [
        f"Suggested: λ = {coefficient:g}, the largest of these that the check `faithful` would pass and that keeps "
        f"{keep:.0%} or more of the variance explained at λ = 0 (output SAE: {explained[coefficient]:.1%} of "
        f"{explained[0]:.1%}).",
        f"Its input latents account for {accounted[coefficient]:.1%} of what its output latents compute, at λ = 0 for "
        f"{accounted[0]:.1%}: where that falls far, the pair bypasses its latents, and a smaller λ is better.",
        f"In the catalog, in the `config:` of the pair's `train:`:  jacobian_coefficient: {coefficient:g}",
    ]
    if coefficient == tried:
        lines.append("It is the largest of this sweep: --coefficients names others.")
    if steps < sweep.full_steps:
        lines.append(
            f"These pairs were trained for {steps:,} steps, the catalog's recipe asks for {sweep.full_steps:,}: look "
            "again at the explained variance and the accounted share of the pair that it makes."
        )
    return "\n".join(lines)
