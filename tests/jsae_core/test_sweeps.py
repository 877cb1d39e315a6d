"""The table of training runs, and a wandb project kept in step with it by the real client.

Not here: how each failure of wandb is explained (`test_wandb_client.py`).
"""

import io
import json
import math
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st

from jsae_core.sweeps import RUN_COLUMNS, local_run, run_row, runs_of, runs_table, sync_runs
from jsae_core.wandb_client import WandbError
from tests.wandb_server import WandbServer, text_of

KEY = "5e17" * 10
PROJECT = ("ent", "proj")
PATH = "ent/proj"
CONFIG = {
    "model_name": "pythia-70m-deduped",
    "hook_layer": 3,
    "d_sae": 16384,
    "activation_fn_kwargs": {"k": 32},
    "jacobian_coefficient": 1.0,
    "_wandb": {"cli_version": "0.18"},
}
SUMMARY = {
    "jacobian_sparsity/jac_abs_above_0.01": 84.0,
    "model_performance_preservation/ce_loss_score": 0.93,
    "model_performance_preservation/ce_loss_score2": 0.91,
    "_timestamp": 1.7e9,
}


pytestmark = pytest.mark.usefixtures("no_wandb_process_left")


@pytest.fixture
def server(point_client_at):
    """With an empty project."""
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


def parquet(table):
    file = io.BytesIO()
    table.to_parquet(file)
    return file.getvalue()


def stored(table):
    """As the table comes back from its file."""
    return pd.read_parquet(io.BytesIO(parquet(table)))


def a_run(summary=SUMMARY, config=CONFIG, run_id="a", **more):
    values = {"name": run_id, "state": "finished", "created_at": "2026-07-01T00:00:00Z", "updated_at": None}
    return run_row(run_id, url="", tags=(), config=config, summary=summary, **{**values, **more})


def row_of(summary=SUMMARY, config=CONFIG):
    return runs_table([a_run(summary, config)]).iloc[0]


# --- The table


def test_a_run_of_the_paper_s_sweep_becomes_a_row_of_settings_and_metrics():
    row = row_of()
    assert row["model"] == "pythia-70m-deduped"
    assert (row["layer"], row["k"], row["d_sae"], row["jacobian_coefficient"]) == (3, 32, 16384, 1.0)
    assert not row["randomize_llm_weights"] and not row["deleted"]
    assert (row["ce_score_input"], row["ce_score_output"], row["ce_score"]) == (0.93, 0.91, pytest.approx(0.92))
    assert row["above_0.01"] == 84 / 1024
    assert math.isnan(row["kl_score_input"]) and math.isnan(row["above_0.02"])
    assert row["jacobian_sparsity/jac_abs_above_0.01"] == 84
    # the original evaluates it there
    assert row["jacobian_at"] == "reconstruction" and row["above_0.01_at_reconstruction"] == 84 / 1024


def test_older_names_in_a_configuration_are_understood():
    row = row_of(config={"hook_point_layer": 5, "k": 16, "model_name": "m", "randomize_llm_weights": True})
    assert (row["layer"], row["k"], row["model"], row["randomize_llm_weights"]) == (5, 16, "m", True)
    assert pd.isna(row["d_sae"]) and math.isnan(row["jacobian_coefficient"])


def test_every_metric_of_the_originals_evaluation_has_its_column():
    row = row_of(
        {
            "model_behavior_preservation/kl_div_score": 0.9,
            "model_behavior_preservation/kl_div_score2": 0.8,
            "reconstruction_quality/explained_variance": 0.7,
            "reconstruction_quality/explained_variance2": 0.6,
            "metrics/explained_variance": 0.1,
            "jacobian_sparsity/jac_kurtosis": 50.0,
            "jacobian_sparsity/jac_l1": 1024 * 0.03,
            "jacobian_sparsity/jac_l2b_norm_": 0.06,
        }
    )
    assert (row["kl_score_input"], row["kl_score_output"]) == (0.9, 0.8)
    assert (row["explained_variance_input"], row["explained_variance_output"]) == (0.7, 0.6)
    assert (row["kurtosis"], row["l1_over_l2"]) == (50, pytest.approx(0.5))


