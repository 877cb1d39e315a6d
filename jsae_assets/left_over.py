"""Checkpoints that nobody goes on from: of cells, sweeps' runs and assets that left the catalog.

They are told of, not deleted: another catalog may use the same storage, and what left may come back. Not here: where
checkpoints lie (`checkpoints.py`), half-written files (`storage.py`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import dagster as dg
from upath import UPath

from jsae_assets.catalog import Catalog
from jsae_assets.freshness import partition_keys
from jsae_assets.sections import CHECKPOINTS
from jsae_assets.storage import stored_at
from jsae_core.pace import in_bytes

MOST_NAMED = 5
ENDING, PIECES = ".safetensors", ".parts/"


def left_over(base: UPath, catalog: Catalog, graph: Any) -> Counter[str]:
    """Bytes that the checkpoints take of what a catalog does not hold, by their place below the folder of all."""
    folder = base / CHECKPOINTS
    found = folder.fs.find(folder.path, detail=True)
    held, sizes = _held(catalog, graph), Counter[str]()
    for path, info in found.items():
        place = path[len(folder.path.rstrip("/")) + 1 :].partition(PIECES)[0].removesuffix(ENDING)
        if place not in held and "/." not in place:  # what begins with a point is being written
            sizes[place] += info["size"]
    return sizes


def _held(catalog: Catalog, graph: Any) -> set[str]:
    """Where the catalog's own checkpoints would lie."""
    assets = {
        stored_at(key, partition, "")
        for key in graph.materializable_asset_keys
        for partition in partition_keys(graph.get(key).partitions_def)
    }
    runs = {
        stored_at(dg.AssetKey(["sweep_runs", key]), catalog.run_digest(sweep.local, config), "")
        for key, sweep in catalog.sweeps.items()
        if sweep.local
        for config in sweep.local.configs()
    }
    return assets | runs


def said_of(sizes: Counter[str], base: UPath) -> str:
    """What is left over, and what to do."""
    named = [f"{place} ({in_bytes(size)})" for place, size in sizes.most_common(MOST_NAMED)]
    if len(sizes) > MOST_NAMED:
        named.append(f"{len(sizes) - MOST_NAMED} more")
    return (
        f"Checkpoints of what this catalog does not hold take {in_bytes(sizes.total())} in {base / CHECKPOINTS}: "
        f"{', '.join(named)}. If no other catalog uses this storage, delete these files"
    )
