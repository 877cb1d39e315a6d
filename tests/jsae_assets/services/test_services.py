"""The installation of several machines that deploy/ describes, started and used: PostgreSQL, S3, a Ray cluster.

Each test has models of its own in the catalog, and workers of its own."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import dagster as dg
import pandas as pd
import pytest

from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.partitions import cell_key
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, Graph, write_catalog, write_documents
from tests.jsae_assets.services.installation import Installation, Workers, installation, jobs_of_ray
from tests.s3_server import BUCKET

pytestmark = pytest.mark.services

BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
STATUS = "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
FINISHED = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")
LOCATIONS = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""

BACKFILLED = ("tiny", "second")  # at all three layers: six cells
SHARDED, LOSING_WORKERS, LOSING_ITS_PROCESS = "sharded", "losing_workers", "losing_its_process"
MEASURE = ["jsae", "latent_accounting"]
TRAINING, SHARD = "jsae__sae_pair", "jsae__latent_accounting.shard[0]"
CHECKPOINTS = {  # where their checkpoints lie
    TRAINING: "storage/checkpoints/jsae/sae_pair/1/{model}.safetensors",
    SHARD: "storage/checkpoints/jsae/latent_accounting/1/{model}.parts/shard_1_of_2.safetensors",
}


@pytest.fixture(scope="module")
def wanted(entries, tmp_path_factory) -> dict:
    """The catalog's entries. What is killed amid its work takes many batches."""
    entries = entries()
    long = tmp_path_factory.mktemp("texts") / "long.jsonl"
    write_documents(long, count=1500, seed=3)
    entries["text"]["long"] = {"files": [str(long)]}
    tiny, pairs = entries["models"]["tiny"], entries["pairs"]
    entries["models"]["second"] = tiny
    entries["models"][SHARDED] = tiny | {"shards": 2}
    for name in (LOSING_WORKERS, LOSING_ITS_PROCESS):
        entries["models"][name] = tiny | {"shards": 2, "text": "long", "tokens": 30_000}
    entries["pairs"] = [
        pair | {"model": model, "layers": [0, 1, 2] if model in BACKFILLED else [1]}
        for model in entries["models"]
        for pair in copy.deepcopy(pairs)
    ]
    return entries


@pytest.fixture(scope="module")
def catalog(wanted, tmp_path_factory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("catalog"), wanted)


@pytest.fixture(scope="module")
def made(catalog, tmp_path_factory) -> Iterator[Installation]:
    """The installation, without workers."""
    with installation(tmp_path_factory.mktemp("installation"), catalog) as made:
        yield made


@pytest.fixture
def workers(made) -> Iterator[Workers]:
    workers = Workers(made)
    yield workers
    workers.stop()


@pytest.fixture
def instance(made, monkeypatch) -> Iterator[dg.DagsterInstance]:
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(made.environment["DAGSTER_HOME"]) as instance:
        yield instance


def runs(made: Installation, model: str) -> list[dict]:
    """The runs of a model's cells, the latest first."""
    answer = made.ask("{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }")
    found = [
        run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in answer["runsOrError"]["results"]
    ]
    return [run for run in found if run["tags"].get("dagster/partition", "").startswith(f"{model}:")]


def status(made: Installation, run: str) -> str:
    return made.ask("query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }", run=run)["runOrError"][
        "status"
    ]


def launched(made: Installation, model: str, *assets: list[str]) -> str:
    """The number of a run of these assets at the model's cell."""
    (repository,) = made.ask(LOCATIONS)["repositoriesOrError"]["nodes"]
    params = {
        "selector": {
            "repositoryLocationName": repository["location"]["name"],
            "repositoryName": repository["name"],
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": path} for path in assets],
            "assetCheckSelection": [],
        },
        "runConfigData": {},
        "mode": "default",
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": cell_key(model, 1)}]},
    }
    answer = made.ask(LAUNCH, params=params)["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]


def end_of(made: Installation, run: str) -> str:
    def ended() -> str | None:
        now = status(made, run)
        return now if now in ("SUCCESS", "FAILURE", "CANCELED") else None

    return made.wait_for("the end of the run", ended, 300)


def at_work(made: Installation, run: str, step: str, model: str) -> dict | None:
    """Ray's job of a step, if it has kept a checkpoint and is still at work."""
    kept = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=CHECKPOINTS[step].format(model=model))
    jobs = jobs_of_ray(made, run) if kept["KeyCount"] else []
    return next((job for job in jobs if job["metadata"].get("dagster/op") == step and job["status"] == "RUNNING"), None)