def test_the_later_names_of_the_shares_are_understood_and_the_earlier_ones_preferred():
    later = {f"jacobian_sparsity/jac_above_{t}": count for t, count in [(0.01, 102.4), (0.02, 51.2), (0.04, 0.0)]}
    assert row_of(later)[["above_0.01", "above_0.02", "above_0.04"]].tolist() == [0.1, 0.05, 0]
    both = row_of(later | {"jacobian_sparsity/jac_abs_above_0.01": 512})
    assert both[["above_0.01", "above_0.02"]].tolist() == [0.5, 0.05]


@pytest.mark.parametrize("count", [51.2, 0])
def test_keys_that_all_hold_the_last_threshold_count_for_that_one_only(count):
    wrong = {f"jacobian_sparsity/jac_above_{t}": count for t in (0.005, 0.01, 0.02, 0.04)}
    assert row_of(wrong)["above_0.04"] == count / 1024
    assert row_of(wrong)[["above_0.005", "above_0.01", "above_0.015", "above_0.02"]].isna().all()
    assert row_of(wrong)["jacobian_sparsity/jac_above_0.01"] == count
    mended = row_of(wrong | {"jacobian_sparsity/jac_abs_above_0.01": 512})
    assert (mended["above_0.01"], mended["above_0.04"]) == (0.5, count / 1024)


def test_numbers_and_truth_values_that_are_written_as_text_are_understood():
    config = {"hook_layer": "3", "k": "32", "d_sae": "1e4", "jacobian_coefficient": "1e-4"}
    row = row_of(
        {
            "jacobian_sparsity/jac_abs_above_0.01": "102.4",
            "model_performance_preservation/ce_loss_score": "0.5",
            "model_performance_preservation/ce_loss_score2": " 7e-1 ",
        },
        config | {"randomize_llm_weights": "True"},
    )
    assert (row["layer"], row["k"], row["d_sae"], row["jacobian_coefficient"]) == (3, 32, 10_000, 1e-4)
    assert row["randomize_llm_weights"] and row["above_0.01"] == pytest.approx(0.1)
    assert row["ce_score"] == pytest.approx(0.6)
    assert not row_of(config=config | {"randomize_llm_weights": "false"})["randomize_llm_weights"]


@given(st.floats(0, 1e6), st.integers(0, 2**40), st.booleans())
def test_a_setting_means_the_same_as_text(coefficient, whole, truth):
    config = {"jacobian_coefficient": coefficient, "d_sae": whole, "randomize_llm_weights": truth}
    columns = [*config]
    as_text = {name: str(value) for name, value in config.items()}
    assert row_of(config=as_text)[columns].tolist() == row_of(config=config)[columns].tolist()


@pytest.mark.parametrize("text", ["", "three", "1_000", "0x10", "[1]"])
def test_text_that_is_no_number_is_an_unknown_setting(text):
    row = row_of(config={"d_sae": text, "jacobian_coefficient": text})
    assert pd.isna(row["d_sae"]) and math.isnan(row["jacobian_coefficient"])


@pytest.mark.parametrize("yes", [True, 1, 1.0, "1.0", "TRUE", "yes", "on"])
def test_a_truth_value_counts_however_it_is_written(yes):
    assert row_of(config=CONFIG | {"randomize_llm_weights": yes})["randomize_llm_weights"]


@pytest.mark.parametrize("kwargs", ["{'k': 16}", '{"k": "16"}', ' {"k": 16.0}'])
def test_settings_that_were_passed_as_text_are_read(kwargs):
    assert row_of(config=CONFIG | {"activation_fn_kwargs": kwargs})["k"] == 16


@pytest.mark.parametrize("kwargs", ["{k: 16}", "{16}", "{", "{" * 9999, "{1: 2}", "[16]"])
def test_text_that_holds_no_settings_is_an_unknown_setting(kwargs):
    assert pd.isna(row_of(config=CONFIG | {"activation_fn_kwargs": kwargs})["k"])


@pytest.mark.parametrize("nothing", [None, "", "None", "null"])
def test_a_setting_that_says_nothing_is_not_given(nothing):
    row = row_of(config={"sparsity_metric": nothing, "objective": "tanh", "model_name": nothing, "k": nothing})
    assert row["objective"] == "tanh" and pd.isna(row["model"]) and pd.isna(row["k"])


