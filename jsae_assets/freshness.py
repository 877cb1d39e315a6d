"""What is missing or out of date: the one answer behind `jsae run`, `make demo` and the automation.

It is Dagster's own notion, read from what Dagster records: an asset is out of date once its code version, or the data
version of anything it was made from, the catalog's entries included, is another than the one it was made with. Two
things are added that Dagster does not know: files that are gone or damaged, and that whatever is downstream of
something out of date is out of date, too. Here: asking the instance. Not here: running anything (`plan.py`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.entries import CATALOG, DATA_VERSION, READ_VERSION
from jsae_assets.io_managers import Store, StoringIOManager
from jsae_assets.storage import files_below
from jsae_assets.stored import DIGEST

# Dagster records no data version of so many partitions of one asset that another reads (`test_dagster_itself.py`).
MOST_COMPARED = 100
AT_ONCE = 500  # records that are fetched in one query


@dataclass(frozen=True)
class Place:
    """An asset at a partition, or (None) one that has none."""

    asset: dg.AssetKey
    partition: str | None

    def __str__(self) -> str:
        return f"{self.asset.to_user_string()} {self.partition or ''}".rstrip()


@dataclass(frozen=True)
class Made:
    """What is remembered of the latest materialisation of a place; its metadata, which may hold a picture, is not."""

    storage_id: int
    tags: Mapping[str, str]
    timestamp: float
    digest: str | None  # of the file; None where it was made before files carried one


def partition_keys(definition: dg.PartitionsDefinition | None) -> list[str | None]:
    return [None] if definition is None else list(definition.get_partition_keys())


@dataclass
class Freshness:
    """What an instance holds of a catalog's graph, as it was when first asked.

    It reads what concerns the places that it is asked about and what they are made from, an asset at a time and not a
    place at a time: a catalog may have a hundred thousand places.
    """

    catalog: Catalog
    graph: Any  # as `Definitions.resolve_asset_graph` gives it; Dagster exports no name for its type
    resources: Mapping[str, Any]
    instance: dg.DagsterInstance
    _latest: dict[Place, Made | None] = field(default_factory=dict)
    _passed: dict[tuple[dg.AssetCheckKey, str | None], bool | None] = field(default_factory=dict)  # None: never run
    _files: dict[dg.AssetKey, Mapping[str | None, float]] = field(default_factory=dict)  # when changed last
    _reasons: dict[Place, str | None] = field(default_factory=dict)
    _upstream: dict[tuple[dg.AssetKey, dg.AssetKey], Mapping[str, Collection[str]]] = field(default_factory=dict)

    def out_of_date(self, places: Iterable[Place]) -> dict[Place, str]:
        """Those of these places that are missing or out of date, and why."""
        places = list(places)
        unknown = self.with_upstream(place for place in places if place not in self._reasons)
        self._read(place for place in unknown if place not in self._reasons)
        for place in sorted(unknown, key=lambda place: self._turns[place.asset]):
            self._reasons.setdefault(place, self._reason(place))
        return {place: reason for place in places if (reason := self._reasons[place])}

    def with_upstream(self, places: Iterable[Place]) -> set[Place]:
        """These places and all that they are made from, the catalog left out."""
        found: set[Place] = set()
        ahead = list(places)
        while ahead:
            place = ahead.pop()
            if place not in found and place.asset in self._turns:
                found.add(place)
                ahead += self.parents(place)
        return found

    def parents(self, place: Place) -> list[Place]:
        """What is read to make an asset at a partition, the partitions of each in the order in which Dagster joins
        them."""
        return [
            Place(parent, partition)
            for parent in sorted(self.graph.get(place.asset).parent_keys, key=str)
            for partition in self._partitions_read(place, parent)
        ]

    def _partitions_read(self, place: Place, parent: dg.AssetKey) -> Collection[str | None]:
        definition = self.graph.get(parent).partitions_def
        if definition is None:
            return [None]
        if place.partition is None:
            return sorted(definition.get_partition_keys())
        edge = place.asset, parent
        if edge not in self._upstream:
            mapping = self.graph.get_partition_mapping(*edge)
            # asked partition by partition, it takes a minute for a catalog of 69,000 places
            self._upstream[edge] = (
                {downstream: sorted(upstream) for downstream, upstream in mapping._inverse_mapping.items()}
                if isinstance(mapping, dg.StaticPartitionMapping)
                else {partition: [partition] for partition in definition.get_partition_keys()}
            )
        return self._upstream[edge].get(place.partition, ())

    @cached_property
    def _turns(self) -> dict[dg.AssetKey, int]:
        """The assets that can be made, each with its place in an order in which nothing is read before it is made."""
        order = [key for key in self.graph.toposorted_asset_keys if key in self.graph.materializable_asset_keys]
        return {key: turn for turn, key in enumerate(order)}

    def _read(self, places: Iterable[Place]) -> None:
        """Ask the instance and the storage what they hold of these places."""
        partitions: dict[dg.AssetKey, list[str | None]] = defaultdict(list)
        for place in places:
            partitions[place.asset].append(place.partition)
        for key, wanted in partitions.items():
            self._latest |= {Place(key, partition): made for partition, made in self._read_latest(key, wanted).items()}
            self._files[key] = self._read_files(key, wanted)
            for check in self.graph.get(key).check_keys:
                found = self._read_checks(check, wanted)
                self._passed |= {(check, partition): passed for partition, passed in found.items()}

    def _read_latest(self, key: dg.AssetKey, partitions: Collection[str | None]) -> dict[str | None, Made | None]:
        if None in partitions:
            records = self.instance.fetch_materializations(key, limit=1).records
        else:
            latest = self.instance.event_log_storage.get_latest_storage_id_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION, {str(partition) for partition in partitions}
            )
            ids = list(latest.values())
            records = [
                record
                for start in range(0, len(ids), AT_ONCE)
                for record in self.instance.fetch_materializations(
                    dg.AssetRecordsFilter(key, storage_ids=ids[start : start + AT_ONCE]), limit=AT_ONCE
                ).records
            ]
        made = {record.partition_key: _made(record) for record in records}
        return {partition: made.get(partition) for partition in partitions}

    def _read_checks(
        self, check: dg.AssetCheckKey, partitions: Collection[str | None]
    ) -> dict[str | None, bool | None]:
        """Whether the latest finished evaluation passed."""
        found: dict[str | None, bool | None] = dict.fromkeys(partitions)
        keys = None if None in partitions else [str(partition) for partition in partitions]
        for info in self.instance.event_log_storage.get_asset_check_partition_info([check], partition_keys=keys):
            status = info.latest_execution_status.name
            if status in ("SUCCEEDED", "FAILED"):
                found[info.partition_key] = status == "SUCCEEDED"
            else:  # under way, or its run died
                evaluation = latest_check(self.instance, check, info.partition_key)
                found[info.partition_key] = None if evaluation is None else evaluation.passed
        return found

    def _read_files(self, key: dg.AssetKey, partitions: Collection[str | None]) -> Mapping[str | None, float]:
        """The partitions of which the file is there, and when it was changed last; of what is not kept in a store of
        ours nothing is known."""
        manager = self._manager(key)
        if manager is None:
            return dict.fromkeys(partitions, 0.0)
        if None in partitions:
            stored = manager.stored(key)
            return {None: stored.last_changed()} if stored.exists() else {}
        there = files_below(manager.base / "/".join(key.path))
        folder = "/".join(key.path) + "/"
        found = {}
        for one in partitions:
            stored = manager.stored(key, one)
            paths = [path.removeprefix(folder) for path in (stored.relative, *stored.beside)]
            if all(path in there for path in paths):
                found[one] = max(there[path] for path in paths)
        return found

    def _manager(self, key: dg.AssetKey) -> StoringIOManager | None:
        """What stores an asset, if it is one of ours."""
        store = self.resources.get(self.graph.get(key).assets_def.get_io_manager_key_for_asset_key(key))
        return store.manager_of(self.instance) if isinstance(store, Store) else None

    def latest(self, place: Place) -> Made | None:
        """The latest materialisation of a place that was asked about, or None."""
        return self._latest[place]

    def versions_read(self, place: Place) -> dict[dg.AssetKey, str]:
        """The data version, in each asset that is read to make this one, of the partitions that are read."""
        read: dict[dg.AssetKey, list[str]] = {}
        for parent in self.parents(place):
            read.setdefault(parent.asset, []).append(self._version(parent))
        return {
            key: _joined(versions) if self.graph.get(key).partitions_def else versions[0]
            for key, versions in read.items()
            if len(versions) < MOST_COMPARED
        }

    def _version(self, place: Place) -> str:
        if place.asset == CATALOG:
            return self._entries[place.partition]
        made = self.latest(place)
        return made.tags[DATA_VERSION] if made else ""

    @cached_property
    def _entries(self) -> Mapping[str, str]:
        return self.catalog.entries()

    def _change(self, place: Place, made: Made) -> str | None:
        """What has changed since something was made, apart from what its check found."""
        if place.partition not in self._files[place.asset]:
            aside = self._manager(place.asset).stored(place.asset, place.partition).aside.exists()
            return "was made, but its file " + ("was damaged and is set aside" if aside else "is gone")
        if damage := self._damage(place, made):
            return f"was made, but its file is damaged: {damage}"
        code_version = self.graph.get(place.asset).code_version
        if made.tags.get("dagster/code_version") != code_version:
            return f"was made by code version {made.tags.get('dagster/code_version')}, not {code_version}"
        for key, version in self.versions_read(place).items():
            if made.tags.get(f"{READ_VERSION}/{key.to_user_string()}") != version:
                what = "its entries in the catalog" if key == CATALOG else key.to_user_string()
                return f"was made before {what} changed"
        return None

    def _damage(self, place: Place, made: Made) -> str | None:
        """What is wrong with a file. Only one that was touched since it was recorded as made is looked at."""
        if self._files[place.asset][place.partition] <= made.timestamp:
            return None
        stored = self._manager(place.asset).stored(place.asset, place.partition)
        if damage := stored.damage():
            return damage
        is_latest = made.digest is None or made.digest == stored.digest
        return None if is_latest else "it is not the one that was made last"

    def _reason(self, place: Place) -> str | None:
        """Why it is out of date, where all that is upstream is known."""
        made = self.latest(place)
        if made is None:
            return "is missing"
        upstream = next((parent for parent in self.parents(place) if self._reasons.get(parent)), None)
        if upstream:
            return f"is downstream of {upstream}"
        if change := self._change(place, made):
            return change
        for check in self.graph.get(place.asset).check_keys:
            passed = self._passed[check, place.partition]
            if passed is None:
                return f"was made, but its check {check.name} did not run"
            if not passed:
                return f"has not passed its check {check.name}"
        return None

    def is_refused(self, place: Place) -> bool:
        """Whether a check failed of what is made from all that it should be made from: made again it would be the
        same."""
        made = self.latest(place)
        checks = self.graph.get(place.asset).check_keys
        return (
            made is not None
            and self._change(place, made) is None
            and any(self._passed[check, place.partition] is False for check in checks)
        )


def _made(record: dg.EventLogRecord) -> Made:
    made = record.asset_materialization
    digest = made.metadata.get(DIGEST)
    return Made(record.storage_id, made.tags or {}, record.timestamp, None if digest is None else str(digest.value))


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
