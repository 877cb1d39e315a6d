"""`jsae run` and `jsae demo`: what is there is not made again, what changed is, and a failure says where and why."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from jsae_assets import command, making
from jsae_assets.catalog_file import load_catalog
from jsae_assets.command import figure_pages, summary
from jsae_assets.making import freshness_of, run_all, say_plan
from jsae_assets.number import Number
from jsae_assets.resources import Compute
from jsae_assets.runs.plan import planned_runs, selection
from jsae_assets.suggestion import COLUMNS, NothingToSuggest, advice, short_sweep, suggested, table
from jsae_core import load_language_model
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, REPOSITORY, Graph, write_catalog

CELL_0 = {f"traditional/{name} tiny:0" for name in PER_VARIANT}
FIGURES = {f"figures/jsae/{name} tiny:1" for name in CELL_FIGURES}
JSAE = {f"jsae/{name} tiny:1" for name in PER_VARIANT}
TRADITIONAL_1 = {f"traditional/{name} tiny:1" for name in PER_VARIANT}
BY_LAYER = {"figures/jsae/quality_by_layer tiny"}
EVERYTHING = {"tokens tiny"} | CELL_0 | TRADITIONAL_1 | JSAE | FIGURES | BY_LAYER


def run(
    graph: Graph, failures: list[str] | None = None, with_site: bool = False, wanted=lambda place: True
) -> set[str]:
    """Make what is missing or out of date of what is wanted; the asset partitions that were made, each "asset
    partition", the site left out unless it is asked for. What failed is appended to `failures`, and nothing may fail
    without them."""
    before = {record.run_id for record in graph.instance.get_runs()}
    failed = run_all(graph.catalog, graph.definitions, graph.instance, wanted)
    if failures is None:
        assert failed == []
    else:
        failures += failed
    return {
        f"{event.asset_key.to_user_string()} {event.partition or ''}".rstrip()
        for record in graph.instance.get_runs()
        if record.run_id not in before
        for entry in graph.instance.all_logs(record.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        for event in [entry.dagster_event]
        if with_site or event.asset_key.path != ["site"]
    }


def planned(graph: Graph, wanted=lambda place: True) -> set[str]:
    """What of it would be made, each "asset partition", the site left out."""
    runs = planned_runs(freshness_of(graph.catalog, graph.definitions, graph.instance), wanted)
    made = {f"{key.to_user_string()} {run.partition or ''}".rstrip() for run in runs for key in run.assets}
    return made - {"site"}


@pytest.fixture(scope="module")
def whole_home(measured_home, made_once):
    """A home in which tokens and layer 1 were made by other runs, and `jsae run` then made the rest. To be copied."""

    def make(home: Path) -> None:
        shutil.copytree(measured_home, home, dirs_exist_ok=True)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            made = run(Graph(load_catalog(home / "catalog.yaml"), instance), with_site=True)
        (home / "made.json").write_text(json.dumps(sorted(made)), encoding="utf-8")

    return made_once("whole", make)


@pytest.fixture
def finished(whole_home, tmp_path):
    """A copy of it."""
    shutil.copytree(whole_home, tmp_path / "home")
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        yield Graph(load_catalog(tmp_path / "home" / "catalog.yaml"), instance)


def edited(graph: Graph, tmp_path: Path, entries: dict) -> Graph:
    return graph.with_catalog(load_catalog(write_catalog(tmp_path, entries)))


def with_a_pair_to_refuse(graph: Graph, entries: Callable[[], dict], tmp_path: Path) -> tuple[dict, Graph]:
    """The catalog's entries and the graph, with another recipe of the JSAE, which must explain all of the variance."""
    strict = entries()
    strict["pairs"][1]["least_explained_variance"] = {"output": 1.0}
    strict["pairs"][1]["train"]["config"] = strict["pairs"][1]["train"]["config"] | {"steps": 30}
    return strict, edited(graph, tmp_path, strict)


def test_a_second_run_computes_nothing_and_says_so(finished, capsys):
    before = finished.stored()
    capsys.readouterr()
    assert run(finished) == set()
    said = capsys.readouterr().out
    for line in (
        "[1/6] tiny: tokens: up to date",
        "[2/6] tiny, layer 0: up to date",
        "[3/6] tiny, layer 1: up to date",  # what is at both layers
        "[4/6] tiny, layer 1: up to date",  # what is at this layer alone
        "[5/6] tiny: layers compared: up to date",
        "[6/6] site: up to date",
    ):
        assert line in said
    assert finished.stored() == before


def test_a_changed_recipe_makes_that_pair_again_and_what_is_downstream_of_it_alone(finished, entries, tmp_path):
    changed = entries()
    changed["pairs"][1]["train"]["config"] = changed["pairs"][1]["train"]["config"] | {"k": 6}
    after = edited(finished, tmp_path, changed)
    assert run(after) == JSAE | FIGURES | BY_LAYER
    assert run(after) == set()


