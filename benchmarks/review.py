"""A review's numbers beside ours: `python -m benchmarks.review [STORAGE]`, on the pairs that `make demo` stored.

A reviewer computed them from the demo's pairs, with code of their own. Each is taken again from the stored pair by the
public functions of `jsae_core`, and printed with the difference. The exit status is 1 if one of them is further off
than its row allows, 2 if a file is missing. (A minute or two on two cores.)

Here: what was found, and how each number is taken. Not here: what the measures are (`jsae_core.measures`).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tabulate import tabulate

from jsae_core import LanguageModel, MLPInputs, SAEPair, load_language_model
from jsae_core.measures import (
    classify_curves,
    function_shapes,
    jacobian_histogram,
    jacobian_measures,
    latent_accounting,
    latent_activity,
    pair_quality,
)
from jsae_core.measures.histogram import share_above
from jsae_core.sealed_files import check_undamaged
from jsae_core.tensor_files import read_tensors
from jsae_core.terms import NOTEWORTHY
from jsae_core.text import first_tokens, split_documents

ROOT = Path(__file__).parent.parent
STORAGE = ROOT / "dagster_home" / "storage"
MODEL, EMBEDDED = "stdlib-1m", ROOT / "jsae_core" / "embedded_model"
BOTH = ("traditional", "jsae")
ALL, OF_QUALITY = 10_000, 3_000  # tokens
OF_LEVELS = 1_500  # the review names 10,000 for them as well, on which they are others (docs/measured.md)
CURVES = 3_000
WITHIN = 0.03


class Bench:
    """A stored pair, and the first tokens of the demo's held-out text that it is measured on."""

    def __init__(self, storage: Path, language_model: LanguageModel, variant: str, layer: int):
        self.pair = SAEPair.load(storage / variant / "sae_pair" / str(layer) / f"{MODEL}.safetensors")
        path = storage / "tokens" / f"{MODEL}.safetensors"
        tokens, header = read_tensors(path)
        check_undamaged(path, header)
        self._documents = split_documents(tokens)
        self._language_model = language_model

    def first(self, n_tokens: int) -> MLPInputs:
        documents = first_tokens(self._documents, n_tokens)
        return MLPInputs(self._language_model, documents, self.pair.config.layer)

    @cached_property
    def levels(self) -> dict[str, float]:
        return latent_accounting(self.pair, self.first(OF_LEVELS))

    @cached_property
    def accounting(self) -> dict[str, float]:
        return latent_accounting(self.pair, self.first(ALL))

    @cached_property
    def curves(self):
        return function_shapes(self.pair, self.first(ALL), CURVES, n_curves=CURVES)


def level(name: str, bench: Bench) -> float:
    return bench.levels[name]


def accounting(name: str, bench: Bench) -> float:
    return bench.accounting[name]


def output_bias(bench: Bench) -> float:
    return bench.pair.output_sae.b_enc.mean().item()


def ce_score(at_bos: bool, bench: Bench) -> float:
    """Of the output SAE, its reconstruction spliced in at BOS as well or not."""
    pair = bench.pair
    config = dataclasses.replace(pair.config, trained_on_bos=at_bos)
    alike = SAEPair(config, pair.input_sae, pair.output_sae, pair.mlp)
    inputs = bench.first(OF_QUALITY)
    return pair_quality(alike, inputs.language_model, inputs.documents)["ce_score_output"]


def linear_as_published(bench: Bench) -> float:
    return float((bench.curves["shape"] == "linear").mean())


def straight_by_range(bench: Bench) -> float:
    """Of the same curves, those that reach 0.01, the share whose residuals stay within 5% of their range."""
    reaching = bench.curves[~bench.curves["flat"]]
    values = (torch.tensor(np.stack(reaching[name])) for name in ("input_values", "output_values"))
    shapes = classify_curves(*values, rule="relative")
    return shapes.count("linear") / len(shapes)


def share_above_001(at: str, bench: Bench) -> float:
    return jacobian_measures(bench.pair, bench.first(ALL), at=at)["above_0.01"].value


def error_of_share(by_document: bool, bench: Bench) -> float:
    """Standard error of the share of |J| >= 0.01."""
    inputs = bench.first(ALL)
    stream = inputs if by_document else list(inputs)  # a list names no documents
    return jacobian_measures(bench.pair, stream)["above_0.01"].standard_error


def pairs_above(n_tokens: int, bench: Bench) -> float:
    """Of all pairs of latents, those whose mean |J| is above 0.01."""
    histogram = jacobian_histogram(bench.pair, bench.first(n_tokens))
    of_means = {"hist": histogram["mean_jac_hist"], "overflow": histogram["mean_jac_overflow"]}
    return share_above(of_means, NOTEWORTHY)


def dead(n_tokens: int, bench: Bench) -> float:
    """Of the output latents, those that are not active in so many tokens."""
    activity = latent_activity(bench.pair, bench.first(n_tokens))
    return float(activity[activity["side"] == "output"]["dead"].iloc[-1])


class Row(NamedTuple):
    """A number that the review gives for one or both variants of a layer, and how far ours may be off."""

    what: str
    layer: int
    numbers: Sequence[float]
    take: Callable[[Bench], float]
    variants: Sequence[str] = BOTH
    within: float = WITHIN


