"""Which assets of a partition are missing or outdated, so that a second run computes nothing again.

Here: asking the instance. Not here: running anything (`demo.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg
from dagster._core.event_api import PartitionKeyFilter


def outdated_assets(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    partition: str,
    upstream: Mapping[dg.PartitionsDefinition, Sequence[str]],
    digests: Mapping[dg.AssetKey, str],
) -> list[dg.AssetKey]:
    """The assets of a job that a partition lacks or must make again, upstream first.

    An asset is outdated if it was never materialised, its file is gone, its code version or its catalog entries
    (`digests`, by asset key) have changed, its blocking check did not pass, or something upstream is outdated or newer.

    Args:
        upstream: which partitions of each kind the partition is made from.
        digests: those of the job's assets that the catalog holds at this partition.
    """
    graph = definitions.resolve_asset_graph()
    selected = definitions.resolve_job_def(job).asset_layer.selected_asset_keys
    outdated: list[dg.AssetKey] = []
    for key in graph.toposorted_asset_keys:
        if key not in selected or key not in digests:
            continue
        node = graph.get(key)
        record = _latest_materialization(instance, key, partition)
        parents = (
            _latest_materialization(instance, parent, parent_partition)
            for parent in node.parent_keys
            for parent_partition in upstream[graph.get(parent).partitions_def]
        )
        if (
            record is None
            or not _is_current(record.asset_materialization, node.code_version, digests[key])
            or not _checks_passed(instance, graph, key, partition)
            or any(parent.storage_id > record.storage_id for parent in parents if parent is not None)
            or any(parent in outdated for parent in node.parent_keys)
        ):
            outdated.append(key)
    return outdated


def latest_metadata(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> dict | None:
    """What the latest materialisation of a partition said of itself, as plain values; None if there is none."""
    record = _latest_materialization(instance, key, partition)
    return record and {name: value.value for name, value in record.asset_materialization.metadata.items()}


def latest_check(instance: dg.DagsterInstance, key: dg.AssetCheckKey, partition: str) -> dg.AssetCheckEvaluation | None:
    """The latest finished evaluation of a check at a partition."""
    history = instance.event_log_storage.get_asset_check_execution_history(
        key, limit=10, partition_filter=PartitionKeyFilter(key=partition)
    )
    events = (record.event.dagster_event for record in history if record.event is not None)
    finished = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    return next((event.event_specific_data for event in events if event.event_type == finished), None)


def _latest_materialization(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str):
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    return next(iter(instance.fetch_materializations(wanted, limit=1).records), None)


def _is_current(materialization: dg.AssetMaterialization, code_version: str | None, digest: str) -> bool:
    metadata = {name: value.value for name, value in materialization.metadata.items()}
    path = metadata.get("path")
    return (
        (materialization.tags or {}).get("dagster/code_version") == code_version
        and metadata.get("catalog_entry") == digest
        and (path is None or "://" in str(path) or Path(path).exists())
    )


def _checks_passed(instance: dg.DagsterInstance, graph, key: dg.AssetKey, partition: str) -> bool:
    checks = (latest_check(instance, check, partition) for check in graph.get(key).check_keys)
    return all(check is not None and check.passed for check in checks)