@pytest.mark.parametrize("name", ["use_jacobian_loss", "is_pair"])
@pytest.mark.parametrize("no", [False, "False", "false", 0, 0.0, "0.0", "no", " Off "])
def test_a_run_whose_loss_has_no_jacobian_term_has_no_coefficient_whatever_the_default_says(name, no):
    assert row_of(config=CONFIG | {name: no})["jacobian_coefficient"] == 0
    assert row_of(config=CONFIG | {name: True})["jacobian_coefficient"] == 1
    assert row_of(config=CONFIG | {name: None})["jacobian_coefficient"] == 1


def test_a_metric_that_is_summed_up_as_minimum_maximum_and_last_counts_as_its_last():
    summary = {name: {"min": 0.0, "max": 999.0, "last": value} for name, value in SUMMARY.items()}
    row, plain = row_of(summary), row_of()
    for name in ("ce_score_input", "ce_score_output", "ce_score", "above_0.01"):
        assert row[name] == plain[name]
    assert row["model_performance_preservation/ce_loss_score.max"] == 999


def test_counts_are_no_shares_where_k_is_not_known():
    row = row_of(config={})
    assert row[[name for name in RUN_COLUMNS if name.startswith("above_")]].isna().all()
    assert row["ce_score_input"] == 0.93


def test_metrics_are_typed_nested_ones_are_flattened_and_nothing_is_lost():
    table = runs_table(
        [
            a_run({"n": 1, "mixed": 1, "b": True, "t": "x", "h": {"bins": [1, 2], "deep": {"v": 2}}}, run_id="a"),
            a_run({"n": 2.5, "mixed": "one", "b": None, "t": None, "h": {"bins": []}, "state": "odd"}, run_id="b"),
            a_run({"n": "NaN", "inf": math.inf, "-inf": "-Infinity", "nan": math.nan}, run_id="c"),
        ]
    )
    assert {str(table[name].dtype) for name in ("n", "h.deep.v", "inf", "-inf", "nan")} == {"float64"}
    assert table["n"].tolist()[:2] == [1, 2.5] and math.isnan(table["n"][2])
    assert (table["inf"][2], table["-inf"][2]) == (math.inf, -math.inf)
    assert table["b"].tolist() == [True, pd.NA, pd.NA] and str(table["b"].dtype) == "boolean"
    assert table["mixed"].tolist()[:2] == ["1", "one"] and table["h.bins"].tolist()[:2] == ["[1, 2]", "[]"]
    assert table["state"].tolist() == ["finished"] * 3
    assert json.loads(table["summary_json"][1])["state"] == "odd"
    raw = json.loads(table["summary_json"][2])
    assert raw["inf"] == math.inf and math.isnan(raw["nan"]) and raw["n"] == "NaN"


def test_text_that_no_file_can_hold_and_numbers_that_no_float_can_are_no_obstacle():
    summary = {"half a pair \ud800": "\udfff", "large": 10**400, "x": {}}
    table = runs_table([a_run(summary, {"k": 10**400, "d_sae": 1.5, "hook_layer": True, "model_name": ["m"]})])
    assert stored(table)["half a pair \\ud800"][0] == "\\udfff" and table["large"][0] == math.inf
    assert table[["k", "d_sae", "layer"]].isna().all(axis=None) and table["model"][0] == '["m"]'
    assert json.loads(table["summary_json"][0]) == summary


def test_a_table_of_no_runs_has_the_columns_and_types_of_one_with_runs():
    empty, one = runs_table([]), runs_table([a_run({})])
    assert list(empty.columns) == list(one.columns) == [*RUN_COLUMNS, "config_json", "summary_json"]
    assert (empty.dtypes == one.dtypes).all()
    assert str(empty["created_at"].dtype) == str(empty["updated_at"].dtype) == "datetime64[us, UTC]"


