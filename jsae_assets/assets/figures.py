"""`figures/<variant>/...`: what a variant's measures look like beside those of the variant it is compared with.

Here: choosing what goes into which figure. Not here: drawing (`jsae_core.figures`).
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets.assets.cell import OWNERS, SETTINGS, THRESHOLDS, Cell, cell_asset, find_cell
from jsae_assets.catalog import Catalog
from jsae_assets.entries import confirm, depends_on
from jsae_assets.io_managers import StoredTable, StoredTensors, tensor_text
from jsae_assets.partitions import cells, models, of_all_layers

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from jsae_core.figures import Variant

    # of each variant that a figure shows: its stored measures and what was published of it, by name
    Stored = Mapping[Variant, Mapping[str, StoredTensors | StoredTable]]
    Published = Mapping[Variant, Mapping[str, float]]

EXAMPLE_TOKENS = 4
NORMALISATIONS = {None: "as they are", "l1": "divided by their L1 norm", "l2": "divided by their L2 norm"}
GROUP = "figures"


def figure_assets(catalog: Catalog) -> list[dg.AssetsDefinition]:
    """The figures of every variant that is compared with another, where there is a cell or a model that has them."""
    assets = []
    for variant, entry in catalog.variants.items():
        compared = [entry.compared_with, variant]
        if entry.compared_with is None or not models(catalog, compared).get_partition_keys():
            continue
        assets.append(_quality_by_layer(catalog, compared))
        if cells(catalog, compared).get_partition_keys():
            assets += _pair_figures(catalog, compared)
        controls = [_control(catalog, key) for key in compared]
        if all(controls) and cells(catalog, [*compared, *controls]).get_partition_keys():
            assets.append(
                _cell_figure(
                    catalog,
                    [*compared, *controls],
                    f"figures/{variant}",
                    "randomised_control",
                    ["jacobian_histogram"],
                    "Share of Jacobian elements above thresholds, pretrained against randomised language model",
                    _draw_thresholds,
                )
            )
    return assets


def _control(catalog: Catalog, variant: str) -> str | None:
    """The variant that is this one's control, if there is one."""
    return next((key for key, entry in catalog.variants.items() if entry.control_of == variant), None)


def _pair_figures(catalog: Catalog, compared: Sequence[str]) -> list[dg.AssetsDefinition]:
    """The figures of one (model, layer) that show a variant beside the one it is compared with."""
    figure = functools.partial(_cell_figure, catalog, compared, f"figures/{compared[-1]}")
    return [
        figure("jacobian_histogram", ["jacobian_histogram"], "Histogram and CDF of |J|", _draw_histogram),
        figure(
            "jacobian_thresholds",
            ["jacobian_histogram"],
            "Share of Jacobian elements above thresholds",
            _draw_thresholds,
        ),
        figure(
            "jacobian_sparsity",
            ["jacobian_histogram", "pair_quality"],
            "Sparsity of the Jacobian by many measures at once: sparse, or merely small?",
            _draw_sparsity,
        ),
        figure(
            "ablation",
            ["ablation_samples"],
            "What taking one unit of an input latent away does, against what the Jacobian predicts",
            _draw_ablation,
        ),
        figure(
            "function_curves",
            ["function_shapes"],
            "Output latents as functions of single input latents, for a sample of the points of the ablation figure",
            _draw_curves,
        ),
        figure(
            "function_shapes",
            ["function_shapes"],
            "Linear, jumprelu and other functions, and their shares",
            _draw_shapes,
        ),
        *(
            figure(
                "jacobian_examples" + (f"_{normalise}" if normalise else ""),
                ["jacobian_examples"],
                f"Example Jacobians of {EXAMPLE_TOKENS} tokens, {in_words}",
                functools.partial(_draw_examples, normalise=normalise),
            )
            for normalise, in_words in NORMALISATIONS.items()
        ),
    ]


