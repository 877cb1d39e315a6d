"""The table of a wandb project's training runs, kept in step with it by the real client.

Not here: what a row holds (`test_training_runs.py`), how each failure of wandb is explained (`test_wandb_client.py`).
"""

import math
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st

from jsae_core.sweeps import sync_runs
from jsae_core.training_runs import runs_of, runs_table
from jsae_core.wandb_client import WandbError
from tests.jsae_core.test_training_runs import CONFIG, SUMMARY, parquet, stored
from tests.wandb_server import WandbServer, text_of

KEY = "5e17" * 10
PROJECT = ("ent", "proj")
PATH = "ent/proj"


pytestmark = pytest.mark.usefixtures("no_wandb_process_left")


@pytest.fixture
def server(point_client_at, monkeypatch):
    """With an empty project, asked again at once where it did not answer."""
    monkeypatch.setattr("jsae_core.silence.SECONDS", 0)
    with WandbServer(api_key=KEY) as server:
        server.add_project(*PROJECT)
        point_client_at(server)
        yield server


@pytest.fixture
def sync(server, tmp_path):
    def run(known=None, **more):
        server.forget()
        return sync_runs(PATH, known, tmp_path / "client", **more)

    return run


def add_runs(server, count, **more):
    for i in range(count):
        config = {**CONFIG, "jacobian_coefficient": i / 10}
        server.add_run(*PROJECT, f"run{i:03d}", created_at=time_of(i), **{"config": config, "summary": SUMMARY, **more})


def time_of(hour):
    return datetime(2026, 7, 1, tzinfo=UTC) + timedelta(hours=hour)


def operations(server):
    return [request.operation for request in server.asked()]


def test_five_hundred_runs_come_in_five_pages(server, sync):
    add_runs(server, 500)
    synced = sync()
    assert operations(server) == ["Viewer"] + ["Runs"] * 5
    assert (synced.changed, synced.deleted, synced.unfinished) == (500, (), ())
    assert synced.table["run_id"].tolist() == [f"run{i:03d}" for i in range(500)]
    row = synced.table.iloc[42]
    assert (row["jacobian_coefficient"], row["url"]) == (4.2, f"{server.url}/ent/proj/runs/run042")
    assert row["updated_at"] == time_of(42)


def test_a_sync_with_nothing_new_costs_one_small_request_and_gives_back_the_table_it_was_given(server, sync):
    add_runs(server, 120)
    known = stored(sync().table)
    again = sync(known)
    assert again.table is known and (again.changed, again.deleted, again.unfinished) == (0, (), ())
    assert operations(server) == ["Viewer", "Runs"]
    assert server.asked("runs")[0].variables["perPage"] == 1


def test_a_table_that_older_rules_made_is_made_anew_though_nothing_is_new(server, sync):
    add_runs(server, 3)
    known = stored(sync().table)
    older = known.assign(jacobian_coefficient=7.0)
    again = sync(older)
    assert again.changed == 0 and parquet(again.table) == parquet(known)


def test_one_changed_run_costs_the_small_request_and_one_page(server, sync):
    add_runs(server, 250)
    known = stored(sync().table)
    server.change_run(*PROJECT, "run007", summary={"new": 1.0}, state="failed")
    synced = sync(known)
    assert operations(server) == ["Viewer", "Runs", "Runs"]
    assert (synced.changed, len(synced.table)) == (1, 250)
    row = synced.table.set_index("run_id").loc["run007"]
    assert (row["new"], row["state"]) == (1, "failed") and math.isnan(row["ce_score"])
    assert parquet(synced.table) == parquet(sync().table)


def test_new_runs_are_added_in_the_order_of_their_creation(server, sync):
    add_runs(server, 3)
    known = sync().table
    server.add_run(*PROJECT, "imported", created_at=time_of(0.5), heartbeat_at=time_of(9))
    synced = sync(known)
    assert synced.table["run_id"].tolist() == ["run000", "imported", "run001", "run002"]
    assert synced.changed == 1 and operations(server) == ["Viewer", "Runs", "Runs"]


