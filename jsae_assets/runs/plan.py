"""Plans runs: which job runs at which partition, with only those assets that are missing or out of date there.

Here: the assets of each job, the order of the runs, and restricting them to some models, layers or assets. Not here:
what is out of date (`freshness.py`), running jobs (`making.py`, the sensor in `automation.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.partitions import SEPARATOR, partition_keys, split_cell
from jsae_assets.runs.freshness import Freshness, Place

TOKENS_JOB, CELL_JOB, LAYERS_JOB, SWEEP_JOB = "tokenise_text", "measure_cell", "compare_layers", "sync_sweep"
# The tag of an asset that gathers whatever is stored of its upstream assets, so that it does not wait for missing ones
GATHERS = {"jsae/gathers": "true"}
Partitioned = Mapping[dg.AssetKey, dg.PartitionsDefinition | None]


def jobs_of(partitioned: Partitioned) -> dict[str, list[dg.AssetKey]]:
    """Return the assets of each job, by the job's name, with upstream assets first.

    All assets of a job have the same partitions. If variants have pairs at different cells, there are several jobs for
    cells, numbered beginning with the one with the most cells. An asset's inputs exist at all its cells, so they are in
    the same job or in an earlier one.
    """
    by_job: dict[str, dict[dg.PartitionsDefinition | None, list[dg.AssetKey]]] = {
        name: defaultdict(list) for name in (TOKENS_JOB, CELL_JOB, LAYERS_JOB, SWEEP_JOB)
    }
    for key, partitions in partitioned.items():
        name = f"make_{key.path[-1]}" if partitions is None else _job(key)
        by_job.setdefault(name, defaultdict(list))[partitions].append(key)
    return {
        name if number == 1 else f"{name}_{number}": keys
        for name, by_partitions in by_job.items()
        for number, keys in enumerate(_most_partitions_first(by_partitions), start=1)
    }


def _job(key: dg.AssetKey) -> str:
    if key.path == ["tokens"]:
        return TOKENS_JOB
    if "sweep_runs" in key.path:
        return SWEEP_JOB
    return LAYERS_JOB if key.path[-1] == "quality_by_layer" else CELL_JOB


def _most_partitions_first(
    groups: Mapping[dg.PartitionsDefinition | None, list[dg.AssetKey]],
) -> list[list[dg.AssetKey]]:
    return [
        groups[partitions] for partitions in sorted(groups, key=lambda partitions: -len(partition_keys(partitions)))
    ]


@dataclass(frozen=True)
class PlannedRun:
    """One Dagster run: a job at a partition, and the assets to make there, each with the reason."""

    job: str
    partition: str | None
    assets: Mapping[dg.AssetKey, str]

    @property
    def places(self) -> list[Place]:
        return [Place(key, self.partition) for key in self.assets]

    @property
    def title(self) -> str:
        if self.job.startswith(CELL_JOB):
            variants = dict.fromkeys(key.path[1 if key.path[0] == "figures" else 0] for key in self.assets)
            return "{}, layer {}".format(*split_cell(self.partition)) + f" ({', '.join(variants)})" * bool(variants)
        if self.partition is None:
            return self.job.removeprefix("make_")
        titles = {TOKENS_JOB: "{}: tokens", SWEEP_JOB: "sweep {}", LAYERS_JOB: "{}: layers compared"}
        (title,) = (titles[job] for job in titles if self.job.startswith(job))
        names = ", ".join(key.path[-1] for key in self.assets) if self.job not in titles else ""
        return title.format(self.partition) + f" ({names})" * bool(names)


def planned_runs(freshness: Freshness, is_selected: Callable[[Place], bool] = lambda place: True) -> list[PlannedRun]:
    """Return the runs that make the selected places and everything upstream of them. Upstream places of assets that
    gather what is stored are not added.

    For each model come its tokens, its cells and the comparison of its layers; after all models come sweeps, then
    assets without partitions. A run whose places are all up to date is included, without assets.
    """
    places = [place for place in _places(freshness) if is_selected(place)]
    gathering = {place for place in places if gathers(freshness.graph, place.asset)}
    needed = freshness.with_upstream(place for place in places if place not in gathering) | gathering
    reasons = freshness.out_of_date(needed)
    runs = []
    for job, keys in jobs_of(partitions_of(freshness.graph)).items():
        for partition in partition_keys(freshness.graph.get(keys[0]).partitions_def):
            places = [place for key in keys if (place := Place(key, partition)) in needed]
            if places:
                assets = {place.asset: reasons[place] for place in places if place in reasons}
                runs.append(PlannedRun(job, partition, assets))
    return sorted(runs, key=lambda run: _order(freshness.catalog, run))


def gathers(graph: Any, key: dg.AssetKey) -> bool:
    """Whether an asset gathers whatever is stored of its upstream assets, without waiting for missing ones."""
    return GATHERS.items() <= graph.get(key).tags.items()


def partitions_of(graph: Any) -> Partitioned:
    """Return the partitions of each asset that can be materialised, with upstream assets first."""
    return {
        key: graph.get(key).partitions_def
        for key in graph.toposorted_asset_keys
        if key in graph.materializable_asset_keys
    }


def _order(catalog: Catalog, run: PlannedRun) -> tuple:
    models = list(catalog.models)
    if run.partition is None:
        return len(models), 1, 0
    if run.job.startswith(SWEEP_JOB):
        return len(models), 0, 0
    if run.job.startswith(CELL_JOB):
        model, layer = split_cell(run.partition)
        return models.index(model), 1, layer
    return models.index(run.partition), 0 if run.job == TOKENS_JOB else 2, 0


def _places(freshness: Freshness) -> Iterable[Place]:
    for key, partitions in partitions_of(freshness.graph).items():
        for partition in partition_keys(partitions):
            yield Place(key, partition)


def selection(
    models: Sequence[str], layers: Sequence[int], assets: Sequence[str], catalog: Catalog
) -> Callable[[Place], bool]:
    """Return a function that tells whether a place belongs to these models, layers and assets. An empty sequence means
    all of them. An asset is named in full (`jsae/pair_quality`), or by its last part for every variant."""

    def is_selected(place: Place) -> bool:
        if assets and not {place.asset.to_user_string(), place.asset.path[-1]} & set(assets):
            return False
        model, layer = model_and_layer(place, catalog)
        return (not models or model in models) and (not layers or layer in layers)

    return is_selected


def model_and_layer(place: Place, catalog: Catalog) -> tuple[str | None, int | None]:
    """Return the model and the layer of a place, each None if the place has none."""
    if place.partition and SEPARATOR in place.partition:
        return split_cell(place.partition)
    is_of_a_model = place.partition in catalog.models and "sweep_runs" not in place.asset.path
    return place.partition if is_of_a_model else None, None
