"""`python -m jsae_assets.reported`: compares measured numbers with reported ones, for the pairs of the catalog that
Farnik et al. (2025) reported on.

Every measure takes the MLP's true input and the model's own, unprocessed weights, on the catalog's text (column
"measured"). If a number was reported for folded weights, it was also measured with folded weights: the column
"comparable" holds the number measured with the weights of the reported one, and "difference" is "comparable" minus
"reported". The last column says how the reported number was defined; a difference that comes from another definition,
such as another text, is no failure to reproduce.

Here: the comparison. Not here: the reported numbers (`jsae_core.reported`), measuring (materialise the assets first).
"""

import sys

import dagster as dg
from tabulate import tabulate

from jsae_assets.catalog import Catalog
from jsae_assets.catalog_file import CatalogError, load_catalog
from jsae_assets.home import home
from jsae_assets.partitions import cell_key
from jsae_assets.runs.freshness import latest_metadata
from jsae_core.reported import ReportedResult, all_reported_results
from jsae_core.terms import AS_PUBLISHED, FUNCTION_SHAPES

NAMES = ("model", "layer", "variant", "λ", "measure")
HEADER = (*NAMES, "reported", "comparable", "difference", "measured", "reported as")
SHARES_OF_SHAPES = {f"share_{shape}" for shape in FUNCTION_SHAPES}


def comparison(catalog: Catalog, instance: dg.DagsterInstance) -> list[tuple[str, ...]]:
    """Return one row for each reported number, with the columns of `HEADER`. If a number cannot be compared, its column
    "comparable" says why."""
    return [_row(result, _measured(result, catalog, instance)) for result in all_reported_results()]


def _measured(result: ReportedResult, catalog: Catalog, instance: dg.DagsterInstance) -> tuple[float, float] | str:
    """Return two measured numbers: one with the model's weights as for the reported number (folded or not), and one
    with the unprocessed weights. If there are none, return the reason."""
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
    comparable = result.measure + (AS_PUBLISHED if result.weights == "folded" else "")
    if comparable not in measured:
        return "made before folded weights were measured too"
    return measured[comparable], measured[result.measure]


def _row(result: ReportedResult, measured: tuple[float, float] | str) -> tuple[str, ...]:
    names = (result.model, str(result.layer), result.variant, f"{result.jacobian_coefficient:g}", result.measure)
    if isinstance(measured, str):
        return *names, f"{result.value:.2%}", measured, "", "", result.definition
    comparable, unprocessed = measured
    difference = f"{comparable - result.value:+.2%}"
    return *names, f"{result.value:.2%}", f"{comparable:.2%}", difference, f"{unprocessed:.2%}", result.definition


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
