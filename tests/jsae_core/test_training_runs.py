"""A training run's row, from wandb's values or a local sweep's, and the table made of rows."""

import io
import json
import math
from datetime import UTC, datetime

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.training_runs import RUN_COLUMNS, local_run, run_row, runs_of, runs_table

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
    alone = row_of({"jacobian_sparsity/jac_above_0.01": 512})
    assert alone["above_0.01"] == 0.5 and math.isnan(alone["above_0.04"])


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
        run_row(
            "a",
            "",
            "running",
            datetime(2026, 7, 1, 5, tzinfo=UTC),
            None,
            "http://x",
            ["one", "two"],
            {},
            {"m": {"n": [1]}},
        ),
    ]
    back = runs_of(stored(runs_table(runs)))
    assert {run.run_id: run for run in back} == {run.run_id: run for run in runs}
    assert [run.run_id for run in back] == ["a", "b"]
    assert parquet(runs_table(back)) == parquet(runs_table(reversed(runs)))


def test_runs_of_one_time_make_the_same_table_in_whichever_order_they_come():
    runs = [a_run(run_id=run_id) for run_id in "cab"]
    assert [run.run_id for run in runs_of(runs_table(runs))] == ["a", "b", "c"]


@pytest.mark.parametrize("time", ["2026-07-01T02:30:00", "2026-07-01T04:30:00+02:00", datetime(2026, 7, 1, 2, 30)])
def test_times_are_in_utc_and_without_a_zone_mean_utc(time):
    assert runs_table([a_run(created_at=time)])["created_at"][0] == pd.Timestamp("2026-07-01T02:30", tz="UTC")


@pytest.mark.parametrize("value", ["Infinity", "NaN", math.inf, math.nan, True])
def test_a_metric_that_no_axis_can_show_is_unknown(value):
    row = row_of(SUMMARY | {"model_performance_preservation/ce_loss_score": value, "accounted_share": value})
    assert row[["ce_score_input", "ce_score", "accounted_share"]].isna().all() and row["ce_score_output"] == 0.91


def test_a_jacobian_of_zeros_has_a_ratio_of_norms_of_zero_and_one_without_a_norm_has_none():
    logged = {"jacobian_sparsity/jac_l1": 0.0, "jacobian_sparsity/jac_l2b_norm_": 0.5}
    assert row_of(logged)["l1_over_l2"] == 0
    assert math.isnan(row_of(logged | {"jacobian_sparsity/jac_l2b_norm_": 0.0})["l1_over_l2"])


def test_of_two_settings_of_one_name_the_less_nested_one_counts():
    assert row_of(config={"activation_fn_kwargs": {"k": 8}, "activation_fn_kwargs.k": 4})["k"] == 4
    assert row_of(config={"activation_fn_kwargs.k": 4, "activation_fn_kwargs": {"k": 8}})["k"] == 4


def test_a_whole_number_that_a_float_cannot_tell_from_its_neighbours_is_unknown():
    assert row_of(config={"d_sae": 2**53 - 1})["d_sae"] == 2**53 - 1
    assert pd.isna(row_of(config={"d_sae": 2**53 + 1})["d_sae"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"run_id": ""}, "the run's id is ''"),
        ({"state": None}, "the state is None"),
        ({"created_at": "yesterday"}, "'yesterday' is not a time"),
        ({"created_at": None}, "None is not a time"),
        ({"summary": {"x": object()}}, "its summary cannot be written as JSON"),
        ({"config": {1: 2, "a": 3}}, "its configuration cannot be written as JSON"),
    ],
)
def test_a_run_of_other_than_plain_values_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        a_run(**wrong)


def test_two_runs_of_one_id_and_a_table_of_something_else_are_errors():
    with pytest.raises(ValueError, match="'a' is the id of more than one run"):
        runs_table([a_run(), a_run({})])
    with pytest.raises(ValueError, match="no column run_id, .*: it is not a table of training runs"):
        runs_of(pd.DataFrame({"x": [1]}))
