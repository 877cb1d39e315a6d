"""From a catalog to partitions, and into the instance."""

import dagster as dg

from jsae_assets.catalog import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.partitions import cell_key, cells, partition_keys, register
from tests.jsae_assets.conftest import write_catalog


def two_models(entries: dict) -> dict:
    """A second model, whose only pair is at layer 10."""
    entries["models"]["other.1b"] = entries["models"]["tiny"]
    entries["pairs"].append(entries["pairs"][1] | {"model": "other.1b", "layers": [10, 2]})
    return entries


def registered(instance: dg.DagsterInstance) -> dict[str, list[str]]:
    return {name: list(instance.get_dynamic_partitions(name)) for name in ("model", "layer", "sweep")}


def test_the_keys_are_every_model_and_every_layer_that_any_model_holds_in_numerical_order(entries, tmp_path):
    catalog = load_catalog(write_catalog(tmp_path, two_models(entries())))
    assert partition_keys(catalog) == {"model": ["tiny", "other.1b"], "layer": ["0", "1", "2", "10"], "sweep": []}


def test_the_keys_follow_from_the_catalog_alone(entries, tmp_path):
    catalog = load_catalog(write_catalog(tmp_path, two_models(entries())))
    assert partition_keys(catalog) == partition_keys(catalog.model_copy(deep=True))


def test_a_model_without_pairs_is_a_key_too_so_that_its_tokens_can_be_made(entries, tmp_path):
    catalog = load_catalog(write_catalog(tmp_path, entries() | {"pairs": []}))
    assert partition_keys(catalog) == {"model": ["tiny"], "layer": [], "sweep": []}


def test_registering_twice_adds_nothing(entries, tmp_path, instance):
    catalog = load_catalog(write_catalog(tmp_path, two_models(entries())))
    register(catalog, instance)
    once = registered(instance)
    register(catalog, instance)
    assert registered(instance) == once == partition_keys(catalog)


def test_registering_keeps_keys_that_left_the_catalog(entries, tmp_path, instance):
    register(load_catalog(write_catalog(tmp_path, two_models(entries()))), instance)
    register(load_catalog(write_catalog(tmp_path, entries())), instance)
    assert "other.1b" in registered(instance)["model"]


def test_every_registered_model_and_layer_is_a_cell(entries, tmp_path, instance):
    catalog = load_catalog(write_catalog(tmp_path, two_models(entries())))
    register(catalog, instance)
    keys = set(cells.get_partition_keys(dynamic_partitions_store=instance))
    assert len(keys) == 2 * 4
    assert {cell_key(model, layer) for model in catalog.models for layer in catalog.layers(model)} <= keys


def evaluate(graph_definitions: dg.Definitions, instance: dg.DagsterInstance):
    sensor = graph_definitions.get_sensor_def("catalog_partitions")
    context = dg.build_sensor_context(instance=instance, definitions=graph_definitions)
    return sensor.evaluate_tick(context)


def test_the_sensor_asks_for_what_is_missing_alone_and_starts_no_run(entries, tmp_path, instance):
    catalog = load_catalog(write_catalog(tmp_path, two_models(entries())))
    instance.add_dynamic_partitions("model", ["tiny"])
    instance.add_dynamic_partitions("layer", ["1", "2"])
    result = evaluate(build_definitions(catalog), instance)
    asked = {request.partitions_def_name: request.partition_keys for request in result.dynamic_partitions_requests}
    assert asked == {"model": ["other.1b"], "layer": ["0", "10"]}
    assert not result.run_requests


def test_the_sensor_has_nothing_to_do_where_all_is_registered(entries, tmp_path, instance):
    catalog = load_catalog(write_catalog(tmp_path, entries()))
    register(catalog, instance)
    result = evaluate(build_definitions(catalog), instance)
    assert not result.dynamic_partitions_requests
    assert not result.run_requests
    assert "registered" in result.skip_message


def test_the_sensor_runs_without_being_switched_on(entries, tmp_path):
    definitions = build_definitions(load_catalog(write_catalog(tmp_path, entries())))
    assert definitions.get_sensor_def("catalog_partitions").default_status == dg.DefaultSensorStatus.RUNNING