def test_a_dry_run_after_an_edit_says_what_changed(finished, entries, tmp_path, capsys):
    changed = entries()
    changed["models"]["tiny"]["function_shapes"] = 71
    after = edited(finished, tmp_path, changed)
    say_plan(freshness_of(after.catalog, after.definitions, after.instance), lambda place: True)
    said = capsys.readouterr().out
    assert "jsae/function_shapes was made before its entries in the catalog changed" in said
    assert re.search(r"^At most \d+ to materialise: ", said, re.MULTILINE)  # the tables may come out equal


def test_a_layer_added_to_an_entry_makes_that_cell_and_what_compares_the_layers(finished, entries, tmp_path):
    changed = entries()
    changed["pairs"][0]["layers"] = [0, 1, 2]
    assert run(edited(finished, tmp_path, changed)) == {name.replace(":0", ":2") for name in CELL_0} | BY_LAYER


def without(assets: set[str], *words: str) -> set[str]:
    return {asset for asset in assets if not any(word in asset for word in words)}


def test_more_tokens_measure_everything_again_that_reads_them_and_train_nothing(finished, entries, tmp_path):
    changed = entries()
    changed["models"]["tiny"]["tokens"] = 500
    assert planned(edited(finished, tmp_path, changed)) == without(EVERYTHING, "/sae_pair", "/jacobian_examples")


def test_another_context_size_makes_all_of_it_again(finished, entries, tmp_path):
    changed = entries()
    changed["models"]["tiny"]["context_size"] = 20
    assert planned(edited(finished, tmp_path, changed)) == EVERYTHING


def test_another_number_of_samples_makes_that_table_again_and_its_figures(finished, entries, tmp_path):
    changed = entries()
    changed["models"]["tiny"]["function_shapes"] = 70
    assert planned(edited(finished, tmp_path, changed)) == {
        name
        for name in EVERYTHING
        if any(asset in name for asset in ("/function_shapes", "/function_curves", "/differences"))
    }


def test_another_colour_draws_the_figures_again_and_measures_nothing(finished, entries, tmp_path):
    changed = entries()
    changed["variants"]["jsae"]["colour"] = "#009E73"
    assert planned(edited(finished, tmp_path, changed)) == FIGURES | BY_LAYER


@pytest.mark.parametrize(
    ("asset", "extension", "again"),
    [
        ("jsae/sae_pair", "safetensors", JSAE | FIGURES),
        ("traditional/jacobian_histogram", "safetensors", {"traditional/jacobian_histogram tiny:1"}),
        ("figures/jsae/jacobian_examples", "json", {"figures/jsae/jacobian_examples tiny:1"}),
    ],
)
def test_a_deleted_file_is_made_again_and_what_is_downstream_in_its_run_and_no_later_run_since_it_is_as_it_was(
    finished, asset, extension, again
):
    finished.file(asset, extension=extension).unlink()
    assert run(finished) == again
    assert finished.file(asset, extension=extension).exists()


def test_the_site_is_made_again_after_whatever_it_shows_and_not_otherwise(finished, entries, tmp_path):
    assert run(finished, with_site=True) == set()
    (finished.storage / "site" / "index.html").unlink()
    assert run(finished, with_site=True) == {"site"}
    changed = entries()
    changed["variants"]["jsae"]["label"] = "another label"
    assert run(edited(finished, tmp_path, changed), with_site=True) == FIGURES | BY_LAYER | {"site"}
    page = (finished.storage / "site" / "index.html").read_text(encoding="utf-8")
    assert "another label" in page


