"""From a catalog to partitions: what can be asked for is what the catalog holds."""

import pytest

from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.partitions import (
    cell_key,
    cells,
    models,
    of_all_layers,
    of_same_model,
    partition_keys,
    split_cell,
    stored_below,
)
from jsae_assets.runs.freshness import Freshness, Place
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, write_catalog


def two_models(entries: dict) -> dict:
    """A second model, whose only pairs are JSAE pairs at layers 10 and 2. (How many layers one from the hub has is not
    known before it is loaded.)"""
    entries["models"]["other.1b"] = entries["models"]["tiny"] | {"hub": "somebody/other.1b"}
    del entries["models"]["other.1b"]["directory"]
    entries["pairs"].append(entries["pairs"][1] | {"model": "other.1b", "layers": [10, 2]})
    return entries


@pytest.fixture
def catalog(entries, tmp_path):
    return load_catalog(write_catalog(tmp_path, two_models(entries())))


def partitions(catalog) -> dict[str, list[str]]:
    definitions = build_definitions(catalog)
    return {
        spec.key.to_user_string(): partition_keys(spec.partitions_def) for spec in definitions.resolve_all_asset_specs()
    }


def test_the_partitions_of_every_asset_are_exactly_what_the_catalog_holds_in_the_order_of_models_and_layers(catalog):
    traditional, jsae = ["tiny:0", "tiny:1"], ["tiny:1", "other.1b:2", "other.1b:10"]
    made = partitions(catalog)
    assert made.pop("catalog") == list(catalog.entries())
    assert made == (
        {"tokens": ["tiny", "other.1b"], "figures/jsae/quality_by_layer": ["tiny"], "site": [None]}
        | {f"traditional/{name}": traditional for name in PER_VARIANT}
        | {f"jsae/{name}": jsae for name in PER_VARIANT}
        | {f"figures/jsae/{name}": ["tiny:1"] for name in CELL_FIGURES}
    )


def test_a_model_that_left_the_catalog_is_no_longer_offered(entries, tmp_path):
    made = partitions(load_catalog(write_catalog(tmp_path, entries())))
    assert not [key for keys in made.values() for key in keys if "other.1b" in str(key)]


def test_a_model_without_pairs_is_a_partition_of_the_tokens_alone(entries, tmp_path):
    made = partitions(load_catalog(write_catalog(tmp_path, entries() | {"pairs": []})))
    assert made.keys() == {"catalog", "tokens", "site"} and made["tokens"] == ["tiny"]


def test_variants_with_equal_cells_have_equal_partitions_so_that_one_run_can_hold_them(controlled_entries, tmp_path):
    catalog = load_catalog(write_catalog(tmp_path, controlled_entries()))
    assert cells(catalog, ["jsae"]) == cells(catalog, ["jsae_randomised"]) == cells(catalog, ["jsae", "traditional"])
    assert cells(catalog, ["traditional"]) != cells(catalog, ["jsae"])


def test_a_cell_reads_the_tokens_of_its_model_and_a_model_all_its_layers_of_what_it_compares(catalog):
    assert of_same_model(catalog, ["jsae"]).downstream_partition_keys_by_upstream_partition_key == {
        "tiny": ["tiny:1"],
        "other.1b": ["other.1b:2", "other.1b:10"],
    }
    compared = ["traditional", "jsae"]
    assert models(catalog, compared).get_partition_keys() == ["tiny"]
    assert of_all_layers(catalog, "traditional", compared).downstream_partition_keys_by_upstream_partition_key == {
        "tiny:0": "tiny",
        "tiny:1": "tiny",
    }


def test_a_cells_key_names_model_and_layer_and_its_file_lies_below_its_layer():
    assert cell_key("pythia-1.4b", 12) == "pythia-1.4b:12"
    assert split_cell("pythia-1.4b:12") == ("pythia-1.4b", 12)
    assert stored_below("pythia-1.4b:12") == "12/pythia-1.4b"
    assert stored_below("pythia-1.4b") == "pythia-1.4b"


def test_what_a_place_is_made_from_is_what_dagster_says(catalog):
    graph = build_definitions(catalog).resolve_asset_graph()
    freshness = Freshness(catalog, graph, {}, None)
    for key in graph.materializable_asset_keys:
        for partition in partition_keys(graph.get(key).partitions_def):
            expected = graph.get_parents_partitions(key, partition).parent_partitions
            found = [(parent.asset, parent.partition) for parent in freshness.parents(Place(key, partition))]
            assert len(found) == len(set(found)) and set(found) == {tuple(parent) for parent in expected}
