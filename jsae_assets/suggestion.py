"""`jsae suggest-lambda`: suggests a λ to begin with, from a short local sweep at one layer of a model.

Here: which runs the sweep has, the table of its results, and which λ is suggested. Not here: training, measuring and
storing the runs (`assets/sweeps.py`, as for any local sweep), what makes a pair fit to be measured (`checks.py`), the
command line (`command.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from tabulate import tabulate

from jsae_assets.assets.sweeps import ASSET, HeldOut
from jsae_assets.catalog import Catalog, LocalSweep, Sweep
from jsae_assets.checks import examined
from jsae_assets.number import Number
from jsae_assets.resources import Compute
from jsae_assets.sections import LONGEST_KEY
from jsae_assets.sources import ExplainedVariance, Recipe, TrainedPair
from jsae_core.terms import Z95

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from jsae_assets.files.stored import StoredTensors
    from jsae_core import LanguageModel

STEPS = 300
MULTIPLES_OF_RULE = (0, 1 / 3, 1, 3, 10)  # the λ to try, as multiples of the λ that the rule of thumb gives
SHARE_KEPT = 0.9  # of the variance explained at λ = 0
SIDES = {"input": "explained_variance_input", "output": "explained_variance_output"}
COLUMNS = {
    "|J| ≥ 0.01": "above_0.01",
    "accounted": "accounted_share",
    "explained: input": "explained_variance_input",
    "output": "explained_variance_output",
    "CE score": "ce_score_pair",
    "KL score": "kl_score_pair",
}


class NothingToSuggest(ValueError):
    """The sweep cannot be made, or none of its λ can be suggested. The message says what to change."""


@dataclasses.dataclass(frozen=True)
class ShortSweep:
    """A short local sweep that was added to a catalog.

    Attributes:
        catalog: the user's catalog with the sweep added to it.
        key: the name of the sweep in `catalog`.
        full_steps: the number of training steps of the recipe before it was shortened.
        least: the least explained variance that the check `faithful` asks for.
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
    """Return a sweep by the catalog's recipe for pairs of a model, shortened to `steps`. A recipe for this layer is
    preferred to recipes for other layers.

    Args:
        coefficients: the λ to try; by default `MULTIPLES_OF_RULE` times the rule of thumb, 0.5 k^2 / d_model. λ = 0 is
            always added, for comparison.
        steps: the number of training steps; the recipe's own number if that is smaller.

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
        coefficients = [float(f"{share * rule:.2g}") for share in MULTIPLES_OF_RULE]
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
    catalog_with_sweep = catalog.model_copy(update={"sweeps": catalog.sweeps | {key: Sweep(local=local)}})
    return ShortSweep(catalog_with_sweep, key, full.steps, least)


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
        "any layer and with any λ"
    )


def suggested(sweep: ShortSweep, runs: DataFrame, faults: Sequence[Sequence[str]], keep: float) -> float:
    """Return the largest λ whose pair would pass the check `faithful` and whose two SAEs each explain at least `keep`
    times the variance that they explain at λ = 0.

    Args:
        runs: the table of the sweep.
        faults: for each row of `runs`, the faults that the check found.
        keep: a share between 0 and 1.

    Raises:
        NothingToSuggest: no λ above 0 satisfies this.
    """
    steps = f"after {sweep.local.train.config.steps} steps"
    without_penalty = faults[runs["jacobian_coefficient"].tolist().index(0)]
    if without_penalty or not (_without_penalty(runs) > 0).all():
        why = "; ".join(without_penalty) or "one of its SAEs explains nothing"
        raise NothingToSuggest(
            f"No λ can be suggested: {steps} even the pair without a penalty (λ = 0) is not fit to be measured "
            f"({why}). Give it more steps (--steps), or change the recipe."
        )
    enough = _keeps(runs, keep).all(axis="columns")
    acceptable = [
        coefficient
        for coefficient, explains_enough, run_faults in zip(runs["jacobian_coefficient"], enough, faults, strict=True)
        if explains_enough and not run_faults
    ]
    largest = max(acceptable, default=0.0)
    if largest > 0:
        return largest
    raise NothingToSuggest(
        f"Even the smallest λ costs too much {steps}: try smaller λ (--coefficients), more steps (--steps), or a "
        "smaller share of explained variance to keep (--keep)."
    )


def _without_penalty(runs: DataFrame) -> Series:
    """The variance that each SAE explains at λ = 0, by its column."""
    return runs.loc[runs["jacobian_coefficient"] == 0, [*SIDES.values()]].iloc[0]


def _keeps(runs: DataFrame, keep: float) -> DataFrame:
    """For each run and SAE, whether it explains at least `keep` times what it explains at λ = 0."""
    return runs[[*SIDES.values()]] >= keep * _without_penalty(runs)


def faults_of(
    sweep: ShortSweep, runs: DataFrame, stored: Callable[[dg.AssetKey, str], StoredTensors], compute: Compute
) -> list[list[str]]:
    """Return, for each run, the faults that the check `faithful` finds in its pair. `stored` gives the stored file of
    an asset's partition."""
    held_out = HeldOut(sweep.catalog, sweep.local, compute)
    pairs = (compute.pair(stored(dg.AssetKey([ASSET, sweep.key]), run_id)) for run_id in runs["run_id"])
    return [
        examined(
            pair, held_out.language_model, held_out.documents, held_out.mlp_inputs, sweep.least, True, compute, print
        ).faults
        for pair in pairs
    ]


