"""The switch `keep_up_to_date`: what is missing or out of date is asked for, tokens first, each once."""

import dagster as dg
import pytest

from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import report
from jsae_assets.partitions import partition_keys
from jsae_assets.runs.freshness import Freshness, Place
from jsae_assets.runs.plan import CELL_JOB, planned_runs
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, default_entries, write_catalog

TOKENS = ("tokenise_text", "tiny")
TRADITIONAL = [("measure_cell", "tiny:0"), ("measure_cell", "tiny:1")]
JSAE, LAYERS, SITE = ("measure_cell_2", "tiny:1"), ("compare_layers", "tiny"), ("make_site", None)


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:  # nothing is stored here but what ran, so the quickest will do
        yield instance


class Pretended:
    """The tiny graph, whose assets compute nothing and fail where they are told to; and its switch."""

    def __init__(self, path, instance):
        self.path, self.instance = path, instance
        self.failing, self.refusing = set(), set()
        self.read()

    def read(self) -> None:
        """The code location is loaded, again if the catalog was edited."""
        self.catalog = load_catalog(self.path)
        self.definitions = build_definitions(self.catalog)
        graph = self.definitions.resolve_asset_graph()
        pretended = [
            self._pretend(graph.get(key).assets_def.get_asset_spec(key)) for key in graph.materializable_asset_keys
        ]
        checks = [self._checked(key) for key in graph.asset_check_keys]
        self.definitions = build_definitions(self.catalog, assets=pretended, asset_checks=checks)
        report(self.catalog, self.instance)

    def _pretend(self, spec: dg.AssetSpec) -> dg.AssetsDefinition:
        @dg.multi_asset(name="__".join(spec.key.path), specs=[spec])
        def pretended():
            if spec.key.to_user_string() in self.failing:
                raise ValueError("told to fail")

        return pretended

    def _checked(self, key: dg.AssetCheckKey) -> dg.AssetChecksDefinition:
        cells = self.definitions.resolve_assets_def(key.asset_key).partitions_def

        @dg.asset_check(asset=key.asset_key, name=key.name, partitions_def=cells, blocking=True)
        def check():
            return dg.AssetCheckResult(passed=key.asset_key.to_user_string() not in self.refusing)

        return check

    def tick(self) -> list[dg.RunRequest]:
        """What the switch asks for now, of which it did not ask before."""
        context = dg.build_sensor_context(self.instance, repository_def=self.definitions.get_repository_def())
        requests = self.definitions.resolve_sensor_def("keep_up_to_date").evaluate_tick(context).run_requests
        asked = {run.tags.get("dagster/run_key") for run in self.instance.get_runs()}
        return [request for request in requests if request.run_key not in asked]  # as the daemon does

    def run(self, request: dg.RunRequest) -> bool:
        return (
            self.definitions.resolve_job_def(request.job_name)
            .execute_in_process(
                instance=self.instance,
                partition_key=request.partition_key,
                asset_selection=request.asset_selection,
                tags={"dagster/run_key": request.run_key},
                raise_on_error=False,
            )
            .success
        )

    def settle(self) -> list[tuple[str, str]]:
        """Every run that is asked for until no more are."""
        asked = []
        while requests := self.tick():
            for request in requests:
                self.run(request)
                asked.append((request.job_name, request.partition_key))
        return asked


@pytest.fixture
def pretended(entries, tmp_path, instance):
    return Pretended(write_catalog(tmp_path, entries()), instance)


def asked(requests: list[dg.RunRequest]) -> list[tuple[str, str]]:
    return [(request.job_name, request.partition_key) for request in requests]


def test_it_is_switched_off_until_somebody_switches_it_on(pretended):
    sensor = pretended.definitions.resolve_sensor_def("keep_up_to_date")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED


def test_the_tokens_come_first_then_the_cells_then_what_compares_them_and_each_is_asked_for_once(pretended):
    for expected in ([TOKENS], TRADITIONAL, [JSAE], [LAYERS], [SITE], []):
        requests = pretended.tick()
        assert asked(requests) == expected
        assert all(pretended.run(request) for request in requests)


def test_what_is_under_way_is_not_asked_for_again(pretended):
    (request,) = pretended.tick()
    job = pretended.definitions.resolve_job_def(request.job_name)
    pretended.instance.create_run_for_job(job, tags={"dagster/partition": "tiny"}, status=dg.DagsterRunStatus.STARTED)
    assert pretended.tick() == []


def test_what_failed_is_asked_for_again_once_something_it_is_made_from_has_changed(pretended, entries, tmp_path):
    pretended.failing = {"jsae/sae_pair"}
    assert pretended.settle() == [TOKENS, *TRADITIONAL, JSAE, SITE]
    assert pretended.settle() == []
    pretended.failing = set()
    assert pretended.settle() == []  # nothing says that it would go otherwise now
    changed = entries()
    changed["pairs"][1]["train"]["config"] = changed["pairs"][1]["train"]["config"] | {"k": 6}
    write_catalog(tmp_path, changed)
    pretended.read()
    assert pretended.settle() == [JSAE, LAYERS, SITE]


def test_what_failed_its_check_is_not_made_again_for_nothing_and_nothing_is_made_from_it(pretended):
    pretended.refusing = {"jsae/sae_pair"}
    assert pretended.settle() == [TOKENS, *TRADITIONAL, JSAE, SITE]
    made = pretended.instance.get_materialized_partitions(dg.AssetKey(["jsae", "jacobian_histogram"]))
    assert made == set()


