"""Training and measures through Dagster that are killed or stopped: they end at once, and go on from their
checkpoint."""

import signal
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from upath import UPath

from jsae_assets import resources
from jsae_assets.catalog_file import load_catalog
from jsae_assets.io_managers import FigureStore, ParquetStore, SafetensorsStore
from jsae_assets.making import run_all
from jsae_assets.resources import Compute
from jsae_assets.runs.plan import SWEEP_JOB
from jsae_core.checkpoints import Checkpoint
from jsae_core.tensor_files import content_digest
from tests.jsae_assets.conftest import TABLES, Graph, failures, materialised, metadata, write_catalog
from tests.killing import killed_once

STEPS = 500
PAIR = "jsae/sae_pair"
SWEPT = [0.0, 1.0]
HISTOGRAM = "jsae/jacobian_histogram"
MEASURES = [HISTOGRAM, *(f"jsae/{name}" for name in TABLES)]
MANY_BATCHES = Compute(device="cpu", checkpoint_seconds=0, batch_tokens=64)  # and a checkpoint after each


@pytest.fixture(scope="module")
def long_entries(entries):
    """The tiny catalog, where training takes seconds, and a sweep."""

    def make() -> dict:
        made = entries()
        for pair in made["pairs"]:
            pair["train"] = pair["train"] | {"config": pair["train"]["config"] | {"steps": STEPS}}
        local = {"model": "tiny", "layer": 1, "coefficients": SWEPT, "train": made["pairs"][1]["train"]}
        return made | {"sweeps": {"lambdas": {"local": local}}}

    return make


def graph_of(home: Path, catalog: Path, instance: dg.DagsterInstance | None = None) -> Graph:
    instance = instance or dg.DagsterInstance.from_config(str(home))
    return Graph(load_catalog(catalog), instance, {"compute": Compute(device="cpu", checkpoint_seconds=0.05)})


def train_pair_at(home: Path, catalog: Path) -> None:
    graph_of(home, catalog).measure(1, PAIR)


def train_sweep_at(home: Path, catalog: Path) -> None:
    sweep(graph_of(home, catalog))


def measuring(home: Path, catalog: Path, instance: dg.DagsterInstance | None = None) -> Graph:
    """A graph whose measures take many batches and save each."""
    instance = instance or dg.DagsterInstance.from_config(str(home))
    return Graph(load_catalog(catalog), instance, {"compute": MANY_BATCHES})


def measure_at(home: Path, catalog: Path) -> None:
    measuring(home, catalog).measure(1, HISTOGRAM)


def sweep(graph: Graph) -> dg.ExecuteInProcessResult:
    job = graph.definitions.resolve_job_def(SWEEP_JOB)
    return job.execute_in_process(
        instance=graph.instance,
        partition_key="lambdas",
        asset_selection=[dg.AssetKey("sweep_runs")],
        raise_on_error=False,
    )


def free_slots(instance: dg.DagsterInstance) -> None:
    """Of runs that were killed: without a daemon nobody else does."""
    for run in instance.get_runs():
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def checkpoints(graph: Graph) -> list[Path]:
    return [path for path in (graph.storage / "checkpoints").rglob("*") if path.is_file()]


def whole_checkpoints(graph: Graph) -> list[Path]:
    """Those that were written to their end."""
    return [path for path in checkpoints(graph) if not any(part.startswith(".") for part in path.parts)]


@pytest.fixture
def interrupted(instance, long_entries, tmp_path):
    """The graph, and what starts the work in another process and ends it with a signal amid training."""
    home, catalog = Path(instance.root_directory), write_catalog(tmp_path, long_entries())
    graph = graph_of(home, catalog, instance)

    def interrupt(work, sign: signal.Signals) -> float:
        seconds = killed_once(lambda: bool(whole_checkpoints(graph)), sign, work, home, catalog)
        free_slots(instance)
        return seconds

    return graph, interrupt


def digest(path: Path) -> str:
    return content_digest(load_file(path))


