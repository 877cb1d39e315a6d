"""What Dagster itself does that this project relies on or guards against. If one of these fails after an upgrade, the
code that it names is to be looked at."""

import hashlib
import shutil

import dagster as dg
import pytest
from pydantic import PrivateAttr

models = dg.StaticPartitionsDefinition(["a"])
cells = dg.StaticPartitionsDefinition(["a:1", "a:2"])
CELL, OTHER = cells.get_partition_keys()
VERSION = "dagster/data_version"


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_a_run_holds_assets_of_one_set_of_partitions_alone(instance):
    """Why there is a job for each set of cells (runs/plan.py)."""

    @dg.asset(partitions_def=cells)
    def more():
        return 1

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition([CELL]))
    def fewer():
        return 1

    job = dg.Definitions([more, fewer]).resolve_implicit_global_asset_job_def()
    with pytest.raises(Exception, match="no PartitionsDefinition shared"):
        job.execute_in_process(instance=instance, partition_key=CELL)


def test_a_partition_that_left_the_definition_is_refused_and_its_materialisation_stays(instance):
    """What a model that leaves the catalog relies on (partitions.py)."""

    def made(keys):
        @dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys), name="pair")
        def pair():
            return 1

        return pair

    dg.materialize([made(["a:1", "a:2"])], instance=instance, partition_key="a:2")
    with pytest.raises(dg.DagsterUnknownPartitionError):
        dg.materialize([made(["a:1"])], instance=instance, partition_key="a:2")
    assert instance.get_materialized_partitions(dg.AssetKey("pair")) == {"a:2"}


ENTRIES = dg.StaticPartitionsDefinition(["x", "y"])
catalog = dg.AssetSpec("catalog", partitions_def=ENTRIES)


def tell(instance: dg.DagsterInstance, event: type, entry: str, version: str) -> None:
    instance.report_runless_asset_event(event(asset_key="catalog", partition=entry, tags={VERSION: version}))


def made_from_entries(instance: dg.DagsterInstance) -> dict[str, str]:
    """The tags of an asset that is made from both entries."""

    @dg.asset(
        partitions_def=models,
        code_version="1",
        deps=[dg.AssetDep("catalog", partition_mapping=dg.StaticPartitionMapping({"x": "a", "y": "a"}))],
    )
    def tokens():
        return 1

    result = dg.materialize([catalog, tokens], instance=instance, partition_key="a")
    (event,) = result.get_asset_materialization_events()
    return event.materialization.tags


def test_the_data_version_that_was_read_is_a_hash_of_those_of_the_partitions_in_their_order(instance):
    """What `Freshness.versions_read` computes."""
    for entry, version in (("y", "second"), ("x", "first")):
        tell(instance, dg.AssetMaterialization, entry, version)
    expected = hashlib.sha256(b"firstsecond").hexdigest()
    assert made_from_entries(instance)["dagster/input_data_version/catalog"] == expected


def test_an_asset_that_is_made_again_from_other_entries_has_another_data_version(instance):
    for entry in ("x", "y"):
        tell(instance, dg.AssetMaterialization, entry, "1")
    before = made_from_entries(instance)[VERSION]
    assert made_from_entries(instance)[VERSION] == before
    tell(instance, dg.AssetMaterialization, "y", "2")
    assert made_from_entries(instance)[VERSION] != before


def test_observations_of_an_asset_made_elsewhere_do_not_reach_the_data_version_of_what_reads_it(instance):
    """Why entries.py tells of each entry as materialised, too; observed alone would do for what the UI shows."""
    for entry in ("x", "y"):
        tell(instance, dg.AssetObservation, entry, "1")
    before = made_from_entries(instance)[VERSION]
    tell(instance, dg.AssetObservation, "y", "2")
    assert made_from_entries(instance)[VERSION] == before