def _cell_figure(
    catalog: Catalog,
    variants: Sequence[str],
    prefix: str,
    name: str,
    measures: Sequence[str],
    description: str,
    draw: Callable[[str, "Stored", "Published"], "Figure"],
) -> dg.AssetsDefinition:
    """A figure of one (model, layer). `draw` is given the subtitle, the variants' stored measures and what was
    published of them."""
    labels = " beside ".join(catalog.variants[variant].label for variant in variants)

    @cell_asset(
        catalog,
        variants,
        prefix,
        name,
        f"{description}: {labels}.",
        code_version="1",
        kinds={"plotly"},
        ins={f"{variant}__{measure}": dg.AssetIn([variant, measure]) for variant in variants for measure in measures},
        io_manager_key="figures",
        group=GROUP,
        pool=None,
    )
    def figure(context: dg.AssetExecutionContext, **inputs) -> Iterator[dg.Output]:
        cell = find_cell(context, catalog, variants[0])
        stored = {
            _style(catalog, variant): {measure: inputs[f"{variant}__{measure}"] for measure in measures}
            for variant in variants
        }
        settings = [_settings(by_measure[measures[0]]) for by_measure in stored.values()]
        published = {
            style: _published(cell, variant, setting)
            for style, variant, setting in zip(stored, variants, settings, strict=True)
        }
        yield dg.Output(
            draw(_subtitle(str(cell), [[setting] for setting in settings]), stored, published),
            metadata={
                "source": f"{' and '.join(measures)} of {labels}",
                "catalog_entry": catalog.figure_digest(cell.model_key, [cell.layer], variants),
            },
        )

    return figure


def _quality_by_layer(catalog: Catalog, compared: Sequence[str]) -> dg.AssetsDefinition:
    variant = compared[-1]
    labels = " beside ".join(catalog.variants[key].label for key in compared)
    partitions = models(catalog, compared)

    @dg.asset(
        key=["figures", variant, "quality_by_layer"],
        partitions_def=partitions,
        description=f"Reconstruction and model quality at all layers that are measured, with error bars: {labels}.",
        group_name=GROUP,
        kinds={"plotly"},
        owners=OWNERS,
        code_version="1",
        io_manager_key="figures",
        # a variant may have a name that Dagster keeps from arguments (input, meta, lambda)
        ins={
            f"{key}__pair_quality": dg.AssetIn(
                [key, "pair_quality"], partition_mapping=of_all_layers(catalog, key, compared)
            )
            for key in compared
        },
        deps=[
            depends_on(
                {
                    model: [entry for key in compared for entry in (f"variants/{key}", f"pairs/{key}/{model}")]
                    for model in partitions.get_partition_keys()
                }
            )
        ],
    )
    def quality_by_layer(context: dg.AssetExecutionContext, **inputs) -> Iterator[dg.Output]:
        import pandas as pd

        from jsae_core.figures import quality_by_layer_figure

        confirm(context, catalog)
        model = context.partition_key
        frames = {}
        for key in compared:
            layers = catalog.layers(model, key)
            tables = inputs[f"{key}__pair_quality"]
            tables = tables.values() if isinstance(tables, dict) else [tables]  # one layer: no dict
            rows = [table.frame for table in tables if table.exists()]
            missing = sorted(set(layers) - {row["layer"].item() for row in rows})
            if missing:
                context.log.warning(f"{key}/pair_quality of {model} is not there yet at layers {missing}")
            if not rows:
                raise FileNotFoundError(f"no layer of {model} has {key}/pair_quality yet; materialise it first")
            frames[_style(catalog, key)] = pd.concat(rows).sort_values("layer")
        settings = [frame.to_dict("records") for frame in frames.values()]
        yield dg.Output(
            quality_by_layer_figure(frames, _subtitle(model, settings)),
            metadata={
                "source": f"pair_quality of {labels}",
                "layers": ", ".join(
                    str(layer) for layer in sorted({row["layer"] for rows in settings for row in rows})
                ),
                "catalog_entry": catalog.figure_digest(model, catalog.layers(model), compared),
            },
        )

    return quality_by_layer


def _draw_histogram(subtitle: str, stored: "Stored", published: "Published") -> "Figure":
    from jsae_core.figures import jacobian_histogram_figure

    return jacobian_histogram_figure(_of_each(stored, "jacobian_histogram"), subtitle)


def _draw_thresholds(subtitle: str, stored: "Stored", published: "Published") -> "Figure":
    from jsae_core.figures import jacobian_thresholds_figure
    from jsae_core.measures import share_above

    shares = {
        style: {threshold: share_above(histogram, threshold) for threshold in THRESHOLDS}
        for style, histogram in _of_each(stored, "jacobian_histogram").items()
    }
    names = {threshold: f"share_above_{threshold}" for threshold in THRESHOLDS}
    return jacobian_thresholds_figure(shares, subtitle, _renamed(published, names))