def test_what_was_damaged_is_planned_with_the_reason_and_made_again_and_nothing_else(finished, capsys):
    shapes = finished.file("traditional/function_shapes", extension="parquet")
    shapes.write_bytes(shapes.read_bytes()[:-100])
    for path in (
        finished.file("figures/jsae/jacobian_histogram", extension="json"),
        finished.file("figures/jsae/edge_curve", extension="html"),
    ):
        content = bytearray(path.read_bytes())
        place = content.index(b"0", len(content) // 2)  # a digit stays one: the file can still be read
        content[place] = ord("1")
        path.write_bytes(content)
    older = {
        path: path.read_bytes()
        for path in (finished.file("figures/jsae/ablation", extension=extension) for extension in ("json", "html"))
    }
    finished.measure(1, "figures/jsae/ablation", raise_on_error=True)
    for path, content in older.items():  # as from a backup
        path.write_bytes(content)
    capsys.readouterr()
    say_plan(freshness_of(finished.catalog, finished.definitions, finished.instance), lambda place: True)
    said = capsys.readouterr().out
    damaged = "was made, but its file is damaged: "
    for line in (
        f"traditional/function_shapes {damaged}it is not a complete parquet file",
        f"figures/jsae/jacobian_histogram {damaged}its bytes are not those that were written",
        f"figures/jsae/edge_curve {damaged}the bytes of tiny.html next to it are not those that were written",
        f"figures/jsae/ablation {damaged}it is not the one that was made last",
    ):
        assert line in said
    assert run(finished) == {
        "traditional/function_shapes tiny:1",
        "figures/jsae/jacobian_histogram tiny:1",
        "figures/jsae/edge_curve tiny:1",
        "figures/jsae/ablation tiny:1",
    }
    assert run(finished) == set()


def test_what_was_made_elsewhere_counts_as_made(whole_home):
    made = json.loads((whole_home / "made.json").read_text(encoding="utf-8"))
    assert set(made) == CELL_0 | BY_LAYER | {"site"}


def test_a_pair_made_again_with_the_same_weights_leaves_what_is_downstream_up_to_date(finished):
    finished.measure(1, "jsae/sae_pair", raise_on_error=True)
    assert run(finished) == set()


def test_a_pair_made_again_with_other_weights_makes_what_is_downstream_out_of_date(finished, entries, tmp_path):
    """What a moved alias or a changed directory does."""
    key, partition = dg.AssetKey(["jsae", "sae_pair"]), "tiny:1"
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    (latest,) = finished.instance.fetch_materializations(wanted, limit=1).records
    tags = dict(latest.asset_materialization.tags) | {"dagster/data_version": "other weights"}
    finished.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition, tags=tags))
    assert planned(finished) == JSAE - {"jsae/sae_pair tiny:1"} | FIGURES | BY_LAYER


def test_a_pair_that_failed_its_check_says_what_it_explains_and_is_not_trained_again_unless_named_or_changed(
    finished, entries, monkeypatch, tmp_path, capsys
):
    strict, tiny = with_a_pair_to_refuse(finished, entries, tmp_path)
    failed = []
    assert run(tiny, failed) == {"jsae/sae_pair tiny:1"}
    assert failed[0].startswith("tiny, layer 1 (jsae) failed:\n  jsae/sae_pair, check faithful: ")
    assert run(tiny, failed) == set()
    assert failed[1].startswith("jsae/sae_pair tiny:1 was refused by its check faithful and its recipe has not changed")
    for message in failed:
        assert re.search(r"the output SAE explains -?[\d.]+% of the variance, expected at least 100%", message)
        assert "`jsae suggest-lambda tiny 1` looks for a better λ" in message
    capsys.readouterr()
    assert main(tiny, monkeypatch, tmp_path, "run", "--dry-run", "--asset", "pair_quality") == 0
    said = capsys.readouterr().out
    assert "jsae/sae_pair was refused by its check faithful" in said and "0 to materialise." in said
    assert main(tiny, monkeypatch, tmp_path, "run", "--asset", "pair_quality") == 1
    assert main(tiny, monkeypatch, tmp_path, "run", "--dry-run", "--asset", "jsae/sae_pair") == 0
    assert "jsae/sae_pair has not passed its check faithful\n1 to materialise." in capsys.readouterr().out
    strict["pairs"][1]["train"]["config"] = strict["pairs"][1]["train"]["config"] | {"steps": 31}
    assert "jsae/sae_pair tiny:1" in planned(edited(finished, tmp_path, strict))
    assert run(edited(finished, tmp_path, strict), []) == {"jsae/sae_pair tiny:1"}


def test_a_failure_says_the_cell_and_the_cause_and_everything_that_does_not_need_it_is_made(
    finished, entries, tmp_path
):
    changed = entries()
    folder = tmp_path / "pairs" / "1"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text("{}", encoding="utf-8")
    (folder / "sae_weights.safetensors").write_bytes(b"the beginning")
    changed["pairs"][1] = {"variant": "jsae", "model": "tiny", "layers": [1], "directory": "pairs/{layer}"}
    tiny = edited(finished, tmp_path, changed)
    tiny.file("traditional/function_shapes", extension="parquet").unlink()
    tiny.file("traditional/pair_quality", layer=0, extension="parquet").unlink()
    failed = []
    assert run(tiny, failed, with_site=True) == {
        "traditional/function_shapes tiny:1",
        "traditional/pair_quality tiny:0",
        "site",  # which shows what there is
    }
    (message,) = failed
    for words in (
        "tiny, layer 1 (jsae) failed",
        "jsae/sae_pair: ",
        f"{folder / 'sae_weights.safetensors'}: is not a complete",
    ):
        assert words in message
    assert run(tiny, failed) == set()  # what was made is not made again