def test_of_a_hundred_partitions_that_are_read_no_joint_data_version_is_recorded(instance):
    """Why `Freshness.versions_read` leaves those out."""

    def read(count):
        many = dg.StaticPartitionsDefinition([f"a:{layer:03d}" for layer in range(count)])
        for key in many.get_partition_keys():
            event = dg.AssetMaterialization("pair", partition=key, tags={VERSION: f"version of {key}"})
            instance.report_runless_asset_event(event)
        mapping = dg.StaticPartitionMapping({key: "a" for key in many.get_partition_keys()})

        @dg.asset(partitions_def=models, deps=[dg.AssetDep("pair", partition_mapping=mapping)], code_version="1")
        def compared():
            return 1

        made = dg.materialize(
            [dg.AssetSpec("pair", partitions_def=many), compared], instance=instance, partition_key="a"
        )
        (event,) = made.get_asset_materialization_events()
        joined = "".join(f"version of {key}" for key in many.get_partition_keys())
        recorded = event.materialization.tags["dagster/input_data_version/pair"]
        return recorded == hashlib.sha256(joined.encode()).hexdigest()

    assert read(99)
    assert not read(100)


def test_a_step_that_asks_to_be_retried_is_recorded_as_made_from_what_is_known_at_its_second_begin(instance):
    """What `entries.confirm` relies on where the entries are not known yet."""

    @dg.asset(
        partitions_def=models,
        deps=[dg.AssetDep("catalog", partition_mapping=dg.StaticPartitionMapping({"x": "a"}))],
        code_version="1",
    )
    def tokens(context):
        if not context.retry_number:
            tell(instance, dg.AssetMaterialization, "x", "1")
            raise dg.RetryRequested(max_retries=1)

    result = dg.materialize([catalog, tokens], instance=instance, partition_key="a")
    (event,) = result.get_asset_materialization_events()
    tags = event.materialization.tags
    assert tags["dagster/input_data_version/catalog"] == hashlib.sha256(b"1").hexdigest()
    assert tags["dagster/input_event_pointer/catalog"] != "NULL"


@pytest.mark.parametrize("failing", ["pair", "histogram", "quality"])
def test_a_failing_step_ends_the_run_in_process_whatever_was_to_follow(instance, failing):
    """Where a step may give nothing it does not (dagster-io/dagster #33661), which is why none may here."""

    def step(name, *parents):
        @dg.asset(name=name, deps=list(parents), partitions_def=cells)
        def made():
            if name == failing:
                raise ValueError(name)

        return made

    assets = [
        step("pair"),
        step("histogram", "pair"),
        step("quality", "pair"),
        step("sparsity", "histogram", "quality"),
        step("both", "sparsity", "quality"),
    ]
    definitions = dg.Definitions(assets, executor=dg.in_process_executor)
    result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, partition_key=CELL, raise_on_error=False
    )
    assert not result.success


def test_a_check_reads_other_assets_at_a_partition_of_the_same_name_alone(instance):
    """Why the check of a pair takes the tokens of its model from their store (checks.py)."""
    mapping = dg.StaticPartitionMapping({"a": [CELL, OTHER]})

    @dg.asset(partitions_def=models)
    def tokens():
        return 1

    @dg.asset(partitions_def=cells)
    def pair():
        return 1

    @dg.asset_check(
        asset=pair, partitions_def=cells, additional_ins={"tokens": dg.AssetIn("tokens", partition_mapping=mapping)}
    )
    def faithful(pair, tokens):
        return dg.AssetCheckResult(passed=True)

    definitions = dg.Definitions([tokens, pair], asset_checks=[faithful])
    job = definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance, partition_key=CELL, asset_selection=[pair.key], raise_on_error=False
    )
    assert not result.success


def test_a_blocking_check_with_partitions_runs_before_what_is_downstream_and_stops_it_at_that_partition(instance):
    """What checks.py relies on (a preview API)."""
    ran = []

    @dg.asset(partitions_def=cells)
    def pair():
        return 1

    @dg.asset_check(asset=pair, partitions_def=cells, blocking=True)
    def faithful(context, pair):
        return dg.AssetCheckResult(passed=context.partition_key == CELL)

    @dg.asset(partitions_def=cells)
    def measure(context, pair):
        ran.append(str(context.partition_key))

    for key in (CELL, OTHER):
        dg.materialize([pair, faithful, measure], instance=instance, partition_key=key, raise_on_error=False)
    assert ran == [CELL]
    history = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("pair"), "faithful"), limit=10
    )
    passed = {record.partition: record.event.dagster_event.event_specific_data.passed for record in history}
    assert passed == {CELL: True, OTHER: False}


