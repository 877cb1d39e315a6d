"""`python -m jsae_assets.reported`: what was measured beside what was reported, for the pairs that the catalog shares
with Farnik et al. (2025).

What is measured of every pair is at the MLP's true input, with the model's own, unprocessed weights, on the catalog's
text. Where a number was reported with folded weights, it is measured like that as well ("likewise"), and the difference
is of those two. The last column says how the reported number was taken; a difference between two definitions (another
text, say) is no failure to reproduce.

Here: the comparison. Not here: the reported numbers (`jsae_core.reported`), measuring (materialise the assets first).
"""

import sys

import dagster as dg
from tabulate import tabulate

from jsae_assets.catalog import Catalog, CatalogError, load_catalog
from jsae_assets.freshness import latest_metadata
from jsae_assets.home import home
from jsae_assets.partitions import cell_key
from jsae_core.reported import ReportedResult, all_reported_results
from jsae_core.terms import AS_PUBLISHED, FUNCTION_SHAPES

HEADER = ("model", "layer", "variant", "λ", "measure", "reported", "likewise", "difference", "measured", "reported as")
SHARES_OF_SHAPES = {f"share_{shape}" for shape in FUNCTION_SHAPES}


def comparison(catalog: Catalog, instance: dg.DagsterInstance) -> list[tuple[str, ...]]:
    """A row a reported number, as `HEADER` names them; "likewise" says why where there is nothing to compare."""
    return [_row(result, _measured(result, catalog, instance)) for result in all_reported_results()]


def _measured(result: ReportedResult, catalog: Catalog, instance: dg.DagsterInstance) -> tuple[float, float] | str:
    """The number by the definition of the reported one, as far as that is about the model's weights, and by that of
    all that is measured here."""
    model = next((key for key, entry in catalog.models.items() if entry.reported_name(key) == result.model), None)
    if model is None or catalog.pair(result.variant, model, result.layer) is None:
        return "not in the catalog"
    measure = "function_shapes" if result.measure in SHARES_OF_SHAPES else "jacobian_histogram"
    partition = cell_key(model, result.layer)
    pair, measured = (
        latest_metadata(instance, dg.AssetKey([result.variant, asset]), partition) for asset in ("sae_pair", measure)
    )
    if pair is None or measured is None:
        return "not materialised"
    if pair["jacobian_coefficient"] != result.jacobian_coefficient:
        return f"the catalog's pair has λ {pair['jacobian_coefficient']:g}"
    likewise = result.measure + (AS_PUBLISHED if result.weights == "folded" else "")
    if likewise not in measured:
        return "made before it was measured likewise"
    return measured[likewise], measured[result.measure]


def _row(result: ReportedResult, measured: tuple[float, float] | str) -> tuple[str, ...]:
    named = (result.model, str(result.layer), result.variant, f"{result.jacobian_coefficient:g}", result.measure)
    if isinstance(measured, str):
        return *named, f"{result.value:.2%}", measured, "", "", result.definition
    likewise, here = measured
    difference = f"{likewise - result.value:+.2%}"
    return *named, f"{result.value:.2%}", f"{likewise:.2%}", difference, f"{here:.2%}", result.definition


def main() -> None:
    try:
        catalog = load_catalog()
    except CatalogError as error:
        sys.exit(str(error))
    home()
    with dg.DagsterInstance.get() as instance:
        print(tabulate(comparison(catalog, instance), HEADER, tablefmt="plain", disable_numparse=True))


if __name__ == "__main__":
    main()