def test_a_full_sync_makes_the_same_file_byte_by_byte(server, sync):
    add_runs(server, 30, tags=["a", "b"])
    server.change_run(*PROJECT, "run003", summary={"z": 1, "a": {"y": 2, "b": 3}})
    first = sync()
    server.change_run(*PROJECT, "run003", summary={"a": {"b": 3, "y": 2}, "z": 1}, heartbeat_at=time_of(50))
    server.change_run(*PROJECT, "run003", heartbeat_at=runs_of(first.table)[3].updated_at)
    full = sync(stored(first.table), full=True)
    assert full.changed == 0 and parquet(full.table) == parquet(first.table)


def test_a_full_sync_sees_edited_names_and_tags(server, sync):
    add_runs(server, 3)
    known = sync().table
    server.change_run(*PROJECT, "run001", tags=["seen"], display_name="best")
    assert sync(known).table is known
    row = sync(known, full=True).table.iloc[1]
    assert (row["name"], list(row["tags"])) == ("best", ["seen"])


def test_deleted_runs_are_kept_and_marked_and_unmarked_when_they_come_back(server, sync):
    add_runs(server, 230)
    known = sync().table
    for name in ("run004", "run229"):
        server.delete_run(*PROJECT, name)
    gone = sync(known)
    assert (gone.changed, gone.deleted, len(gone.table)) == (2, ("run004", "run229"), 230)
    assert gone.table.loc[gone.table["deleted"], "run_id"].tolist() == ["run004", "run229"]
    assert operations(server) == ["Viewer"] + ["Runs"] * 5
    assert sync(gone.table).table is gone.table and operations(server) == ["Viewer", "Runs"]
    server.add_run(*PROJECT, "run004", created_at=time_of(4), config={**CONFIG, "jacobian_coefficient": 0.4})
    back = sync(stored(gone.table))
    assert (back.changed, back.deleted) == (1, ())
    assert back.table.loc[back.table["deleted"], "run_id"].tolist() == ["run229"]


def test_the_newest_run_deleted_costs_one_page(server, sync):
    add_runs(server, 230)
    known = sync().table
    server.delete_run(*PROJECT, "run229")
    assert sync(known).deleted == ("run229",)
    assert operations(server) == ["Viewer", "Runs", "Runs"]


def test_a_project_emptied_of_its_runs_keeps_them_marked(server, sync):
    add_runs(server, 2)
    known = sync().table
    for name in ("run000", "run001"):
        server.delete_run(*PROJECT, name)
    assert sync(known).table["deleted"].all()


def test_an_empty_project_is_a_table_without_rows(server, sync):
    empty = sync()
    assert (len(empty.table), empty.changed) == (0, 0)
    again = sync(stored(empty.table))
    assert again.changed == 0 and operations(server) == ["Viewer", "Runs"]


def test_unfinished_runs_are_named_and_asked_for_again_until_they_end(server, sync):
    add_runs(server, 3)
    server.change_run(*PROJECT, "run000", state="running", heartbeat_at=time_of(0))
    known = sync()
    assert known.unfinished == ("run000",) and known.table["state"][0] == "running"
    again = sync(known.table)
    assert again.table is known.table and again.unfinished == ("run000",)
    assert operations(server) == ["Viewer", "Runs", "Runs"]
    # wandb calls a run crashed when heartbeats stay away, which moves none
    server.change_run(*PROJECT, "run000", state="crashed", heartbeat_at=time_of(0))
    crashed = sync(known.table)
    assert (crashed.changed, crashed.unfinished, crashed.table["state"][0]) == (1, (), "crashed")
    sync(crashed.table)
    assert operations(server) == ["Viewer", "Runs"]


def test_an_unfinished_run_that_is_deleted_is_unfinished_no_more(server, sync):
    add_runs(server, 20, state="running")
    known = sync().table
    server.delete_run(*PROJECT, "run000")
    synced = sync(known)
    assert synced.deleted == ("run000",) and len(synced.unfinished) == 19


def test_runs_without_a_heartbeat_are_found_by_their_number(server, sync):
    add_runs(server, 3)
    known = sync().table
    server.add_run(*PROJECT, "silent", created_at=time_of(1.5), state="finished")
    server._projects[PROJECT].runs["silent"].heartbeat_at = None
    synced = sync(known)
    assert synced.changed == 1 and pd.isna(synced.table["updated_at"][2])
    assert sync(stored(synced.table)).changed == 0