def test_a_job_restricted_to_an_asset_runs_the_assets_checks_too(instance):
    """What `jsae run` relies on when it runs part of a job."""

    @dg.asset
    def pair():
        return 1

    @dg.asset
    def other():
        return 2

    @dg.asset_check(asset=pair)
    def faithful():
        return dg.AssetCheckResult(passed=True)

    definitions = dg.Definitions(
        assets=[pair, other], asset_checks=[faithful], jobs=[dg.define_asset_job("job", dg.AssetSelection.all())]
    )
    result = definitions.resolve_job_def("job").execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey("pair")]
    )
    assert [event.asset_key for event in result.get_asset_materialization_events()] == [dg.AssetKey("pair")]
    assert len(result.get_asset_check_evaluations()) == 1


def test_a_cell_reads_the_one_partition_of_its_model(instance):
    """What `of_same_model` in partitions.py relies on."""
    seen = []

    @dg.asset(partitions_def=models)
    def tokens(context):
        return f"tokens of {context.partition_key}"

    mapping = dg.StaticPartitionMapping({"a": [CELL, OTHER]})

    @dg.asset(partitions_def=cells, ins={"tokens": dg.AssetIn(partition_mapping=mapping)})
    def measure(tokens):
        seen.append(tokens)

    definitions = dg.Definitions(
        assets=[tokens, measure],
        jobs=[dg.define_asset_job("one", "tokens"), dg.define_asset_job("two", "measure")],
        resources={"io_manager": dg.FilesystemIOManager(base_dir=instance.storage_directory())},
    )
    definitions.resolve_job_def("one").execute_in_process(instance=instance, partition_key="a")
    definitions.resolve_job_def("two").execute_in_process(instance=instance, partition_key=CELL)
    assert seen == ["tokens of a"]


def test_a_resource_keeps_what_it_remembers_for_one_run_and_begins_each_run_anew(instance):
    """What loading a model once a run relies on (resources.py)."""
    sizes = []

    class Remembering(dg.ConfigurableResource):
        _seen: list = PrivateAttr(default_factory=list)

        def remember(self):
            self._seen.append(1)
            sizes.append(len(self._seen))

    @dg.asset
    def first(memory: Remembering):
        memory.remember()

    @dg.asset(deps=[first])
    def second(memory: Remembering):
        memory.remember()

    for _ in range(2):
        dg.materialize([first, second], instance=instance, resources={"memory": Remembering()})
    assert sizes == [1, 2, 1, 2]


def test_a_materialisation_carries_the_code_version_and_the_newest_comes_first(instance):
    """What runs/freshness.py compares."""

    def versioned(version):
        @dg.asset(code_version=version, partitions_def=cells, name="pair")
        def pair():
            return 1

        return pair

    for version in ("1", "2"):
        dg.materialize([versioned(version)], instance=instance, partition_key=CELL)
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("pair"), asset_partitions=[CELL])
    records = instance.fetch_materializations(wanted, limit=2).records
    assert [record.asset_materialization.tags["dagster/code_version"] for record in records] == ["2", "1"]
    assert records[0].storage_id > records[1].storage_id


def test_a_step_of_a_pool_takes_a_slot_of_the_instances_default_limit(fresh_home, tmp_path):
    """What `pool=POOL` and dagster_home/dagster.yaml rely on."""
    shutil.copytree(fresh_home, tmp_path / "home")
    seen = []

    @dg.asset(pool="gpu")
    def computes(context):
        info = context.instance.event_log_storage.get_concurrency_info("gpu")
        seen.append((info.slot_count, info.active_slot_count))

    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        dg.materialize([computes], instance=instance)
        after = instance.event_log_storage.get_concurrency_info("gpu")
    assert seen == [(1, 1)]
    assert after.active_slot_count == 0
