"""The randomised control through Dagster: the same pairs on the language model's twin with randomised weights."""

import shutil

import dagster as dg
import pandas as pd
import plotly.io
import pytest
import torch
from safetensors.torch import load_file

from jsae_assets.catalog_file import load_catalog
from jsae_core import MLPInputs, SAEPair, load_language_model
from jsae_core.measures import jacobian_histogram, share_above
from jsae_core.pair_format import PairConfig
from jsae_core.text import split_documents
from tests.jsae_assets.conftest import (
    ANYTHING_GOES,
    CELL_FIGURES,
    Graph,
    failures,
    materialised,
    metadata,
    write_catalog,
)
from tests.jsae_assets.test_graph import values
from tests.jsae_assets.test_sweeps import sync
from tests.jsae_core.builders import mlp_tensors, random_sae_tensors, write_artifact

VARIANTS = ("traditional", "jsae", "traditional_randomised", "jsae_randomised")


@pytest.fixture(scope="module")
def controlled(fresh_home, controlled_entries, tmp_path_factory):
    """The tiny catalog with its control, layer 1 materialised; and that run."""
    folder = tmp_path_factory.mktemp("controlled")
    shutil.copytree(fresh_home, folder / "home")
    with dg.DagsterInstance.from_config(str(folder / "home")) as instance:
        entries = controlled_entries()
        sweep = {"model": "tiny", "layer": 1, "coefficients": [0.0, 30.0], "weights": "randomised"}
        entries["sweeps"] = {"control": {"local": sweep | {"train": entries["pairs"][0]["train"]}}}
        graph = Graph(load_catalog(write_catalog(folder, entries)), instance)
        graph.tokenise()
        yield graph, graph.measure(1, raise_on_error=True)


