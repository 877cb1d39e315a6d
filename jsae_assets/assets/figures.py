"""What is drawn: a declaration for each figure.

To add a figure, write its function in `jsae_core.figures` and a declaration in the list of its kind at the end.
Not here: drawing (`jsae_core.figures`), the assets that are made of the declarations, which results they are given and
what their subtitles say (`figure_assets.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsae_assets.files.estimates import stored_estimates
from jsae_assets.files.stored import StoredTable, StoredTensors
from jsae_core.terms import AS_PUBLISHED, FUNCTION_SHAPES, NOTEWORTHY, RELATIVE_SHAPES, THRESHOLDS

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from pandas import DataFrame

    from jsae_core.figures import Variant
    from jsae_core.measures import Estimate
    from jsae_core.reported import ReportedResult

EXAMPLE_TOKENS = 4
NORMALISATIONS = {None: "as they are", "l1": "divided by their L1 norm", "l2": "divided by their L2 norm"}

# What is compared document by document: under each heading, measures, their numbers, and the numbers' names
DIFFERENCES = {
    "Jacobian": (
        ("jacobian_histogram", "above_0.01", "|J| ≥ 0.01"),
        ("jacobian_histogram", "l1_over_l2", "L1/L2 of J"),
    ),
    "Latents": (
        ("latent_accounting", "accounted_share", "accounted share"),
        ("latent_accounting", "r2_attribution_4", "R² of four latents"),
    ),
    "Interventions": (
        ("ablation_samples", "noteworthy_line", "on the line"),
        ("ablation_samples", "noteworthy_dropped", "dropped"),
        ("ablation_samples", "agreement_negligible", "negligible"),
    ),
    "Functions": (
        ("function_shapes", "share_linear", "linear (paper's rule)"),
        ("function_shapes", "relative_linear", "linear (relative rule)"),
        ("function_shapes", "relative_flat", "flat (relative rule)"),
    ),
    "Quality": (
        ("pair_quality", "explained_variance_input", "variance, input SAE"),
        ("pair_quality", "explained_variance_output", "variance, output SAE"),
        ("pair_quality", "ce_score_output", "CE score, output SAE"),
        ("pair_quality", "kl_score_pair", "KL score, both SAEs"),
    ),
}


@dataclass(frozen=True)
class Results:
    """The results of one variant that a figure shows.

    Attributes:
        stored: the measures that it reads, by name.
        reported: numbers reported of the same pair, under the measures' names for their own.
    """

    stored: Mapping[str, StoredTensors | StoredTable]
    reported: Mapping[str, ReportedResult]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name, description: of its asset.
        draw: draws the figure, given the results that figures of its kind get, and the subtitle.
        code_version: a new one makes this figure out of date, and no other.
        reads: the measures that it shows.
        tokens: how its subtitle gives the number of tokens that they were measured on.
    """

    name: str
    description: str
    draw: Callable[[Any, str], go.Figure]
    code_version: str = "1"
    reads: Sequence[str] = ()
    tokens: str = "{:,} tokens"