def test_a_backfill_goes_on_when_a_worker_dies_and_nothing_is_lost(made, workers, instance, catalog):
    first, _ = workers.start(), workers.start()
    partitions = [cell_key(model, layer) for model in BACKFILLED for layer in range(3)]
    assets = [[variant, name] for variant in ("traditional", "jsae") for name in PER_VARIANT]
    assets += [["figures", "jsae", name] for name in CELL_FIGURES]
    params = {"assetSelection": [{"path": path} for path in assets], "partitionNames": partitions}
    backfill = made.ask(BACKFILL, params=params)["launchPartitionBackfill"]
    assert backfill["__typename"] == "LaunchBackfillSuccess", backfill

    def of_backfill() -> list[dict]:
        return [run for model in BACKFILLED for run in runs(made, model)]

    def both_at_work() -> bool:
        return sum(run["status"] == "STARTED" for run in of_backfill()) == 2

    made.wait_for("a run on each of two workers", both_at_work, 120)
    workers.kill(first)
    made.wait_for("the failure of its run", lambda: "FAILURE" in {run["status"] for run in of_backfill()}, 120)
    workers.start()  # as systemd would

    def end() -> str | None:
        found = made.ask(STATUS, id=backfill["backfillId"])["partitionBackfillOrError"]["status"]
        return found if found in FINISHED else None

    assert made.wait_for("the end of the backfill", end, 600) == "COMPLETED_SUCCESS"
    last_of_each = {run["tags"]["dagster/partition"]: run["status"] for run in reversed(of_backfill())}
    assert last_of_each == dict.fromkeys(partitions, "SUCCESS")
    assert any("dagster/retry_number" in run["tags"] for run in of_backfill())
    assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
    for path in assets:
        assert instance.get_materialized_partitions(dg.AssetKey(path)) >= set(partitions)
    check_that_all_is_stored_whole(build_definitions(load_catalog(catalog)), instance, assets, partitions)


def test_shards_are_measured_on_several_workers_and_store_what_one_process_stores(made, workers, instance, catalog):
    nodes = {workers.start(), workers.start()}
    Graph(load_catalog(catalog), instance).tokenise(SHARDED)
    run = launched(made, SHARDED, ["jsae", "sae_pair"], MEASURE)
    assert end_of(made, run) == "SUCCESS"
    done_at = {job["metadata"].get("dagster/op", "run"): job["driver_node_id"] for job in jobs_of_ray(made, run)}
    steps = [f"jsae__latent_accounting.{step}" for step in ("plan", "shard[0]", "shard[1]", "merge")]
    assert {"run", *steps} <= set(done_at)
    assert done_at.pop("run") not in nodes and set(done_at.values()) == nodes
    assert done_at["jsae__latent_accounting.shard[0]"] != done_at["jsae__latent_accounting.shard[1]"]
    check_that_one_process_stores_the_same(instance, catalog, SHARDED)


def test_a_step_whose_worker_dies_goes_on_elsewhere_from_its_checkpoint_and_the_run_goes_on(
    made, workers, instance, catalog
):
    often = {"JSAE_CHECKPOINT_SECONDS": "0"}
    workers.start(**often), workers.start(**often)
    Graph(load_catalog(catalog), instance).tokenise(LOSING_WORKERS)
    run = launched(made, LOSING_WORKERS, ["jsae", "sae_pair"], MEASURE)
    for step in (TRAINING, SHARD):
        job = made.wait_for(f"{step} amid its work", lambda step=step: at_work(made, run, step, LOSING_WORKERS), 120)
        workers.kill(job["driver_node_id"])
        workers.start(**often)  # as systemd would
    assert end_of(made, run) == "SUCCESS"
    assert [one["runId"] for one in runs(made, LOSING_WORKERS)] == [run]
    logs = instance.all_logs(run)
    again = {
        entry.dagster_event.step_key
        for entry in logs
        if entry.is_dagster_event and entry.dagster_event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY
    }
    assert {TRAINING, SHARD} <= again
    went_on = {entry.step_key for entry in logs if "going on from the checkpoint" in entry.user_message}
    assert {TRAINING, SHARD} <= went_on
    check_that_one_process_stores_the_same(instance, catalog, LOSING_WORKERS)