@pytest.fixture(scope="module")
def twin(language_model):
    return load_language_model(language_model, randomise_seed=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_control_is_trained_on_the_twins_mlp_and_every_other_pair_on_the_models_own(
    controlled, language_model, twin, variant
):
    graph, run = controlled
    is_control = variant.endswith("_randomised")
    pair = SAEPair.load(graph.file(f"{variant}/sae_pair"))
    expected = twin.mlp(1) if is_control else load_language_model(language_model).mlp(1)
    assert torch.equal(pair.mlp.W_in, expected.W_in) and torch.equal(pair.mlp.W_out, expected.W_out)
    assert pair.config.randomize_llm_weights is is_control
    assert metadata(run, f"{variant}/sae_pair")["randomised_language_model"] is is_control


@pytest.mark.parametrize("variant", VARIANTS[2:])
def test_a_control_is_measured_on_the_twins_activations_over_the_same_tokens(controlled, twin, variant):
    graph, run = controlled
    documents = split_documents(load_file(graph.file("tokens", None)))
    pair = SAEPair.load(graph.file(f"{variant}/sae_pair"))
    expected = jacobian_histogram(pair, MLPInputs(twin, documents, layer=1))
    told = metadata(run, f"{variant}/jacobian_histogram")
    assert told["share_above_0.01"] == pytest.approx(share_above(expected, 0.01), abs=1e-4)
    assert told["tokens"] == 1000


def test_a_control_has_every_figure_that_the_pretrained_pair_has(controlled):
    made = {asset for asset in materialised(controlled[1]) if asset.startswith("figures/")}
    own = {asset.removeprefix("figures/jsae/") for asset in made if asset.startswith("figures/jsae/")}
    controls = {asset.removeprefix("figures/jsae_randomised/") for asset in made} & own
    assert own - controls == {"randomised_control"}


def test_the_control_figure_has_four_bars_a_threshold_in_the_variants_colours(controlled):
    graph, run = controlled
    path = graph.file("figures/jsae/randomised_control", extension="json")
    figure = plotly.io.from_json(path.read_text(encoding="utf-8"))
    bars = [trace for trace in figure.data if trace.type == "bar"]
    entries = [graph.catalog.variants[variant] for variant in VARIANTS]
    assert [(bar.name, bar.marker.color) for bar in bars] == [(entry.label, entry.colour) for entry in entries]
    for variant, bar in zip(VARIANTS, bars, strict=True):
        told = metadata(run, f"{variant}/jacobian_histogram")
        shares = [100 * told[f"share_above_{threshold}"] for threshold in (0.005, 0.01, 0.015, 0.02)]
        assert list(bar.y) == pytest.approx(shares)
        accounted = metadata(run, f"{variant}/latent_accounting")["accounted_share"]
        explained = metadata(run, f"{variant}/pair_quality")["explained_variance_output"]
        said = figure.layout.title.subtitle.text.replace("<br>", " ")
        assert f"{100 * accounted:.0f} / {100 * explained:.0f}%" in said
        assert f"{told['l1_over_l2']:.2f}" in said.split("L1/L2")[1].split("·")[0]
        assert "λ 0 (Traditional)" in said and "randomised" not in said.split("λ ")[1].split("·")[0]


@pytest.fixture(scope="module")
def swept(controlled):
    """With the sweep on the randomised model."""
    graph, _ = controlled
    assert failures(sync(graph, "control")) == {}
    return graph


def test_a_sweep_on_the_randomised_model_trains_and_measures_on_the_twin(swept, controlled, twin):
    runs = pd.read_parquet(swept.file("sweep_runs", None, "control", "parquet"))
    assert runs["randomize_llm_weights"].all()
    assert runs["name"].tolist() == [f"tiny layer 1 λ {of}, randomised weights" for of in (0, 30)]
    pair = SAEPair.load(swept.storage / "sweep_runs" / "control" / f"{runs['run_id'][0]}.safetensors")
    assert torch.equal(pair.mlp.W_in, twin.mlp(1).W_in)
    # the same recipe on the same tokens: it is the control of the cell
    of_cell = metadata(controlled[1], "traditional_randomised/jacobian_histogram")["share_above_0.01"]
    assert runs["above_0.01"][0] == pytest.approx(of_cell, abs=1e-3)
    quality = metadata(controlled[1], "traditional_randomised/pair_quality")
    assert runs["explained_variance_output"][0] == pytest.approx(quality["explained_variance_output"], abs=1e-3)


def test_the_figure_at_equal_quality_has_the_pairs_of_both_models_and_the_runs_of_the_sweep(swept, controlled):
    path = swept.file("figures/sweep_runs/jsae_equal_quality", None, "control", "json")
    figure = plotly.io.from_json(path.read_text(encoding="utf-8"))
    trained, randomised = [trace for trace in figure.data if "lines" in trace.mode][:2]
    assert {"λ 0", "λ 1"} == set(trained.text) and sorted(randomised.text) == ["λ 0", "λ 0", "λ 1", "λ 30"]
    for variant, trace, label in (("jsae", trained, "λ 1"), ("jsae_randomised", randomised, "λ 1")):
        place = list(trace.text).index(label)
        explained = metadata(controlled[1], f"{variant}/pair_quality")["explained_variance_output"]
        share = metadata(controlled[1], f"{variant}/jacobian_histogram")["share_above_0.01"]
        assert values(trace.x)[place] == pytest.approx(100 * explained)
        assert values(trace.y)[place] == pytest.approx(100 * share)
    said = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert said.startswith("At ") and "sweep control, tiny, layer 1" in said and "randomised weights" in said


def test_the_control_figure_says_where_it_is_compared_at_equal_quality_or_that_it_is_not(
    controlled, controlled_entries, graph
):
    def said(of: Graph) -> str:
        path = of.file("figures/jsae/randomised_control", extension="json")
        return plotly.io.from_json(path.read_text(encoding="utf-8")).layout.title.subtitle.text.replace("<br>", " ")

    assert "at equal explained variance: figure jsae_equal_quality of sweep control" in said(controlled[0])
    without = graph(controlled_entries())
    without.tokenise()
    read = ("sae_pair", "jacobian_histogram", "latent_accounting", "pair_quality")
    needed = [f"{variant}/{asset}" for variant in VARIANTS for asset in read]
    assert without.measure(1, *needed, "figures/jsae/randomised_control").success
    assert "not at equal explained variance: that takes a sweep by the same recipe" in said(without)


@pytest.mark.parametrize(
    "change", [{"weights": "trained"}, {"layer": 0}, {"seed": [0, 1]}], ids=["trained", "layer", "seeds"]
)
def test_a_sweep_that_made_other_pairs_is_no_control(controlled_entries, graph, change):
    entries = controlled_entries()
    sweep = {"model": "tiny", "layer": 1, "coefficients": [0.0], "weights": "randomised"} | change
    entries["sweeps"] = {"other": {"local": sweep | {"train": entries["pairs"][0]["train"]}}}
    keys = graph(entries).definitions.resolve_asset_graph().get_all_asset_keys()
    assert dg.AssetKey(["figures", "sweep_runs", "jsae_equal_quality"]) not in keys


def test_runs_on_the_randomised_model_are_other_runs_and_its_seed_concerns_no_others(controlled_entries, tmp_path):
    def digest(weights: str, seed: int) -> str:
        entries = controlled_entries()
        entries["models"]["tiny"]["randomise_seed"] = seed
        sweep = {"model": "tiny", "layer": 1, "coefficients": [1.0], "weights": weights}
        entries["sweeps"] = {"one": {"local": sweep | {"train": entries["pairs"][0]["train"]}}}
        return load_catalog(write_catalog(tmp_path, entries)).entries()["sweeps/one"]

    assert digest("trained", 0) == digest("trained", 1)
    assert len({digest("trained", 0), digest("randomised", 0), digest("randomised", 1)}) == 3


def test_no_control_figure_where_the_catalog_holds_no_control(measured):
    keys = measured.graph.definitions.resolve_asset_graph().get_all_asset_keys()
    assert dg.AssetKey(["figures", "jsae", "randomised_control"]) not in keys


def test_a_cell_without_the_controls_has_every_other_figure(controlled_entries, measured_again):
    changed = controlled_entries()
    changed["pairs"] = changed["pairs"][:2]
    tiny = measured_again(changed)
    keys = tiny.definitions.resolve_asset_graph().materializable_asset_keys
    figures = {key.to_user_string() for key in keys if key.path[0] == "figures"} - {"figures/jsae/quality_by_layer"}
    result = tiny.measure(1, *figures)
    assert result.success
    assert materialised(result) == figures == {f"figures/jsae/{name}" for name in CELL_FIGURES}


@pytest.mark.parametrize(("variant", "randomised"), [("jsae_randomised", False), ("jsae", True)])
def test_an_artifact_on_the_other_model_is_refused(
    controlled_entries, graph, language_model, tmp_path, variant, randomised
):
    lm = load_language_model(language_model, randomise_seed=None if variant == "jsae" else 0)
    config = PairConfig(model_name="tiny", layer=1, d_in=lm.d_model, d_sae=40, k=5, randomize_llm_weights=randomised)
    tensors = random_sae_tensors(lm.d_model, 40, torch.float32) | mlp_tensors(lm.mlp(1))
    write_artifact(tmp_path / "artifact", tensors, config.to_artifact())
    changed = controlled_entries()
    (entry,) = [entry for entry in changed["pairs"] if entry["variant"] == variant]
    del entry["train"]
    entry |= {"directory": "artifact", "least_explained_variance": ANYTHING_GOES}
    tiny = graph(changed)
    (message,) = failures(tiny.measure(1, f"{variant}/sae_pair")).values()
    assert f"randomize_llm_weights is {randomised}, but the catalog names it for the variant {variant}" in message
    assert not tiny.file(f"{variant}/sae_pair").exists()
