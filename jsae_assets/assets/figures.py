"""`figures/<variant>/...`: what a variant's measures look like beside those of the variant it is compared with.

Here: choosing what goes into which figure. Not here: drawing (`jsae_core.figures`).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets.assets.cell import THRESHOLDS, Cell, cell_asset, find_cell
from jsae_assets.catalog import Catalog
from jsae_assets.io_managers import StoredTensors, tensor_text

if TYPE_CHECKING:
    from jsae_core.figures import Variant

EXAMPLE_TOKENS = 4
NORMALISATIONS = {None: "as they are", "l1": "divided by their L1 norm", "l2": "divided by their L2 norm"}
KINDS = {"plotly"}


def figure_assets(catalog: Catalog, variant: str) -> list[dg.AssetsDefinition]:
    """All figures that compare a variant with its `compared_with`."""
    return [
        _histogram_figure(catalog, variant),
        _thresholds_figure(catalog, variant),
        *(_examples_figure(catalog, variant, normalise) for normalise in NORMALISATIONS),
    ]


def _histogram_figure(catalog: Catalog, variant: str) -> dg.AssetsDefinition:
    @_figure_asset(catalog, variant, "jacobian_histogram", "jacobian_histogram", "Histogram and CDF of |J|")
    def figure(
        context: dg.AssetExecutionContext, baseline: StoredTensors, measured: StoredTensors
    ) -> Iterator[dg.Output]:
        from jsae_core.figures import jacobian_histogram_figure

        cell = _comparable_cell(context, catalog, variant)
        if cell is None:
            return
        stored = _by_variant(catalog, variant, baseline, measured)
        yield _output(cell, jacobian_histogram_figure(stored, _subtitle(cell, stored)))

    return figure


def _thresholds_figure(catalog: Catalog, variant: str) -> dg.AssetsDefinition:
    @_figure_asset(
        catalog, variant, "jacobian_thresholds", "jacobian_histogram", "Share of Jacobian elements above thresholds"
    )
    def figure(
        context: dg.AssetExecutionContext, baseline: StoredTensors, measured: StoredTensors
    ) -> Iterator[dg.Output]:
        from jsae_core.figures import jacobian_thresholds_figure
        from jsae_core.measures import share_above

        cell = _comparable_cell(context, catalog, variant)
        if cell is None:
            return
        stored = _by_variant(catalog, variant, baseline, measured)
        shares = {
            style: {threshold: share_above(histogram, threshold) for threshold in THRESHOLDS}
            for style, histogram in stored.items()
        }
        yield _output(cell, jacobian_thresholds_figure(shares, _subtitle(cell, stored)))

    return figure


def _examples_figure(catalog: Catalog, variant: str, normalise: str | None) -> dg.AssetsDefinition:
    name = "jacobian_examples" + (f"_{normalise}" if normalise else "")
    description = f"Example Jacobians of {EXAMPLE_TOKENS} tokens, {NORMALISATIONS[normalise]}"

    @_figure_asset(catalog, variant, name, "jacobian_examples", description)
    def figure(
        context: dg.AssetExecutionContext, baseline: StoredTensors, measured: StoredTensors
    ) -> Iterator[dg.Output]:
        from jsae_core.figures import jacobian_examples_figure

        cell = _comparable_cell(context, catalog, variant)
        if cell is None:
            return
        stored = _by_variant(catalog, variant, baseline, measured)
        tokens = tensor_text(measured["token_text"])
        chosen = [round(i * (len(tokens) - 1) / EXAMPLE_TOKENS) for i in range(1, EXAMPLE_TOKENS + 1)]
        figure = jacobian_examples_figure(
            {style: examples["jacobian"][chosen] for style, examples in stored.items()},
            [tokens[place] for place in chosen],
            _subtitle(cell, stored),
            normalise,
            seed=0,
        )
        yield _output(cell, figure)

    return figure


def _figure_asset(catalog: Catalog, variant: str, name: str, measure: str, description: str):
    baseline = catalog.variants[variant].compared_with
    labels = f"{catalog.variants[baseline].label} beside {catalog.variants[variant].label}"
    return cell_asset(
        f"figures/{variant}",
        name,
        f"{description}: {labels}.",
        code_version="1",
        kinds=KINDS,
        ins={"baseline": dg.AssetIn([baseline, measure]), "measured": dg.AssetIn([variant, measure])},
        io_manager_key="figures",
        group="figures",
        pool=None,
    )


def _comparable_cell(context: dg.AssetExecutionContext, catalog: Catalog, variant: str) -> Cell | None:
    """The cell, if the catalog holds both pairs that the figure compares."""
    if find_cell(context, catalog, catalog.variants[variant].compared_with) is None:
        return None
    return find_cell(context, catalog, variant)


def _by_variant(
    catalog: Catalog, variant: str, baseline: StoredTensors, measured: StoredTensors
) -> "dict[Variant, StoredTensors]":
    from jsae_core.figures import Variant

    entries = (catalog.variants[catalog.variants[variant].compared_with], catalog.variants[variant])
    return {
        Variant(entry.label, entry.colour): stored for entry, stored in zip(entries, (baseline, measured), strict=True)
    }


def _subtitle(cell: Cell, stored: "Mapping[Variant, StoredTensors]") -> str:
    """Model, layer, tokens and settings; where the variants differ, theirs in the order they are drawn in."""
    first = next(iter(stored.values()))
    n_tokens = int(first["n_tokens"]) if "n_tokens" in first else len(first["jacobian"])

    def setting(name: str) -> str:
        values = [f"{tensors[name].item():,g}" for tensors in stored.values()]
        return values[0] if len(set(values)) == 1 else " / ".join(values)

    return (
        f"{cell}, {n_tokens:,} tokens, d_sae {setting('d_sae')}, k {setting('k')}, λ {setting('jacobian_coefficient')}"
    )


def _output(cell: Cell, figure) -> dg.Output:
    return dg.Output(figure, metadata={"source": "the measures of both variants", "catalog_entry": cell.catalog_digest})
