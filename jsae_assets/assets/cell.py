"""What all assets of cells share, the (model, layer) partitions: their catalog entries and their declarations.

Not here: any asset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from jsae_assets import groups
from jsae_assets.assets.memory_settings import naming_settings
from jsae_assets.catalog import SETTING_OF, Catalog, Model
from jsae_assets.devices import on_a_device_of_its_own
from jsae_assets.entries import confirm, depends_on
from jsae_assets.partitions import cells, of_same_model, split_cell
from jsae_assets.resources import POOL, downloads_folder
from jsae_assets.sources import LANGUAGE_MODEL_WEIGHTS, Pair

if TYPE_CHECKING:
    from jsae_assets.resources import Compute
    from jsae_core import LanguageModel, SAEPair
    from jsae_core.reported import ReportedResult

OWNERS = ["team:interpretability"]


@dataclass(frozen=True)
class Cell:
    """A (model, layer) partition of a variant and the catalog entries behind it."""

    model_key: str
    layer: int
    model: Model
    pair: Pair
    randomise_seed: int | None  # the seed, if the language model's weights are randomised
    downloads: Path  # the folder for downloads
    say: Callable[[str], None]  # writes to the run's log

    def __str__(self) -> str:
        return f"{self.model_key}, layer {self.layer}"

    def language_model(self, compute: Compute, pair: SAEPair | None = None) -> LanguageModel:
        """The language model of the variant's pairs, with the randomised weights that came with the pair, if any
        did."""
        record = None if pair is None else pair.config.extra.get(LANGUAGE_MODEL_WEIGHTS)
        if not record:
            return compute.language_model(self.model.source, self.randomise_seed)
        weights = compute.cached(
            LANGUAGE_MODEL_WEIGHTS, tuple(record.values()), lambda: self.language_model_weights(record)
        )
        return compute.language_model(self.model.source, randomised_weights=str(weights))

    def reported(self, variant: str, coefficient: float) -> dict[str, ReportedResult]:
        """The numbers reported of a variant's pair with this λ at this cell, by measure."""
        from jsae_core.reported import reported_results

        return reported_results(self.model.reported_name(self.model_key), self.layer, variant, coefficient)

    def language_model_weights(self, record: Mapping[str, str]) -> Path:
        """The file of randomised weights that came with a pair's artifact, found by the pair's configuration."""
        return self.pair.language_model_weights(self.layer, self.downloads, self.say, record)


def cell_at(
    context: dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
    catalog: Catalog,
    variant: str,
) -> Cell:
    """The variant's cell at a run's partition."""
    model, layer = split_cell(context.partition_key)
    pair, seed = catalog.pair(variant, model, layer), catalog.randomise_seed(variant, model)
    return Cell(model, layer, catalog.models[model], pair, seed, downloads_folder(context.instance), context.log.info)


def find_cell(context: dg.OpExecutionContext | dg.AssetExecutionContext, catalog: Catalog, variant: str) -> Cell:
    """The cell at which an asset is made, after confirming that the catalog still has its entries."""
    confirm(context, catalog)
    return cell_at(context, catalog, variant)


def tokens_of(catalog: Catalog, variant: str) -> dg.AssetIn:
    """The input that loads the tokens of a cell's model."""
    return dg.AssetIn("tokens", partition_mapping=of_same_model(catalog, [variant]))


def context_size(model: Model, language_model: LanguageModel) -> int:
    """The most tokens of a document that are used: the catalog's context_size, or the model's own.

    Raises:
        ValueError: the catalog says more than the model can take.
    """
    if model.context_size is not None and model.context_size > language_model.context_size:
        raise ValueError(
            f"the catalog's context_size is {model.context_size:,}, but {language_model.name} has a context of "
            f"{language_model.context_size:,}; leave it out, or give at most that"
        )
    return model.context_size or language_model.context_size


class Stopwatch:
    """Counts the seconds since it was made, for the metadata of a materialisation."""

    def __init__(self):
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)


def cell_asset(
    catalog: Catalog,
    variants: Sequence[str],
    prefix: str,
    name: str,
    description: str,
    code_version: str,
    kinds: set[str],
    ins: Mapping[str, dg.AssetIn],
    io_manager_key: str = "tensors",
    group: str | None = None,
    pool: str | None = POOL,
    priority: int = 0,
    also: Mapping[str, Sequence[str]] | None = None,
) -> Callable[..., dg.AssetsDefinition]:
    """`dagster.asset` with what all assets of cells have in common: it exists at the cells that all of `variants` hold,
    it is in its variant's group unless another is given, and its errors about memory name the settings that help.

    Args:
        priority: of the steps that can begin, the one with the highest priority begins first.
        also: further entries of the catalog that it depends on, by cell.
    """
    asset = dg.asset(
        **of_cells(catalog, variants, prefix, name, group),
        description=description,
        code_version=code_version,
        kinds=kinds,
        ins=ins,
        deps=[entries_of_cells(catalog, variants, name, group, also)],
        io_manager_key=io_manager_key,
        pool=pool,
        op_tags=step_priority(priority),
    )
    return lambda body: asset(naming_settings(on_a_device_of_its_own(body) if pool == POOL else body))


def of_cells(
    catalog: Catalog, variants: Sequence[str], prefix: str, name: str, group: str | None = None
) -> dict[str, Any]:
    """Dagster's arguments for an asset that exists at the cells that all of `variants` hold."""
    return {
        "key": prefix.split("/") + [name],
        "partitions_def": cells(catalog, variants),
        "group_name": group or groups.of_variant(prefix),
        "owners": OWNERS,
    }


def entries_of_cells(
    catalog: Catalog,
    variants: Sequence[str],
    name: str,
    group: str | None = None,
    also: Mapping[str, Sequence[str]] | None = None,
) -> dg.AssetDep:
    """The dependencies of an asset of cells on the catalog's entries that it is made from."""
    further = also or {}
    return depends_on(
        {
            key: [*_entries(key, variants, name, group), *further.get(key, ())]
            for key in cells(catalog, variants).get_partition_keys()
        }
    )


def step_priority(priority: int) -> dict[str, str]:
    """The tag in which Dagster's executors look for a step's priority."""
    return {"dagster/priority": str(priority)}


def turn(catalog: Catalog, variant: str) -> int:
    """The priority of a variant's steps. All of a variant's steps come before those of the next one, so that a run
    loads each pair once."""
    return -list(catalog.variants).index(variant)


def _entries(cell: str, variants: Sequence[str], asset: str, group: str | None) -> list[str]:
    """The catalog's entries that an asset is made from at a cell: its pairs, and the entries on how they are drawn or
    the model's setting for this measure."""
    pairs = [f"pairs/{variant}/{cell}" for variant in variants]
    if group is not None:
        return pairs + [f"variants/{variant}" for variant in variants]
    return pairs + ([f"models/{split_cell(cell)[0]}/{asset}"] if asset in SETTING_OF.values() else [])
