"""What the UI shows and starts, by the real web server and daemon."""

import json

import dagster as dg
import pytest

from jsae_assets.catalog_file import load_catalog
from jsae_assets.making import run_all
from jsae_assets.runs.plan import selection
from tests.jsae_assets.conftest import Graph
from tests.jsae_assets.ui_server import IN_THE_DAEMON, QUICK_QUEUE, Server, started

# What the overview's timeline asks for; it leaves out runs that began nowhere or are of no job of the workspace.
TIMELINE = """query($filter: RunsFilter!) {
    runsOrError(filter: $filter) { ... on Runs { results {
        id pipelineName startTime repositoryOrigin { repositoryName repositoryLocationName } } } }
    workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on RepositoryLocation {
        name repositories { name pipelines { name } } } } } } } }"""


@pytest.fixture(scope="module")
def ui(fresh_home, entries, tmp_path_factory):
    """The UI of a home in which nothing is made yet, its catalog's entries apart, and its folder."""
    folder = tmp_path_factory.mktemp("ui")
    with started(fresh_home, folder, entries(), QUICK_QUEUE | IN_THE_DAEMON) as server:
        expected = sorted(server.places()["catalog"]["offered"])
        server.wait_for("the catalog's entries to be known", lambda: server.places()["catalog"]["made"] == expected)
        yield server, folder


def test_what_the_command_runs_is_on_the_overviews_timeline(ui):
    server, folder = ui
    with dg.DagsterInstance.from_config(str(folder / "home")) as instance:
        tiny = Graph(load_catalog(folder / "catalog.yaml"), instance)
        assert run_all(tiny.catalog, tiny.definitions, instance, selection([], [], ["tokens"], tiny.catalog)) == []
        (made,) = instance.get_run_records()
    shown = server.ask(TIMELINE, filter={"statuses": ["SUCCESS", "FAILURE", "CANCELED"], "createdBefore": 2e9})
    (run,) = shown["runsOrError"]["results"]
    assert run["id"] == made.dagster_run.run_id and run["startTime"] == made.start_time
    of = run["repositoryOrigin"]
    jobs = {
        (location["name"], repository["name"]): [job["name"] for job in repository["pipelines"]]
        for entry in shown["workspaceOrError"]["locationEntries"]
        for location in [entry["locationOrLoadError"]]
        for repository in location["repositories"]
    }
    assert run["pipelineName"] in jobs[of["repositoryLocationName"], of["repositoryName"]]


def stale_statuses(server: Server, places: dict[str, dict]) -> dict[tuple[str, str], str]:
    """What the UI says of each partition of these assets, asked for in one request."""
    names = {f"asset_{number}": name for number, name in enumerate(places)}
    parts = []
    for alias, name in names.items():
        partitioned = places[name]["offered"] != [""]
        status = "staleStatusByPartition" if partitioned else "staleStatus"
        path = json.dumps(places[name]["path"])
        parts.append(f"{alias}: assetNodeOrError(assetKey: {{path: {path}}}) {{ ... on AssetNode {{ {status} }} }}")
    answer = server.ask(f"{{ {' '.join(parts)} }}")
    statuses = {}
    for alias, name in names.items():
        (told,) = answer[alias].values()
        for partition, status in zip(places[name]["offered"], told if isinstance(told, list) else [told], strict=True):
            statuses[name, partition] = status
    return statuses


def test_a_backfill_over_everything_makes_each_cell_of_the_catalog_once_and_ends_successful(ui):
    server, _ = ui
    everything = [asset for asset in server.places().values() if asset["executable"]]
    assert server.end_of_backfill(server.launch_backfill(everything)) == "COMPLETED_SUCCESS", server.output()
    places = server.places()
    for name, asset in places.items():
        # everything is asked for at once, so a cell may find no tokens yet, make them, and be followed by their run
        made = sorted(set(asset["made"])) if name == "tokens" else asset["made"]
        assert made == sorted(asset["offered"]), name
    statuses = stale_statuses(server, {name: asset for name, asset in places.items() if asset["executable"]})
    assert len(statuses) > 40 and set(statuses.values()) == {"FRESH"}, statuses
    assert {run["status"] for run in server.runs()} == {"SUCCESS"}
