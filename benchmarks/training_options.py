"""`python -m benchmarks.training_options`: the effect of a recipe's options on pairs of the embedded model.

It compares `anti_bypass` with the same recipe without it, `auxk` with a recipe in which latents die, and the objective
l1nb, which does not change when the Jacobian is scaled, with l1. Pairs are trained and measured on the texts of the
default catalog. It prints the tables of docs/training.md, in percent with 95% intervals over documents (some minutes on
two cores).

Here: the recipes to compare. Not here: training and measuring (`jsae_core`), speed (the other benchmarks).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

from jsae_assets.catalog_file import DEFAULT_CATALOG, load_catalog
from jsae_core import MLPInputs, load_language_model, train_pair
from jsae_core.measures import jacobian_measures, latent_accountings, latent_activity, pair_quality
from jsae_core.measures.moments import flat
from jsae_core.terms import Z95
from jsae_core.text import first_tokens, standard_library, tokenise

MODEL = "stdlib-1m"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


class Case(NamedTuple):
    """The recipe of the default catalog's traditional pair, with these settings changed."""

    label: str
    layer: int
    settings: dict[str, Any]


def anti_bypass(weight: float, threshold: float) -> dict[str, Any]:
    return {"anti_bypass": {"weight": weight, "threshold": threshold}}


AUXK = {"auxk": {"coefficient": 1 / 32, "k": 64, "dead_after_tokens": 5120}}
CASES = {
    "anti_bypass": (
        Case("JSAE, λ 6.5", 1, {"jacobian_coefficient": 6.5}),
        Case("JSAE, λ 6.5, anti_bypass", 1, {"jacobian_coefficient": 6.5} | anti_bypass(1.0, 0.9)),
        Case("JSAE, λ 9, anti_bypass", 1, {"jacobian_coefficient": 9.0} | anti_bypass(1.0, 0.9)),
        Case("JSAE, λ 20", 2, {"jacobian_coefficient": 20.0}),
        Case("JSAE, λ 20, anti_bypass", 2, {"jacobian_coefficient": 20.0} | anti_bypass(1.0, 0.9)),
        Case("JSAE, λ 27, anti_bypass", 2, {"jacobian_coefficient": 27.0} | anti_bypass(1.0, 0.9)),
    ),
    "auxk": (
        Case("learning rate 0.02", 1, {"learning_rate": 0.02}),
        Case("learning rate 0.02, auxk", 1, {"learning_rate": 0.02} | AUXK),
        Case("JSAE, λ 20", 2, {"jacobian_coefficient": 20.0}),
        Case("JSAE, λ 20, auxk", 2, {"jacobian_coefficient": 20.0} | AUXK),
    ),
    "objective": (
        Case("traditional", 2, {}),
        Case("JSAE, l1, λ 20", 2, {"jacobian_coefficient": 20.0}),
        Case("JSAE, l1nb, λ 0.1", 2, {"objective": "l1nb", "jacobian_coefficient": 0.1}),
        Case("JSAE, l1nb, λ 0.4", 2, {"objective": "l1nb", "jacobian_coefficient": 0.4}),
    ),
}


class Bench:
    """The embedded model, and the tokens to train and to measure on, as in the default catalog."""

    def __init__(self) -> None:
        catalog = load_catalog(DEFAULT_CATALOG)
        self.model = catalog.models[MODEL]
        self.recipe = catalog.pair("traditional", MODEL, 1).train
        self.language_model = load_language_model(self.model.source[0])
        tokenizer, size = self.language_model.tokenizer, self.language_model.context_size
        self.training = tokenise(standard_library("train"), tokenizer, size, self.recipe.tokens, "truncate")
        self.held_out = tokenise(standard_library("held_out"), tokenizer, size, self.model.tokens, "truncate")

    def measured(self, case: Case) -> dict[str, float]:
        """Train the pair of a case, and return its measured numbers by name."""
        layer, language_model = case.layer, self.language_model
        config = dataclasses.replace(self.recipe.config, **case.settings)
        inputs = torch.cat(list(MLPInputs(language_model, self.training, layer)))
        pair = train_pair(
            [inputs], language_model.mlp(layer), config, MODEL, layer, context_size=language_model.context_size
        )
        stream = MLPInputs(language_model, self.held_out, layer)
        first = first_tokens(self.held_out, self.model.quality_tokens)
        jacobian = jacobian_measures(pair, stream)
        activity = latent_activity(pair, stream).groupby("side").last()
        return (
            latent_accountings(pair, stream).overall
            | pair_quality(pair, language_model, first)
            | flat({name: jacobian[name] for name in ("above_0.01", "kurtosis", "l1_over_l2")})
            | {f"dead_{side}": float(activity.loc[side, "dead"]) for side in activity.index}
        )


COLUMNS = {
    "|J| ≥ 0.01": "above_0.01",
    "L1/L2": "l1_over_l2",
    "accounted": "accounted_share",
    **{f"R²({n})": f"r2_attribution_{n}" for n in (1, 4, 16)},
    "explained: input": "explained_variance_input",
    "output": "explained_variance_output",
    "KL score": "kl_score_pair",
    "dead: input": "dead_input",
    "output ": "dead_output",
}


def in_percent(numbers: dict[str, float], name: str) -> str:
    """Return a number in percent, with its 95% interval over documents if it has a standard error."""
    error = numbers.get(f"{name}_se")
    return f"{100 * numbers[name]:.1f}" + ("" if error is None else f" ± {100 * Z95 * error:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES, help="make only this comparison")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="draw the edge curves of anti_bypass, as PNG files")
    options = parser.parse_args()
    bench = Bench()
    for name, cases in CASES.items():
        if options.only not in (None, name):
            continue
        results = [(case, bench.measured(case)) for case in cases]
        rows = [
            [str(case.layer), case.label, *(in_percent(numbers, column) for column in COLUMNS.values())]
            for case, numbers in results
        ]
        print(tabulate(rows, ["layer", "pair", *COLUMNS], tablefmt="github", disable_numparse=True), flush=True)
        print()
        if options.draw and name == "anti_bypass":
            for layer in sorted({case.layer for case in cases}):
                of_layer = [(case.label, numbers) for case, numbers in results if case.layer == layer]
                draw(of_layer, f"{MODEL}, layer {layer}", options.draw / f"anti_bypass_{layer}.png")


def draw(results: list[tuple[str, dict[str, float]]], subtitle: str, path: Path) -> None:
    """Draw the edge curves of pairs, given their labels and numbers."""
    from jsae_core.figures import Variant, edge_curve_figure
    from jsae_core.figures.export import png

    variants = {Variant(label, colour): numbers for (label, numbers), colour in zip(results, COLOURS, strict=False)}
    picture, reason = png(edge_curve_figure(variants, subtitle))
    if picture is None:
        print(f"{path} was not drawn: {reason}")
    else:
        path.write_bytes(picture)


if __name__ == "__main__":
    main()