def _draw_sparsity(subtitle: str, stored: "Stored", published: "Published") -> "Figure":
    from jsae_core.figures import jacobian_sparsity_figure

    qualities = {style: table.frame.iloc[0] for style, table in _of_each(stored, "pair_quality").items()}
    return jacobian_sparsity_figure(_of_each(stored, "jacobian_histogram"), qualities, subtitle)


def _draw_ablation(subtitle: str, stored: "Stored", published: "Published") -> "Figure":
    from jsae_core.figures import ablation_figure

    return ablation_figure(_frames(stored, "ablation_samples"), subtitle)


def _draw_curves(subtitle: str, stored: "Stored", published: "Published") -> "Figure":
    from jsae_core.figures import function_curves_figure

    return function_curves_figure(_frames(stored, "function_shapes"), subtitle)


def _draw_shapes(subtitle: str, stored: "Stored", published: "Published") -> "Figure":
    from jsae_core.figures import function_shapes_figure

    names = {shape: f"share_{shape}" for shape in ("linear", "jumprelu", "other")}
    return function_shapes_figure(_frames(stored, "function_shapes"), subtitle, _renamed(published, names))


def _draw_examples(subtitle: str, stored: "Stored", published: "Published", normalise: str | None) -> "Figure":
    """Tokens spread evenly over the prompt, the last one included."""
    from jsae_core.figures import jacobian_examples_figure

    examples = _of_each(stored, "jacobian_examples")
    tokens = tensor_text(next(iter(examples.values()))["token_text"])
    chosen = [round(i * (len(tokens) - 1) / EXAMPLE_TOKENS) for i in range(1, EXAMPLE_TOKENS + 1)]
    return jacobian_examples_figure(
        {style: example["jacobian"][chosen] for style, example in examples.items()},
        [tokens[place] for place in chosen],
        subtitle,
        normalise,
        seed=0,
    )


def _style(catalog: Catalog, variant: str) -> "Variant":
    from jsae_core.figures import Variant

    entry = catalog.variants[variant]
    return Variant(entry.label, entry.colour)


def _of_each(stored: "Stored", measure: str) -> dict["Variant", StoredTensors | StoredTable]:
    return {style: by_measure[measure] for style, by_measure in stored.items()}


def _frames(stored: "Stored", measure: str) -> dict["Variant", "DataFrame"]:
    return {style: table.frame for style, table in _of_each(stored, measure).items()}


def _published(cell: Cell, variant: str, setting: Mapping[str, float]) -> dict[str, float]:
    from jsae_core.published import published_results

    model = cell.model.published_name(cell.model_key)
    return published_results(model, cell.layer, variant, setting["jacobian_coefficient"])


def _renamed(published: "Published", names: Mapping) -> dict["Variant", dict]:
    """The published results that a figure draws, under the figure's own keys; variants without any are left out."""
    chosen = {
        style: {key: results[name] for key, name in names.items() if name in results}
        for style, results in published.items()
    }
    return {style: results for style, results in chosen.items() if results}


def _settings(stored: StoredTensors | StoredTable) -> dict[str, float]:
    """What a measure was stored with: the pair's settings and the number of tokens."""
    if isinstance(stored, StoredTable):
        return stored.frame.attrs
    settings = {name: stored[name].item() for name in SETTINGS}
    return settings | {"n_tokens": int(stored["n_tokens"]) if "n_tokens" in stored else len(stored["token_ids"])}


def _subtitle(where: str, settings: Sequence[Sequence[Mapping[str, float]]]) -> str:
    """Model, layer, tokens and settings, of every partition of every variant; where the variants differ, theirs in the
    order they are drawn in."""

    def setting(name: str) -> str:
        ends = [(min(s[name] for s in partitions), max(s[name] for s in partitions)) for partitions in settings]
        values = [f"{low:,g}" if low == high else f"{low:,g} to {high:,g}" for low, high in ends]
        return values[0] if len(set(values)) == 1 else " / ".join(values)

    named = ", ".join(f"{label} {setting(name)}" for name, label in SETTINGS.items())
    return f"{where}, {int(settings[0][0]['n_tokens']):,} tokens, {named}"