def _draw_histogram(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    from jsae_core.figures import jacobian_histogram_figure

    return jacobian_histogram_figure(_of_each(results, "jacobian_histogram"), subtitle)


def _draw_thresholds(results: Mapping[Variant, Results], subtitle: str, **words: str) -> go.Figure:
    from jsae_core.figures import jacobian_thresholds_figure

    estimates = {
        variant: stored_estimates(stored) for variant, stored in _of_each(results, "jacobian_histogram").items()
    }
    shares, errors = (
        {
            variant: {threshold: getattr(of[f"above_{threshold}"], field) for threshold in THRESHOLDS}
            for variant, of in estimates.items()
        }
        for field in ("value", "standard_error")
    )
    likewise = {
        variant: {
            threshold: of[name].value for threshold in THRESHOLDS if (name := f"above_{threshold}{AS_PUBLISHED}") in of
        }
        for variant, of in estimates.items()
    }
    names = {threshold: f"share_above_{threshold}" for threshold in THRESHOLDS}
    reported, how = _reported(results, names)
    return jacobian_thresholds_figure(shares, subtitle + how, reported, errors, likewise, **words)


def _draw_control(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    """Shares above thresholds, with what these do not show: whether J is sparser or merely smaller, whether the pairs
    are equally good, and whether they bypass their latents."""
    from jsae_core.figures.style import percent

    large, ratios, said = [], [], []
    for variant, result in results.items():
        sizes = stored_estimates(result.stored["jacobian_histogram"])
        accounted = stored_estimates(result.stored["latent_accounting"])["accounted_share"].value
        explained = stored_estimates(result.stored["pair_quality"])["explained_variance_output"].value
        large.append(percent(sizes[f"above_{NOTEWORTHY:g}"].value))
        ratios.append(f"{sizes['l1_over_l2'].value:.2f}")
        said.append(f"{100 * accounted:.0f} / {100 * explained:.0f}% ({variant.label})")
    other, one = list(results)[:2]
    n_tokens = int(results[one].stored["pair_quality"].settings["n_tokens"])
    return _draw_thresholds(
        results,
        subtitle
        + f" · accounted share / variance that the output SAE explains ({n_tokens:,} tokens): "
        + ", ".join(said),
        question="Does sparsity need a trained language model?",
        answer=f"|J| is {NOTEWORTHY:g} or more for {large[1]} ({one.label}) and {large[0]} ({other.label}) of the "
        f"elements on the trained model, for {large[3]} and {large[2]} on the randomised one. L1/L2 (lower is "
        f"sparser, on any scale): {ratios[1]} and {ratios[0]} on the trained, {ratios[3]} and {ratios[2]} on the "
        "randomised model.",
    )


def _draw_equal_quality(given: tuple[Mapping[Variant, Results], DataFrame], subtitle: str) -> go.Figure:
    """The results of four variants in this order: the one that a variant is compared with, the variant, and the
    controls of both; and the runs of a sweep on the randomised model."""
    from jsae_core.figures import PairNumbers, equal_quality_figure
    from jsae_core.measures import Estimate, interpolated

    results, runs = given
    names = ("explained_variance_output", "above_0.01", "accounted_share")
    estimates: list[tuple[float, list[Estimate]]] = []
    for result in results.values():
        found: dict[str, Estimate] = {}
        for measure in ("pair_quality", "jacobian_histogram", "latent_accounting"):
            found |= stored_estimates(result.stored[measure])
        coefficient = result.stored["pair_quality"].settings["jacobian_coefficient"]
        estimates.append((coefficient, [found[name] for name in names]))
    of_runs = [
        (row["jacobian_coefficient"], [Estimate(row[name], row[f"{name}_se"]) for name in names])
        for row in runs[runs["state"] == "finished"].to_dict("records")
    ]
    trained, randomised = estimates[:2], estimates[2:] + of_runs
    at = trained[1][1][0]
    read_off = [interpolated([(of[0], of[place]) for _, of in randomised], at) for place in range(1, len(names))]

    def numbers(coefficient: float | None, of: Sequence[Estimate]) -> PairNumbers:
        return PairNumbers(coefficient, *((estimate.value, estimate.standard_error) for estimate in of))

    _, variant, _, control = results
    return equal_quality_figure(
        {variant: [numbers(*pair) for pair in trained], control: [numbers(*pair) for pair in randomised]},
        numbers(*trained[1]),
        None if None in read_off else numbers(None, [at, *read_off]),
        subtitle,
    )


def _draw_sparsity(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    from jsae_core.figures import jacobian_sparsity_figure
    from jsae_core.measures.moments import flat

    numbers = {
        variant: flat(stored_estimates(result.stored["jacobian_histogram"]))
        | flat(stored_estimates(result.stored["latent_accounting"]))
        for variant, result in results.items()
    }
    return jacobian_sparsity_figure(_of_each(results, "jacobian_histogram"), numbers, subtitle)


def _draw_ablation(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    from jsae_core.figures import ablation_figure
    from jsae_core.measures import ablation_summary

    samples = _frames(results, "ablation_samples")
    return ablation_figure(samples, subtitle, {variant: ablation_summary(frame) for variant, frame in samples.items()})


def _draw_curves(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    from jsae_core.figures import function_curves_figure

    return function_curves_figure(_frames(results, "function_shapes"), subtitle)


def _draw_shapes(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    from jsae_core.figures import function_shapes_figure
    from jsae_core.measures.samples import shares

    rules = {"shape": FUNCTION_SHAPES, "relative_shape": RELATIVE_SHAPES}
    frames = _frames(results, "function_shapes")
    errors = {
        variant: {
            column: {shape: of.standard_error for shape, of in shares(frame, column, shapes).items()}
            for column, shapes in rules.items()
        }
        for variant, frame in frames.items()
    }
    names = {shape: f"share_{shape}" for shape in FUNCTION_SHAPES}
    reported, how = _reported(results, names)
    return function_shapes_figure(frames, subtitle + how, reported, errors)


def _draw_edge_curve(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    from jsae_core.figures import edge_curve_figure

    overall = {variant: frame.iloc[0].to_dict() for variant, frame in _frames(results, "latent_accounting").items()}
    return edge_curve_figure(overall, subtitle)


def _draw_dead_latents(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    from jsae_core.figures import dead_latents_figure

    return dead_latents_figure(_frames(results, "latent_activity"), subtitle)


def _draw_differences(results: Mapping[Variant, Results], subtitle: str) -> go.Figure:
    """The differences between a variant and the one that it is compared with, measured on the same documents."""
    from jsae_core.figures import Difference, differences_figure
    from jsae_core.measures import difference

    other, one = results
    (of_other, tokens), (of_one, _) = (_estimates(results[variant]) for variant in (other, one))
    groups = {
        heading: [
            Difference(
                name,
                of_one[measure][number].value,
                of_other[measure][number].value,
                difference(of_one[measure][number], of_other[measure][number]).standard_error,
                f"{measure}, {tokens[measure]:,} tokens",
            )
            for measure, number, name in rows
        ]
        for heading, rows in DIFFERENCES.items()
    }
    return differences_figure(one, other, groups, subtitle)


def _estimates(result: Results) -> tuple[dict[str, dict[str, Estimate]], dict[str, int]]:
    """The numbers that have an error, and the number of tokens, by measure."""
    from jsae_core.measures import ablation_estimates
    from jsae_core.measures.samples import shares

    stored = result.stored
    shapes = stored["function_shapes"].frame
    estimates = {
        "ablation_samples": ablation_estimates(stored["ablation_samples"].frame),
        "function_shapes": {f"share_{name}": of for name, of in shares(shapes, "shape", FUNCTION_SHAPES).items()}
        | {f"relative_{name}": of for name, of in shares(shapes, "relative_shape", RELATIVE_SHAPES).items()},
        **{
            measure: stored_estimates(stored[measure])
            for measure in ("jacobian_histogram", "latent_accounting", "pair_quality")
        },
    }
    return estimates, {measure: int(stored[measure].settings["n_tokens"]) for measure in estimates}


def _draw_examples(results: Mapping[Variant, Results], subtitle: str, normalise: str | None) -> go.Figure:
    """The Jacobians of tokens spread evenly over the prompt, the last one included."""
    from jsae_core.figures import jacobian_examples_figure
    from jsae_core.tensor_files import tensor_text

    examples = _of_each(results, "jacobian_examples")
    tokens = tensor_text(next(iter(examples.values()))["token_text"])
    chosen = [round(i * (len(tokens) - 1) / EXAMPLE_TOKENS) for i in range(1, EXAMPLE_TOKENS + 1)]
    return jacobian_examples_figure(
        {
            variant: {name: example[name][chosen] for name in ("jacobian", "output_latents", "input_latents")}
            for variant, example in examples.items()
        },
        [tokens[place] for place in chosen],
        subtitle,
        normalise,
        seed=0,
    )


def _draw_quality_by_layer(rows: Mapping[Variant, DataFrame], subtitle: str) -> go.Figure:
    from jsae_core.figures import quality_by_layer_figure

    return quality_by_layer_figure(rows, subtitle)


def _draw_tradeoff(runs: DataFrame, subtitle: str) -> go.Figure:
    from jsae_core.figures import sweep_tradeoff_figure
    from jsae_core.reported import reported_sweep

    places = runs[["model", "layer"]].dropna().drop_duplicates()
    reported = reported_sweep(*places.iloc[0]) if len(places) == 1 else None
    if reported is None or reported.empty:
        return sweep_tradeoff_figure(runs, subtitle)
    how = " / ".join(reported["definition"].unique())
    return sweep_tradeoff_figure(runs, f"{subtitle} · reported: {how}", reported.drop(columns="definition"))


def _draw_grid(runs: DataFrame, subtitle: str) -> go.Figure:
    from jsae_core.figures import sweep_grid_figure

    return sweep_grid_figure(runs, subtitle)


def _of_each(results: Mapping[Variant, Results], measure: str) -> dict[Variant, StoredTensors | StoredTable]:
    return {variant: result.stored[measure] for variant, result in results.items()}


def _frames(results: Mapping[Variant, Results], measure: str) -> dict[Variant, DataFrame]:
    return {variant: table.frame for variant, table in _of_each(results, measure).items()}


def _reported(results: Mapping[Variant, Results], names: Mapping) -> tuple[dict[Variant, dict], str]:
    """The reported results that a figure draws, under the figure's own keys, without the variants that have none; and
    the subtitle's remark on how they were measured, which differs from the measures here."""
    chosen = {
        variant: {key: result.reported[name] for key, name in names.items() if name in result.reported}
        for variant, result in results.items()
    }
    how = " / ".join(dict.fromkeys(result.definition for of in chosen.values() for result in of.values()))
    values = {variant: {key: of.value for key, of in some.items()} for variant, some in chosen.items() if some}
    return values, f" · reported: {how}" if how else ""


# Figures of a cell: a variant beside the one that it is compared with. Drawn from Results by variant.
CELL_FIGURES = (
    Figure("jacobian_histogram", "Histogram and CDF of |J|", _draw_histogram, "3", ["jacobian_histogram"]),
    Figure(
        "jacobian_thresholds",
        "Share of Jacobian elements above thresholds",
        _draw_thresholds,
        code_version="6",
        reads=["jacobian_histogram"],
    ),
    Figure(
        "jacobian_sparsity",
        "Sparsity of the Jacobian by many measures at once: sparse, or merely small?",
        _draw_sparsity,
        code_version="4",
        reads=["jacobian_histogram", "latent_accounting"],
    ),
    Figure(
        "ablation",
        "What taking one unit of an input latent away does, against what the Jacobian predicts",
        _draw_ablation,
        code_version="6",
        reads=["ablation_samples"],
    ),
    Figure(
        "function_curves",
        "Output latents as functions of single input latents, for a sample of the points of the ablation figure",
        _draw_curves,
        code_version="2",
        reads=["function_shapes"],
    ),
    Figure(
        "function_shapes",
        "Linear, jumprelu and other functions, and their shares",
        _draw_shapes,
        code_version="5",
        reads=["function_shapes"],
    ),
    Figure(
        "edge_curve",
        "How many input latents an output latent needs, and how much comes from them at all",
        _draw_edge_curve,
        code_version="2",
        reads=["latent_accounting"],
    ),
    Figure(
        "differences",
        "What the variant has more and less of, in paired differences over documents",
        _draw_differences,
        code_version="3",
        reads=["jacobian_histogram", "latent_accounting", "ablation_samples", "function_shapes", "pair_quality"],
    ),
    Figure(
        "dead_latents",
        "How many latents are dead, against the number of tokens",
        _draw_dead_latents,
        code_version="2",
        reads=["latent_activity"],
    ),
    *(
        Figure(
            "jacobian_examples" + (f"_{normalise}" if normalise else ""),
            f"Example Jacobians of {EXAMPLE_TOKENS} tokens, {in_words}",
            functools.partial(_draw_examples, normalise=normalise),
            code_version="3",
            reads=["jacobian_examples"],
            tokens=f"{EXAMPLE_TOKENS} of the {{:,}} tokens of the prompt",
        )
        for normalise, in_words in NORMALISATIONS.items()
    ),
)

# Figures of a cell: the same two variants beside their controls.
CONTROL_FIGURES = (
    Figure(
        "randomised_control",
        "Share of Jacobian elements above thresholds, pretrained against randomised language model",
        _draw_control,
        code_version="8",
        reads=["jacobian_histogram", "latent_accounting", "pair_quality"],
    ),
)

# Figures of a sweep on the language model with randomised weights, whose runs differ only in λ from the control of a
# variant. Drawn from the results of the variant, of the one that it is compared with, and of the controls of both, and
# from the table of runs.
SWEEP_CONTROL_FIGURES = (
    Figure(
        "equal_quality",
        "Large elements of the Jacobian and accounted share at equal explained variance, pretrained against randomised "
        "language model",
        _draw_equal_quality,
        code_version="3",
        reads=["pair_quality", "jacobian_histogram", "latent_accounting"],
    ),
)

# Figures of a model. Drawn from the rows of a measure at all layers, by variant.
LAYER_FIGURES = (
    Figure(
        "quality_by_layer",
        "Reconstruction and model quality at all layers that are measured, with error bars",
        _draw_quality_by_layer,
        code_version="2",
        reads=["pair_quality"],
    ),
)

# Figures of a sweep. Drawn from the table of its runs.
SWEEP_FIGURES = (
    Figure(
        "tradeoff",
        "Cross-entropy score and accounted share against the share of Jacobian elements above 0.01",
        _draw_tradeoff,
        code_version="6",
    ),
    Figure("grid", "Many measures of quality against many of sparsity", _draw_grid, code_version="6"),
)
