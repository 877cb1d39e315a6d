"""`shards` of a model in the catalog: what is measured of its tokens is split into steps, and stored as if it were
not."""

from __future__ import annotations

import dagster as dg
import pandas as pd
import pytest
from safetensors.torch import load_file

from jsae_assets.assets.spread import RETRIES
from jsae_assets.catalog_file import load_catalog
from jsae_assets.resources import Compute
from jsae_assets.runs.freshness import Freshness, Place
from jsae_core import MLPInputs
from jsae_core.tensor_files import content_digest
from tests.jsae_assets.conftest import TABLES, Graph, materialised, metadata, write_catalog

PAIR, HISTOGRAM = "jsae/sae_pair", "jsae/jacobian_histogram"
MEASURES = (HISTOGRAM, *(f"jsae/{name}" for name in TABLES))
SHARDS = 3


@pytest.fixture
def graphs(instance, entries, tmp_path):
    """The graph of the tiny catalog, whose measures take many batches, and the same in shards; with a pair."""

    def made(shards: int) -> Graph:
        catalog = entries()
        catalog["models"]["tiny"]["shards"] = shards
        folder = tmp_path / f"{shards} shards"
        folder.mkdir()
        compute = Compute(device="cpu", batch_tokens=64)
        return Graph(load_catalog(write_catalog(folder, catalog)), instance, {"compute": compute})

    whole, spread = made(1), made(SHARDS)
    assert whole.tokenise().success and whole.measure(1, PAIR).success
    return whole, spread


def files(graph: Graph) -> set[str]:
    return {name for name in graph.stored() if not name.endswith(".json")}


def steps(result) -> list[str]:
    return [event.step_key.replace("jsae__", "") for event in result.runs[0].all_events if event.is_step_success]


def test_shards_store_what_the_whole_stores_and_leave_nothing_else(graphs):
    whole, spread = graphs

    def stored(result) -> dict[str, object]:
        assert materialised(result) == set(MEASURES)
        tables = {name: pd.read_parquet(whole.file(name, extension="parquet")) for name in MEASURES[1:]}
        return {HISTOGRAM: content_digest(load_file(whole.file(HISTOGRAM)))} | tables

    expected, there = stored(whole.measure(1, *MEASURES)), files(whole)
    result = spread.measure(1, *MEASURES)
    found = stored(result)
    assert found.pop(HISTOGRAM) == expected[HISTOGRAM]
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected[name], rtol=1e-5, atol=1e-9)
    assert files(spread) == there
    assert sum(".shard[" in step for step in steps(result)) == SHARDS * len(MEASURES)
    assert metadata(result, HISTOGRAM)["share_above_0.01"] > 0


def test_another_number_of_shards_asks_for_nothing_again(graphs, instance):
    whole, spread = graphs
    assert spread.measure(1, HISTOGRAM).success
    for graph in graphs:
        freshness = Freshness(
            graph.catalog, graph.definitions.resolve_asset_graph(), graph.definitions.resources, instance
        )
        place = Place(dg.AssetKey(HISTOGRAM.split("/")), "tiny:1")
        assert freshness.out_of_date([place]) == {}
    assert whole.catalog.entries() == spread.catalog.entries()


def test_a_shard_that_fails_is_tried_again_alone_and_the_others_are_not_measured_again(graphs, monkeypatch):
    _, spread = graphs
    read, first_items = MLPInputs.starting_at, []
    left = [RETRIES + 1]

    def starting_at(self, first):
        first_items.append(first)
        for number, item in enumerate(read(self, first), start=first):
            # the first item, which every shard looks at, is never that of the second shard
            if first and number == first + 1 and left[0] and first == min(filter(None, first_items)):
                left[0] -= 1
                raise KeyError("as if its process had died")
            yield item

    monkeypatch.setattr(MLPInputs, "starting_at", starting_at)
    failed = spread.measure(1, HISTOGRAM)
    assert not failed.success and materialised(failed) == set()
    again = [event.step_key for event in failed.runs[0].all_events if event.is_step_restarted]
    assert again == ["jsae__jacobian_histogram.shard[1]"] * RETRIES
    assert [step for step in steps(failed) if ".shard[" in step] == [
        "jacobian_histogram.shard[0]",
        "jacobian_histogram.shard[2]",
    ]
    begins = sorted(set(first_items))  # of the three shards
    assert len(begins) == SHARDS
    first_items.clear()
    result = spread.measure(1, HISTOGRAM)
    assert materialised(result) == {HISTOGRAM}
    assert set(first_items) <= {0, begins[1]}  # the first item says what sums are relative to
    assert not [path for path in (spread.storage / "checkpoints").rglob("*") if path.is_file()]


def test_a_pair_that_its_check_refuses_is_not_measured_in_shards_either(instance, entries, tmp_path):
    catalog = entries()
    catalog["models"]["tiny"]["shards"] = SHARDS
    catalog["pairs"][1]["least_explained_variance"] = {"input": 1.0, "output": 1.0}
    graph = Graph(load_catalog(write_catalog(tmp_path, catalog)), instance, {"compute": Compute(device="cpu")})
    assert graph.tokenise().success
    result = graph.measure(1, PAIR, HISTOGRAM)
    assert not result.success and materialised(result) == {PAIR}
    assert not [step for step in steps(result) if ".shard[" in step or step.endswith(".merge")]


def test_where_no_model_has_shards_a_measure_is_one_step(graphs):
    whole, _ = graphs
    assert steps(whole.measure(1, HISTOGRAM)) == ["jacobian_histogram"]


def test_at_a_model_without_shards_the_last_step_measures_all(instance, entries, tmp_path):
    catalog = entries()
    catalog["models"]["other"] = catalog["models"]["tiny"] | {"shards": 2}
    catalog["pairs"].append(catalog["pairs"][1] | {"model": "other"})
    graph = Graph(load_catalog(write_catalog(tmp_path, catalog)), instance, {"compute": Compute(device="cpu")})
    assert graph.tokenise().success and graph.measure(1, PAIR).success
    result = graph.measure(1, HISTOGRAM)
    assert materialised(result) == {HISTOGRAM}
    assert steps(result) == ["jacobian_histogram.plan", "jacobian_histogram.merge"]
