"""The partitions of the assets: models, cells and sweeps of the catalog. Nothing else can be materialised.

A cell is a (model, layer) at which a pair exists; its key names both, such as `my-model:3`. Here: the partition
definitions, made from the catalog when the code location is loaded, the mappings between them, and where a partition
is stored. Not here: the assets (`assets/`).
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from jsae_assets.catalog import Catalog

SEPARATOR = ":"  # names of models and sweeps do not contain it


def cell_key(model: str, layer: int) -> str:
    return f"{model}{SEPARATOR}{layer}"


def split_cell(key: str) -> tuple[str, int]:
    """Return the model and the layer of a cell key."""
    model, layer = key.split(SEPARATOR)
    return model, int(layer)


def stored_below(key: str) -> str:
    """Return the path of a partition's file below its asset's folder, without the extension: <layer>/<model> for a
    cell, else the key itself."""
    return "{1}/{0}".format(*split_cell(key)) if SEPARATOR in key else key


def partition_keys(definition: dg.PartitionsDefinition | None) -> list[str | None]:
    """Return the partition keys of an asset, or [None] if it has no partitions."""
    return [None] if definition is None else list(definition.get_partition_keys())


def cells(catalog: Catalog, variants: Sequence[str]) -> dg.StaticPartitionsDefinition:
    """Return the cells at which each of these variants has a pair."""
    return dg.StaticPartitionsDefinition([cell_key(*cell) for cell in _cells_of_all(catalog, variants)])


def models(catalog: Catalog, variants: Sequence[str] = ()) -> dg.StaticPartitionsDefinition:
    """Return the models of which each of these variants has a pair."""
    return dg.StaticPartitionsDefinition(
        [model for model in catalog.models if all(catalog.layers(model, variant) for variant in variants)]
    )


def sweeps(catalog: Catalog) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(list(catalog.sweeps))


def of_same_model(catalog: Catalog, variants: Sequence[str]) -> dg.StaticPartitionMapping:
    """Return the mapping by which a cell of these variants reads the partition of its model."""
    return dg.StaticPartitionMapping(
        {
            model: [cell_key(model, layer) for other, layer in _cells_of_all(catalog, variants) if other == model]
            for model in models(catalog, variants).get_partition_keys()
        }
    )


def of_all_layers(catalog: Catalog, variant: str, variants: Sequence[str]) -> dg.StaticPartitionMapping:
    """Return the mapping by which the partition of a model reads all the model's cells of `variant`. The models are
    those of which each of `variants` has a pair."""
    return dg.StaticPartitionMapping(
        {
            cell_key(model, layer): model
            for model in models(catalog, variants).get_partition_keys()
            for layer in catalog.layers(model, variant)
        }
    )


def _cells_of_all(catalog: Catalog, variants: Sequence[str]) -> list[tuple[str, int]]:
    """Return every (model, layer) at which each of these variants has a pair."""
    return [
        (model, layer)
        for model in catalog.models
        for layer in catalog.layers(model)
        if all(catalog.pair(variant, model, layer) for variant in variants)
    ]