def test_a_run_that_lives_on_behind_a_page_already_read_is_seen_by_the_next_sync(server, sync):
    add_runs(server, 5)
    known = sync().table
    server.change_run(*PROJECT, "run004", heartbeat_at=time_of(10))
    missed = runs_of(sync(known).table)
    server.change_run(*PROJECT, "run000", summary={"late": 1}, heartbeat_at=time_of(10) - timedelta(minutes=1))
    server.change_run(*PROJECT, "run004", heartbeat_at=time_of(11) - timedelta(minutes=55))
    assert sync(runs_table(missed)).table["late"][0] == 1


FAULTS = [
    ({"what": 401}, "refuses the API key"),
    ({"what": 404}, "there is nothing of this name"),
    ({"what": 429, "retry_after": 1}, "too many requests"),
    ({"what": 500}, "the server fails"),
    ({"what": "hang"}, "did not answer in time"),
    ({"what": "cut"}, "cut in the middle"),
    ({"what": "malformed"}, "malformed runs of ent/proj"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_sync_that_fails_on_a_later_page_says_why_and_leaves_the_known_table_as_it_was(server, sync, fault, message):
    add_runs(server, 3)
    known = sync().table
    as_it_was = parquet(known)
    add_runs(server, 250)
    server.fail(**fault, on="runs", after=2, times=None)
    with pytest.raises(WandbError, match=message) as error:
        sync(known)
    assert PATH in str(error.value) and KEY not in str(error.value)
    assert parquet(known) == as_it_was
    server.heal()
    assert sync(known).changed == 247


def test_without_a_server_or_a_key_nothing_comes_and_the_known_table_stays_as_it_was(server, sync, monkeypatch):
    add_runs(server, 3)
    known = sync().table
    as_it_was = parquet(known)
    server.stop()
    with pytest.raises(WandbError, match="the server cannot be reached"):
        sync(known)
    wandb.teardown()
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(WandbError, match="there is no API key"):
        sync(known)
    assert parquet(known) == as_it_was


@pytest.mark.parametrize("fault", [{"what": 500}, {"what": "cut"}])
def test_a_fault_that_passes_in_the_middle_of_the_pages_costs_no_run(server, sync, fault):
    add_runs(server, 250)
    server.fail(**fault, on="runs", after=1)
    assert len(sync().table) == 250
    assert operations(server) == ["Viewer"] + ["Runs"] * 4


@pytest.mark.parametrize("page", [0, 1, 2])
def test_malformed_runs_are_all_named_beside_the_number_of_good_ones(server, sync, page):
    add_runs(server, 208)
    server.fail("malformed", on="runs", after=page)
    with pytest.raises(WandbError) as error:
        sync()
    count = [50, 50, 4][page]
    assert f"gave {count} malformed runs of ent/proj besides {208 - count} good ones" in str(error.value)
    assert f"run{100 * page + 1:03d} (its configuration is not JSON)" in str(error.value)
    assert f"run{100 * page + 3:03d} (its configuration is not a JSON object)" in str(error.value)
    assert f"repair or delete them at {server.url}/ent/proj" in str(error.value)


def test_a_run_that_only_the_client_finds_malformed_costs_no_other_run(server, sync):
    add_runs(server, 3)
    server.change_run(*PROJECT, "run001", summary='{"text": "a\\tb"}'.replace("\\t", "\t"))
    assert sync().table["text"][1] == "a\tb"


def test_malformed_runs_that_are_new_do_not_pass_for_nothing_new(server, sync):
    add_runs(server, 3)
    known = sync().table
    server.add_run(*PROJECT, "odd", summary="[]", heartbeat_at="soon", created_at=time_of(5))
    with pytest.raises(WandbError, match=r"odd \('soon' is not a time|odd \(its summary is not a JSON object"):
        sync(known)


@pytest.mark.parametrize("page", [0, 1, 2])
def test_a_page_that_repeats_a_run_and_leaves_out_another_is_read_again(server, sync, page):
    add_runs(server, 208)
    server.fail("repeated", on="runs", after=page)
    assert sync().table["run_id"].tolist() == [f"run{i:03d}" for i in range(208)]
    assert operations(server) == ["Viewer"] + ["Runs"] * 6


@pytest.mark.parametrize("full", [True, False])
def test_a_run_that_a_page_leaves_out_is_not_marked_as_deleted(server, sync, full):
    add_runs(server, 5)
    known = sync().table
    server.change_run(*PROJECT, "run004", summary={"new": 1}, heartbeat_at=time_of(4) + timedelta(minutes=1))
    server.fail("repeated", on="runs", after=0 if full else 1)
    synced = sync(known, full=full)
    assert (synced.changed, synced.deleted, synced.table["deleted"].any()) == (1, (), False)


def test_pages_that_never_hold_as_many_runs_as_wandb_counts_are_an_error_and_nothing_is_marked(server, sync):
    add_runs(server, 5)
    known = sync().table
    server.fail("repeated", on="runs", times=None)
    with pytest.raises(WandbError, match="wandb counts 5 runs of ent/proj but its pages hold 4 different ones"):
        sync(known, full=True)


def test_a_wrong_project_is_an_error_that_names_it(server, tmp_path):
    with pytest.raises(WandbError, match="for the runs of ent/nope: .*Check the path's entity, project"):
        sync_runs("ent/nope", None, tmp_path)


@pytest.mark.parametrize("path", ["proj", "ent/proj/run", "", "ent/", "/proj", "e nt/proj", "ent/ proj"])
def test_a_path_that_is_none_is_refused_before_anything_is_asked(server, tmp_path, path):
    with pytest.raises(ValueError, match="expected entity/project"):
        sync_runs(path, None, tmp_path)
    assert not server.requests


def test_the_key_is_in_no_table_and_no_file(server, sync, tmp_path):
    add_runs(server, 3)
    table = sync().table
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY.encode() not in parquet(table) and KEY not in table.to_csv()


# --- Whatever happens upstream

STATES = st.sampled_from(["running", "finished", "crashed"])
EVENTS = st.one_of(
    st.tuples(st.just("add"), STATES),
    st.tuples(st.just("live on"), st.integers(0, 99)),
    st.tuples(st.just("end without a heartbeat"), st.integers(0, 99)),
    st.tuples(st.just("delete"), st.integers(0, 99)),
    st.tuples(st.just("restore"), st.integers(0, 99)),
    st.tuples(st.just("sync"), st.none()),
)


@settings(max_examples=15)
@given(start=st.lists(STATES, max_size=4), events=st.lists(EVENTS, max_size=12), minutes=st.integers(1, 40))
def test_whatever_happens_upstream_syncs_step_by_step_end_with_the_table_of_one_full_sync(
    server, tmp_path_factory, start, events, minutes
):
    folder = tmp_path_factory.mktemp("client")
    project = folder.name
    path = f"ent/{project}"
    server.add_project("ent", project)
    present, gone, known = {}, {}, None

    def put(name, **values):
        present[name] = values
        server.add_run("ent", project, name, **values)

    steps = [*(("add", state) for state in start), ("sync", None), *events, ("sync", None)]
    for number, (event, value) in enumerate(steps):
        now = text_of(time_of(number * minutes / 60))
        names = sorted(gone if event == "restore" else present)
        name = names[value % len(names)] if isinstance(value, int) and names else None
        if event == "add":
            put(f"run{number}", state=value, summary={"step": number}, created_at=now, heartbeat_at=now)
        elif event == "sync":
            known = sync_runs(path, known, folder).table
        elif name and event == "live on":
            put(name, **present[name] | {"summary": {"step": number}, "state": "running", "heartbeat_at": now})
        elif name and event == "end without a heartbeat" and present[name]["state"] == "running":
            put(name, **present[name] | {"state": "crashed"})
        elif name and event == "delete":
            gone[name] = present.pop(name)
            server.delete_run("ent", project, name)
        elif name and event == "restore":
            # what is restored while another run is deleted goes unnoticed, as `sync_runs` says
            known = sync_runs(path, known, folder).table
            put(name, **gone.pop(name))
            known = sync_runs(path, known, folder).table
    marked = known["deleted"]
    assert parquet(runs_table(runs_of(known[~marked]))) == parquet(sync_runs(path, None, folder).table)
    assert set(known["run_id"][marked]) == set(known["run_id"]) & set(gone)
