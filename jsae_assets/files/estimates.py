"""How estimates are stored with the result of a measure: the value, the standard error, and each document's influence.

Here: the names of tensors and columns that hold estimates, for writing and for reading. Not here: computing estimates
(`jsae_core.measures.moments`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jsae_assets.files.stored import StoredTable, StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

    from jsae_core.measures import Estimate

ESTIMATE, INFLUENCE = "estimate.", "influence."  # prefixes of tensor names
ERROR_COLUMN, INFLUENCE_COLUMN = "_se", "_influence"  # suffixes of column names


def estimate_tensors(estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
    """Return the tensors that store estimates. `estimate.{name}` is the value and its standard error, float64 [2];
    `influence.{name}` is float64 [n_documents]."""
    import torch

    numbers = {
        f"{ESTIMATE}{name}": torch.tensor([estimate.value, estimate.standard_error], dtype=torch.float64)
        for name, estimate in estimates.items()
    }
    return numbers | {
        f"{INFLUENCE}{name}": estimate.influence
        for name, estimate in estimates.items()
        if estimate.influence is not None
    }


def estimate_columns(estimates: Mapping[str, Estimate]) -> dict[str, object]:
    """Return the columns that store estimates in one row: `{name}`, `{name}_se`, and `{name}_influence`, a list with
    one number for each document."""
    columns: dict[str, object] = {}
    for name, estimate in estimates.items():
        columns |= {name: estimate.value, f"{name}{ERROR_COLUMN}": estimate.standard_error}
    return columns | {
        f"{name}{INFLUENCE_COLUMN}": estimate.influence.tolist()
        for name, estimate in estimates.items()
        if estimate.influence is not None
    }


def stored_estimates(stored: StoredTensors | StoredTable) -> dict[str, Estimate]:
    """Return the estimates, by name, of a file of tensors or of the first row of a table."""
    import torch

    from jsae_core.measures import Estimate

    if isinstance(stored, StoredTensors):
        names = [name.removeprefix(ESTIMATE) for name in stored if name.startswith(ESTIMATE)]
        found = {}
        for name in names:
            value, standard_error = stored[f"{ESTIMATE}{name}"].tolist()
            found[name] = Estimate(value, standard_error, stored.get(f"{INFLUENCE}{name}"))
        return found
    row = stored.frame.iloc[0]
    names = [name.removesuffix(INFLUENCE_COLUMN) for name in row.index if name.endswith(INFLUENCE_COLUMN)]
    return {
        name: Estimate(
            float(row[name]),
            float(row[f"{name}{ERROR_COLUMN}"]),
            torch.tensor(row[f"{name}{INFLUENCE_COLUMN}"], dtype=torch.float64),
        )
        for name in names
    }
