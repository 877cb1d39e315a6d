"""What is stored of a catalog's cells, sweeps and models, read for the pages. What is not there is None.

Not here: how it is shown (`pages.py`, `explorer.py`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.files.estimates import stored_estimates
from jsae_assets.files.stored import StoredFigure, StoredTable, StoredTensors
from jsae_assets.number import Number
from jsae_assets.partitions import cell_key
from jsae_core.terms import THRESHOLDS, Z95

if TYPE_CHECKING:
    import pandas as pd

    from jsae_assets.io_managers import StoringIOManager


@dataclass(frozen=True)
class Stores:
    """The stores, by the kind of what they keep.

    Attributes:
        in_tables: the measures that are kept as tables.
    """

    tensors: StoringIOManager
    tables: StoringIOManager
    figures: StoringIOManager
    in_tables: Sequence[str] = ()

    def tensor_file(self, variant: str, name: str, model: str, layer: int) -> StoredTensors | None:
        return self._there(self.tensors, [variant, name], cell_key(model, layer))

    def table(self, variant: str, name: str, model: str, layer: int) -> StoredTable | None:
        return self._there(self.tables, [variant, name], cell_key(model, layer))

    def tokens(self, model: str) -> StoredTensors | None:
        return self._there(self.tensors, ["tokens"], model)

    def sweep(self, key: str) -> StoredTable | None:
        return self._there(self.tables, ["sweep_runs"], key)

    def figure(self, owner: str, name: str, partition: str) -> StoredFigure | None:
        return self._there(self.figures, ["figures", owner, name], partition)

    def _there(self, store: StoringIOManager, key: list[str], partition: str) -> Any:
        stored = store.stored(dg.AssetKey(key), partition)
        return stored if stored.exists() else None


@dataclass(frozen=True)
class Column:
    """A number of a pair, as a column of the table over all pairs: what it says, and where the number stands."""

    title: str
    explained: str
    measure: str
    name: str
    percent: bool = True


COLUMNS = (
    *(
        Column(f"|J| ≥ {threshold:g}", "share of the Jacobian's elements", "jacobian_histogram", f"above_{threshold}")
        for threshold in THRESHOLDS
    ),
    Column(
        "accounted for",
        "share of the output latents' pre-activations that comes from input latents",
        "latent_accounting",
        "accounted_share",
    ),
    Column(
        "R² of 4 latents",
        "of an output latent, by its four strongest input latents",
        "latent_accounting",
        "r2_attribution_4",
    ),
    Column("explained, input", "variance that the input SAE explains", "pair_quality", "explained_variance_input"),
    Column("explained, output", "variance that the output SAE explains", "pair_quality", "explained_variance_output"),
    Column("CE score", "of the language model with both SAEs spliced in", "pair_quality", "ce_score_pair"),
    Column("KL score", "the same by divergence of what is predicted", "pair_quality", "kl_score_pair"),
)

L1_OVER_L2 = Column("L1/L2", "lower is sparser, on any scale", "jacobian_histogram", "l1_over_l2", percent=False)
OF_PAIR = (*COLUMNS, L1_OVER_L2)  # the last is no column; a sentence needs it where no threshold fits


def numbers(stores: Stores, variant: str, model: str, layer: int) -> dict[str, Number]:
    """The numbers of a pair, by the titles of OF_PAIR; those that are not measured yet are left out."""
    from jsae_core.measures.moments import flat

    rows: dict[str, Mapping[str, Any]] = {}
    for measure in ("latent_accounting", "pair_quality"):
        if (stored := stores.table(variant, measure, model, layer)) is not None:
            rows[measure] = stored.frame.iloc[0].to_dict()
    if (histogram := stores.tensor_file(variant, "jacobian_histogram", model, layer)) is not None:
        rows["jacobian_histogram"] = flat(stored_estimates(histogram))
    return {
        column.title: Number(
            float(row[column.name]),
            Z95 * float(row[f"{column.name}_se"]) if f"{column.name}_se" in row else None,
            column.percent,
        )
        for column in OF_PAIR
        if (row := rows.get(column.measure)) is not None and column.name in row
    }


def settings_of(stores: Stores, variant: str, model: str, layer: int) -> dict[str, Mapping[str, Any]]:
    """By measure, what the numbers of a pair were measured on: the settings of those of OF_PAIR that are stored."""
    found = {
        name: stores.table(variant, name, model, layer)
        if name in stores.in_tables
        else stores.tensor_file(variant, name, model, layer)
        for name in dict.fromkeys(column.measure for column in OF_PAIR)
    }
    return {name: stored.settings for name, stored in found.items() if stored is not None}


def agreement(stores: Stores, variant: str, model: str, layer: int) -> Mapping[str, float] | None:
    """How far interventions do what the Jacobian predicts; None where that is not stored as it is stored now."""
    from jsae_core.measures import ablation_summary

    stored = stores.table(variant, "ablation_samples", model, layer)
    try:
        return None if stored is None else ablation_summary(stored.frame)
    except KeyError:  # a column that an older version did not write: it is out of date, the rest of the site is not
        return None


def variants_at(catalog: Catalog, model: str, layer: int) -> list[str]:
    return [variant for variant in catalog.variants if catalog.pair(variant, model, layer) is not None]


def compared_with(catalog: Catalog, variant: str, among: Container[str]) -> str | None:
    """Of some variants, the one that this one's figures compare it with, or else the first that is compared with it."""
    those = [key for key, entry in catalog.variants.items() if entry.compared_with == variant]
    return next((key for key in (catalog.variants[variant].compared_with, *those) if key and key in among), None)


def sweep_table(stored: StoredTable) -> pd.DataFrame:
    """The columns of a sweep that a reader compares runs by, of those that it has."""
    wanted = [
        "name",
        "state",
        "jacobian_coefficient",
        "above_0.01",
        "ce_score_output",
        "ce_score_pair",
        "kl_score_pair",
    ]
    frame = stored.frame
    return frame[[name for name in wanted if name in frame]]