@pytest.mark.parametrize("kind", ["a broken file", "a refused pair", "a measure that raises"])
def test_a_failure_s_cause_is_told_when_it_happens_and_last_of_all_without_dagster_s_words(
    finished, entries, monkeypatch, tmp_path, capsys, kind
):
    changed = entries()
    if kind == "a broken file":
        weights = tmp_path / "pairs" / "1" / "sae_weights.safetensors"
        weights.parent.mkdir(parents=True)
        weights.with_name("cfg.json").write_text("{}", encoding="utf-8")
        weights.write_bytes(b"the beginning")
        changed["pairs"][1] = {"variant": "jsae", "model": "tiny", "layers": [1], "directory": "pairs/{layer}"}
        step, cause = "jsae/sae_pair", f"{weights}: is not a complete safetensors file"
    elif kind == "a refused pair":
        changed["pairs"][1]["least_explained_variance"] = {"output": 1.0}
        changed["pairs"][1]["train"]["config"] = changed["pairs"][1]["train"]["config"] | {"steps": 30}
        step, cause = "jsae/sae_pair, check faithful", "the output SAE explains "
    else:
        finished.file("traditional/function_shapes", extension="parquet").unlink()
        monkeypatch.setattr(Compute, "pair", lambda *_: {}["this measure fails"])
        step, cause = "traditional/function_shapes", "KeyError: 'this measure fails'"
    tiny = edited(finished, tmp_path, changed)
    capsys.readouterr()
    assert main(tiny, monkeypatch, tmp_path, "run", "--layer", "1") == 1
    said = capsys.readouterr().out
    assert "Not executing" not in said
    while_it_ran, last = said.split("Not everything could be made:")
    (line,) = [line for line in while_it_ran.splitlines() if line.startswith(f"      {step}: failed: ")]
    assert cause in line
    title, first, *_, where = last.strip().splitlines()
    assert title.startswith("tiny, layer 1 (") and title.endswith(") failed:")
    assert first.startswith(f"  {step}: ") and cause in first
    assert where.startswith("  The run is ") and len(last.strip().splitlines()) <= 4


def test_the_time_left_counts_neither_a_pair_that_stays_refused_nor_what_is_made_from_it_which_is_called_left_out(
    finished, entries, monkeypatch, tmp_path, capsys
):
    _, tiny = with_a_pair_to_refuse(finished, entries, tmp_path)
    run(tiny, [])
    for layer in (0, 1):
        tiny.file("traditional/function_shapes", layer=layer, extension="parquet").unlink()
    ticks = itertools.count()
    monkeypatch.setattr(making, "time", SimpleNamespace(monotonic=lambda: next(ticks)))  # each run takes one second
    capsys.readouterr()
    made = run(tiny, [], with_site=True)
    said = capsys.readouterr().out
    (left,) = re.findall(r"^\[3/6\] .*: 1 to materialise, about (\d+) s left$", said, re.MULTILINE)
    assert int(left) == len(made) - 1  # all but what was made of layer 0, in the one second before
    assert "[1/6] tiny: tokens: up to date" in said
    assert "[4/6] tiny, layer 1 (jsae): left out, because something it is made from failed" in said


def test_how_long_the_demo_takes_is_said_only_where_something_is_to_be_made(finished, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "DEFAULT_CATALOG", tmp_path / "home" / "catalog.yaml")
    assert main(finished, monkeypatch, tmp_path / "home", "demo") == 0
    assert command.DEMO not in capsys.readouterr().out
    finished.file("figures/jsae/jacobian_examples", extension="json").unlink()
    assert main(finished, monkeypatch, tmp_path / "home", "demo") == 0
    assert command.DEMO in capsys.readouterr().out


# Narrowed down


def main(graph: Graph, monkeypatch, tmp_path, *arguments: str, device: str = "cpu") -> int:
    monkeypatch.setenv("DAGSTER_HOME", graph.instance.root_directory)
    monkeypatch.setenv("JSAE_CATALOG", str(tmp_path / "catalog.yaml"))
    monkeypatch.setenv("JSAE_DEVICE", device)
    return command.main(arguments)


