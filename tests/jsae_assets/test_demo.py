"""`make demo`: what is there is not made again, what changed is, and a failure says where and why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import torch
from safetensors.torch import load_file

from jsae_assets.catalog import load_catalog
from jsae_assets.demo import figure_pages, run_all, summary
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, REPOSITORY, Graph, write_catalog

CELL_0 = {f"traditional/{name} 0|tiny" for name in PER_VARIANT}
FIGURES = {f"figures/jsae/{name} 1|tiny" for name in CELL_FIGURES}
JSAE = {f"jsae/{name} 1|tiny" for name in PER_VARIANT}
TRADITIONAL_1 = {f"traditional/{name} 1|tiny" for name in PER_VARIANT}
BY_LAYER = {"figures/jsae/quality_by_layer tiny"}
EVERYTHING = {"tokens tiny"} | CELL_0 | TRADITIONAL_1 | JSAE | FIGURES | BY_LAYER


def run(graph: Graph) -> set[str]:
    """Run the demo's plan; the asset partitions that were materialised, each "asset partition"."""
    before = {record.run_id for record in graph.instance.get_runs()}
    try:
        run_all(graph.catalog, graph.definitions, graph.instance)
    finally:
        new = [record.run_id for record in graph.instance.get_runs() if record.run_id not in before]
        made = {
            f"{event.asset_key.to_user_string()} {event.partition}"
            for run_id in new
            for entry in graph.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
            for event in [entry.dagster_event]
        }
    return made