def test_a_local_run_has_the_columns_of_one_from_wandb_and_the_metrics_of_pair_quality():
    quality = {"ce_score_input": 0.9, "ce_score_output": 0.7, "above_0.01": 0.25, "kurtosis": 9.0, "l1_over_l2": 0.5}
    quality |= {"explained_variance_output": 0.8, "kl_score_input": 0.6, "above_0.01_se": 0.001}
    recipe = {"d_sae": 512, "k": 16, "jacobian_coefficient": 0.3, "steps": 100}
    run = local_run("a", "λ = 0.3", "tiny", 1, recipe, quality, "2026-07-01T00:00:00Z")
    row = runs_table([run, a_run(run_id="b")]).iloc[0]
    assert (row["model"], row["layer"], row["k"], row["d_sae"], row["jacobian_coefficient"]) == (
        "tiny",
        1,
        16,
        512,
        0.3,
    )
    assert (row["state"], row["name"], row["ce_score"]) == ("finished", "λ = 0.3", pytest.approx(0.8))
    assert (row["above_0.01"], row["kurtosis"], row["l1_over_l2"], row["above_0.01_se"]) == (0.25, 9, 0.5, 0.001)
    assert row["created_at"] == row["updated_at"] == pd.Timestamp("2026-07-01", tz="UTC")


def test_a_row_says_where_its_jacobian_was_evaluated_and_has_both_where_both_are_known():
    both = {"above_0.01": 0.25, "above_0.01_at_reconstruction": 0.2, "kurtosis_at_reconstruction": 8.0}
    ours, theirs, neither = runs_table([a_run(both, run_id="a"), a_run(run_id="b"), a_run({}, run_id="c")]).iloc
    assert (ours["jacobian_at"], ours["above_0.01"], ours["above_0.01_at_reconstruction"]) == ("input", 0.25, 0.2)
    assert math.isnan(ours["kurtosis"]) and ours["kurtosis_at_reconstruction"] == 8
    assert theirs["jacobian_at"] == "reconstruction"
    assert theirs["above_0.01"] == theirs["above_0.01_at_reconstruction"] == 84 / 1024
    assert pd.isna(neither["jacobian_at"])


def test_a_table_comes_back_from_its_file_with_the_runs_it_was_made_of():
    runs = [
        a_run(run_id="b", created_at="2026-07-02T00:00:00", updated_at="2026-07-02T00:00:00.123456789Z"),
        run_row("a", "", "running", time_of(5), None, "http://x", ["one", "two"], {}, {"m": {"n": [1]}}),
    ]
    back = runs_of(stored(runs_table(runs)))
    assert {run.run_id: run for run in back} == {run.run_id: run for run in runs}
    assert [run.run_id for run in back] == ["a", "b"]
    assert parquet(runs_table(back)) == parquet(runs_table(reversed(runs)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"run_id": ""}, "the run's id is ''"),
        ({"state": None}, "the state is None"),
        ({"created_at": "yesterday"}, "'yesterday' is no time"),
        ({"created_at": None}, "None is no time"),
        ({"summary": {"x": object()}}, "its summary does not fit into JSON"),
        ({"config": {1: 2, "a": 3}}, "its configuration does not fit into JSON"),
    ],
)
def test_a_run_of_other_than_plain_values_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        a_run(**wrong)


def test_two_runs_of_one_id_and_a_table_of_something_else_are_errors():
    with pytest.raises(ValueError, match="'a' is the id of more than one run"):
        runs_table([a_run(), a_run({})])
    with pytest.raises(ValueError, match="no column run_id, .*: it is no table of training runs"):
        runs_of(pd.DataFrame({"x": [1]}))


# --- Keeping it in step


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
    ({"what": "hang"}, "no answer in time"),
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
    assert f"gave {count} malformed runs of ent/proj beside {208 - count} good ones" in str(error.value)
    assert f"run{100 * page + 1:03d} (its configuration is no JSON)" in str(error.value)
    assert f"run{100 * page + 3:03d} (its configuration is no JSON object)" in str(error.value)
    assert f"repair or delete them at {server.url}/ent/proj" in str(error.value)


def test_a_run_that_only_the_client_finds_malformed_costs_no_other_run(server, sync):
    add_runs(server, 3)
    server.change_run(*PROJECT, "run001", summary='{"text": "a\\tb"}'.replace("\\t", "\t"))
    assert sync().table["text"][1] == "a\tb"


def test_malformed_runs_that_are_new_do_not_pass_for_nothing_new(server, sync):
    add_runs(server, 3)
    known = sync().table
    server.add_run(*PROJECT, "odd", summary="[]", heartbeat_at="soon", created_at=time_of(5))
    with pytest.raises(WandbError, match=r"odd \('soon' is no time|odd \(its summary is no JSON object"):
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
    with pytest.raises(WandbError, match="the runs of ent/nope, asked at .*Check the path's entity, project"):
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
