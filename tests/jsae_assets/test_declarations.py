"""Measures and figures as declarations: what a change of one makes out of date, and what the catalog knows of them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from jsae_assets.assets import figure_assets, measure_assets, measures
from jsae_assets.catalog import SETTING_OF
from jsae_assets.runs.freshness import Freshness, Place
from tests.jsae_assets.conftest import metadata


def out_of_date(graph) -> set[str]:
    """What is out of date of layer 1 of the graph, as its declarations are now."""
    now = graph.with_catalog(graph.catalog)
    freshness = Freshness(now.catalog, now.definitions.resolve_asset_graph(), now.definitions.resources, now.instance)
    nodes = now.definitions.resolve_asset_graph().asset_nodes
    at_layer_1 = [node.key for node in nodes if node.partitions_def and node.partitions_def.has_partition_key("tiny:1")]
    places = [Place(key, "tiny:1") for key in at_layer_1]
    return {str(place).removesuffix(" tiny:1") for place in freshness.out_of_date(places)}


def with_new_code(declarations, name: str):
    assert name in [one.name for one in declarations]
    return tuple(replace(one, code_version="another") if one.name == name else one for one in declarations)


@pytest.mark.parametrize("name", ["function_curves", "jacobian_examples_l1"])
def test_a_figure_that_is_drawn_differently_is_drawn_again_and_nothing_else(measured, monkeypatch, name):
    assert out_of_date(measured.graph) == set()
    monkeypatch.setattr(figure_assets, "CELL_FIGURES", with_new_code(figure_assets.CELL_FIGURES, name))
    assert out_of_date(measured.graph) == {f"figures/jsae/{name}"}


def test_a_measure_whose_code_changed_is_measured_again_with_the_figures_that_show_it(measured, monkeypatch):
    monkeypatch.setattr(measure_assets, "MEASURES", with_new_code(measures.MEASURES, "function_shapes"))
    assert out_of_date(measured.graph) == {
        "traditional/function_shapes",
        "jsae/function_shapes",
        "figures/jsae/function_curves",
        "figures/jsae/function_shapes",
        "figures/jsae/differences",
    }


def test_rounded_tables_ask_again_for_what_jacobians_are_part_of_and_for_nothing_else(measured_again, entries):
    edited = entries()
    edited["models"]["tiny"]["jacobian_tables"] = "bfloat16"
    graph = measured_again(edited)
    asked_again = out_of_date(graph)
    measured = {f"{variant}/{one.name}" for variant in ("traditional", "jsae") for one in measures.MEASURES}
    of_jacobians = {
        f"{variant}/{name}"
        for variant in ("traditional", "jsae")
        for name in ("jacobian_histogram", "jacobian_examples", "ablation_samples", "latent_accounting")
    } | {"traditional/latent_connections", "jsae/latent_connections"}
    assert asked_again & measured == of_jacobians

    before = load_file(graph.file("jsae/jacobian_histogram"))
    result = graph.measure(1, "jsae/jacobian_histogram", "figures/jsae/jacobian_histogram", raise_on_error=True)
    after = load_file(graph.file("jsae/jacobian_histogram"))
    assert metadata(result, "jsae/jacobian_histogram")["settings"]["jacobian_tables"] == "bfloat16"
    assert not torch.equal(before["log_hist"], after["log_hist"])
    assert after["hist"].sum() + after["overflow"] == before["hist"].sum() + before["overflow"]
    assert "jsae/jacobian_histogram" not in out_of_date(graph)


def test_the_catalog_counts_a_setting_to_the_measure_that_declares_it():
    declared = {setting: measure.name for measure in measures.MEASURES for setting in measure.settings}
    assert declared | {"text": "tokens", "tokens": "tokens"} == SETTING_OF
