"""The installation of several machines that deploy/ describes, started and used: PostgreSQL, S3, a Ray cluster."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import dagster as dg
import pandas as pd
import pytest

from jsae_assets.catalog import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.partitions import cells
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, Graph, write_catalog
from tests.jsae_assets.services.installation import Installation, installation, jobs_of_ray, living_nodes, start_worker
from tests.s3_server import BUCKET

pytestmark = pytest.mark.services

BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
STATUS = "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
FINISHED = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


RELOAD = "mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }"
LOCATIONS = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


@pytest.fixture(scope="module")
def two_models(entries) -> dict:
    """Two models with both variants at all three layers: six cells."""
    entries = entries()
    entries["models"]["second"] = entries["models"]["tiny"]
    entries["pairs"] = [
        pair | {"model": model, "layers": [0, 1, 2]} for model in entries["models"] for pair in entries["pairs"]
    ]
    return entries


@pytest.fixture(scope="module")
def catalog(two_models, tmp_path_factory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("catalog"), two_models)


@pytest.fixture(scope="module")
def made(catalog, tmp_path_factory) -> Iterator[Installation]:
    """The installation, with two workers."""
    with installation(tmp_path_factory.mktemp("installation"), catalog) as made:
        for number in (1, 2):
            start_worker(made, number)
        yield made


@pytest.fixture
def instance(made, monkeypatch) -> Iterator[dg.DagsterInstance]:
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(made.environment["DAGSTER_HOME"]) as instance:
        yield instance


def runs(made: Installation) -> list[dict]:
    answer = made.ask("{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }")
    found = answer["runsOrError"]["results"]
    return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]


def statuses(made: Installation) -> str:
    return ", ".join(f"{run['tags'].get('dagster/partition')} {run['status']}" for run in runs(made))


def test_a_backfill_goes_on_when_a_worker_dies_and_nothing_is_lost(made, instance, catalog):
    read = load_catalog(catalog)
    partitions = cells(read, ["traditional", "jsae"]).get_partition_keys()
    assert len(partitions) == 6
    assets = [[variant, name] for variant in ("traditional", "jsae") for name in PER_VARIANT]
    assets += [["figures", "jsae", name] for name in CELL_FIGURES]
    params = {"assetSelection": [{"path": path} for path in assets], "partitionNames": partitions}
    launched = made.ask(BACKFILL, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def both_at_work() -> bool:
        return sum(run["status"] == "STARTED" for run in runs(made)) == 2

    made.wait_for("a run on each of two workers", both_at_work, 120)
    made.kill(next(process for process in made.processes if process.name == "worker-1"))
    made.wait_for("the failure of its run", lambda: [run for run in runs(made) if run["status"] == "FAILURE"], 120)
    start_worker(made, 3)  # as systemd would

    def status() -> str | None:
        found = made.ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]["status"]
        return found if found in FINISHED else None

    assert made.wait_for("the end of the backfill", status, 600) == "COMPLETED_SUCCESS", statuses(made)
    last_of_each = {run["tags"]["dagster/partition"]: run["status"] for run in reversed(runs(made))}
    assert last_of_each == dict.fromkeys(partitions, "SUCCESS")
    assert any("dagster/retry_number" in run["tags"] for run in runs(made))
    assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
    for path in assets:
        assert instance.get_materialized_partitions(dg.AssetKey(path)) == set(partitions)
    check_that_all_is_stored_whole(build_definitions(read), instance, assets, partitions)
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET, MaxKeys=1000)
    assert [entry["Key"] for entry in found["Contents"] if ".part" in entry["Key"]] == []


def test_shards_are_measured_on_several_workers_and_store_what_one_process_stores(made, instance, catalog, two_models):
    measure, partition = "jsae/latent_accounting", "second:1"
    path = measure.split("/")
    graph = Graph(load_catalog(catalog), instance)
    graph.tokenise("second")
    graph.measure(1, "jsae/sae_pair", measure, model="second", raise_on_error=True)
    store = graph.definitions.resources["tables"].manager_of(instance)
    expected = store.stored(dg.AssetKey(path), partition).frame
    two_models["models"]["second"] = two_models["models"]["second"] | {"shards": 2}
    write_catalog(catalog.parent, two_models)
    run = launched(made, path, partition)

    def finished() -> str | None:
        (status,) = [one["status"] for one in runs(made) if one["runId"] == run]
        return status if status in ("SUCCESS", "FAILURE") else None

    assert made.wait_for("the end of the run", finished, 300) == "SUCCESS"
    nodes = {job["metadata"].get("dagster/op", "run"): job["driver_node_id"] for job in jobs_of_ray(made, run)}
    assert set(nodes) == {
        "run",
        *(f"jsae__latent_accounting.{step}" for step in ("plan", "shard[0]", "shard[1]", "merge")),
    }
    workers = {node["node_id"] for node in living_nodes(made) if not node["is_head_node"]}
    assert nodes.pop("run") not in workers and set(nodes.values()) <= workers
    assert nodes["jsae__latent_accounting.shard[0]"] != nodes["jsae__latent_accounting.shard[1]"]
    pd.testing.assert_frame_equal(store.stored(dg.AssetKey(path), partition).frame, expected, rtol=1e-5, atol=1e-9)


def launched(made: Installation, path: list[str], partition: str) -> str:
    """The number of a run of one asset, once the catalog was read again."""
    (repository,) = made.ask(LOCATIONS)["repositoriesOrError"]["nodes"]
    location = repository["location"]["name"]
    made.ask(RELOAD, name=location)
    params = {
        "selector": {
            "repositoryLocationName": location,
            "repositoryName": repository["name"],
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": path}],
            "assetCheckSelection": [],
        },
        "runConfigData": {},
        "mode": "default",
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
    }
    answer = made.ask(LAUNCH, params=params)["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]


@pytest.mark.parametrize(
    ("shards", "partition", "assets", "expected"),
    [
        (2, "tiny:1", None, True),
        (2, "tiny:1", ["jsae/pair_quality"], True),
        (2, "tiny:1", ["jsae/sae_pair", "figures/jsae/ablation"], False),
        (1, "tiny:1", None, False),
        (2, "tiny", ["tokens"], False),
        (2, "gone:1", None, False),
    ],
)
def test_only_runs_that_measure_in_shards_wait_for_their_steps(
    two_models, tmp_path, monkeypatch, shards, partition, assets, expected
):
    from jsae_assets.ray_launcher import has_shards  # imports dagster-ray, which only `make test-services` installs

    models = {name: model | {"shards": shards} for name, model in two_models["models"].items()}
    monkeypatch.setenv("JSAE_CATALOG", str(write_catalog(tmp_path, two_models | {"models": models})))
    selection = None if assets is None else frozenset(map(dg.AssetKey.from_user_string, assets))
    run = dg.DagsterRun("measure_cell", tags={"dagster/partition": partition}, asset_selection=selection)
    assert has_shards(run) == expected


def check_that_all_is_stored_whole(definitions, instance, assets, partitions) -> None:
    """Each file is there and can be read, or this fails with its name."""
    for path in assets:
        key = dg.AssetKey(path)
        store = definitions.resources[definitions.get_assets_def(key).get_io_manager_key_for_asset_key(key)]
        for partition in partitions:
            header = store.manager_of(instance).stored(key, partition).header
            assert json.loads(header["provenance"])["partition"] == partition
