"""The installation of several machines that deploy/ describes, started and used: PostgreSQL, S3, a Ray cluster."""

import json

import boto3
import dagster as dg
import pytest

from jsae_assets.catalog import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.partitions import cells
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, write_catalog
from tests.jsae_assets.services.installation import Installation, installation, start_worker
from tests.s3_server import BUCKET

pytestmark = pytest.mark.services

BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
STATUS = "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
FINISHED = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


@pytest.fixture
def catalog(entries, tmp_path):
    """Two models with both variants at all three layers: six cells."""
    entries = entries()
    entries["models"]["second"] = entries["models"]["tiny"]
    entries["pairs"] = [
        pair | {"model": model, "layers": [0, 1, 2]} for model in entries["models"] for pair in entries["pairs"]
    ]
    return write_catalog(tmp_path, entries)


def runs(made: Installation) -> list[dict]:
    answer = made.ask("{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }")
    found = answer["runsOrError"]["results"]
    return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]


def statuses(made: Installation) -> str:
    return ", ".join(f"{run['tags'].get('dagster/partition')} {run['status']}" for run in runs(made))


def test_a_backfill_goes_on_when_a_worker_dies_and_nothing_is_lost(catalog, tmp_path, monkeypatch):
    read = load_catalog(catalog)
    partitions = cells(read, ["traditional", "jsae"]).get_partition_keys()
    assert len(partitions) == 6
    assets = [[variant, name] for variant in ("traditional", "jsae") for name in PER_VARIANT]
    assets += [["figures", "jsae", name] for name in CELL_FIGURES]
    with installation(tmp_path, catalog) as made:
        workers = [start_worker(made, number) for number in (1, 2)]
        params = {"assetSelection": [{"path": path} for path in assets], "partitionNames": partitions}
        launched = made.ask(BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched

        def both_at_work() -> bool:
            return sum(run["status"] == "STARTED" for run in runs(made)) == 2

        made.wait_for("a run on each of two workers", both_at_work, 120)
        made.kill(workers[0])
        made.wait_for("the failure of its run", lambda: [run for run in runs(made) if run["status"] == "FAILURE"], 120)
        start_worker(made, 3)  # as systemd would

        def status() -> str | None:
            found = made.ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]["status"]
            return found if found in FINISHED else None

        assert made.wait_for("the end of the backfill", status, 600) == "COMPLETED_SUCCESS", statuses(made)
        last_of_each = {run["tags"]["dagster/partition"]: run["status"] for run in reversed(runs(made))}
        assert last_of_each == dict.fromkeys(partitions, "SUCCESS")
        assert any("dagster/retry_number" in run["tags"] for run in runs(made))
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.from_config(made.environment["DAGSTER_HOME"]) as instance:
            assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
            for path in assets:
                assert instance.get_materialized_partitions(dg.AssetKey(path)) == set(partitions)
            check_that_all_is_stored_whole(build_definitions(read), instance, assets, partitions)
        found = boto3.client("s3").list_objects_v2(Bucket=BUCKET, MaxKeys=1000)
        assert [entry["Key"] for entry in found["Contents"] if ".part" in entry["Key"]] == []


def check_that_all_is_stored_whole(definitions, instance, assets, partitions) -> None:
    """Each file is there and can be read, or this fails with its name."""
    for path in assets:
        key = dg.AssetKey(path)
        store = definitions.resources[definitions.get_assets_def(key).get_io_manager_key_for_asset_key(key)]
        for partition in partitions:
            header = store.manager_of(instance).stored(key, partition).header
            assert json.loads(header["provenance"])["partition"] == partition
