"""Web server and daemon of one machine, with a process a run as `jsae ui` starts them: a run that is terminated. (It
needs nothing of other machines, but takes minutes.)"""

import dagster as dg
import pytest

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