def test_a_dry_run_says_what_would_be_made_and_why_and_makes_and_records_nothing(
    entries, graph, monkeypatch, tmp_path, capsys
):
    tiny = graph(entries())
    assert main(tiny, monkeypatch, tmp_path, "run", "--dry-run") == 0
    said = capsys.readouterr().out
    for line in (
        "tiny, layer 1 (jsae):",
        "  tokens is missing",
        "  jsae/sae_pair is missing",
        f"{len(EVERYTHING) + 1} to materialise.",  # and the site
    ):
        assert line in said
    assert tiny.instance.get_runs() == [] and tiny.stored() == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", "0"], {"tokens tiny"} | CELL_0),
        (["--model", "tiny"], EVERYTHING),
        (["--asset", "tokens"], {"tokens tiny"}),
        (["--asset", "jsae/jacobian_examples"], {"jsae/sae_pair tiny:1", "jsae/jacobian_examples tiny:1"}),
        (
            ["--asset", "sae_pair", "--layer", "1"],
            {"traditional/sae_pair tiny:1", "jsae/sae_pair tiny:1"},
        ),
    ],
)
def test_what_is_asked_for_brings_with_it_what_it_is_made_from_and_nothing_else(entries, graph, arguments, expected):
    tiny = graph(entries())
    options = command.arguments(["run", *arguments])
    wanted = selection(options.model, options.layer, options.asset, tiny.catalog)
    assert planned(tiny, wanted) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nobody"], "--model nobody: the catalog has no such model; expected one of tiny"),
        (["--layer", "7"], "--layer 7: the catalog has no such layer; expected one of 0, 1"),
        (["--asset", "nothing"], "--asset nothing: the catalog has no such asset; expected one of "),
        (["--asset", "pair_qualty"], "the catalog has no such asset; did you mean pair_quality?"),
    ],
)
def test_what_the_catalog_does_not_hold_is_a_bad_argument(
    entries, graph, monkeypatch, tmp_path, capsys, arguments, said
):
    assert main(graph(entries()), monkeypatch, tmp_path, "run", *arguments) == 2
    assert said in capsys.readouterr().err


def test_what_there_is_is_named_once(entries, graph, monkeypatch, tmp_path, capsys):
    main(graph(entries()), monkeypatch, tmp_path, "run", "--asset", "nothing")
    names = capsys.readouterr().err.split("expected one of ")[1].strip().split(", ")
    assert names == sorted(set(names)) and {"tokens", "pair_quality", "jsae/pair_quality"} <= set(names)


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "--dry-run"], ["demo"], ["suggest-lambda", "tiny", "0"]], ids=" ".join
)
@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_a_device_that_this_machine_lacks_is_refused_once_before_anything_is_made(
    entries, graph, monkeypatch, tmp_path, capsys, arguments, device
):
    tiny = graph(entries())
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(tiny, monkeypatch, tmp_path, *arguments, device=device) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"JSAE_DEVICE) asks for {device}, " in line and line.endswith("set it to auto or cpu")
    assert tiny.instance.get_runs() == [] and tiny.stored() == {}


def test_a_site_without_a_result_is_called_empty(entries, graph, monkeypatch, tmp_path, capsys):
    assert main(graph(entries()), monkeypatch, tmp_path, "run", "--asset", "site") == 0
    said = capsys.readouterr().out
    assert "The site, still empty: " in said and "with all results" not in said


def test_the_exit_status_says_whether_anything_failed(entries, graph, monkeypatch, tmp_path, capsys):
    changed = entries()
    (tmp_path / "text.jsonl").write_text("no JSON\n", encoding="utf-8")
    changed["text"]["measured"] = {"files": [str(tmp_path / "text.jsonl")]}
    tiny = graph(changed)
    assert main(tiny, monkeypatch, tmp_path, "run", "--asset", "tokens") == 1
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tiny: tokens failed:") for line in said)
    assert not any(line.strip().startswith(":") for line in said)  # each line says of what it speaks
    (tmp_path / "text.jsonl").write_text('{"text": "some words"}\n', encoding="utf-8")
    assert main(tiny, monkeypatch, tmp_path, "run", "--asset", "tokens") == 0


