"""What is missing or out of date: the one answer behind `jsae run`, `make demo` and the automation.

It is Dagster's own notion, read from what Dagster records: an asset is out of date once its code version, or the data
version of anything it was made from, the catalog's entries included, is another than the one it was made with. Two
things are added that Dagster does not know: files that are gone, and that whatever is downstream of something out of
date is out of date, too. Here: asking the instance. Not here: running anything (`plan.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.entries import CATALOG, DATA_VERSION, READ_VERSION
from jsae_assets.io_managers import Store

# Dagster records no data version of so many partitions of one asset that another reads (`test_dagster_itself.py`).
MOST_COMPARED = 100


@dataclass(frozen=True)
class Place:
    """An asset at a partition, or (None) one that has none."""

    asset: dg.AssetKey
    partition: str | None

    def __str__(self) -> str:
        return f"{self.asset.to_user_string()} {self.partition or ''}".rstrip()


def partition_keys(definition: dg.PartitionsDefinition | None) -> list[str | None]:
    return [None] if definition is None else list(definition.get_partition_keys())


@dataclass
class Freshness:
    """What an instance holds of a catalog's graph, as it was when first asked."""

    catalog: Catalog
    graph: Any  # as `Definitions.resolve_asset_graph` gives it; Dagster exports no name for its type
    resources: Mapping[str, Any]
    instance: dg.DagsterInstance
    _records: dict[Place, object] = field(default_factory=dict)

    @cached_property
    def out_of_date(self) -> dict[Place, str]:
        """Everything that is missing or out of date and why, upstream first."""
        found: dict[Place, str] = {}
        for key in self.graph.toposorted_asset_keys:
            if key not in self.graph.materializable_asset_keys:
                continue
            definition = self.graph.get(key).partitions_def
            made = self.instance.get_materialized_partitions(key) if definition else {None}
            for partition in partition_keys(definition):
                place = Place(key, partition)
                reason = "is missing" if partition not in made else self._reason(place, found)
                if reason:
                    found[place] = reason
        return found

    def parents(self, place: Place) -> list[Place]:
        """What is read to make an asset at a partition."""
        found = self.graph.get_parents_partitions(place.asset, place.partition).parent_partitions
        return sorted((Place(parent.asset_key, parent.partition_key) for parent in found), key=str)

    def latest(self, place: Place):
        """The record of the latest materialisation, or None."""
        if place not in self._records:
            wanted = dg.AssetRecordsFilter(
                asset_key=place.asset, asset_partitions=place.partition and [place.partition]
            )
            self._records[place] = next(iter(self.instance.fetch_materializations(wanted, limit=1).records), None)
        return self._records[place]

    def versions_read(self, place: Place) -> dict[dg.AssetKey, str]:
        """The data version, in each asset that is read to make this one, of the partitions that are read."""
        read: dict[dg.AssetKey, list[str]] = {}
        for parent in self.parents(place):  # in the order of the partitions, as Dagster joins them
            read.setdefault(parent.asset, []).append(self._version(parent))
        return {
            key: _joined(versions) if self.graph.get(key).partitions_def else versions[0]
            for key, versions in read.items()
            if len(versions) < MOST_COMPARED
        }

    def _version(self, place: Place) -> str:
        if place.asset == CATALOG:
            return self._entries[place.partition]
        record = self.latest(place)
        return record.asset_materialization.tags[DATA_VERSION] if record else ""

    @cached_property
    def _entries(self) -> Mapping[str, str]:
        return self.catalog.entries()

    def _change(self, place: Place) -> str | None:
        """What has changed since something was made, apart from what its check found."""
        if not self._exists(place):
            return "was made, but its file is gone"
        tags, code_version = self.latest(place).asset_materialization.tags, self.graph.get(place.asset).code_version
        if tags.get("dagster/code_version") != code_version:
            return f"was made by code version {tags.get('dagster/code_version')}, not {code_version}"
        for key, version in self.versions_read(place).items():
            if tags.get(f"{READ_VERSION}/{key.to_user_string()}") != version:
                what = "its entries in the catalog have" if key == CATALOG else f"{key.to_user_string()} has"
                return f"was made before {what} changed"
        return None

    def _exists(self, place: Place) -> bool:
        """Whether the file is there; of what is not kept in a store of ours nothing is known."""
        store = self.resources.get(self.graph.get(place.asset).assets_def.get_io_manager_key_for_asset_key(place.asset))
        if not isinstance(store, Store):
            return True
        return store.manager_of(self.instance).stored(place.asset, place.partition).exists()

    def _reason(self, place: Place, found: Mapping[Place, str]) -> str | None:
        upstream = next((parent for parent in self.parents(place) if parent in found), None)
        if upstream:
            return f"is downstream of {upstream}"
        if self.latest(place) is None:
            return "is missing"
        if change := self._change(place):
            return change
        for check in self.graph.get(place.asset).check_keys:
            evaluation = latest_check(self.instance, check, place.partition)
            if evaluation is None or not evaluation.passed:
                return f"has not passed its check {check.name}"
        return None

    def is_refused(self, place: Place) -> bool:
        """Whether a check failed of what is made from all that it should be made from: made again it would be the
        same."""
        checks = self.graph.get(place.asset).check_keys
        evaluations = [latest_check(self.instance, check, place.partition) for check in checks]
        return (
            self.latest(place) is not None
            and self._change(place) is None
            and any(found is not None and not found.passed for found in evaluations)
        )


def _joined(versions: Iterable[str]) -> str:
    return hashlib.sha256("".join(versions).encode()).hexdigest()


def latest_metadata(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> dict | None:
    """What the latest materialisation of a partition said of itself, as plain values; None if there is none."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    record = next(iter(instance.fetch_materializations(wanted, limit=1).records), None)
    return record and {name: value.value for name, value in record.asset_materialization.metadata.items()}


def latest_check(instance: dg.DagsterInstance, key: dg.AssetCheckKey, partition: str) -> dg.AssetCheckEvaluation | None:
    """The latest finished evaluation of a check at a partition."""
    cursor = None
    while True:
        page = instance.event_log_storage.get_asset_check_execution_history(key, limit=100, cursor=cursor)
        for record in page:
            event = record.event and record.event.dagster_event
            found = event and event.event_specific_data
            if record.partition == partition and isinstance(found, dg.AssetCheckEvaluation):
                return found
        if not page:
            return None
        cursor = page[-1].id