@pytest.fixture
def to_measure(instance, entries, tmp_path):
    """The graph of the tiny catalog with a pair to measure."""
    graph = measuring(Path(instance.root_directory), write_catalog(tmp_path, entries()), instance)
    assert graph.measure(1, PAIR).success
    return graph


def test_a_measure_that_was_killed_goes_on_and_stores_what_it_would_have_stored(to_measure, instance, tmp_path):
    graph = to_measure
    work = (measure_at, Path(instance.root_directory), tmp_path / "catalog.yaml")
    checkpoint = graph.storage / "checkpoints" / HISTOGRAM / "1" / "tiny.safetensors"
    killed_once(checkpoint.exists, signal.SIGKILL, *work)
    free_slots(instance)
    assert not graph.file(HISTOGRAM).exists()
    result = graph.measure(1, HISTOGRAM)
    assert result.success and "going on from the checkpoint" in graph.messages(result)
    assert checkpoints(graph) == []
    resumed = digest(graph.file(HISTOGRAM))
    again = graph.measure(1, HISTOGRAM)
    assert "checkpoint" not in graph.messages(again) and digest(graph.file(HISTOGRAM)) == resumed


def test_every_measure_that_fails_goes_on_in_the_next_run_from_where_it_was(graph, entries, monkeypatch):
    short = entries()
    short["models"]["tiny"] |= {"tokens": 400, "quality_tokens": 400}  # some batches after the fourth
    graph, saved = graph(short, compute=MANY_BATCHES), Checkpoint.save
    assert graph.measure(1, PAIR).success

    def results() -> dict[str, pd.DataFrame | str]:
        tables = {name: pd.read_parquet(graph.file(name, extension="parquet")) for name in MEASURES[1:]}
        return {HISTOGRAM: digest(graph.file(HISTOGRAM))} | tables

    def save(self, *state):
        saved(self, *state)
        if len(state[1]["loops"]) > 1 or state[1]["loops"][0][0] == 3:
            raise KeyError("as if it had been killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        assert set(failures(graph.measure(1, *MEASURES).runs[0])) == set(MEASURES)
    assert len(checkpoints(graph)) >= len(MEASURES)
    result = graph.measure(1, *MEASURES)
    assert materialised(result) == set(MEASURES)
    assert graph.messages(result).count("going on from the checkpoint") == len(MEASURES)
    assert checkpoints(graph) == []
    resumed = results()
    again = graph.measure(1, *MEASURES)
    assert again.success and "checkpoint" not in graph.messages(again)
    for name, one in results().items():
        assert one == resumed[name] if name == HISTOGRAM else one.equals(resumed[name]), name


def test_a_measure_begins_anew_with_fewer_tokens_at_once_where_memory_ran_out(to_measure, monkeypatch):
    graph, saved, n_saved = to_measure, Checkpoint.save, 0

    def save(self, *state):
        nonlocal n_saved
        saved(self, *state)
        n_saved += 1
        if n_saved == 3:
            raise torch.OutOfMemoryError("as if it had")

    monkeypatch.setattr(resources, "FEWEST_TOKENS", 32)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        result = graph.measure(1, HISTOGRAM)
    said = graph.messages(result)
    assert result.success and "beginning again with 32" in said and "Beginning anew" in said
    halved = digest(graph.file(HISTOGRAM))
    smaller = Compute(device="cpu", checkpoint_seconds=60, batch_tokens=32)
    other = Graph(graph.catalog, graph.instance, {"compute": smaller})
    assert other.measure(1, HISTOGRAM).success and digest(graph.file(HISTOGRAM)) == halved


def test_a_pair_whose_training_was_killed_is_trained_on_to_the_pair_it_would_have_been(interrupted):
    graph, interrupt = interrupted
    interrupt(train_pair_at, signal.SIGKILL)
    (left,) = whole_checkpoints(graph)
    assert left.relative_to(graph.storage).as_posix() == "checkpoints/jsae/sae_pair/1/tiny.safetensors"
    assert not graph.file(PAIR).exists()
    result = graph.measure(1, PAIR)
    assert result.success and "going on from the checkpoint" in graph.messages(result)
    resumed = digest(graph.file(PAIR))
    assert checkpoints(graph) == []
    again = graph.measure(1, PAIR)
    assert "checkpoint" not in graph.messages(again) and digest(graph.file(PAIR)) == resumed


def test_a_changed_recipe_begins_anew(interrupted, long_entries, tmp_path):
    graph, interrupt = interrupted
    interrupt(train_pair_at, signal.SIGKILL)
    changed = long_entries()
    changed["pairs"][1]["train"]["config"]["steps"] = 20
    edited = graph.with_catalog(load_catalog(write_catalog(tmp_path, changed)))
    result = edited.measure(1, PAIR)
    assert result.success and "Beginning anew" in edited.messages(result)
    assert checkpoints(graph) == []


def test_a_sweep_that_was_killed_goes_on_within_the_run_where_it_was(interrupted):
    graph, interrupt = interrupted
    interrupt(train_sweep_at, signal.SIGKILL)
    result = sweep(graph)
    assert failures(result) == {} and metadata(result, "sweep_runs")["trained"] == len(SWEPT)
    assert graph.messages(result).count("going on from the checkpoint") == 1
    folder = graph.storage / "sweep_runs" / "lambdas"
    resumed = {path.name: digest(path) for path in folder.iterdir()}
    assert checkpoints(graph) == []
    for path in folder.iterdir():
        path.unlink()
    assert "checkpoint" not in graph.messages(sweep(graph))
    assert {path.name: digest(path) for path in folder.iterdir()} == resumed


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_worker_that_trains_ends_within_ten_seconds_of_being_told_to_and_goes_on_later(interrupted, sign):
    graph, interrupt = interrupted
    assert interrupt(train_pair_at, sign) < 10
    (run,) = graph.instance.get_runs(limit=1)
    assert run.is_finished and not graph.file(PAIR).exists()
    result = graph.measure(1, PAIR)
    assert result.success and "going on from the checkpoint" in graph.messages(result)


def test_checkpoints_in_a_storage_elsewhere_are_gone_on_from(long_entries, graph, monkeypatch, tmp_path):
    base = f"memory://{tmp_path.name}"
    stores = {"tensors": SafetensorsStore, "tables": ParquetStore, "figures": FigureStore}
    tiny = graph(
        long_entries(),
        compute=MANY_BATCHES,
        **{name: store(base_path=base) for name, store in stores.items()},
    )
    saved = Checkpoint.save

    def save(self, tensors, values, *lists):
        saved(self, tensors, values, *lists)
        if values.get("step") == 5 or values.get("loops", [[0]])[0][0] == 5:
            raise KeyError("as if it had been killed")

    for asset in (PAIR, HISTOGRAM):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", save)
            assert not tiny.measure(1, asset).success
        result = tiny.measure(1, asset)
        assert result.success and "going on from the checkpoint" in tiny.messages(result)
    assert not [path for path in UPath(base).rglob("*") if "checkpoints" in path.parts and path.is_file()]


def test_checkpoints_of_what_left_the_catalog_are_named_with_their_size_and_left_alone(graph, long_entries, capsys):
    tiny = graph(long_entries())
    sweep = tiny.catalog.sweeps["lambdas"].local
    held = ["jsae/sae_pair/1/tiny", f"sweep_runs/lambdas/{tiny.catalog.run_digest(sweep, sweep.configs()[0])}"]
    sizes = {f"{place}.safetensors": 10 for place in held}
    sizes |= {"jsae/sae_pair/7/gone.safetensors": 70, "jsae/sae_pair/7/gone.parts/0.safetensors": 50}
    for place, size in sizes.items():
        path = tiny.storage / "checkpoints" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    assert run_all(tiny.catalog, tiny.definitions, tiny.instance, lambda place: False) == []
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "heckpoints" in line]
    assert f"take 120 bytes in {tiny.storage / 'checkpoints'}: jsae/sae_pair/7/gone (120 bytes). If" in said
    assert sorted(path.relative_to(tiny.storage / "checkpoints").as_posix() for path in checkpoints(tiny)) == sorted(
        sizes
    )