def table(runs: DataFrame, faults: Sequence[Sequence[str]]) -> str:
    """Return the results as text, one line for each λ, in increasing order."""
    rows = [
        [
            f"{run['jacobian_coefficient']:g}",
            *(_cell(Number(run[name], Z95 * run[f"{name}_se"], percent=True)) for name in COLUMNS.values()),
            "no" if run_faults else "yes",
        ]
        for (_, run), run_faults in zip(runs.iterrows(), faults, strict=True)
    ]
    ordered = sorted(rows, key=lambda row: float(row[0]))
    return tabulate(ordered, ["λ", *COLUMNS, "faithful"], tablefmt="plain", disable_numparse=True)


def _cell(number: Number) -> str:
    """A number in a narrow column, without its error."""
    return "uncertain" if number.uncertain else str(dataclasses.replace(number, error=None))


def advice(sweep: ShortSweep, runs: DataFrame, faults: Sequence[Sequence[str]], coefficient: float, keep: float) -> str:
    """Return the text that says which λ is suggested, why, what is too much at the next λ, and what to write into the
    catalog. `faults` and `keep` are those of `suggested`."""
    before, here = _without_penalty(runs), runs[runs["jacobian_coefficient"] == coefficient].iloc[0]
    explained = " and ".join(
        f"its {side} SAE explains {Number(here[name], percent=True)}, at λ = 0 {Number(before[name], percent=True)}"
        for side, name in SIDES.items()
    )
    steps, largest = sweep.local.train.config.steps, max(sweep.local.coefficients)
    shares = runs.set_index("jacobian_coefficient")["accounted_share"]
    accounted, accounted_before = (Number(shares[penalty], percent=True) for penalty in (coefficient, 0))
    lines = [
        f"Suggested: λ = {coefficient:g}, the largest of these λ whose pair would pass the check `faithful` and whose "
        f"two SAEs each keep at least {keep:.0%} of the variance that they explain at λ = 0: {explained}.",
        *_limit(runs, faults, coefficient, keep),
        f"Its input latents account for {accounted} of what its output latents compute, at λ = 0 for "
        f"{accounted_before}. If the first number is far smaller, the pair bypasses its latents: prefer a smaller λ.",
        f"Write this into the catalog, in the `config:` of the pair's `train:`:  jacobian_coefficient: {coefficient:g}",
    ]
    if coefficient == largest:
        lines.append("It is the largest λ of this sweep; --coefficients tries larger ones.")
    if steps < sweep.full_steps:
        lines.append(
            f"These pairs were trained for {steps:,} steps, but the catalog's recipe trains for {sweep.full_steps:,}: "
            "check the explained variance and the accounted share again once that pair is trained."
        )
    return "\n".join(lines)


def _limit(runs: DataFrame, faults: Sequence[Sequence[str]], coefficient: float, keep: float) -> Iterator[str]:
    """What is too much at the next larger λ, in a sentence; nothing where this one is the largest."""
    larger = [(other, place) for place, other in enumerate(runs["jacobian_coefficient"]) if other > coefficient]
    if not larger:
        return
    following, place = min(larger)
    run, keeps, before = runs.iloc[place], _keeps(runs, keep).iloc[place], _without_penalty(runs)
    reasons = [
        f"the {side} SAE explains only {Number(run[name], percent=True)}, less than {keep:.0%} of "
        f"{Number(before[name], percent=True)}"
        for side, name in SIDES.items()
        if not keeps[name]
    ]
    if found := faults[place]:
        reasons.append(f"the pair would not pass the check ({'; '.join(found)})")
    yield f"At the next λ, {following:g}, {', and '.join(reasons)}."
