"""The reported results (Farnik et al., 2025) that what is measured here can be compared with.

The numbers are in `reported_results.csv`: a row a number, shares between 0 and 1, measures named as the assets name
theirs. `reported_sweep.csv` has a row a run of a sweep, its columns named as those of a table of runs.

Numbers of one name were not all taken in one way, so each row says its definition: `at` (the Jacobian at the MLP's true
input, or at the input SAE's reconstruction), `text`, and `weights` (the language model's, with the normalisation's gain
and bias folded into the MLP, or unprocessed). What is measured here is at the true input, with unprocessed weights, on
the text that the catalog names.
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
        """In words."""
        return definition(self.at, self.text, self.weights)


def definition(at: str, text: str, weights: str) -> str:
    """How a number was taken, in words."""
    where = {"input": "at the true input", "reconstruction": "at the input SAE's reconstruction"}[at]
    return f"{where}, on {text}, {weights} weights"


def reported_results(model: str, layer: int, variant: str, jacobian_coefficient: float) -> dict[str, ReportedResult]:
    """What was reported of a pair, by measure; empty if nothing was. `model` is the name without its organisation."""
    wanted = (model, layer, variant, jacobian_coefficient)
    return {result.measure: result for result in all_reported_results() if result[:4] == wanted}


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
    """What was reported of a sweep at a layer: `jacobian_coefficient`, `ce_score`, the share `above_0.01`, where its
    Jacobian was evaluated (`jacobian_at`), and its `definition` in words, a row a run; no row if nothing was. `model`
    is the name without its organisation."""
    import pandas as pd

    with (files("jsae_core") / "reported_sweep.csv").open(encoding="utf-8") as file:
        sweeps = pd.read_csv(file)
    wanted = (sweeps["model"] == model) & (sweeps["layer"] == layer)
    runs = sweeps[wanted].reset_index(drop=True)
    in_words = [definition(*row) for row in runs[["at", "text", "weights"]].itertuples(index=False)]
    named = runs[["jacobian_coefficient", "ce_score", "above_0.01", "at"]].rename(columns={"at": "jacobian_at"})
    return named.assign(definition=in_words)
