"""JSAE_EXECUTOR: who executes a run, and what is said where that cannot be. A real Ray cluster is in `services/`."""

import dagster as dg
import pytest

from jsae_assets import definitions
from jsae_assets.command import main
from jsae_assets.definitions import SettingError, build_definitions
from jsae_assets.executors import OF_A_RAY_JOB, ray_worker_executor
from tests.jsae_assets.conftest import write_catalog


@pytest.mark.parametrize(("named", "expected"), [(None, "in_process"), ("", "in_process"), ("ray", "ray")])
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
    assert capsys.readouterr().err == "JSAE_EXECUTOR is 'dask': expected in_process or ray\n"


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
