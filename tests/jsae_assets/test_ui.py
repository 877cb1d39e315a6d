"""What the UI shows and starts, by the real web server and daemon."""

import dagster as dg
import pytest

from jsae_assets.catalog import load_catalog
from jsae_assets.command import run_all
from jsae_assets.plan import selection
from tests.jsae_assets.conftest import Graph
from tests.jsae_assets.ui_server import IN_THE_DAEMON, QUICK_QUEUE, started

STALE = """query($key: AssetKeyInput!, $partition: String) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    staleStatus(partition: $partition) } } }"""
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


def test_a_backfill_over_everything_makes_each_cell_of_the_catalog_once_and_ends_successful(ui):
    server, _ = ui
    everything = [asset for asset in server.places().values() if asset["executable"]]
    assert server.end_of_backfill(server.launch_backfill(everything)) == "COMPLETED_SUCCESS", server.output()
    for name, asset in server.places().items():
        # everything is asked for at once, so a cell may find no tokens yet, make them, and be followed by their run
        made = sorted(set(asset["made"])) if name == "tokens" else asset["made"]
        assert made == sorted(asset["offered"]), name
        for partition in asset["offered"] if asset["executable"] else []:
            stale = server.ask(STALE, key={"path": asset["path"]}, partition=partition or None)
            assert stale["assetNodeOrError"]["staleStatus"] == "FRESH", (name, partition)
    assert {run["status"] for run in server.runs()} == {"SUCCESS"}
