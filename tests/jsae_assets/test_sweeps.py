"""Sweeps through Dagster: trained here and resumed, or synced with wandb, and what a failing sync leaves behind."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import plotly.io
import pytest
from safetensors.torch import load_file

from jsae_assets.automation import schedules
from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.runs.plan import SWEEP_JOB
from jsae_core import MLPInputs, SAEPair, load_language_model
from jsae_core.measures import jacobian_measures, latent_accounting, pair_quality
from jsae_core.similarity import latent_similarity
from jsae_core.tensor_files import read_tensors, write_tensors
from jsae_core.text import first_tokens, split_documents, split_sources
from jsae_core.training_runs import RUN_COLUMNS
from tests.jsae_assets.conftest import Graph, failures, materialised, metadata, write_catalog
from tests.jsae_assets.test_command import run
from tests.jsae_assets.test_graph import values
from tests.wandb_server import WandbServer

COEFFICIENTS = [0.0, 1.0, 5.0]
FIGURES = {"figures/sweep_runs/tradeoff", "figures/sweep_runs/grid"}


def sync(graph: Graph, sweep: str, *assets: str) -> dg.ExecuteInProcessResult:
    return graph.definitions.resolve_job_def(SWEEP_JOB).execute_in_process(
        instance=graph.instance,
        partition_key=sweep,
        asset_selection=[dg.AssetKey.from_user_string(asset) for asset in assets] or None,
        raise_on_error=False,
    )


def table(graph: Graph, sweep: str) -> pd.DataFrame:
    return pd.read_parquet(graph.file("sweep_runs", None, sweep, "parquet"))


def data_version(graph: Graph, sweep: str) -> str:
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("sweep_runs"), asset_partitions=[sweep])
    (record,) = graph.instance.fetch_materializations(wanted, limit=1).records
    return record.asset_materialization.tags["dagster/data_version"]


# Trained here


@pytest.fixture(scope="module")
def local_entries(entries):
    def make(coefficients=COEFFICIENTS) -> dict:
        made = entries()
        recipe = made["pairs"][0]["train"]
        made["sweeps"] = {
            "lambdas": {"local": {"model": "tiny", "layer": 1, "coefficients": coefficients, "train": recipe}}
        }
        return made

    return make


@pytest.fixture(scope="module")
def local_home(local_entries, fresh_home, made_once) -> Path:
    """The home of the tiny catalog with a local sweep, trained. To be copied."""

    def make(home: Path) -> None:
        shutil.copytree(fresh_home, home, dirs_exist_ok=True)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            tiny = Graph(load_catalog(write_catalog(home, local_entries())), instance)
            assert failures(sync(tiny, "lambdas")) == {}

    return made_once("sweep", make)


@pytest.fixture
def local(local_home, tmp_path):
    """A copy of it."""
    shutil.copytree(local_home, tmp_path / "home")
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        yield Graph(load_catalog(tmp_path / "home" / "catalog.yaml"), instance)


def pairs(graph: Graph) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (graph.storage / "sweep_runs" / "lambdas").iterdir()}


def test_a_local_sweep_has_a_finished_run_for_each_coefficient_in_the_columns_of_any_sweep(local):
    runs = table(local, "lambdas")
    assert tuple(runs.columns[: len(RUN_COLUMNS)]) == RUN_COLUMNS
    assert runs["jacobian_coefficient"].tolist() == COEFFICIENTS
    assert set(runs["state"]) == {"finished"} and not runs["deleted"].any()
    assert set(zip(runs["model"], runs["layer"], runs["k"], runs["d_sae"], strict=True)) == {("tiny", 1, 8, 64)}


def test_a_runs_numbers_are_the_quality_of_its_stored_pair_on_the_models_text(local, language_model):
    lm = load_language_model(language_model)
    local.tokenise()
    stored = load_file(local.file("tokens", None))
    all_documents, sources = split_documents(stored), split_sources(stored)
    documents = first_tokens(all_documents, 300)
    for _, row in table(local, "lambdas").iterrows():
        pair = SAEPair.load(local.storage / "sweep_runs" / "lambdas" / f"{row['run_id']}.safetensors")
        assert pair.config.jacobian_coefficient == row["jacobian_coefficient"]
        quality = pair_quality(pair, lm, documents, sources=sources[: len(documents)])
        for name in ("ce_score_input", "kl_score_output", "explained_variance_output"):
            assert row[f"{name}_se"] == pytest.approx(quality[f"{name}_se"], rel=1e-2, abs=1e-5), name
            assert row[name] == pytest.approx(quality[name], rel=1e-3, abs=1e-5), name
        # as of any other pair: of all tokens; and where the paper's training runs log it
        assert (row["jacobian_at"], row["n_tokens"], row["n_tokens_jacobian"]) == ("input", 300, 1000)
        for at, suffix in (("input", ""), ("reconstruction", "_at_reconstruction")):
            measured = jacobian_measures(pair, MLPInputs(lm, all_documents, 1, sources=sources), at)
            for name in ("above_0.01", "l1_over_l2", "kurtosis"):
                assert row[name + suffix] == pytest.approx(measured[name].value, rel=1e-3, abs=1e-5), name
            error = measured["above_0.01"].standard_error
            assert row[f"above_0.01{suffix}_se"] == pytest.approx(error, rel=1e-2)
        assert row["ce_score"] == pytest.approx((quality["ce_score_input"] + quality["ce_score_output"]) / 2, rel=1e-3)


def test_a_second_sweep_trains_nothing_and_gives_the_same_data_version(local):
    before, version = pairs(local), data_version(local, "lambdas")
    result = sync(local, "lambdas", "sweep_runs")
    assert metadata(result, "sweep_runs")["trained"] == 0
    assert pairs(local) == before and data_version(local, "lambdas") == version


def test_an_interrupted_sweep_trains_only_what_is_missing(local):
    before = pairs(local)
    gone = sorted(before)[1]
    (local.storage / "sweep_runs" / "lambdas" / gone).unlink()
    result = sync(local, "lambdas", "sweep_runs")
    assert metadata(result, "sweep_runs")["trained"] == 1
    after = pairs(local)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != gone)


def test_a_coefficient_that_joins_is_the_only_one_trained(local, local_entries, tmp_path):
    grown = local.with_catalog(load_catalog(write_catalog(tmp_path, local_entries([*COEFFICIENTS, 20.0]))))
    assert metadata(sync(grown, "lambdas"), "sweep_runs")["trained"] == 1
    assert table(grown, "lambdas")["jacobian_coefficient"].tolist() == [*COEFFICIENTS, 20.0]


@pytest.fixture(scope="module")
def varied_entries(local_entries):
    def make(**lists) -> dict:
        made = local_entries([1.0])
        made["sweeps"]["lambdas"]["local"] |= lists
        return made

    return make


def test_a_sweep_over_several_lists_has_a_run_for_each_combination_and_says_what_varies(varied_entries, graph):
    tiny = graph(varied_entries(k=[4, 8], seed=[0, 7]))
    assert failures(sync(tiny, "lambdas")) == {}
    runs = table(tiny, "lambdas")
    combinations = [(1.0, k, 64, "l1", seed) for k in (4, 8) for seed in (0, 7)]
    settings = ("jacobian_coefficient", "k", "d_sae", "objective", "seed")
    assert [tuple(row) for row in runs[list(settings)].itertuples(index=False)] == combinations
    assert runs["name"].tolist() == [f"tiny layer 1 λ 1, k {k}, seed {seed}" for k in (4, 8) for seed in (0, 7)]
    # the similarity is that of the two seeds
    by_k = runs.groupby("k")
    for side, name in (("input", "_W_dec"), ("output", "_W_dec_out")):
        for _, twins in by_k:
            one, other = (
                load_file(tiny.storage / "sweep_runs" / "lambdas" / f"{run}.safetensors") for run in twins["run_id"]
            )
            assert twins[f"seed_similarity_{side}"].tolist() == [latent_similarity(one[name], other[name])] * 2


def test_lists_can_be_gone_through_side_by_side(varied_entries, graph):
    tiny = graph(varied_entries(coefficients=[0.0, 1.0], objective=["l1", "lp"], d_sae=[32], combine="zip"))
    assert failures(sync(tiny, "lambdas", "sweep_runs")) == {}
    runs = table(tiny, "lambdas")
    assert list(zip(runs["jacobian_coefficient"], runs["objective"], runs["d_sae"], strict=True)) == [
        (0.0, "l1", 32),
        (1.0, "lp", 32),
    ]
    assert runs["seed_similarity_input"].isna().all()


def test_a_runs_accounted_share_is_that_of_its_stored_pair_and_is_drawn(local, language_model):
    lm = load_language_model(language_model)
    local.tokenise()
    documents = split_documents(load_file(local.file("tokens", None)))
    runs = table(local, "lambdas")
    for _, row in runs.iterrows():
        pair = SAEPair.load(local.storage / "sweep_runs" / "lambdas" / f"{row['run_id']}.safetensors")
        measured = latent_accounting(pair, MLPInputs(lm, documents, 1))
        assert row["accounted_share"] == pytest.approx(measured["accounted_share"], rel=1e-4)
    text = local.file("figures/sweep_runs/tradeoff", None, "lambdas", "json").read_text(encoding="utf-8")
    assert "accounted share" in text


def test_pairs_that_were_stored_when_less_was_measured_are_measured_anew_and_not_trained(local):
    folder, before = local.storage / "sweep_runs" / "lambdas", table(local, "lambdas")
    for path in folder.iterdir():
        tensors, header = read_tensors(path)
        run = json.loads(header.pop("run"))
        del header["digest"]  # which they did not carry then
        del run["measures"], run["quality"]["accounted_share"]
        write_tensors(tensors, path.with_suffix(".new"), header | {"run": json.dumps(run)})
        path.with_suffix(".new").replace(path)
    assert metadata(sync(local, "lambdas", "sweep_runs"), "sweep_runs")["trained"] == 0
    after = table(local, "lambdas")  # its digits are another order of summation's
    pd.testing.assert_frame_equal(after.drop(columns="summary_json"), before.drop(columns="summary_json"))


def test_a_pair_that_cannot_be_trained_keeps_those_before_it(local_entries, graph, tmp_path):
    changed = local_entries()
    tiny = graph(changed)
    assert failures(sync(tiny, "lambdas", "sweep_runs")) == {}
    before = pairs(tiny)
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n' * 400, "utf-8")
    changed["text"]["empty"] = {"files": ["empty.jsonl"]}
    changed["sweeps"]["lambdas"]["local"]["train"]["text"] = "empty"
    result = sync(graph(changed), "lambdas", "sweep_runs")
    (message,) = failures(result).values()
    assert "no text" in message
    assert pairs(tiny) == before and len(table(tiny, "lambdas")) == 3


def test_the_tradeoff_shows_every_run_of_a_local_sweep(local):
    runs = table(local, "lambdas")
    text = local.file("figures/sweep_runs/tradeoff", None, "lambdas", "json").read_text(encoding="utf-8")
    figure = plotly.io.from_json(text)
    drawn = [x for trace in figure.data if "markers" in (trace.mode or "") for x in values(trace.x).ravel()]
    for share in runs["above_0.01"]:
        assert any(abs(100 * share - x) < 1e-3 for x in drawn)
    assert "sweep lambdas, tiny, layer 1, d_sae 64, k 8, 1,000 tokens, scores of 300" in text
    assert local.file("figures/sweep_runs/grid", None, "lambdas", "html").exists()


def test_a_sweep_that_left_the_catalog_is_not_offered_and_what_is_stored_of_it_stays(local, local_entries, tmp_path):
    changed = local_entries()
    changed["sweeps"]["others"] = changed["sweeps"].pop("lambdas")
    before = local.stored()
    without = local.with_catalog(load_catalog(write_catalog(tmp_path, changed)))
    job = without.definitions.resolve_job_def(SWEEP_JOB)
    assert job.partitions_def.get_partition_keys() == ["others"]
    assert without.stored() == before


def test_a_catalog_without_sweeps_has_no_sweep_assets(measured):
    keys = {key.to_user_string() for key in measured.graph.definitions.resolve_asset_graph().get_all_asset_keys()}
    assert not {key for key in keys if "sweep" in key}


def test_the_demo_makes_a_sweep_once_and_again_when_its_recipe_changes(local, local_entries, tmp_path):
    assert run(local, wanted=of_sweeps) == set()  # it was made, though not by the demo
    changed = local_entries()
    recipe = changed["sweeps"]["lambdas"]["local"]["train"]
    changed["sweeps"]["lambdas"]["local"]["train"] = recipe | {"config": recipe["config"] | {"steps": 30}}
    after = local.with_catalog(load_catalog(write_catalog(tmp_path, changed)))
    assert run(after, wanted=of_sweeps) == {f"{name} lambdas" for name in {"sweep_runs"} | FIGURES}
    assert run(after, wanted=of_sweeps) == set()


def of_sweeps(place) -> bool:
    return "sweep_runs" in place.asset.path


# From wandb


START = datetime(2026, 1, 1, tzinfo=UTC)


def add_runs(server: WandbServer, count: int, state: str = "finished") -> None:
    for number in range(count):
        when = START + timedelta(minutes=number)
        server.add_run(
            "lab",
            "sweep",
            f"run-{number:03d}",
            config={
                "model_name": "pythia-70m-deduped",
                "hook_layer": 3,
                "d_sae": 16384,
                "activation_fn_kwargs": {"k": 32},
                "jacobian_coefficient": 0.01 * (number + 1),
            },
            summary={
                "jacobian_sparsity/jac_abs_above_0.01": 600 / (number + 1),
                "model_performance_preservation/ce_loss_score": 0.95 - 0.0005 * number,
                "model_performance_preservation/ce_loss_score2": 0.94 - 0.0005 * number,
            },
            state=state,
            created_at=when,
            heartbeat_at=when + timedelta(hours=1),
        )


@pytest.fixture
def remote(entries, graph, server):
    """The tiny catalog with a sweep of a wandb project."""
    return graph(entries() | {"sweeps": {"theirs": {"wandb": "lab/sweep"}}})


def test_five_hundred_runs_in_pages_come_in_one_sync_and_are_drawn(remote, server):
    add_runs(server, 500)
    result = sync(remote, "theirs")
    assert failures(result) == {}
    assert materialised(result) == {"sweep_runs"} | FIGURES
    runs = table(remote, "theirs")
    assert len(runs) == runs["run_id"].nunique() == 500
    assert runs["above_0.01"].iloc[1] == pytest.approx(300 / 1024)
    pages = {request.variables["cursor"] for request in server.asked("runs")}  # one may be asked for again, in vain
    assert len(pages) == 5
    assert metadata(result, "sweep_runs")["changed"] == 500


def test_a_sync_with_nothing_new_is_one_small_request_and_the_same_data_version(remote, server):
    add_runs(server, 30)
    sync(remote, "theirs", "sweep_runs")
    before, version = table(remote, "theirs"), data_version(remote, "theirs")
    server.forget()
    result = sync(remote, "theirs", "sweep_runs")
    assert metadata(result, "sweep_runs")["changed"] == 0
    assert [request.kind for request in server.requests] == ["viewer", "runs"]
    assert data_version(remote, "theirs") == version
    pd.testing.assert_frame_equal(table(remote, "theirs"), before)


def test_one_changed_run_is_one_request_more_and_one_row(remote, server):
    add_runs(server, 30)
    sync(remote, "theirs", "sweep_runs")
    before, version = table(remote, "theirs"), data_version(remote, "theirs")
    server.change_run("lab", "sweep", "run-007", summary={"loss": 1.5}, heartbeat_at=START + timedelta(days=2))
    server.forget()
    result = sync(remote, "theirs", "sweep_runs")
    assert len(server.asked("runs")) == 2
    assert metadata(result, "sweep_runs")["changed"] == 1
    assert data_version(remote, "theirs") != version
    after = table(remote, "theirs").set_index("run_id")
    assert after.loc["run-007", "loss"] == 1.5
    same = [run for run in after.index if run != "run-007"]
    columns = list(before.columns.drop(["run_id"]))
    pd.testing.assert_frame_equal(after.loc[same, columns], before.set_index("run_id").loc[same, columns])


def test_a_run_deleted_upstream_is_kept_and_marked(remote, server):
    add_runs(server, 5)
    sync(remote, "theirs", "sweep_runs")
    server.delete_run("lab", "sweep", "run-003")
    result = sync(remote, "theirs", "sweep_runs")
    assert metadata(result, "sweep_runs")["deleted_upstream"] == "run-003"
    runs = table(remote, "theirs")
    assert runs.loc[runs["deleted"], "run_id"].tolist() == ["run-003"] and len(runs) == 5


def test_runs_that_are_not_finished_are_in_the_table_named_and_not_drawn(remote, server):
    add_runs(server, 4)
    server.add_run("lab", "sweep", "still", state="running", created_at=START, heartbeat_at=START)
    result = sync(remote, "theirs")
    told = metadata(result, "sweep_runs")
    assert (told["runs"], told["finished"], told["unfinished"]) == (5, 4, "still")
    assert "running" in table(remote, "theirs")["state"].tolist()
    text = remote.file("figures/sweep_runs/tradeoff", None, "theirs", "json").read_text(encoding="utf-8")
    assert "left out: 1 not finished" in text


def test_an_odd_run_is_in_the_table_and_in_neither_figure_which_say_so(remote, server):
    add_runs(server, 4)
    server.add_run(
        "lab", "sweep", "odd", config={"jacobian_coefficient": "-3", "k": 32}, created_at=START, heartbeat_at=START
    )
    result = sync(remote, "theirs")
    assert failures(result) == {}
    assert "odd" in table(remote, "theirs")["run_id"].tolist()
    assert metadata(result, "sweep_runs")["odd"] == "odd (jacobian_coefficient = -3)"
    for figure in FIGURES:
        assert metadata(result, figure)["odd_runs_left_out"] == "odd (jacobian_coefficient = -3)"
        text = remote.file(figure, None, "theirs", "json").read_text(encoding="utf-8")
        said = plotly.io.from_json(text).layout.title.subtitle.text.replace("<br>", " ")
        assert "left out: 1 odd (jacobian_coefficient = -3)" in said and "J at the input SAE's reconstruction" in said


FAULTS = {
    "no network": (lambda server: server.stop(), "network"),
    "no such project": (lambda server: server.fail(404, on="runs", times=None), "lab/sweep"),
    "a refused key": (lambda server: server.fail(401, times=None), "WANDB_API_KEY"),
    "too many requests": (lambda server: server.fail(429, on="runs", times=None, retry_after=1), "429"),
    "a server error": (lambda server: server.fail(500, on="runs", times=None), "500"),
    "no answer": (lambda server: server.fail("hang", on="runs", times=None, seconds=5), "answer"),
    "a cut connection": (lambda server: server.fail("cut", on="runs", times=None), "cut"),
    "malformed runs": (lambda server: server.fail("malformed", on="runs", times=None), "malformed"),
}


@pytest.mark.parametrize(("fault", "expected"), FAULTS.values(), ids=list(FAULTS))
def test_a_failing_sync_says_why_and_leaves_the_stored_table_as_it_was(remote, server, fault, expected):
    add_runs(server, 12)
    sync(remote, "theirs")
    before, version = remote.stored(), data_version(remote, "theirs")
    server.change_run("lab", "sweep", "run-001", summary={"loss": 2.0}, heartbeat_at=START + timedelta(days=2))
    fault(server)
    result = sync(remote, "theirs")
    assert not result.success
    (message,) = failures(result).values()
    assert expected in message
    assert "lab" in message
    assert remote.stored() == before and data_version(remote, "theirs") == version


def test_without_a_key_a_sync_says_where_to_put_one(remote, server, monkeypatch, tmp_path):
    add_runs(server, 2)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (message,) = failures(sync(remote, "theirs")).values()
    assert "WANDB_API_KEY" in message and "wandb login" in message
    assert remote.stored() == {}


def test_the_key_is_in_nothing_that_is_stored_or_said(remote, server, monkeypatch):
    server.api_key = "5e17e1" * 6 + "beef"
    monkeypatch.setenv("WANDB_API_KEY", server.api_key)
    add_runs(server, 3)
    results = [sync(remote, "theirs")]
    server.fail(500, on="runs", times=None)
    results.append(sync(remote, "theirs"))
    said = "\n".join(str(entry) for result in results for entry in remote.instance.all_logs(result.run_id))
    assert server.api_key not in said
    root = remote.storage.parent
    for path in root.rglob("*"):
        if path.is_file():
            assert server.api_key.encode() not in path.read_bytes(), path


# The schedule


def test_the_schedule_asks_for_every_wandb_sweep_and_no_local_one(local_entries, graph):
    changed = local_entries()
    changed["sweeps"] |= {"theirs": {"wandb": "lab/sweep"}, "more": {"wandb": "lab/more"}}
    tiny = graph(changed)
    (schedule,) = schedules(tiny.catalog)
    assert schedule.cron_schedule == "0 * * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    definitions = build_definitions(tiny.catalog)
    context = dg.build_schedule_context(
        tiny.instance,
        scheduled_execution_time=START,
        repository_def=definitions.get_repository_def(),
    )
    ticks = schedule.evaluate_tick(context).run_requests
    assert [request.partition_key for request in ticks] == ["theirs", "more"]


def test_a_table_from_wandb_has_a_freshness_policy(remote):
    spec = remote.definitions.resolve_asset_graph().get(dg.AssetKey("sweep_runs"))
    assert spec.freshness_policy is not None


def test_the_folder_of_the_client_is_beside_the_storage_and_nowhere_else(remote, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add_runs(server, 2)
    sync(remote, "theirs", "sweep_runs")
    assert (remote.storage.parent / "wandb").is_dir()
    assert not (tmp_path / "wandb").exists() and not (tmp_path / "artifacts").exists()
