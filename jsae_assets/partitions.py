"""Partitions: what of a catalog can be asked for. Only what the catalog holds is a partition.

Here: the definitions, made from the catalog when the code location is loaded, the mappings between them, and where a
partition is stored. A cell is a (model, layer) at which a pair exists; its key names both, such as `my-model:3`.
Not here: what is made of a partition (`assets/`).
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from jsae_assets.catalog import Catalog

SEPARATOR = ":"  # no name of a model or sweep holds one


def cell_key(model: str, layer: int) -> str:
    return f"{model}{SEPARATOR}{layer}"


def split_cell(key: str) -> tuple[str, int]:
    """The model and the layer of a cell."""
    model, layer = key.split(SEPARATOR)
    return model, int(layer)


def stored_below(key: str) -> str:
    """Where a partition's file lies below its asset's folder, without the extension: <layer>/<model>, or the key."""
    return "{1}/{0}".format(*split_cell(key)) if SEPARATOR in key else key


def cells(catalog: Catalog, variants: Sequence[str]) -> dg.StaticPartitionsDefinition:
    """The cells that each of these variants holds."""
    return dg.StaticPartitionsDefinition([cell_key(*cell) for cell in _held(catalog, variants)])


def models(catalog: Catalog, variants: Sequence[str] = ()) -> dg.StaticPartitionsDefinition:
    """The models at which each of these variants holds a pair."""
    return dg.StaticPartitionsDefinition(
        [model for model in catalog.models if all(catalog.layers(model, variant) for variant in variants)]
    )


def sweeps(catalog: Catalog) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(list(catalog.sweeps))


def of_same_model(catalog: Catalog, variants: Sequence[str]) -> dg.StaticPartitionMapping:
    """A cell of these variants reads the one partition of its model."""
    return dg.StaticPartitionMapping(
        {
            model: [cell_key(model, layer) for held, layer in _held(catalog, variants) if held == model]
            for model in models(catalog, variants).get_partition_keys()
        }
    )


def of_all_layers(catalog: Catalog, variant: str, variants: Sequence[str]) -> dg.StaticPartitionMapping:
    """A model at which each of `variants` holds a pair reads all its cells of one of them."""
    return dg.StaticPartitionMapping(
        {
            cell_key(model, layer): model
            for model in models(catalog, variants).get_partition_keys()
            for layer in catalog.layers(model, variant)
        }
    )


def _held(catalog: Catalog, variants: Sequence[str]) -> list[tuple[str, int]]:
    return [
        (model, layer)
        for model in catalog.models
        for layer in catalog.layers(model)
        if all(catalog.pair(variant, model, layer) for variant in variants)
    ]
