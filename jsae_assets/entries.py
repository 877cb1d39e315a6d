"""The asset `catalog`: it has one partition for each entry of the catalog, whose data version is the entry's digest.

Every asset depends on exactly the entries that it is made from, so Dagster knows what is out of date after an entry was
edited. Here: the asset, dependences on it, reporting changed entries to the Dagster instance. Not here: which assets
depend on which entries (`Catalog.entries` and the assets), which assets are out of date (`runs/freshness.py`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import dagster as dg

from jsae_assets import groups
from jsae_assets.catalog import Catalog

CATALOG = dg.AssetKey("catalog")
DATA_VERSION, READ_VERSION = "dagster/data_version", "dagster/input_data_version"


def catalog_spec(catalog: Catalog) -> dg.AssetSpec:
    return dg.AssetSpec(
        CATALOG,
        partitions_def=dg.StaticPartitionsDefinition(list(catalog.entries())),
        description="The entries of the catalog. An asset is out of date once an entry that it was made from has "
        "changed. This asset cannot be materialised in the UI: the sensor catalog_entries and `jsae run` report the "
        "entries that have changed.",
        group_name=groups.CATALOG,
        kinds={"yaml"},
        owners=["team:interpretability"],
    )


def depends_on(entries: Mapping[str, Iterable[str]]) -> dg.AssetDep:
    """Return the dependence of an asset on entries of the catalog.

    Args:
        entries: the names of the entries that each partition of the asset is made from, by partition.
    """
    partitions_by_entry = defaultdict(list)
    for partition, names in entries.items():
        for name in names:
            partitions_by_entry[name].append(partition)
    return dg.AssetDep(CATALOG, partition_mapping=dg.StaticPartitionMapping(dict(partitions_by_entry)))


def known_digests(instance: dg.DagsterInstance, names: Sequence[str] | None = None) -> dict[str, str]:
    """Return the digest of each entry that was last reported to the instance; by default of all entries."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        CATALOG, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION], asset_partitions=names
    )
    return {name: entry_tags[DATA_VERSION] for name, entry_tags in tags.items()}


def input_tags(instance: dg.DagsterInstance, catalog: Catalog, entries: Sequence[str]) -> dict[str, str]:
    """Return the tags that Dagster would give the materialisation of an asset made from these entries. They are for an
    asset that is made within the step of another asset, where Dagster does not set them."""
    (latest,) = instance.fetch_materializations(CATALOG, limit=1).records
    digests = catalog.entries()
    joined = "".join(digests[entry] for entry in sorted(entries))
    return {
        f"{READ_VERSION}/{CATALOG.to_user_string()}": hashlib.sha256(joined.encode()).hexdigest(),
        f"dagster/input_event_pointer/{CATALOG.to_user_string()}": str(latest.storage_id),
    }


def change_events(
    catalog: Catalog, instance: dg.DagsterInstance, names: Sequence[str] | None = None, at_most: int | None = None
) -> list[dg.AssetObservation | dg.AssetMaterialization]:
    """Return events that report the digest of each entry that is new or has changed to the instance.

    Args:
        names: the entries to look at; by default all.
        at_most: the largest number of entries to report.
    """
    known, entries = known_digests(instance, names), catalog.entries()
    changed = [name for name in (entries if names is None else names) if known.get(name) != entries[name]]
    return list(_events({name: entries[name] for name in changed[:at_most]}))


def _events(digests: Mapping[str, str]) -> Iterator[dg.AssetObservation | dg.AssetMaterialization]:
    """Yield an observation of each entry, then a materialisation of each. Both are needed, in this order: when Dagster
    looks for outdated assets it reads the observations of an asset that it cannot materialise, but the data versions
    of downstream assets come from materialisations (`test_dagster_itself.py`)."""
    for event in (dg.AssetObservation, dg.AssetMaterialization):
        for name, digest in digests.items():
            yield event(CATALOG, partition=name, tags={DATA_VERSION: digest})


def report(catalog: Catalog, instance: dg.DagsterInstance, names: Sequence[str] | None = None) -> bool:
    """Report the entries that are new or have changed to the instance (of those with these names, by default of all).
    Return whether there were any."""
    events = change_events(catalog, instance, names)
    for event in events:
        instance.report_runless_asset_event(event)
    return bool(events)


def confirm(context: dg.OpExecutionContext | dg.AssetExecutionContext, catalog: Catalog) -> None:
    """Make sure that the instance knows the entries that an asset is made from as this process has read them. Every
    asset calls this first, because Dagster records an asset as made from the entries that the instance knows.

    Entries that differ are reported to the instance, even if it knows a newer catalog than this process: the record
    must say what the asset was really made from. The sensor catalog_entries then reports the newer catalog again.

    Raises:
        RetryRequested: the instance knew other entries. They are reported now, so the step has to begin again.
    """
    if report(catalog, context.instance, list(context.asset_partition_keys_for_input(CATALOG.path[-1]))):
        raise dg.RetryRequested(max_retries=3)
