"""The reported results (Farnik et al., 2025) that what is measured here can be compared with.

The numbers are in `reported_results.csv`: one number in each row, shares between 0 and 1, measures under the names that
the assets use. `reported_sweep.csv` has one row for each run of a sweep, with the columns of a table of runs.

Numbers of the same name were not all measured in the same way, so each row gives its definition: `at` (the Jacobian at
the MLP's true input, or at the input SAE's reconstruction), `text`, and `weights` (of the language model: with the
normalisation's gain and bias folded into the MLP, or unprocessed). Here, everything is measured at the true input, with
unprocessed weights, on the text that the catalog names.
"""

from __future__ import annotations

import csv
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class ReportedResult(NamedTuple):
    model: str
    layer: int
    variant: str
    jacobian_coefficient: float
    measure: str
    value: float
    at: str
    text: str
    weights: str

    @property
    def definition(self) -> str:
        """How the number was measured, in words."""
        return definition(self.at, self.text, self.weights)


def definition(at: str, text: str, weights: str) -> str:
    """How a number was measured, in words."""
    where = {"input": "at the true input", "reconstruction": "at the input SAE's reconstruction"}[at]
    return f"{where}, on {text}, {weights} weights"


def reported_results(model: str, layer: int, variant: str, jacobian_coefficient: float) -> dict[str, ReportedResult]:
    """The reported results of a pair by measure; empty if there are none. `model` is the name without its
    organisation."""
    pair = (model, layer, variant, jacobian_coefficient)
    return {result.measure: result for result in all_reported_results() if result[:4] == pair}


def all_reported_results() -> list[ReportedResult]:
    with as_file(files("jsae_core") / "reported_results.csv") as path, path.open(encoding="utf-8", newline="") as file:
        return [
            ReportedResult(
                row["model"],
                int(row["layer"]),
                row["variant"],
                float(row["jacobian_coefficient"]),
                row["measure"],
                float(row["value"]),
                row["at"],
                row["text"],
                row["weights"],
            )
            for row in csv.DictReader(file)
        ]


def reported_sweep(model: str, layer: int) -> pd.DataFrame:
    """The reported runs of a sweep at a layer, one row each (no row if none was reported): `jacobian_coefficient`,
    `ce_score`, the share `above_0.01`, where its Jacobian was evaluated (`jacobian_at`), and its `definition` in words.
    `model` is the name without its organisation."""
    import pandas as pd

    with (files("jsae_core") / "reported_sweep.csv").open(encoding="utf-8") as file:
        sweeps = pd.read_csv(file)
    runs = sweeps[(sweeps["model"] == model) & (sweeps["layer"] == layer)].reset_index(drop=True)
    definitions = [definition(*row) for row in runs[["at", "text", "weights"]].itertuples(index=False)]
    columns = runs[["jacobian_coefficient", "ce_score", "above_0.01", "at"]].rename(columns={"at": "jacobian_at"})
    return columns.assign(definition=definitions)