def test_a_run_whose_own_process_dies_is_started_again_and_no_step_of_it_is_at_work_twice(
    made, workers, instance, catalog
):
    often = {"JSAE_CHECKPOINT_SECONDS": "0"}
    workers.start(**often), workers.start(**often)
    graph = Graph(load_catalog(catalog), instance)
    graph.tokenise(LOSING_ITS_PROCESS)
    graph.measure(1, "jsae/sae_pair", model=LOSING_ITS_PROCESS, raise_on_error=True)
    run = launched(made, LOSING_ITS_PROCESS, MEASURE)
    made.wait_for("a shard amid its work", lambda: at_work(made, run, SHARD, LOSING_ITS_PROCESS), 120)
    made.kill_run(run)

    def again() -> list[str]:
        found = runs(made, LOSING_ITS_PROCESS)
        return [one["runId"] for one in found if one["tags"].get("dagster/root_run_id") == run]

    (second,) = made.wait_for("its second run", again, 120)
    assert end_of(made, second) == "SUCCESS" and status(made, run) == "FAILURE"
    assert again() == [second]
    before, after = (
        {job["metadata"].get("dagster/op", "run"): job for job in jobs_of_ray(made, one)} for one in (run, second)
    )
    assert before[SHARD]["status"] == "STOPPED"
    for step in set(before) & set(after):
        assert before[step]["end_time"] <= after[step]["start_time"], step
    check_that_one_process_stores_the_same(instance, catalog, LOSING_ITS_PROCESS)


def test_a_run_that_ray_did_not_start_is_not_taken_for_dead(made, instance):
    """As `jsae run` on the head or on a worker."""

    @dg.job
    def elsewhere():
        pass

    run = instance.create_run_for_job(elsewhere, status=dg.DagsterRunStatus.STARTED)

    def looks() -> float:
        return instance.get_daemon_heartbeats()["MONITORING"].timestamp

    for number in range(2):
        last = looks()
        made.wait_for(f"look {number + 1} of the daemon at its runs", lambda last=last: looks() > last, 120)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED
    instance.report_run_canceled(run)


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
    entries, tmp_path, monkeypatch, shards, partition, assets, expected
):
    from jsae_assets.ray_launcher import has_shards  # imports dagster-ray, which only `make test-services` installs

    catalog = entries()
    catalog["models"]["tiny"]["shards"] = shards
    monkeypatch.setenv("JSAE_CATALOG", str(write_catalog(tmp_path, catalog)))
    selection = None if assets is None else frozenset(map(dg.AssetKey.from_user_string, assets))
    run = dg.DagsterRun("measure_cell", tags={"dagster/partition": partition}, asset_selection=selection)
    assert has_shards(run) == expected


def check_that_all_is_stored_whole(definitions, instance, assets, partitions) -> None:
    """Each file is there and can be read, or this fails with its name; and no part of one is left."""
    for path in assets:
        key = dg.AssetKey(path)
        store = definitions.resources[definitions.get_assets_def(key).get_io_manager_key_for_asset_key(key)]
        for partition in partitions:
            header = store.manager_of(instance).stored(key, partition).header
            assert json.loads(header["provenance"])["partition"] == partition
    found = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    assert [entry["Key"] for page in found for entry in page["Contents"] if ".part" in Path(entry["Key"]).name] == []


def check_that_one_process_stores_the_same(instance, catalog: Path, model: str) -> None:
    """What shards gave of a model's pair, and what its measure without shards gives here."""
    entries = load_catalog(catalog)
    whole = entries.models[model].model_copy(update={"shards": 1})
    graph = Graph(entries.model_copy(update={"models": entries.models | {model: whole}}), instance)
    stored = graph.definitions.resources["tables"].manager_of(instance).stored
    in_shards = stored(dg.AssetKey(MEASURE), cell_key(model, 1)).frame
    graph.measure(1, "/".join(MEASURE), model=model, raise_on_error=True)
    pd.testing.assert_frame_equal(
        in_shards, stored(dg.AssetKey(MEASURE), cell_key(model, 1)).frame, rtol=1e-5, atol=1e-9
    )
