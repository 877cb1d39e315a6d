"""Finds checkpoints that are no longer used: those of cells, runs of sweeps and assets that were removed from the
catalog.

They are reported, not deleted, because another catalog may use the same storage, and removed entries may come back. Not
here: where checkpoints lie (`checkpoints.py`), half-written files (`storage.py`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import dagster as dg
from upath import UPath

from jsae_assets.catalog import Catalog
from jsae_assets.files.storage import stored_at
from jsae_assets.partitions import partition_keys
from jsae_assets.sections import CHECKPOINTS
from jsae_core.memory import in_bytes

MOST_NAMED = 5
ENDING, PIECES = ".safetensors", ".parts/"


def left_over(base: UPath, catalog: Catalog, graph: Any) -> Counter[str]:
    """Return the sizes in bytes of checkpoints that do not belong to the catalog, by their paths below the folder of
    checkpoints (without extension)."""
    folder = base / CHECKPOINTS
    files = folder.fs.find(folder.path, detail=True)
    used, sizes = _paths_of(catalog, graph), Counter[str]()
    for path, info in files.items():
        place = path[len(folder.path.rstrip("/")) + 1 :].partition(PIECES)[0].removesuffix(ENDING)
        if place not in used and "/." not in place:  # files whose names begin with a dot are being written
            sizes[place] += info["size"]
    return sizes


def _paths_of(catalog: Catalog, graph: Any) -> set[str]:
    """Return the paths at which the catalog's own checkpoints are stored, if there are any."""
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


def message_about(sizes: Counter[str], base: UPath) -> str:
    """Return a message that names the largest unused checkpoints and says what to do."""
    names = [f"{place} ({in_bytes(size)})" for place, size in sizes.most_common(MOST_NAMED)]
    if len(sizes) > MOST_NAMED:
        names.append(f"{len(sizes) - MOST_NAMED} more")
    return (
        f"Checkpoints that do not belong to this catalog take {in_bytes(sizes.total())} in {base / CHECKPOINTS}: "
        f"{', '.join(names)}. If no other catalog uses this storage, delete these files"
    )
