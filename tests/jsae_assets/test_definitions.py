"""The assembled definitions: quick to load, complete, and readable by each of Dagster's tools."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions, defs
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, REPOSITORY, write_catalog

SLOW = {"torch", "transformers", "transformer_lens", "sae_lens", "wandb", "datasets"}
FIGURES = (*CELL_FIGURES, "quality_by_layer")


def run(home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    """A command in the repository, with a DAGSTER_HOME of its own."""
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"DAGSTER_HOME": str(home), "NO_COLOR": "1"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_loading_the_definitions_imports_nothing_that_takes_seconds(fresh_home):
    code = (
        "import sys, jsae_assets.definitions as module\n"
        "module.defs().resolve_asset_graph()\n"
        f"print('imported:', sorted({SLOW!r} & set(sys.modules)))"
    )
    result = run(fresh_home, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    assert "imported: []" in result.stdout


def test_importing_the_definitions_warns_of_nothing(fresh_home):
    result = run(
        fresh_home, sys.executable, "-c", "import jsae_assets.definitions as d; d.defs().resolve_asset_graph()"
    )
    assert "Warning" not in result.stderr


def test_the_workspace_file_validates(fresh_home):
    result = run(fresh_home, script("dagster"), "definitions", "validate", "-w", "workspace.yaml")
    assert result.returncode == 0, result.stderr
    assert "Validation successful for code location jsae" in result.stdout + result.stderr


def test_dg_checks_and_lists_the_definitions(fresh_home):
    checked = run(fresh_home, script("dg"), "check", "defs")
    assert checked.returncode == 0, checked.stderr
    listed = run(fresh_home, script("dg"), "list", "defs", "--json")
    assert listed.returncode == 0, listed.stderr
    start = listed.stdout.index("{")
    found = json.loads(listed.stdout[start:])
    keys = {asset["asset_key"] for asset in found["assets"]}
    assert {"tokens", "jsae/sae_pair", "traditional/sae_pair", "figures/jsae/jacobian_histogram"} <= keys


def test_a_bad_catalog_fails_the_validation_naming_file_and_entry(fresh_home, tmp_path, entries):
    bad = entries()
    bad["variants"]["jsae"]["compared_with"] = "nobody"
    path = write_catalog(tmp_path, bad)
    result = run(
        fresh_home, script("dagster"), "definitions", "validate", "-w", "workspace.yaml", JSAE_CATALOG=str(path)
    )
    assert result.returncode != 0
    said = result.stdout + result.stderr
    assert str(path) in said
    assert "variants.jsae.compared_with is 'nobody'" in said


@pytest.fixture(scope="module")
def definitions(tmp_path_factory, entries):
    return build_definitions(load_catalog(write_catalog(tmp_path_factory.mktemp("catalog"), entries())))


@pytest.fixture(scope="module")
def specs(definitions) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}


def test_every_variant_has_its_lineage_and_every_comparison_its_figures(specs):
    assert specs.keys() == (
        {"catalog", "tokens", "site"}
        | {f"{variant}/{name}" for variant in ("traditional", "jsae") for name in PER_VARIANT}
        | {f"figures/jsae/{name}" for name in FIGURES}
    )


def test_a_variant_added_to_the_catalog_gets_assets_of_its_own(tmp_path, entries):
    more = entries()
    more["variants"]["randomised"] = {"label": "Randomised", "colour": "#009E73", "compared_with": "traditional"}
    more["pairs"].append(more["pairs"][1] | {"variant": "randomised"})
    made = build_definitions(load_catalog(write_catalog(tmp_path, more)))
    keys = {spec.key.to_user_string() for spec in made.resolve_all_asset_specs()}
    assert {f"randomised/{name}" for name in PER_VARIANT} | {f"figures/randomised/{name}" for name in FIGURES} <= keys


def test_every_asset_has_description_group_kinds_owner_and_code_version(specs):
    groups = {}
    for key, spec in specs.items():
        assert len(spec.description) > 20, key
        assert spec.description.endswith("."), key
        assert spec.kinds, key
        assert spec.owners, key
        assert spec.code_version or key == "catalog", key
        groups[key] = spec.group_name
    assert "default" not in groups.values()


def test_the_lineages_are_groups_and_so_are_the_figures_in_the_order_of_the_work(specs):
    found = [spec.group_name for spec in specs.values()]
    assert sorted(set(found)) == ["1_catalog", "2_text", "3_jsae", "3_traditional", "5_figures", "6_site"]
    for key, spec in specs.items():
        name = key.split("/")[0] if "/" in key else {"tokens": "text"}.get(key, key)
        assert spec.group_name.split("_", 1)[1] == name


def test_every_pair_has_the_blocking_check(definitions):
    graph = definitions.resolve_asset_graph()
    checks = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    assert checks == {("traditional/sae_pair", "faithful"), ("jsae/sae_pair", "faithful")}
    assert all(graph.get(key).blocking for key in graph.asset_check_keys)


def test_jobs_hold_every_asset_between_them_each_of_one_set_of_partitions(definitions, specs):
    held = {
        job.name: {key.to_user_string() for key in job.asset_layer.selected_asset_keys}
        for job in definitions.resolve_all_job_defs()
        if job.name not in ("__ASSET_JOB", "publish_pair")
    }
    assert held == {
        "tokenise_text": {"tokens"},
        "measure_cell": {f"traditional/{name}" for name in PER_VARIANT},  # at layers 0 and 1
        "measure_cell_2": {f"jsae/{name}" for name in PER_VARIANT} | {f"figures/jsae/{name}" for name in CELL_FIGURES},
        "compare_layers": {"figures/jsae/quality_by_layer"},
        "make_site": {"site"},
    }
    assert {key for keys in held.values() for key in keys} == specs.keys() - {"catalog"}


def test_a_variant_without_a_pair_has_no_assets(tmp_path, entries):
    more = entries()
    more["variants"]["later"] = {"label": "Later", "colour": "#009E73", "compared_with": "traditional"}
    made = build_definitions(load_catalog(write_catalog(tmp_path, more)))
    assert not [key for key in made.resolve_all_asset_keys() if "later" in key.path]


def test_any_part_can_be_swapped_by_its_key_or_name(tmp_path, entries):
    catalog = load_catalog(write_catalog(tmp_path, entries()))
    before = build_definitions(catalog)
    mine = object()
    cells = before.resolve_assets_def(["jsae", "pair_quality"]).partitions_def

    @dg.asset(key=["jsae", "pair_quality"], partitions_def=cells, description="mine")
    def pair_quality(): ...

    @dg.asset(key=["mine", "too"])
    def added(): ...

    @dg.asset_check(asset=["jsae", "sae_pair"], name="faithful", description="mine")
    def faithful(): ...

    @dg.op
    def nothing(): ...

    @dg.job(name="measure_cell", description="mine")
    def measure_cell():
        nothing()

    @dg.sensor(name="keep_up_to_date", job=measure_cell, description="mine")
    def keep_up_to_date(): ...

    after = build_definitions(
        catalog,
        executor=dg.multiprocess_executor,
        assets=[pair_quality, added],
        asset_checks=[faithful],
        jobs=[measure_cell],
        sensors=[keep_up_to_date],
        resources={"compute": mine},
    )
    key = dg.AssetKey(["jsae", "pair_quality"])
    assert after.resolve_assets_def(key).get_asset_spec(key).description == "mine"
    assert set(after.resolve_all_asset_keys()) == {*before.resolve_all_asset_keys(), dg.AssetKey(["mine", "too"])}
    checks = [spec for checks in after.asset_checks for spec in checks.check_specs]
    assert [spec.description == "mine" for spec in checks if spec.asset_key.path[0] == "jsae"] == [True]
    assert len(checks) == 2
    assert after.resolve_job_def("measure_cell").description == "mine"
    assert after.get_sensor_def("keep_up_to_date").description == "mine"
    assert len(after.sensors) == len(before.sensors)
    assert after.resources["compute"] is mine
    assert after.executor.name == dg.multiprocess_executor.name


def test_one_process_makes_a_whole_run_so_that_the_model_is_loaded_once(definitions):
    assert definitions.executor.name == dg.in_process_executor.name


def test_the_default_definitions_are_those_of_the_default_catalog(monkeypatch):
    monkeypatch.delenv("JSAE_CATALOG", raising=False)
    keys = {spec.key.to_user_string() for spec in defs().resolve_all_asset_specs()}
    assert {"tokens", "jsae/sae_pair", "traditional/sae_pair"} <= keys
