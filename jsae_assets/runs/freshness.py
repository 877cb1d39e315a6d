"""Finds the assets that are missing or out of date, for `jsae run`, `make demo` and the automation alike.

The notion is Dagster's own, and so are the records: an asset is out of date when its code version, or the data version
of anything that it was made from (entries of the catalog included), differs from when it was made. Two rules are added
that Dagster does not have: files can be missing or damaged, and everything downstream of an outdated asset is out of
date too. Here: asking the instance and the storage. Not here: planning runs (`plan.py`).
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
from jsae_assets.digests import out_of_groups
from jsae_assets.entries import CATALOG, DATA_VERSION, READ_VERSION
from jsae_assets.files.storage import files_below
from jsae_assets.io_managers import Store, StoringIOManager
from jsae_core.sealed_files import DIGEST

# If an asset reads this many partitions of another asset, or more, Dagster does not record their data versions
# (`test_dagster_itself.py`), so they cannot be compared.
TOO_MANY_PARTITIONS = 100
RECORDS_PER_QUERY = 500
DOWNSTREAM = "is downstream of"  # how a reason begins that may turn out to be none: what is upstream can come out equal


@dataclass(frozen=True)
class Place:
    """A partition of an asset; `partition` is None if the asset has no partitions."""

    asset: dg.AssetKey
    partition: str | None

    def __str__(self) -> str:
        return f"{self.asset.to_user_string()} {self.partition or ''}".rstrip()


@dataclass(frozen=True)
class Made:
    """The latest materialisation of a place, without its metadata, which can be large."""

    storage_id: int
    tags: Mapping[str, str]
    timestamp: float
    digest: str | None  # of the file; None if it was made before files carried a digest


@dataclass
class Freshness:
    """The state of a catalog's assets in an instance, as it was when each was first asked about.

    It reads only records of the places that it is asked about and of everything that they are made from. The records
    of an asset are read together, not place by place, because a catalog can have a hundred thousand places.
    """

    catalog: Catalog
    graph: Any  # the result of `Definitions.resolve_asset_graph`, whose type Dagster does not export
    resources: Mapping[str, Any]
    instance: dg.DagsterInstance
    _latest: dict[Place, Made | None] = field(default_factory=dict)
    _passed: dict[tuple[dg.AssetCheckKey, str | None], bool | None] = field(default_factory=dict)  # None: not run
    _files: dict[dg.AssetKey, Mapping[str | None, float]] = field(default_factory=dict)  # time of the last change
    _reasons: dict[Place, str | None] = field(default_factory=dict)
    _upstream: dict[tuple[dg.AssetKey, dg.AssetKey], Mapping[str, Collection[str]]] = field(default_factory=dict)

    def out_of_date(self, places: Iterable[Place]) -> dict[Place, str]:
        """Return the reason for each of these places that is missing or out of date."""
        places = list(places)
        unknown = self.with_upstream(place for place in places if place not in self._reasons)
        self._read(place for place in unknown if place not in self._reasons)
        for place in sorted(unknown, key=lambda place: self._order[place.asset]):
            self._reasons.setdefault(place, self._reason(place))
        return {place: reason for place in places if (reason := self._reasons[place])}

    def with_upstream(self, places: Iterable[Place]) -> set[Place]:
        """Return these places and everything upstream of them, without the catalog."""
        found: set[Place] = set()
        to_visit = list(places)
        while to_visit:
            place = to_visit.pop()
            if place not in found and place.asset in self._order:
                found.add(place)
                to_visit += self.parents(place)
        return found

    def parents(self, place: Place) -> list[Place]:
        """Return the places that are read to make a place. The partitions of each asset come in the order in which
        Dagster joins their data versions."""
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
            # its private table, because asking the mapping for each partition takes a minute with 69,000 places
            self._upstream[edge] = (
                {downstream: sorted(upstream) for downstream, upstream in mapping._inverse_mapping.items()}
                if isinstance(mapping, dg.StaticPartitionMapping)
                else {partition: [partition] for partition in definition.get_partition_keys()}
            )
        return self._upstream[edge].get(place.partition, ())

    @cached_property
    def _order(self) -> dict[dg.AssetKey, int]:
        """The position of each asset that can be materialised, in an order with upstream assets first."""
        keys = [key for key in self.graph.toposorted_asset_keys if key in self.graph.materializable_asset_keys]
        return {key: position for position, key in enumerate(keys)}

    def _read(self, places: Iterable[Place]) -> None:
        """Read the materialisations, files and checks of these places from the instance and the storage."""
        partitions_by_asset: dict[dg.AssetKey, list[str | None]] = defaultdict(list)
        for place in places:
            partitions_by_asset[place.asset].append(place.partition)
        for key, partitions in partitions_by_asset.items():
            latest = self._read_latest(key, partitions)
            self._latest |= {Place(key, partition): made for partition, made in latest.items()}
            self._files[key] = self._read_files(key, partitions)
            for check in self.graph.get(key).check_keys:
                results = self._read_checks(check, partitions)
                self._passed |= {(check, partition): passed for partition, passed in results.items()}

    def _read_latest(self, key: dg.AssetKey, partitions: Collection[str | None]) -> dict[str | None, Made | None]:
        """Return the latest materialisation of each of these partitions; None if there is none."""
        if None in partitions:
            records = self.instance.fetch_materializations(key, limit=1).records
        else:
            latest = self.instance.event_log_storage.get_latest_storage_id_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION, {str(partition) for partition in partitions}
            )
            ids = list(latest.values())
            records = [
                record
                for start in range(0, len(ids), RECORDS_PER_QUERY)
                for record in self.instance.fetch_materializations(
                    dg.AssetRecordsFilter(key, storage_ids=ids[start : start + RECORDS_PER_QUERY]),
                    limit=RECORDS_PER_QUERY,
                ).records
            ]
        made = {record.partition_key: _made(record) for record in records}
        return {partition: made.get(partition) for partition in partitions}

    def _read_checks(
        self, check: dg.AssetCheckKey, partitions: Collection[str | None]
    ) -> dict[str | None, bool | None]:
        """Return, for each of these partitions, whether the latest finished evaluation of a check passed; None if there
        is none."""
        results: dict[str | None, bool | None] = dict.fromkeys(partitions)
        keys = None if None in partitions else [str(partition) for partition in partitions]
        for info in self.instance.event_log_storage.get_asset_check_partition_info([check], partition_keys=keys):
            status = info.latest_execution_status.name
            if status in ("SUCCEEDED", "FAILED"):
                results[info.partition_key] = status == "SUCCEEDED"
            else:  # the latest evaluation is still running, or its run died
                evaluation = latest_check(self.instance, check, info.partition_key)
                results[info.partition_key] = None if evaluation is None else evaluation.passed
        return results

    def _read_files(self, key: dg.AssetKey, partitions: Collection[str | None]) -> Mapping[str | None, float]:
        """Return when the file of each partition was last changed, in seconds since 1970. Partitions without a file are
        left out. An asset that another project's IO manager stores is taken to have all its files, unchanged."""
        manager = self._manager(key)
        if manager is None:
            return dict.fromkeys(partitions, 0.0)
        if None in partitions:
            stored = manager.stored(key)
            return {None: stored.last_changed()} if stored.exists() else {}
        existing = files_below(manager.base / "/".join(key.path))
        folder = "/".join(key.path) + "/"
        changed = {}
        for partition in partitions:
            stored = manager.stored(key, partition)
            paths = [path.removeprefix(folder) for path in (stored.relative, *stored.companions)]
            if all(path in existing for path in paths):
                changed[partition] = max(existing[path] for path in paths)
        return changed

    def _manager(self, key: dg.AssetKey) -> StoringIOManager | None:
        """Return the IO manager that stores an asset, or None if it is not one of this project's."""
        store = self.resources.get(self.graph.get(key).assets_def.get_io_manager_key_for_asset_key(key))
        return store.manager_of(self.instance) if isinstance(store, Store) else None

    def latest(self, place: Place) -> Made | None:
        """Return the latest materialisation of a place, or None. The place must have been asked about before."""
        return self._latest[place]

    def versions_read(self, place: Place) -> dict[dg.AssetKey, str]:
        """Return the data version of each asset that is read to make a place, as Dagster records it: for an asset with
        partitions, a hash of the versions of all partitions that are read."""
        versions_by_asset: dict[dg.AssetKey, list[str]] = {}
        for parent in self.parents(place):
            versions_by_asset.setdefault(parent.asset, []).append(self._version(parent))
        return {
            key: _joined(versions) if self.graph.get(key).partitions_def else versions[0]
            for key, versions in versions_by_asset.items()
            if len(versions) < TOO_MANY_PARTITIONS
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
        """Return what has changed since a place was made, or None. The result of its check is not considered."""
        if place.partition not in self._files[place.asset]:
            set_aside = self._manager(place.asset).stored(place.asset, place.partition).set_aside_path.exists()
            return "was made, but its file " + ("was damaged and is set aside" if set_aside else "is gone")
        if damage := self._damage(place, made):
            return f"was made, but its file is damaged: {damage}"
        code_version = self.graph.get(place.asset).code_version
        if made.tags.get("dagster/code_version") != code_version:
            return f"was made by code version {made.tags.get('dagster/code_version')}, not {code_version}"
        for key, version in self.versions_read(place).items():
            if made.tags.get(f"{READ_VERSION}/{key.to_user_string()}") != version:
                name = "its entries in the catalog" if key == CATALOG else key.to_user_string()
                return f"was made before {name} changed"
        return None

    def _damage(self, place: Place, made: Made) -> str | None:
        """Return what is wrong with the file of a place, or None. The file is read only if it was changed after its
        materialisation was recorded."""
        if self._files[place.asset][place.partition] <= made.timestamp:
            return None
        stored = self._manager(place.asset).stored(place.asset, place.partition)
        if damage := stored.damage():
            return damage
        is_latest = made.digest is None or made.digest == stored.digest
        return None if is_latest else "it is not the one that was made last"

    def _reason(self, place: Place) -> str | None:
        """Return why a place is missing or out of date, or None. The reasons of all upstream places must be known."""
        made = self.latest(place)
        if made is None:
            return "is missing"
        upstream = next((parent for parent in self.parents(place) if self._reasons.get(parent)), None)
        if upstream:
            return f"{DOWNSTREAM} {upstream}"
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
        """Whether a place failed its check although nothing that it is made from has changed, so that it would fail
        again."""
        made = self.latest(place)
        checks = self.graph.get(place.asset).check_keys
        return (
            made is not None
            and self._change(place, made) is None
            and any(self._passed[check, place.partition] is False for check in checks)
        )


def _made(record: dg.EventLogRecord) -> Made:
    made = record.asset_materialization
    shown = made.metadata.get(DIGEST)
    digest = None if shown is None else out_of_groups(str(shown.value))
    return Made(record.storage_id, made.tags or {}, record.timestamp, digest)


def _joined(versions: Iterable[str]) -> str:
    return hashlib.sha256("".join(versions).encode()).hexdigest()


def latest_metadata(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> dict | None:
    """Return the metadata of the latest materialisation of a partition as plain values, or None if there is none."""
    of_partition = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    record = next(iter(instance.fetch_materializations(of_partition, limit=1).records), None)
    return record and {name: value.value for name, value in record.asset_materialization.metadata.items()}


def latest_check(instance: dg.DagsterInstance, key: dg.AssetCheckKey, partition: str) -> dg.AssetCheckEvaluation | None:
    """Return the latest finished evaluation of a check at a partition, or None if there is none."""
    cursor = None
    while True:
        page = instance.event_log_storage.get_asset_check_execution_history(key, limit=100, cursor=cursor)
        for record in page:
            event = record.event and record.event.dagster_event
            evaluation = event and event.event_specific_data
            if record.partition == partition and isinstance(evaluation, dg.AssetCheckEvaluation):
                return evaluation
        if not page:
            return None
        cursor = page[-1].id
