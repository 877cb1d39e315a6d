"""The asset `catalog`: the catalog's entries in the graph, each a partition whose data version is its digest.

Every asset depends on exactly the entries that concern it, so Dagster knows what is out of date once an entry was
edited. Here: the asset, the dependence on it, telling the instance what changed. Not here: what concerns what
(`Catalog.entries` and the assets), what is out of date (`freshness.py`).
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
        "changed. Nothing is to be materialised here: the sensor catalog_entries and `jsae run` say what changed.",
        group_name=groups.CATALOG,
        kinds={"yaml"},
        owners=["team:interpretability"],
    )


def depends_on(entries: Mapping[str, Iterable[str]]) -> dg.AssetDep:
    """The dependence of an asset on entries, given the names of those that concern each of its partitions."""
    concerned = defaultdict(list)
    for partition, names in entries.items():
        for name in names:
            concerned[name].append(partition)
    return dg.AssetDep(CATALOG, partition_mapping=dg.StaticPartitionMapping(dict(concerned)))


def known_digests(instance: dg.DagsterInstance, names: Sequence[str] | None = None) -> dict[str, str]:
    """What the instance was told last of each entry (of those with these names)."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        CATALOG, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION], asset_partitions=names
    )
    return {name: of_entry[DATA_VERSION] for name, of_entry in tags.items()}


def made_from(instance: dg.DagsterInstance, catalog: Catalog, entries: Sequence[str]) -> dict[str, str]:
    """The tags that Dagster gives what a step makes from these entries, for what is made within another step."""
    (latest,) = instance.fetch_materializations(CATALOG, limit=1).records
    digests = catalog.entries()
    joined = "".join(digests[entry] for entry in sorted(entries))
    return {
        f"{READ_VERSION}/{CATALOG.to_user_string()}": hashlib.sha256(joined.encode()).hexdigest(),
        f"dagster/input_event_pointer/{CATALOG.to_user_string()}": str(latest.storage_id),
    }


def news(
    catalog: Catalog, instance: dg.DagsterInstance, names: Sequence[str] | None = None, at_most: int | None = None
) -> list[dg.AssetObservation | dg.AssetMaterialization]:
    """What the instance must be told: the digest of each entry (of those with these names) that is new or has changed,
    of so many entries at most."""
    known, entries = known_digests(instance, names), catalog.entries()
    changed = [name for name in (entries if names is None else names) if known.get(name) != entries[name]]
    return list(_events({name: entries[name] for name in changed[:at_most]}))


def _events(digests: Mapping[str, str]) -> Iterator[dg.AssetObservation | dg.AssetMaterialization]:
    """Twice, in this order: Dagster asks for observations of an asset that it does not make when it looks for what is
    out of date, but computes data versions of what is downstream from materialisations (`test_dagster_itself.py`)."""
    for event in (dg.AssetObservation, dg.AssetMaterialization):
        for name, digest in digests.items():
            yield event(CATALOG, partition=name, tags={DATA_VERSION: digest})


def report(catalog: Catalog, instance: dg.DagsterInstance, names: Sequence[str] | None = None) -> bool:
    """Tell the instance which entries (of those with these names) are new or have changed; whether any are."""
    events = news(catalog, instance, names)
    for event in events:
        instance.report_runless_asset_event(event)
    return bool(events)


def confirm(context: dg.AssetExecutionContext, catalog: Catalog) -> None:
    """To be called by an asset before it makes anything: what it makes is recorded as made from the entries that the
    instance knows, so those must be the ones that this process has read.

    Where they are not, the instance is told, whichever is newer: what is made is then recorded as made from what it is
    made from, and the sensor tells the instance of the catalog as it is now.

    Raises:
        RetryRequested: they were not. Now they are, so the step begins again.
    """
    if report(catalog, context.instance, list(context.asset_partition_keys_for_input(CATALOG.path[-1]))):
        raise dg.RetryRequested(max_retries=3)
