"""Several at once: commands on one home, runs of one partition, writers of one file. What comes out is whole."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import dagster as dg
import plotly.graph_objects as go
import pytest

from jsae_assets.catalog_file import load_catalog
from jsae_assets.io_managers import FigureStore, PagesStore, header
from jsae_assets.resources import Compute
from tests.jsae_assets.conftest import Graph, write_catalog
from tests.jsae_assets.test_at_work import PATIENCE, started
from tests.killing import FORKED

WRITERS = 4


def test_two_demos_at_once_on_a_fresh_home_make_everything_once_and_who_waits_says_for_whom(entries, tmp_path):
    one_layer = entries()
    one_layer["pairs"][0]["layers"] = [1]
    catalog, home = write_catalog(tmp_path, one_layer), tmp_path / "home"
    command = ["-m", "jsae_assets", "demo"]
    with started(home, *command, catalog=catalog) as one, started(home, *command, catalog=catalog) as other:
        said = {process.pid: process.communicate(timeout=PATIENCE)[0] for process in (one, other)}
    assert [one.returncode, other.returncode] == [0, 0], said
    waited = [
        (pid, int(process), what)
        for pid, text in said.items()
        for process, what in re.findall(r"Waiting for process (\d+) on .*?, which (.*) \(its lock: ", text)
    ]
    assert {(pid, process) for pid, process, _ in waited} <= {(one.pid, other.pid), (other.pid, one.pid)}
    assert any(what.startswith("makes tiny, layer ") for *_, what in waited), said
    for text in said.values():  # each shows how far it is, and ends with table and figures
        for words in ("[1/4] tiny: tokens", "[2/4] tiny, layer 1", "|J|≥0.01", "Traditional", "JSAE", ".html"):
            assert words in text
    assert any(" left" in text for text in said.values())
    graph = Graph(load_catalog(catalog), dg.DagsterInstance.from_config(str(home)))
    for key in graph.definitions.resolve_asset_graph().materializable_asset_keys:
        records = graph.instance.fetch_materializations(key, limit=1000).records
        made = [record.partition_key for record in records]
        assert made and len(made) == len(set(made)), key
    assert (graph.storage / "site" / "index.html").exists()


def measure_at(home: Path, catalog: Path, assets: list[str]) -> None:
    graph = Graph(
        load_catalog(catalog),
        dg.DagsterInstance.from_config(str(home)),
        {"compute": Compute(device="cpu", checkpoint_seconds=0)},
    )
    graph.measure(1, *assets, raise_on_error=True)


def test_two_runs_of_a_partition_at_once_both_succeed_and_what_is_stored_is_whole_and_that_of_one_run(
    measured, fresh_home, entries, tmp_path
):
    home, catalog = tmp_path / "home", write_catalog(tmp_path, entries())
    shutil.copytree(fresh_home, home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.event_log_storage.set_concurrency_slots("gpu", 2)  # of one, each would wait for the other's steps
        tiny = Graph(load_catalog(catalog), instance)
        assets = ["jsae/sae_pair", "traditional/sae_pair", "jsae/jacobian_examples", "traditional/jacobian_examples"]
        assets.append("figures/jsae/jacobian_examples")
        runs = [FORKED.Process(target=measure_at, args=(home, catalog, assets)) for _ in range(2)]
        for run in runs:
            run.start()
        for run in runs:
            run.join(PATIENCE)
        assert [run.exitcode for run in runs] == [0, 0]
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
        assert instance.event_log_storage.get_concurrency_info("gpu").claimed_slots == []
        for asset in assets:
            stored, alone = (stored_at_layer_1(graph, asset) for graph in (tiny, measured.graph))
            assert stored.damage() is None
            if not asset.startswith("figures/"):
                assert stored.keys() == alone.keys()
                assert all(bool((stored[name] == alone[name]).all()) for name in alone)
        assert [path for path in tiny.storage.rglob("*") if ".part" in path.name] == []


def stored_at_layer_1(graph: Graph, asset: str):
    key = dg.AssetKey.from_user_string(asset)
    store = graph.definitions.resources["figures" if asset.startswith("figures/") else "tensors"]
    return store.manager_of(graph.instance).stored(key, "tiny:1")


@pytest.fixture
def slow_moves(monkeypatch):
    """What takes a file's place takes its time, so that those who write at once get into each other's way."""
    move = Path.replace

    def replace(self, target):
        moved = move(self, target)
        threading.Event().wait(0.01)
        return moved

    monkeypatch.setattr(Path, "replace", replace)


def at_once(*bodies) -> list[BaseException]:
    """What went wrong in bodies that run at once, each in a thread."""
    wrong: list[BaseException] = []

    def guarded(body) -> None:
        try:
            body()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_of_a_figure_that_several_write_at_once_page_and_json_are_of_the_same_one(instance, tmp_path, slow_moves):
    key = dg.AssetKey(["figures", "jsae", "ablation"])
    manager = FigureStore(base_path=str(tmp_path / "storage")).manager_of(instance)
    stored = manager.stored(key, "tiny:1")

    def write(number: int):
        figure = go.Figure(go.Bar(y=[number]))
        return lambda: manager.store(figure, stored, header(key, "tiny:1", f"run-{number}", "1"))

    for _ in range(3):
        assert at_once(*map(write, range(WRITERS))) == []
        assert manager.stored(key, "tiny:1").damage() is None


def test_of_a_site_that_several_write_at_once_every_page_is_there(instance, tmp_path, slow_moves):
    manager = PagesStore(base_path=str(tmp_path / "storage")).manager_of(instance)
    stored = manager.stored(dg.AssetKey("site"))
    folders = []
    for number in range(WRITERS):
        folders.append(tmp_path / f"made-{number}")
        (folders[-1] / "cells").mkdir(parents=True)
        for name in ("index.html", "cells/1.html", f"cells/only-{number}.html"):
            (folders[-1] / name).write_text(f"{number}")
    assert at_once(*(lambda folder=folder: manager.store(folder, stored, {}) for folder in folders)) == []
    pages = {path.relative_to(stored.path.parent).as_posix(): path.read_text() for path in _pages(stored.path.parent)}
    assert len(set(pages.values())) == 1
    (number,) = set(pages.values())
    assert pages.keys() == {"index.html", "cells/1.html", f"cells/only-{number}.html"}


def _pages(folder) -> list[Path]:
    return list(Path(folder.path).rglob("*.html"))
