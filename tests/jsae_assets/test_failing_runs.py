"""A run ends, whatever fails in it.

Dagster's in-process executor can spin for ever where an asset has one failed and one skipped parent (dagster-io/dagster
#33661).
"""

import signal
import threading

import dagster as dg
import pytest
import torch

from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import report
from jsae_assets.resources import Compute
from jsae_assets.runs.plan import CELL_JOB
from tests.jsae_assets.conftest import default_entries, write_catalog

MOST_SECONDS = 120  # of one run, on a machine that is busy with others; it takes one or two


class Fails(Compute):
    """Every measure asks it for the pair."""

    def pair(self, stored):
        raise RuntimeError("this measure fails")


def instead_of_pair(pair: dg.AssetsDefinition) -> dg.AssetsDefinition:
    @dg.asset(key=pair.key, partitions_def=pair.partitions_def, io_manager_key="tensors", pool="gpu")
    def sae_pair():
        return {"nothing": torch.zeros(1)}

    return sae_pair


def instead_of_check(pair: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    @dg.asset_check(name="faithful", asset=pair.key, partitions_def=pair.partitions_def, blocking=True, pool="gpu")
    def faithful():
        return dg.AssetCheckResult(passed=True)

    return faithful


@pytest.fixture
def no_hang():
    """Ends the process's main thread where a run does not end."""

    def ended(*_):
        raise TimeoutError(f"a run did not end within {MOST_SECONDS} s")

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, ended)
    yield lambda: signal.alarm(MOST_SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_run_in_which_every_measure_fails_ends_with_and_without_a_control(instance, no_hang, tmp_path):
    # layer 1 of the default catalog has a control, layer 0 none; layer 2 holds what layer 0 does
    catalog = load_catalog(write_catalog(tmp_path, default_entries(layers=(0, 1))))
    made = build_definitions(catalog)
    pairs = [one for one in made.assets if isinstance(one, dg.AssetsDefinition) and one.key.path[-1] == "sae_pair"]
    definitions = build_definitions(
        catalog,
        assets=[instead_of_pair(pair) for pair in pairs],
        asset_checks=[instead_of_check(pair) for pair in pairs],
        resources={"compute": Fails(device="cpu")},
    )
    report(catalog, instance)
    cells = set()
    for job in definitions.resolve_all_job_defs():
        if job.name.startswith(CELL_JOB):
            for cell in job.partitions_def.get_partition_keys():
                no_hang()
                result = job.execute_in_process(instance=instance, partition_key=cell, raise_on_error=False)
                failed = {event.step_key for event in result.all_events if event.is_step_failure}
                measures = {step for step in failed if not step.startswith("figures")}
                assert not result.success and len(measures) >= 6, failed
                assert instance.get_run_by_id(result.run_id).status == dg.DagsterRunStatus.FAILURE
                cells.add(cell)
    assert cells == {"stdlib-1m:0", "stdlib-1m:1"}
    assert instance.event_log_storage.get_concurrency_info("gpu").claimed_slots == []
