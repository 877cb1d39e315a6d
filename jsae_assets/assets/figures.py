"""`figures/<variant>/...`: what a variant's measures look like beside those of the variant it is compared with.

Here: choosing what goes into which figure. Not here: drawing (`jsae_core.figures`).
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets.assets.cell import THRESHOLDS, Cell, cell_asset, find_cell
from jsae_assets.catalog import Catalog
from jsae_assets.io_managers import StoredTensors, tensor_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from jsae_core.figures import Variant

    Stored = Mapping[Variant, StoredTensors]

EXAMPLE_TOKENS = 4
NORMALISATIONS = {None: "as they are", "l1": "divided by their L1 norm", "l2": "divided by their L2 norm"}


def figure_assets(catalog: Catalog, variant: str) -> list[dg.AssetsDefinition]:
    """All figures that compare a variant with its `compared_with`."""
    return [
        _figure_asset(
            catalog, variant, "jacobian_histogram", "jacobian_histogram", "Histogram and CDF of |J|", _draw_histogram
        ),
        _figure_asset(
            catalog,
            variant,
            "jacobian_thresholds",
            "jacobian_histogram",
            "Share of Jacobian elements above thresholds",
            _draw_thresholds,
        ),
        *(
            _figure_asset(
                catalog,
                variant,
                "jacobian_examples" + (f"_{normalise}" if normalise else ""),
                "jacobian_examples",
                f"Example Jacobians of {EXAMPLE_TOKENS} tokens, {in_words}",
                functools.partial(_draw_examples, normalise=normalise),
            )
            for normalise, in_words in NORMALISATIONS.items()
        ),
    ]


def _figure_asset(
    catalog: Catalog, variant: str, name: str, measure: str, description: str, draw: Callable[[str, "Stored"], "Figure"]
) -> dg.AssetsDefinition:
    """A figure of one measure. `draw` is given the subtitle and what is stored of each variant."""
    baseline_variant = catalog.variants[variant].compared_with
    labels = f"{catalog.variants[baseline_variant].label} beside {catalog.variants[variant].label}"

    @cell_asset(
        f"figures/{variant}",
        name,
        f"{description}: {labels}.",
        code_version="1",
        kinds={"plotly"},
        ins={"baseline": dg.AssetIn([baseline_variant, measure]), "measured": dg.AssetIn([variant, measure])},
        io_manager_key="figures",
        group="figures",
        pool=None,
    )
    def figure(
        context: dg.AssetExecutionContext, baseline: StoredTensors, measured: StoredTensors
    ) -> Iterator[dg.Output]:
        cell = _comparable_cell(context, catalog, variant)
        if cell is None:
            return
        stored = _by_variant(catalog, variant, baseline, measured)
        yield dg.Output(
            draw(_subtitle(cell, stored), stored),
            metadata={"source": f"{measure} of {labels}", "catalog_entry": cell.catalog_digest},
        )

    return figure


def _draw_histogram(subtitle: str, stored: "Stored") -> "Figure":
    from jsae_core.figures import jacobian_histogram_figure

    return jacobian_histogram_figure(stored, subtitle)


def _draw_thresholds(subtitle: str, stored: "Stored") -> "Figure":
    from jsae_core.figures import jacobian_thresholds_figure
    from jsae_core.measures import share_above

    shares = {
        style: {threshold: share_above(histogram, threshold) for threshold in THRESHOLDS}
        for style, histogram in stored.items()
    }
    return jacobian_thresholds_figure(shares, subtitle)


def _draw_examples(subtitle: str, stored: "Stored", normalise: str | None) -> "Figure":
    """Tokens spread evenly over the prompt, the last one included."""
    from jsae_core.figures import jacobian_examples_figure

    tokens = tensor_text(next(iter(stored.values()))["token_text"])
    chosen = [round(i * (len(tokens) - 1) / EXAMPLE_TOKENS) for i in range(1, EXAMPLE_TOKENS + 1)]
    return jacobian_examples_figure(
        {style: examples["jacobian"][chosen] for style, examples in stored.items()},
        [tokens[place] for place in chosen],
        subtitle,
        normalise,
        seed=0,
    )


def _comparable_cell(context: dg.AssetExecutionContext, catalog: Catalog, variant: str) -> Cell | None:
    """The cell, if the catalog holds both pairs that the figure compares."""
    if find_cell(context, catalog, catalog.variants[variant].compared_with) is None:
        return None
    return find_cell(context, catalog, variant)


def _by_variant(catalog: Catalog, variant: str, baseline: StoredTensors, measured: StoredTensors) -> "Stored":
    from jsae_core.figures import Variant

    entries = (catalog.variants[catalog.variants[variant].compared_with], catalog.variants[variant])
    return {
        Variant(entry.label, entry.colour): stored for entry, stored in zip(entries, (baseline, measured), strict=True)
    }


def _subtitle(cell: Cell, stored: "Stored") -> str:
    """Model, layer, tokens and settings; where the variants differ, theirs in the order they are drawn in."""
    first = next(iter(stored.values()))
    n_tokens = int(first["n_tokens"]) if "n_tokens" in first else len(first["jacobian"])

    def setting(name: str) -> str:
        values = [f"{tensors[name].item():,g}" for tensors in stored.values()]
        return values[0] if len(set(values)) == 1 else " / ".join(values)

    return (
        f"{cell}, {n_tokens:,} tokens, d_sae {setting('d_sae')}, k {setting('k')}, λ {setting('jacobian_coefficient')}"
    )
