"""Reported results: the table, the comparison command, the overlay in the figures."""

import os
import subprocess
import sys

import pandas as pd
import plotly.io
import pytest
from safetensors.torch import load_file

from jsae_assets.reported import comparison
from jsae_core import MLPInputs, SAEPair, load_language_model
from jsae_core.measures import jacobian_histogram, share_above
from jsae_core.reported import all_reported_results, reported_results, reported_sweep
from jsae_core.text import split_documents
from tests.jsae_assets.conftest import REPOSITORY, make_measured_home, metadata, opened_copy
from tests.jsae_assets.test_graph import values
from tests.jsae_core.builders import save_language_model

MODEL = "pythia-70m-deduped"


def as_reported(entries: dict, coefficient: float = 1) -> dict:
    """The tiny model under the name of one that results were reported of, its pairs at the reported layer."""
    entries["models"][MODEL] = entries["models"].pop("tiny")
    for pair in entries["pairs"]:
        pair |= {"model": MODEL, "layers": [3]}
        if pair["variant"] == "jsae":
            pair["train"]["config"] = pair["train"]["config"] | {"jacobian_coefficient": coefficient}
    return entries


@pytest.fixture(scope="module")
def deep_model(made_once):
    return made_once("deep", lambda folder: save_language_model(folder / "model", num_hidden_layers=4)) / "model"


@pytest.fixture(scope="module")
def reported(made_once, fresh_home, entries, deep_model, tmp_path_factory):
    """A cell of which numbers were reported, with everything made."""
    changed = as_reported(entries())
    changed["models"][MODEL]["directory"] = str(deep_model)
    home = made_once("reported", lambda home: make_measured_home(home, fresh_home, changed, MODEL, 3))
    with opened_copy(home, tmp_path_factory.mktemp("reported")) as measured:
        yield measured


def test_every_reported_share_is_one_and_shares_of_shapes_sum_to_one():
    frame = pd.DataFrame(all_reported_results())
    assert frame["value"].between(0, 1).all()
    assert not frame.duplicated(["model", "layer", "variant", "measure"]).any()
    shapes = frame[frame["measure"].isin(["share_linear", "share_jumprelu", "share_other"])]
    assert shapes.groupby(["model", "variant"])["value"].sum().tolist() == pytest.approx([1.0] * 4, abs=0.002)


def test_results_are_found_by_model_layer_variant_and_lambda():
    found = reported_results(MODEL, 3, "jsae", 1.0)
    assert found["share_above_0.01"].value == 0.113 and found["share_linear"].value == 0.868
    assert found["share_above_0.01"].definition == "at the true input, on C4 validation, folded weights"
    assert len(found) == 7
    assert reported_results(MODEL, 3, "jsae", 2.0) == {}
    assert reported_results(MODEL, 2, "jsae", 1.0) == {}


def test_the_comparison_sets_what_was_measured_beside_what_was_reported(reported):
    rows = {(row[0], row[2], row[4]): row for row in comparison(reported.graph.catalog, reported.graph.instance)}
    assert len(rows) == len(all_reported_results())
    for measure, asset in (("share_above_0.01", "jacobian_histogram"), ("share_linear", "function_shapes")):
        told = metadata(reported.cell, f"jsae/{asset}")
        share, likewise = told[measure], told[f"{measure}_as_published"]
        row = rows[MODEL, "jsae", measure]
        expected = {"share_above_0.01": 0.113, "share_linear": 0.868}[measure]
        # like is compared with like, and what is measured of every pair is beside it
        assert row[5:9] == (f"{expected:.2%}", f"{likewise:.2%}", f"{likewise - expected:+.2%}", f"{share:.2%}")
        assert "folded weights" in row[9]
    assert rows["pythia-410m-deduped", "jsae", "share_above_0.01"][6:9] == ("not in the catalog", "", "")


def test_beside_reported_numbers_the_pair_is_measured_by_their_definition(reported, deep_model):
    lm = load_language_model(deep_model)
    pair = SAEPair.load(reported.graph.file("jsae/sae_pair", layer=3, model=MODEL))
    documents = split_documents(load_file(reported.graph.file("tokens", None, MODEL)))
    expected = jacobian_histogram(pair, MLPInputs(lm, documents, 3), convention="published")
    told = metadata(reported.cell, "jsae/jacobian_histogram")["share_above_0.01_as_published"]
    assert told == pytest.approx(share_above(expected, 0.01), abs=1e-4)
    path = reported.graph.file("figures/jsae/jacobian_thresholds", 3, MODEL, "json")
    figure = plotly.io.from_json(path.read_text(encoding="utf-8"))
    circles = [trace for trace in figure.data if trace.name == "measured here by the reported definition"]
    assert any(100 * told == pytest.approx(y) for trace in circles for y in values(trace.y))


def test_every_reported_number_says_how_it_was_taken():
    for result in all_reported_results():
        weights = "unprocessed" if "randomised" in result.variant else "folded"
        assert result.definition == f"at the true input, on C4 validation, {weights} weights"
    (definition,) = set(reported_sweep(MODEL, 3)["definition"])
    assert definition == "at the input SAE's reconstruction, on the Pile, unprocessed weights"


def test_a_figure_overlays_what_was_reported_of_its_pairs(reported):
    for name, value in (("jacobian_thresholds", 11.3), ("function_shapes", 86.8)):
        path = reported.graph.file(f"figures/jsae/{name}", layer=3, model=MODEL, extension="json")
        figure = plotly.io.from_json(path.read_text(encoding="utf-8"))
        marks = [trace for trace in figure.data if trace.type == "scatter" and "Farnik" in (trace.name or "")]
        assert any(value == pytest.approx(y) for trace in marks for y in trace.y)
        said = figure.layout.title.subtitle.text.replace("<br>", " ")
        assert "reported: at the true input, on C4 validation, folded weights" in said


def test_a_pair_with_another_lambda_is_compared_with_nothing(entries, graph, deep_model):
    changed = as_reported(entries(), coefficient=2)
    changed["models"][MODEL]["directory"] = str(deep_model)
    tiny = graph(changed)
    tiny.tokenise(MODEL)
    tiny.measure(3, "jsae/sae_pair", "jsae/jacobian_histogram", model=MODEL, raise_on_error=True)
    said = {row[6] for row in comparison(tiny.catalog, tiny.instance) if row[0] == MODEL}
    assert said == {"the catalog's pair has λ 2", "not materialised"}


def test_the_command_prints_the_whole_table(tmp_path):
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-m", "jsae_assets.reported"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1 + len(all_reported_results())
    header = ["model", "layer", "variant", "λ", "measure", "reported", "comparable", "difference", "measured"]
    header += ["reported", "as"]
    assert lines[0].split() == header
    assert "11.30%" in done.stdout and "not in the catalog" in done.stdout