@pytest.fixture(scope="module")
def shared(fresh_home, entries, tmp_path_factory):
    """The tiny graph in an instance that the tests of this file share."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(fresh_home, folder / "home")
    with dg.DagsterInstance.from_config(str(folder / "home")) as instance:
        graph = Graph(load_catalog(write_catalog(folder, entries())), instance)
        assert run(graph) == EVERYTHING
        yield graph


@pytest.fixture
def finished(shared):
    """The same after the demo ran: whatever the test before changed is as it was."""
    run(shared)
    return shared


def edited(graph: Graph, tmp_path: Path, entries: dict) -> Graph:
    return graph.with_catalog(load_catalog(write_catalog(tmp_path, entries)))


def test_a_second_run_computes_nothing_and_says_so(finished, capsys):
    before = finished.stored()
    capsys.readouterr()
    assert run(finished) == set()
    said = capsys.readouterr().out
    for line in (
        "[1/4] tiny: tokens: up to date",
        "[2/4] tiny, layer 0: up to date",
        "[3/4] tiny, layer 1: up to date",
        "[4/4] tiny: layers compared: up to date",
    ):
        assert line in said
    assert finished.stored() == before


def test_a_changed_recipe_makes_that_pair_again_and_what_is_downstream_of_it_alone(finished, entries, tmp_path):
    changed = entries()
    changed["pairs"][1]["train"]["config"] = changed["pairs"][1]["train"]["config"] | {"k": 6}
    after = edited(finished, tmp_path, changed)
    assert run(after) == JSAE | FIGURES | BY_LAYER
    assert run(after) == set()


def test_a_layer_added_to_an_entry_makes_that_cell_and_what_compares_the_layers(finished, entries, tmp_path):
    changed = entries()
    changed["pairs"][0]["layers"] = [0, 1, 2]
    assert run(edited(finished, tmp_path, changed)) == {name.replace(" 0|", " 2|") for name in CELL_0} | BY_LAYER


def without(assets: set[str], *words: str) -> set[str]:
    return {asset for asset in assets if not any(word in asset for word in words)}


def test_more_tokens_measure_everything_again_that_reads_them_and_train_nothing(finished, entries, tmp_path):
    changed = entries()
    changed["models"]["tiny"]["tokens"] = 500
    assert run(edited(finished, tmp_path, changed)) == without(EVERYTHING, "/sae_pair", "/jacobian_examples")


def test_another_context_size_makes_all_of_it_again(finished, entries, tmp_path):
    changed = entries()
    changed["models"]["tiny"]["context_size"] = 20
    assert run(edited(finished, tmp_path, changed)) == EVERYTHING


def test_another_number_of_samples_makes_that_table_again_and_its_figures(finished, entries, tmp_path):
    changed = entries()
    changed["models"]["tiny"]["function_shapes"] = 70
    assert run(edited(finished, tmp_path, changed)) == {
        name for name in EVERYTHING if "/function_shapes" in name or "/function_curves" in name
    }


def test_another_colour_draws_the_figures_again_and_measures_nothing(finished, entries, tmp_path):
    changed = entries()
    changed["variants"]["jsae"]["colour"] = "#009E73"
    assert run(edited(finished, tmp_path, changed)) == FIGURES | BY_LAYER


@pytest.mark.parametrize(
    ("asset", "extension", "again"),
    [
        ("jsae/sae_pair", "safetensors", JSAE | FIGURES | BY_LAYER),
        (
            "traditional/jacobian_histogram",
            "safetensors",
            {"traditional/jacobian_histogram 1|tiny"}
            | {f"figures/jsae/jacobian_{name} 1|tiny" for name in ("histogram", "thresholds", "sparsity")},
        ),
        ("figures/jsae/jacobian_examples", "json", {"figures/jsae/jacobian_examples 1|tiny"}),
    ],
)
def test_a_deleted_file_is_made_again_and_what_is_downstream_of_it(finished, asset, extension, again):
    finished.file(asset, extension=extension).unlink()
    assert run(finished) == again
    assert finished.file(asset, extension=extension).exists()


def test_what_was_made_outside_the_demo_counts_as_made(entries, graph):
    tiny = graph(entries())
    tiny.tokenise()
    tiny.measure(1, raise_on_error=True)
    assert run(tiny) == CELL_0 | BY_LAYER


def test_what_is_downstream_of_a_pair_made_again_elsewhere_is_made_again(finished):
    finished.measure(1, "jsae/sae_pair", raise_on_error=True)
    assert run(finished) == JSAE - {"jsae/sae_pair 1|tiny"} | FIGURES | BY_LAYER


def test_a_pair_that_failed_its_check_is_tried_again(entries, graph, tmp_path):
    strict = entries()
    strict["pairs"][1]["least_explained_variance"] = {"output": 1.0}
    tiny = graph(strict)
    for _ in range(2):
        with pytest.raises(SystemExit, match="tiny, layer 1 failed"):
            run(tiny)
    evaluations = [
        entry.dagster_event.event_specific_data
        for record in tiny.instance.get_runs()
        for entry in tiny.instance.all_logs(record.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    ]
    assert [check.asset_key.path[0] for check in evaluations if not check.passed] == ["jsae", "jsae"]


def test_a_failing_run_ends_with_the_cell_and_the_cause_and_keeps_what_is_stored(entries, graph, tmp_path):
    changed = entries()
    folder = tmp_path / "pairs" / "1"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text("{}", encoding="utf-8")
    (folder / "sae_weights.safetensors").write_bytes(b"the beginning")
    changed["pairs"][1] = {"variant": "jsae", "model": "tiny", "layers": [1], "directory": "pairs/{layer}"}
    tiny = graph(changed)
    with pytest.raises(SystemExit) as stopped:
        run(tiny)
    message = str(stopped.value.code)
    for words in ("tiny, layer 1 failed", "jsae__sae_pair", f"{folder / 'sae_weights.safetensors'}: is no complete"):
        assert words in message
    assert tiny.file("traditional/jacobian_histogram", 0).exists()
    assert tiny.file("tokens", None).exists()


def test_the_table_says_what_was_measured_for_each_pair(measured):
    measured_graph = measured.graph
    lines = summary(measured_graph.catalog, measured_graph.instance).splitlines()
    assert lines[0].split()[:3] == ["model", "layer", "variant"]
    rows = {tuple(line.split()[:3]): line for line in lines[1:]}
    assert rows.keys() == {("tiny", "1", "Traditional"), ("tiny", "1", "JSAE")}
    histogram = load_file(measured_graph.file("jsae/jacobian_histogram"))
    total = histogram["hist"].sum() + histogram["overflow"]
    edge = torch.searchsorted(histogram["bin_edges"], 0.01 - 1e-9)
    share = (histogram["hist"][edge:].sum() + histogram["overflow"]) / total
    assert f"{share.item():.1%}" in rows["tiny", "1", "JSAE"]


def test_the_figures_are_where_the_demo_says(measured):
    (pattern,) = figure_pages(measured.graph.catalog, measured.graph.instance)
    page = pattern.replace("<figure>", "ablation").replace("<layer>", "1").replace("<model>", "tiny")
    assert Path(page).is_file()


def demo(home: Path, catalog: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jsae_assets.demo"],
        cwd=REPOSITORY,
        env=os.environ | {"DAGSTER_HOME": str(home), "JSAE_CATALOG": str(catalog), "JSAE_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_the_command_runs_the_catalog_shows_progress_and_prints_table_and_figures(instance, entries, tmp_path):
    result = demo(Path(instance.root_directory), write_catalog(tmp_path, entries()))
    assert result.returncode == 0, result.stderr
    for words in ("[1/4] tiny: tokens", "[3/4] tiny, layer 1", " s left", "|J|>0.01", "Traditional", "JSAE", ".html"):
        assert words in result.stdout


def test_the_command_fails_with_one_clear_message_where_the_catalog_is_bad(instance, entries, tmp_path):
    bad = entries()
    bad["models"]["tiny"]["text"] = "nothing"
    path = write_catalog(tmp_path, bad)
    result = demo(Path(instance.root_directory), path)
    assert result.returncode != 0
    assert str(path) in result.stderr
    assert "models.tiny.text is 'nothing'" in result.stderr
    assert "Traceback" not in result.stderr
