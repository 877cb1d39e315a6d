"""Partitions: the `model` and `layer` dimensions and the sweeps, made from the catalog.

Here: their definitions, the pure function from a catalog to their keys, and registering those with an instance.
Not here: what to do with a (model, layer) that the catalog does not hold (`assets/cell.py`).
"""

from __future__ import annotations

import dagster as dg

from jsae_assets.catalog import Catalog

models = dg.DynamicPartitionsDefinition(name="model")
layers = dg.DynamicPartitionsDefinition(name="layer")
sweeps = dg.DynamicPartitionsDefinition(name="sweep")
cells = dg.MultiPartitionsDefinition({"model": models, "layer": layers})
# a (model, layer) asset reads the one partition of its model
of_same_model = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="model")


def partition_keys(catalog: Catalog) -> dict[str, list[str]]:
    """The keys of each dynamic dimension, by its name. The product of both holds cells that the catalog does not."""
    held = {layer for model in catalog.models for layer in catalog.layers(model)}
    return {
        "model": list(catalog.models),
        "layer": [str(layer) for layer in sorted(held)],
        "sweep": list(catalog.sweeps),
    }


def cell_key(model: str, layer: int) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"model": model, "layer": str(layer)})


def register(catalog: Catalog, instance: dg.DagsterInstance) -> None:
    """Add the catalog's keys to the instance. Keys that left the catalog stay: what is stored under them stays too."""
    for dimension, keys in partition_keys(catalog).items():
        instance.add_dynamic_partitions(dimension, keys)