def test_where_nobody_reads_on_it_ends_and_says_nothing_of_it(entries, graph, tmp_path):
    """`jsae run --dry-run | head -1`"""
    tiny = graph(entries())
    environment = {
        "DAGSTER_HOME": tiny.instance.root_directory,
        "JSAE_CATALOG": str(tmp_path / "catalog.yaml"),
        "PYTHONUNBUFFERED": "",  # so that what is left is written at the end
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "jsae_assets", "run", "--dry-run"],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline().startswith(b"Catalog: ")
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_help_that_nobody_reads_to_its_end_says_nothing_of_it(arguments):
    """`jsae --help | head -1`"""
    process = subprocess.Popen(
        [sys.executable, "-m", "jsae_assets", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


def test_the_version_is_that_of_the_installed_package(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"jsae {version('jsae')}\n"


@pytest.mark.parametrize(("argument", "is_catalog"), [("my-catalog.yaml", True), ("mine.yml", True), ("--deep", False)])
def test_a_catalog_given_as_an_argument_is_told_the_variable_that_names_one(argument, is_catalog, capsys):
    with pytest.raises(SystemExit):
        command.arguments(["run", argument])
    said = capsys.readouterr().err
    assert f"unknown options: {argument}" in said
    assert (f"JSAE_CATALOG={argument}" in said) == is_catalog


@pytest.mark.parametrize("checkout", [True, False])
def test_without_dagster_home_it_says_where_it_keeps_things_and_goes_on(monkeypatch, tmp_path, capsys, checkout):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    if checkout:
        (tmp_path / "dagster_home").mkdir()
        (tmp_path / "dagster_home" / "dagster.yaml").write_text("telemetry: {enabled: false}", encoding="utf-8")
    folder = tmp_path / "dagster_home" if checkout else tmp_path / "user" / ".jsae"
    assert command.main(["run", "--dry-run", "--asset", "tokens"]) == 0
    assert f"everything is kept in {folder}" in capsys.readouterr().out
    assert (folder / "dagster.yaml").is_file()


# What is said in the end


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
        [sys.executable, "-m", "jsae_assets", "demo"],
        cwd=REPOSITORY,
        env=os.environ | {"DAGSTER_HOME": str(home), "JSAE_CATALOG": str(catalog), "JSAE_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_the_ui_does_not_start_where_the_catalog_is_bad_and_says_why_in_one_line(
    entries, graph, monkeypatch, tmp_path, capsys
):
    tiny, bad = graph(entries()), entries()
    bad["models"]["tiny"]["text"] = "nothing"
    path = write_catalog(tmp_path, bad)
    assert main(tiny, monkeypatch, tmp_path, "ui") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "models.tiny.text is 'nothing'" in line


def test_the_ui_listens_on_this_machine_alone_is_not_started_twice_advises_no_other_command_and_ends_when_it_is_told(
    instance, entries, tmp_path, monkeypatch, capsys
):
    environment = os.environ | {
        "DAGSTER_HOME": instance.root_directory,
        "JSAE_CATALOG": str(write_catalog(tmp_path, entries())),
    }
    with (tmp_path / "said").open("wb") as said:
        ui = psutil.Popen(
            [sys.executable, "-m", "jsae_assets", "ui", "--port", "0"],
            cwd=REPOSITORY,
            env=environment,
            stdout=said,
            stderr=said,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),  # as a script's `jsae ui &` begins
        )
    try:
        end = time.monotonic() + 300
        while "Serving dagster-webserver" not in (text := (tmp_path / "said").read_text()) and time.monotonic() < end:
            assert ui.poll() is None, text
            time.sleep(0.2)
        family = [ui, *ui.children(recursive=True)]
        addresses = {
            connection.laddr.ip
            for process in family
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert addresses and addresses <= {"127.0.0.1", "::1"}
        assert "Supersession" not in text and "superseded" not in text
        (address,) = re.findall(r"Serving dagster-webserver on (\S+)", text)
        monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
        monkeypatch.setenv("JSAE_CATALOG", environment["JSAE_CATALOG"])
        for port in ("0", address.rpartition(":")[2]):  # a second one, of the same instance
            assert command.main(["ui", "--port", port]) == 1
            assert f"({instance.root_directory}) runs already, at {address}." in capsys.readouterr().err
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "another home"))
        assert command.main(["ui", "--port", port]) == 1
        assert f"Choose another port: jsae ui --port {int(port) + 1}" in capsys.readouterr().err
    finally:
        ui.terminate()
        end = time.monotonic() + 180  # a busy machine takes its time
        while (alive := [process for process in family if is_alive(process)]) and time.monotonic() < end:
            time.sleep(0.1)
        for process in alive:
            process.kill()
        ui.wait()
    assert alive == []


def is_alive(process: psutil.Process) -> bool:
    """Not one that has ended and that nobody has asked for its status yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_the_command_fails_with_one_clear_message_where_the_catalog_is_bad(instance, entries, tmp_path):
    bad = entries()
    bad["models"]["tiny"]["text"] = "nothing"
    path = write_catalog(tmp_path, bad)
    result = demo(Path(instance.root_directory), path)
    assert result.returncode != 0
    assert str(path) in result.stderr
    assert "models.tiny.text is 'nothing'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("DAGSTER_HOME", ["run"], "DAGSTER_HOME: the folder of the instance cannot be made or used"),
        ("JSAE_STORAGE", ["run"], "JSAE_STORAGE: the storage is '{place}', which is a file; expected a folder"),
        ("JSAE_STORAGE", ["site"], "JSAE_STORAGE: the storage is '{place}', which is a file; expected a folder"),
    ],
)
def test_a_folder_that_is_a_file_is_refused_in_one_line_with_its_variable(
    tmp_path, monkeypatch, capsys, name, arguments, said
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(name, str(tmp_path / "file"))
    monkeypatch.delenv("JSAE_CATALOG", raising=False)
    assert command.main(arguments) == command.BAD_ARGUMENTS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said.format(place=tmp_path / "file"))


def test_a_storage_that_cannot_be_made_is_refused_in_one_line_before_anything_begins(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JSAE_STORAGE", str(tmp_path / "file" / "below"))
    monkeypatch.delenv("JSAE_CATALOG", raising=False)
    assert command.main(["run", "--dry-run"]) == command.BAD_ARGUMENTS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"JSAE_STORAGE: the folder {tmp_path / 'file' / 'below'} cannot be made or used")


# Which λ to begin with


def test_a_short_sweep_suggests_the_largest_lambda_that_keeps_enough_and_is_not_trained_again(
    entries, graph, monkeypatch, tmp_path, capsys
):
    changed = entries()
    changed["pairs"][0]["train"]["config"] = changed["pairs"][0]["train"]["config"] | {"steps": 300}
    tiny = graph(changed)
    asked = ("suggest-lambda", "tiny", "1", "--coefficients", "0.1", "1e6", "--steps", "150", "--keep", "0.8")
    assert main(tiny, monkeypatch, tmp_path, *asked) == 0
    said = capsys.readouterr().out
    assert "run 3 of 3: λ 1e+06" in said and "step 150/150" in said  # progress
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.endswith((" yes", " no"))}
    assert list(rows) == ["0", "0.1", "1e+06"]
    runs = pd.read_parquet(tiny.file("sweep_runs", None, "suggest-lambda-tiny-1", "parquet"))
    for _, row in runs.iterrows():
        for name in ("above_0.01", "accounted_share", "explained_variance_output", "kl_score_pair"):
            assert str(Number(row[name], percent=True)) in rows[f"{row['jacobian_coefficient']:g}"]
    assert "Suggested: λ = 0.1," in said and "jacobian_coefficient: 0.1" in said
    assert "150 steps, but the catalog's recipe trains for 300" in said
    before = tiny.stored()
    assert main(tiny, monkeypatch, tmp_path, *asked) == 0
    again = capsys.readouterr().out
    assert "run 1 of 3" not in again and "Suggested: λ = 0.1," in again
    assert tiny.stored() == before


def test_to_suggest_a_lambda_the_language_model_is_loaded_once(entries, graph, monkeypatch, tmp_path):
    loaded = []

    def load(*named, **settings):
        loaded.append(named)
        return load_language_model(*named, **settings)

    monkeypatch.setattr("jsae_core.load_language_model", load)
    own = entries()
    # in a folder of its own: other tests may hold the usual one
    tiny = own["models"]["tiny"]
    tiny["directory"] = str(shutil.copytree(tiny["directory"], tmp_path / "model"))
    asked = ("suggest-lambda", "tiny", "1", "--coefficients", "0.1", "--steps", "3", "--keep", "0")
    main(graph(own), monkeypatch, tmp_path, *asked)
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("explained", "faults", "keep", "expected"),
    [
        # 0.9 of 0.8 is 0.72: λ = 3 keeps that, and 10 does not
        ([0.8, 0.79, 0.73, 0.6], [[], [], [], []], 0.9, 3.0),
        ([0.8, 0.79, 0.73, 0.6], [[], [], [], []], 0.5, 10.0),
        ([0.8, 0.79, 0.73, 0.6], [[], [], ["its MLP is another"], []], 0.9, 1.0),
        ([0.8, 0.7, 0.73, 0.6], [[], [], [], []], 0.9, 3.0),
        ([0.8, 0.7, 0.6, 0.5], [[], [], [], []], 0.9, "Even the smallest λ costs too much after 40 steps"),
        ([0.4, 0.4, 0.4, 0.4], [["too little"], [], [], []], 0.9, r"not fit to be measured \(too little\)"),
        ([-0.1, -0.1, -0.1, -0.1], [[], [], [], []], 0.9, r"measured \(one of its SAEs explains nothing\)"),
    ],
)
def test_the_suggested_lambda_is_the_largest_that_keeps_enough_and_would_pass(
    entries, tmp_path, explained, faults, keep, expected
):
    catalog = load_catalog(write_catalog(tmp_path, entries()))
    sweep = short_sweep(catalog, "tiny", 1, load_language_model(catalog.models["tiny"].source[0]), [1, 3, 10])
    runs = pd.DataFrame(
        {
            "jacobian_coefficient": [0.0, 1.0, 3.0, 10.0],
            "explained_variance_input": 0.9,
            "explained_variance_output": explained,
        }
    )
    if isinstance(expected, float):
        assert suggested(sweep, runs, faults, keep) == expected
    else:
        with pytest.raises(NothingToSuggest, match=expected):
            suggested(sweep, runs, faults, keep)


@pytest.mark.parametrize(
    ("input_variance", "output_variance", "faults", "coefficient", "said"),
    [
        (
            [0.871, 0.87, 0.74],
            [0.888, 0.887, 0.88],
            [[], [], []],
            1.0,
            "At the next λ, 3, the input SAE explains only 74.0%, less than 90% of 87.1%.",
        ),
        (
            [0.8, 0.79, 0.5],
            [0.8, 0.79, -0.2],
            [[], [], []],
            1.0,
            "At the next λ, 3, the input SAE explains only 50.0%, less than 90% of 80.0%, and the output SAE explains "
            "only −20.0%, less than 90% of 80.0%.",
        ),
        (
            [0.8, 0.8, 0.8],
            [0.8, 0.8, 0.8],
            [[], [], ["its MLP is another"]],
            1.0,
            "At the next λ, 3, the pair would not pass the check (its MLP is another).",
        ),
        ([0.8, 0.8, 0.8], [0.8, 0.8, 0.8], [[], [], []], 3.0, None),
    ],
)
def test_the_advice_names_what_is_too_much_at_the_next_lambda(
    entries, tmp_path, input_variance, output_variance, faults, coefficient, said
):
    catalog = load_catalog(write_catalog(tmp_path, entries()))
    sweep = short_sweep(catalog, "tiny", 1, load_language_model(catalog.models["tiny"].source[0]), [1, 3])
    runs = pd.DataFrame(
        {
            "jacobian_coefficient": [0.0, 1.0, 3.0],
            "explained_variance_input": input_variance,
            "explained_variance_output": output_variance,
            "accounted_share": 0.9,
        }
    )
    shuffled = [2, 0, 1]  # a table's rows are in no order
    runs, faults = runs.iloc[shuffled], [faults[row] for row in shuffled]
    assert suggested(sweep, runs, faults, 0.9) == coefficient
    lines = advice(sweep, runs, faults, coefficient, 0.9).splitlines()
    assert f"its input SAE explains {runs.loc[int(coefficient > 1) + 1, 'explained_variance_input']:.1%}," in lines[0]
    assert [line for line in lines if line.startswith("At the next λ")] == ([said] if said else [])


def test_the_table_of_lambdas_calls_a_score_that_cannot_be_told_uncertain():
    numbers = dict.fromkeys(COLUMNS.values(), 0.5) | {"ce_score_pair": -2.262, "kl_score_pair": -0.168}
    errors = {f"{name}_se": 0.01 for name in numbers} | {"ce_score_pair_se": 2.0}
    (_, row) = table(pd.DataFrame([{"jacobian_coefficient": 3.0} | numbers | errors]), [[]]).splitlines()
    assert row.split() == ["3", "50.0%", "50.0%", "50.0%", "50.0%", "uncertain", "−16.8%", "yes"]


def test_what_the_check_faithful_would_refuse_is_not_suggested(entries, graph, monkeypatch, tmp_path, capsys):
    strict = entries()
    for pair in strict["pairs"]:
        pair["least_explained_variance"] = {"input": -1e9, "output": 1.0}
    tiny = graph(strict)
    asked = ("suggest-lambda", "tiny", "1", "--coefficients", "0.5", "--steps", "3", "--keep", "0")
    assert main(tiny, monkeypatch, tmp_path, *asked) == 1
    said = capsys.readouterr().out
    assert [line.split()[-1] for line in said.splitlines() if line.endswith((" yes", " no"))] == ["no", "no"]
    assert "the pair without a penalty (λ = 0) is not fit to be measured (" in said


def test_without_lambdas_those_around_the_rule_of_thumb_are_tried_by_a_shortened_recipe(entries, tmp_path):
    catalog = load_catalog(write_catalog(tmp_path, entries()))
    language_model = load_language_model(catalog.models["tiny"].source[0])
    sweep = short_sweep(catalog, "tiny", 0, language_model, steps=5)
    rule = 0.5 * 8**2 / language_model.d_model
    assert sweep.local.coefficients == pytest.approx([0, rule / 3, rule, 3 * rule, 10 * rule], rel=0.02)
    assert sweep.local.train.config.steps == 5 and sweep.local.train.tokens == 5 * 256
    assert sweep.full_steps == catalog.pair("jsae", "tiny", 1).train.config.steps


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody", "1"], "the catalog has no model 'nobody'; expected one of tiny"),
        (["tiny", "7"], "tiny has layers 0 to 2; there is no layer 7"),
    ],
)
def test_a_lambda_for_what_the_catalog_does_not_hold_is_a_bad_argument(
    entries, graph, monkeypatch, tmp_path, capsys, arguments, said
):
    assert main(graph(entries()), monkeypatch, tmp_path, "suggest-lambda", *arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--keep", "2"], ["--steps", "0"], ["--coefficients", "-1"], ["--keep", "nan"]])
def test_numbers_that_cannot_be_are_refused_by_the_command_line(wrong, capsys):
    with pytest.raises(SystemExit):
        command.arguments(["suggest-lambda", "tiny", "1", *wrong])
    assert "is not a" in capsys.readouterr().err


def test_without_a_recipe_for_the_model_there_is_no_lambda_to_suggest(entries, graph, monkeypatch, tmp_path, capsys):
    without_pairs = entries() | {"pairs": []}
    assert main(graph(without_pairs), monkeypatch, tmp_path, "suggest-lambda", "tiny", "1") == 2
    assert "the catalog has no recipe for pairs of tiny: give it a pair with `train:`" in capsys.readouterr().err
