"""What Dagster itself does that this project relies on or guards against. If one of these fails after an upgrade, the
code that it names is to be looked at."""

import shutil

import dagster as dg
import pytest
from dagster._core.event_api import PartitionKeyFilter
from pydantic import PrivateAttr
from upath import UPath

models = dg.DynamicPartitionsDefinition(name="m")
layers = dg.DynamicPartitionsDefinition(name="l")
cells = dg.MultiPartitionsDefinition({"model": models, "layer": layers})
CELL = dg.MultiPartitionKey({"model": "a", "layer": "1"})
OTHER = dg.MultiPartitionKey({"model": "a", "layer": "2"})


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("m", ["a"])
        instance.add_dynamic_partitions("l", ["1", "2"])
        yield instance


def test_a_dynamic_key_with_a_bar_is_accepted_and_then_missing_from_the_product(instance):
    """Why catalog.py refuses such keys."""
    instance.add_dynamic_partitions("m", ["x|y"])
    assert instance.has_dynamic_partition("m", "x|y")
    assert cells.get_partition_keys(dynamic_partitions_store=instance) == ["1|a", "2|a"]


def test_the_dimensions_are_sorted_by_name_in_keys(instance):
    """Why files lie under <layer>/<model>."""
    assert str(CELL) == "1|a"
    assert [dimension.name for dimension in cells.partitions_defs] == ["layer", "model"]


def test_an_asset_that_need_not_give_anything_and_does_not_skips_what_is_downstream_and_the_run_succeeds(instance):
    """Why a cell that the catalog does not hold is no error (assets/cell.py)."""

    @dg.asset(output_required=False)
    def nothing():
        yield from ()

    @dg.asset
    def downstream(nothing):
        raise AssertionError("must not run")

    result = dg.materialize([nothing, downstream], instance=instance)
    assert result.success
    assert result.get_asset_materialization_events() == []
    assert {event.step_key for event in result.all_events if event.is_step_skipped} == {"downstream"}


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
    assert ran == ["1|a"]
    history = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("pair"), "faithful"), limit=10, partition_filter=PartitionKeyFilter(key="2|a")
    )
    (record,) = history
    assert record.event.dagster_event.event_specific_data.passed is False


def test_a_job_restricted_to_an_asset_runs_the_assets_checks_too(instance):
    """What demo.py relies on when it runs part of a job."""

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
    """What `of_same_model` in partitions.py relies on (a beta API)."""
    seen = []

    @dg.asset(partitions_def=models)
    def tokens(context):
        return f"tokens of {context.partition_key}"

    mapping = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="model")

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
    """What freshness.py compares."""

    def versioned(version):
        @dg.asset(code_version=version, partitions_def=cells, name="pair")
        def pair():
            return 1

        return pair

    for version in ("1", "2"):
        dg.materialize([versioned(version)], instance=instance, partition_key=CELL)
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("pair"), asset_partitions=[str(CELL)])
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


def test_a_partition_key_with_dots_keeps_them_in_the_file_name(instance, tmp_path):
    """What models named like pythia-1.4b rely on (io_managers.py)."""
    paths = []

    class Listing(dg.UPathIOManager):
        extension = ".x"

        def dump_to_path(self, context, obj, path):
            paths.append(path.name)

        def load_from_path(self, context, path):
            raise NotImplementedError

    @dg.asset(partitions_def=models)
    def stored():
        return 1

    instance.add_dynamic_partitions("m", ["pythia-1.4b"])
    dg.materialize(
        [stored], instance=instance, partition_key="pythia-1.4b", resources={"io_manager": Listing(UPath(tmp_path))}
    )
    assert paths == ["pythia-1.4b.x"]