JSAE, TRADITIONAL = ("jsae",), ("traditional",)
# Numbers that are hardly larger than .03 may be off by a fifth (errors) or a tenth (pairs of latents). How many latents
# it takes is given with one digit after the point, and may be off by a quarter of one.
FIFTH_OF_ERRORS, TENTH_OF_PAIRS, OF_LATENTS = (0.0003, 0.0018), (0.0048, 0.0034, 0.0024), 0.25
REVIEW = (
    Row("p(x)", 1, (0.636, 0.473), partial(level, "p")),
    Row("p(x)", 2, (1.357, 0.803), partial(level, "p")),
    Row("p without input latents", 1, (0.007, 0.291), partial(level, "p_without_latents")),
    Row("p without input latents", 2, (0.059, 0.933), partial(level, "p_without_latents")),
    Row("completeness", 1, (0.73, 0.14), partial(level, "completeness")),
    Row("completeness", 2, (0.90, 0.08), partial(level, "completeness")),
    Row("R²(4), by attribution", 1, (0.62, 0.79), partial(accounting, "r2_4")),
    Row("R²(4), by attribution", 2, (0.68, 0.55), partial(accounting, "r2_4")),
    Row("participation ratio", 1, (16.1, 16.0), partial(accounting, "participation_ratio"), within=OF_LATENTS),
    Row("participation ratio", 2, (16.6, 15.8), partial(accounting, "participation_ratio"), within=OF_LATENTS),
    Row("mean b_enc of the output SAE", 2, (-0.14, 0.41), output_bias),
    Row("CE score, output SAE, spliced in at BOS too", 1, (0.753, 0.642), partial(ce_score, True)),
    Row("CE score, output SAE, BOS kept", 1, (0.891, 0.750), partial(ce_score, False)),
    Row("curves: linear as published", 1, (0.16, 0.57), linear_as_published),
    Row("curves: residuals below 5% of the range", 1, (0.128, 0.197), straight_by_range),
    Row("curves: residuals below 5% of the range", 2, (0.256, 0.225), straight_by_range),
    Row("error of |J| ≥ 0.01, by token", 1, (0.0014,), partial(error_of_share, False), JSAE, FIFTH_OF_ERRORS[0]),
    Row("error of |J| ≥ 0.01, by document", 1, (0.0090,), partial(error_of_share, True), JSAE, FIFTH_OF_ERRORS[1]),
    Row("|J| ≥ 0.01, at the true input", 1, (0.230,), partial(share_above_001, "input"), JSAE),
    Row("|J| ≥ 0.01, at the true input", 2, (0.269,), partial(share_above_001, "input"), JSAE),
    Row("|J| ≥ 0.01, at the reconstruction", 1, (0.187,), partial(share_above_001, "reconstruction"), JSAE),
    Row("|J| ≥ 0.01, at the reconstruction", 2, (0.114,), partial(share_above_001, "reconstruction"), JSAE),
    *(
        Row(f"pairs with mean |J| > 0.01, {n:,} tokens", 2, (number,), partial(pairs_above, n), TRADITIONAL, within)
        for n, number, within in zip((1_000, 3_000, ALL), (0.048, 0.034, 0.024), TENTH_OF_PAIRS, strict=True)
    ),
    *(
        Row(f"dead output latents, {n:,} tokens", 2, (number,), partial(dead, n), JSAE)
        for n, number in zip((1_000, 3_000, ALL), (0.22, 0.15, 0.097), strict=True)
    ),
)


class Compared(NamedTuple):
    what: str
    layer: int
    variant: str
    review: float
    ours: float
    within: float

    @property
    def agrees(self) -> bool:
        return abs(self.ours - self.review) <= self.within


class Benches:
    """The stored pairs of both variants at the layers that are asked for, each loaded once."""

    def __init__(self, storage: Path):
        self._storage, self._language_model = storage, load_language_model(EMBEDDED)
        self._made: dict[tuple[str, int], Bench] = {}

    def at(self, variant: str, layer: int) -> Bench:
        """Raises FileNotFoundError: the pair or the tokens are not stored."""
        if (variant, layer) not in self._made:
            self._made[variant, layer] = Bench(self._storage, self._language_model, variant, layer)
        return self._made[variant, layer]


def compared(benches: Benches, rows: Sequence[Row]) -> list[Compared]:
    """Raises FileNotFoundError as `Benches.at` does."""
    return [
        Compared(row.what, row.layer, variant, number, row.take(benches.at(variant, row.layer)), row.within)
        for row in rows
        for variant, number in zip(row.variants, row.numbers, strict=True)
    ]


def as_text(found: Sequence[Compared]) -> str:
    rows = [
        (
            one.what,
            str(one.layer),
            one.variant,
            f"{one.review:g}",
            f"{one.ours:.4g}",
            f"{one.ours - one.review:+.4f}",
            f"{one.within:g}",
            "yes" if one.agrees else "NO",
        )
        for one in found
    ]
    header = ("number", "layer", "variant", "review", "here", "difference", "allowed", "within")
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def levels_of_all(benches: Benches) -> str:
    """The levels on all tokens, with their standard errors over documents: on few, they are not well known."""
    names = ("p", "p_without_latents", "completeness")
    rows = []
    for layer in (1, 2):
        for variant in BOTH:
            found = benches.at(variant, layer).accounting
            rows.append((str(layer), variant, *(f"{found[name]:.3f} ± {found[f'{name}_se']:.3f}" for name in names)))
    header = ("layer", "variant", "p(x)", "without input latents", "completeness")
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.review", description=__doc__.split("\n\n")[0])
    parser.add_argument("storage", nargs="?", type=Path, default=STORAGE, help="what `make demo` stored (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        benches = Benches(options.storage)
        found = compared(benches, REVIEW)
    except FileNotFoundError as error:
        print(f"{error}\nThe demo's pairs are not in {options.storage}: run `make demo` first", file=sys.stderr)
        return 2
    print(as_text(found))
    apart = sum(not one.agrees for one in found)
    print(f"\n{len(found) - apart} of {len(found)} numbers are within what is allowed.")
    print(f"\nLevels on all {ALL:,} tokens, with standard errors:\n\n{levels_of_all(benches)}")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
