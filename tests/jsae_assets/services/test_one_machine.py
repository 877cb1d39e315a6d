"""Web server and daemon of one machine, with a process a run as `jsae ui` starts them: a run that is terminated, and
all of it killed amid a backfill. (They need nothing of other machines, but take minutes.)"""

from collections import defaultdict

import dagster as dg
import pytest

from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from tests.jsae_assets.ui_server import QUICK_QUEUE, started

pytestmark = pytest.mark.services

TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) { __typename } }"""
MANY_STEPS = 1_000_000


def claimed_slots(home) -> list:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return list(instance.event_log_storage.get_concurrency_info("gpu").claimed_slots)


def run_at_work(server) -> dict | None:
    return next((run for run in server.runs() if run["status"] == "STARTED"), None)


def test_a_run_that_is_terminated_while_it_trains_gives_its_slot_to_the_next_one(
    fresh_home, entries, tmp_path, monkeypatch
):
    monkeypatch.setenv("JSAE_CHECKPOINT_SECONDS", "1")
    endless = entries()
    config = endless["pairs"][1]["train"]["config"]
    endless["pairs"][1]["train"]["config"] = config | {"steps": MANY_STEPS}
    with started(fresh_home, tmp_path, endless, QUICK_QUEUE) as server:
        places = server.places()
        server.launch_backfill([places["jsae/sae_pair"]])
        run = server.wait_for("the run that trains", lambda: run_at_work(server))
        home = tmp_path / "home"
        server.wait_for("its training", lambda: list((home / "storage" / "checkpoints").rglob("tiny.safetensors")))
        assert ["sae_pair" in slot.step_key for slot in claimed_slots(home)] == [True]
        assert server.ask(TERMINATE, run=run["runId"])["terminateRun"]["__typename"] == "TerminateRunSuccess"
        server.wait_for("the end of the run", lambda: server.runs()[0]["status"] == "CANCELED", seconds=60)
        server.wait_for("a free slot", lambda: claimed_slots(home) == [], seconds=30)
        assert server.end_of_backfill(server.launch_backfill([places["traditional/sae_pair"]])) == "COMPLETED_SUCCESS"


@pytest.mark.parametrize("with_runs", [False, True], ids=["these two", "their runs as well"])
def test_a_backfill_amid_which_web_server_and_daemon_are_killed_goes_on_once_they_are_back_and_ends_whole(
    fresh_home, entries, tmp_path, with_runs
):
    home = tmp_path / "home"
    with started(fresh_home, tmp_path, entries(), QUICK_QUEUE) as server:
        places = server.places()
        asked = [
            f"{variant}/{name}" for variant in ("traditional", "jsae") for name in ("sae_pair", "jacobian_histogram")
        ]
        backfill = server.launch_backfill([places[name] for name in asked])

        def amid_it() -> bool:
            made = any(server.places()[name]["made"] for name in asked)
            return made and bool(claimed_slots(home))

        server.wait_for("the middle of the backfill", amid_it)
        server.kill(with_all_they_started=with_runs)
        before = runs_by_status(home)
        assert before["STARTED"]
        server.start()
        assert server.end_of_backfill(backfill) == "COMPLETED_SUCCESS", server.output()
        after = runs_by_status(home)
        assert after["FAILURE"] == (before["STARTED"] | before["STARTING"] if with_runs else set())
        assert {status for status, runs in after.items() if runs} <= {"FAILURE", "SUCCESS"}
        places = server.places()
        for name in asked:
            assert places[name]["made"] == sorted(places[name]["offered"]), name  # each once
    check_that_all_is_stored_whole(tmp_path / "catalog.yaml", home, asked)
    assert claimed_slots(home) == []


def runs_by_status(home) -> defaultdict[str, set[str]]:
    found = defaultdict(set)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for run in instance.get_runs():
            found[run.status.value].add(run.run_id)
    return found


def check_that_all_is_stored_whole(catalog, home, names: list[str]) -> None:
    definitions = build_definitions(load_catalog(catalog))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for key in map(dg.AssetKey.from_user_string, names):
            assets = definitions.get_assets_def(key)
            store = definitions.resources[assets.get_io_manager_key_for_asset_key(key)].manager_of(instance)
            for partition in assets.partitions_def.get_partition_keys():
                assert store.stored(key, partition).damage() is None
    left = [path for path in (home / "storage").rglob("*") if ".part" in path.name or "checkpoints" in path.parts]
    assert [path for path in left if path.is_file()] == []
