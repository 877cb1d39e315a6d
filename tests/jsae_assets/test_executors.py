"""JSAE_EXECUTOR: who executes a run, and what is said where that cannot be. A real Ray cluster is in `services/`."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver

import dagster as dg
import pandas as pd
import pytest
from torch import Tensor

from jsae_assets import definitions
from jsae_assets.catalog_file import load_catalog
from jsae_assets.command import main
from jsae_assets.definitions import SettingError, build_definitions
from jsae_assets.resources import POOL, Compute
from jsae_assets.runs.at_work import known_at_work
from jsae_assets.runs.executors import OF_A_RAY_JOB, ray_worker_executor
from jsae_assets.runs.plan import CELL_JOB
from jsae_core import MLPInputs
from tests.jsae_assets.conftest import REPOSITORY, Graph, write_catalog


@pytest.mark.parametrize(
    ("named", "expected"), [(None, "in_process"), ("", "in_process"), ("multiprocess", "multiprocess"), ("ray", "ray")]
)
def test_the_executor_is_the_one_that_the_environment_names(graph, entries, monkeypatch, named, expected):
    monkeypatch.setattr(definitions, "find_spec", lambda name: object())
    if named is None:
        monkeypatch.delenv("JSAE_EXECUTOR", raising=False)
    else:
        monkeypatch.setenv("JSAE_EXECUTOR", named)
    assert build_definitions(graph(entries()).catalog).executor.name == expected


def test_an_executor_that_there_is_not_is_refused_in_one_line(entries, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JSAE_EXECUTOR", "dask")
    monkeypatch.setenv("JSAE_CATALOG", str(write_catalog(tmp_path, entries())))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "JSAE_EXECUTOR is 'dask'; expected one of in_process, multiprocess, ray\n"


def test_all_variables_with_wrong_values_are_told_at_once_each_in_a_line(monkeypatch, graph, entries):
    wrong = {"DEVICE": "gpu", "DTYPE": "float", "BATCH_TOKENS": "0", "STORAGE": "s3://", "EXECUTOR": "multiproces"}
    for name, value in wrong.items():
        monkeypatch.setenv(f"JSAE_{name}", value)
    with pytest.raises(SettingError) as caught:
        build_definitions(graph(entries()).catalog)
    lines = str(caught.value).splitlines()
    assert sorted(re.match("JSAE_([A-Z_]+)", line)[1] for line in lines) == sorted(wrong)


def test_ray_without_its_packages_is_refused_saying_how_to_install_them(monkeypatch):
    monkeypatch.setenv("JSAE_EXECUTOR", "ray")
    monkeypatch.setattr(definitions, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'jsae\[ray\]'"):
        definitions.default_executor()


def job_on_ray() -> dg.JobDefinition:
    @dg.op
    def anything():
        pass

    @dg.job(executor_def=ray_worker_executor)
    def on_ray():
        anything()

    return on_ray


def run_on_ray() -> bool:
    with dg.DagsterInstance.local_temp() as instance:
        return dg.execute_job(dg.reconstructable(job_on_ray), instance=instance, raise_on_error=True).success


def test_a_run_that_no_ray_cluster_started_is_refused_saying_what_the_instance_lacks(monkeypatch):
    monkeypatch.delenv(OF_A_RAY_JOB, raising=False)
    with pytest.raises(RuntimeError, match="DefaultRunLauncher.*run_launcher of deploy/dagster.yaml"):
        run_on_ray()


def test_a_run_on_a_ray_worker_makes_all_its_steps_in_its_own_process(monkeypatch):
    monkeypatch.setenv(OF_A_RAY_JOB, "{}")
    assert run_on_ray()


BEGINS = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED)
KILLED_ONCE = "TEST_KILLED_ONCE"  # names a file, which the first process that is killed makes


def job_of_the_environment() -> dg.JobDefinition:
    return build_definitions(load_catalog(os.environ["JSAE_CATALOG"])).resolve_job_def(f"{CELL_JOB}_2")


def job_whose_second_shard_is_killed_once() -> dg.JobDefinition:
    """That job, in a process that is killed amid the second shard, once its first item is measured and kept."""
    read = MLPInputs.starting_at

    def starting_at(self: MLPInputs, first: int) -> Iterator[Tensor]:
        for number, item in enumerate(read(self, first)):
            if first and number and kill_this_process_once():
                raise AssertionError("it lives on")
            yield item

    MLPInputs.starting_at = starting_at
    return job_of_the_environment()


def kill_this_process_once() -> bool:
    with contextlib.suppress(FileExistsError), open(os.environ[KILLED_ONCE], "x"):
        os.kill(os.getpid(), signal.SIGKILL)
        return True
    return False


@pytest.fixture
def in_several_processes(instance, tmp_path, monkeypatch) -> Iterator[dg.DagsterInstance]:
    """The instance, in which two steps compute at once. Their processes are forked from one with this environment. It
    has imported the helpers of tests and with them sae_lens, for which each process would take seconds."""
    preload = forkserver.set_forkserver_preload
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", [])  # so that others find theirs again
    monkeypatch.setattr(
        forkserver, "set_forkserver_preload", lambda modules: preload([*modules, "tests.jsae_assets.conftest"])
    )
    forkserver._forkserver._stop()
    instance.event_log_storage.set_concurrency_slots(POOL, 2)
    monkeypatch.setenv("JSAE_EXECUTOR", "multiprocess")
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    monkeypatch.setenv(KILLED_ONCE, str(tmp_path / "killed"))
    yield instance
    forkserver._forkserver._stop()


def taken_slots(instance: dg.DagsterInstance) -> list[str]:
    pool = instance.event_log_storage.get_concurrency_info(POOL)
    return [step.step_key for step in (*pool.claimed_slots, *pool.pending_steps)]


def test_several_processes_measure_the_shards_of_a_cell_one_is_killed_and_they_store_what_one_process_stores(
    in_several_processes, entries, tmp_path, monkeypatch
):
    instance = in_several_processes
    key, partition = dg.AssetKey(["jsae", "latent_accounting"]), "tiny:1"
    catalog = entries()
    catalog["models"]["tiny"]["shards"] = 2
    path = write_catalog(tmp_path, catalog)
    graph = Graph(load_catalog(path), instance, {"compute": Compute(device="cpu", batch_tokens=64)})
    assert graph.tokenise().success and graph.measure(1, "jsae/sae_pair", key.to_user_string()).success
    stored = graph.file(key.to_user_string(), extension="parquet")
    expected = pd.read_parquet(stored)
    stored.unlink()
    for name, value in {"JSAE_CATALOG": path, "JSAE_BATCH_TOKENS": 64, "JSAE_CHECKPOINT_SECONDS": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(MLPInputs, "starting_at", MLPInputs.starting_at)  # this process makes that job as well
    with dg.execute_job(
        dg.reconstructable(job_whose_second_shard_is_killed_once),
        instance=instance,
        tags={"dagster/partition": partition},
        asset_selection=[key],
    ) as result:
        assert result.success
        processes = [
            (event.step_key.removeprefix("jsae__latent_accounting."), event.dagster_event.pid)
            for event in instance.all_logs(result.run_id)
            if event.is_dagster_event and event.dagster_event_type in BEGINS
        ]
        again = [event.step_key for event in result.all_events if event.is_step_restarted]
    assert sorted(step for step, _ in processes) == ["merge", "plan", "shard[0]", "shard[1]", "shard[1]"]
    assert len({process for _, process in processes}) == len(processes)
    assert again == ["jsae__latent_accounting.shard[1]"]
    pd.testing.assert_frame_equal(pd.read_parquet(stored), expected)
    assert taken_slots(instance) == []


ASKS_FOR_NO_GPU = """
import importlib
import torch
from jsae_assets.runs.executors import PRELOADED

def refuse(*given):
    raise SystemExit("asked for a GPU")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = torch.cuda._lazy_init = refuse
for module in PRELOADED:
    importlib.import_module(module)
print("imported")
"""


def test_the_process_that_steps_are_forked_from_asks_for_no_gpu_which_cuda_would_then_refuse_to_them():
    ran = subprocess.run([sys.executable, "-c", ASKS_FOR_NO_GPU], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.stdout.endswith("imported\n"), ran.stderr


def job_whose_step_is_killed_once() -> dg.JobDefinition:
    @dg.op(pool=POOL)
    def compute():
        kill_this_process_once()

    @dg.job(executor_def=known_at_work(definitions.default_executor()))
    def one_step():
        compute()

    return one_step


def test_where_a_steps_process_is_killed_as_for_want_of_memory_its_run_fails_and_gives_back_the_slot(
    in_several_processes,
):
    instance = in_several_processes

    def success_of_a_run() -> bool:
        with dg.execute_job(dg.reconstructable(job_whose_step_is_killed_once), instance=instance) as result:
            return result.success

    assert not success_of_a_run()
    assert taken_slots(instance) == []
    assert success_of_a_run()