def test_a_tick_that_takes_too_long_ends_and_the_next_ones_go_on_where_it_stopped(
    pretended, entries, tmp_path, monkeypatch
):
    changed = entries()
    changed["models"] |= {"second": changed["models"]["tiny"]}
    changed["pairs"] = [pair | {"model": model} for pair in changed["pairs"] for model in changed["models"]]
    write_catalog(tmp_path, changed)
    pretended.read()
    monkeypatch.setattr("jsae_assets.automation.TICK_SECONDS", 0)
    cursor, found = None, []
    for _ in range(4):
        context = dg.build_sensor_context(
            pretended.instance, cursor=cursor, repository_def=pretended.definitions.get_repository_def()
        )
        tick = pretended.definitions.resolve_sensor_def("keep_up_to_date").evaluate_tick(context)
        found.append(asked(tick.run_requests))
        assert all(pretended.run(request) for request in tick.run_requests)
        cursor = tick.cursor
    assert found == [
        [TOKENS],
        [("measure_cell", "tiny:0")],
        [("measure_cell", "tiny:1")],
        [("measure_cell_2", "tiny:1")],
    ]
    for _ in range(12):  # whatever can begin does in the end, of every model
        context = dg.build_sensor_context(
            pretended.instance, cursor=cursor, repository_def=pretended.definitions.get_repository_def()
        )
        tick = pretended.definitions.resolve_sensor_def("keep_up_to_date").evaluate_tick(context)
        assert len(tick.run_requests) <= 1 and all(pretended.run(request) for request in tick.run_requests)
        cursor = tick.cursor
    assert pretended.tick() == []
    made = pretended.instance.get_materialized_partitions(dg.AssetKey(["figures", "jsae", "quality_by_layer"]))
    assert made == set(changed["models"])


def test_more_layers_take_no_more_questions_to_the_event_log(pretended, entries, tmp_path, monkeypatch):
    def settle_at(layers: list[int]) -> None:
        changed = entries()
        for pair in changed["pairs"]:
            pair["layers"] = layers
        write_catalog(tmp_path, changed)
        pretended.read()
        pretended.settle()

    questions = []
    log = type(pretended.instance.event_log_storage)
    for name in ("get_latest_storage_id_by_partition", "get_asset_check_partition_info", "fetch_materializations"):
        asked_before = getattr(log, name)

        def ask(*args, _asked=asked_before, **named):
            questions.append(_asked.__name__)
            return _asked(*args, **named)

        monkeypatch.setattr(log, name, ask)

    def count() -> int:
        questions.clear()
        graph = pretended.definitions.resolve_asset_graph()
        planned_runs(Freshness(pretended.catalog, graph, pretended.definitions.resources, pretended.instance))
        return len(questions)

    settle_at([1])
    few = count()
    settle_at([0, 1])
    assert 0 < count() <= few


def test_a_layer_added_to_the_catalog_is_made_and_nothing_else_but_what_compares_the_layers(
    pretended, entries, tmp_path
):
    pretended.settle()
    changed = entries()
    changed["pairs"][0]["layers"] = [0, 1, 2]
    write_catalog(tmp_path, changed)
    pretended.read()
    assert pretended.settle() == [("measure_cell", "tiny:2"), LAYERS, SITE]


def test_an_edited_recipe_asks_for_what_is_made_from_it_and_no_other_asset(pretended, entries, tmp_path):
    pretended.settle()
    changed = entries()
    changed["pairs"][1]["train"]["config"] = changed["pairs"][1]["train"]["config"] | {"jacobian_coefficient": 2.0}
    write_catalog(tmp_path, changed)
    pretended.read()
    graph = pretended.definitions.resolve_asset_graph()
    freshness = Freshness(pretended.catalog, graph, pretended.definitions.resources, pretended.instance)
    places = [
        Place(key, partition)
        for key in graph.materializable_asset_keys
        for partition in partition_keys(graph.get(key).partitions_def)
    ]
    assert {str(place) for place in freshness.out_of_date(places)} == (
        {f"jsae/{name} tiny:1" for name in PER_VARIANT}
        | {f"figures/jsae/{name} tiny:1" for name in CELL_FIGURES}
        | {"figures/jsae/quality_by_layer tiny", "site"}
    )


@pytest.mark.parametrize("failing", ["sae_pair", "measures", "figures"])
def test_every_run_ends_in_which_all_of_one_kind_fail_with_and_without_a_control(instance, failing, tmp_path):
    # layer 1 of the default catalog has a control, layer 0 none; layer 2 holds what layer 0 does
    pretended = Pretended(write_catalog(tmp_path, default_entries(layers=(0, 1))), instance)
    prefixes = ["figures/"] if failing == "figures" else list(pretended.catalog.variants)
    names = {"sae_pair": ["sae_pair"], "measures": PER_VARIANT[1:], "figures": CELL_FIGURES}[failing]
    pretended.failing = {
        key.to_user_string()
        for key in pretended.definitions.resolve_all_asset_keys()
        if key.to_user_string().startswith(tuple(prefixes)) and key.path[-1] in names
    }
    cells = [partition for job, partition in pretended.settle() if job == CELL_JOB]
    # each is tried twice, and layer 1 once more for the figure that has it beside a sweep
    assert set(cells) == {"stdlib-1m:0", "stdlib-1m:1"} and len(cells) <= 5
    ended = [run.status for run in pretended.instance.get_runs() if run.job_name == CELL_JOB]
    assert ended == [dg.DagsterRunStatus.FAILURE] * len(cells)
