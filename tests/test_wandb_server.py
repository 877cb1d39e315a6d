"""What the real wandb client sends and does, held against the tests' own server.

Here: the client's habits that fetching relies on or has to guard against: its requests, caches, retries and errors.
Not here: what this project makes of them.
"""

import time
import urllib.error
import urllib.request

import pytest
import requests
import wandb
from wandb.errors import AuthenticationError, CommError, UsageError

from tests.wandb_server import WandbServer

PROJECT = ("ent", "proj")
PATH = "ent/proj"
PAIR = f"{PATH}/pair"
WEIGHTS = bytes(range(256)) * 400


pytestmark = pytest.mark.usefixtures("no_wandb_process_left")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with WandbServer() as server:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name, value in server.environment(tmp_path / "client").items():
            monkeypatch.setenv(name, value)
        wandb.setup(one_retry_after_a_second())
        yield server


def one_retry_after_a_second():
    """The least that the client can be set to: no retry at all means its default, twenty, and so for the seconds."""
    return wandb.Settings(
        silent=True,
        x_graphql_retry_max=1,
        x_graphql_retry_wait_min_seconds=1,
        x_graphql_retry_wait_max_seconds=1,
    )


def connect(server, timeout=10):
    """A client that has logged in and knows its entity, so that what is asked from now on is what counts."""
    api = wandb.Api(overrides={"entity": "ent"}, timeout=timeout)
    server.forget()
    return api


def add_runs(server, count):
    for i in range(count):
        server.add_run(
            *PROJECT,
            f"run{i:03d}",
            config={"jacobian_coefficient": i / 10},
            summary={"jacobian_sparsity/jac_abs_above_0.01": i},
            created_at=f"2026-07-01T{i // 60:02d}:{i % 60:02d}:00Z",
        )


def add_pair(server, weights=WEIGHTS, **more):
    return server.add_artifact(*PROJECT, "pair", {"cfg.json": b"{}", "sae_weights.safetensors": weights}, **more)


def ids(runs):
    return [run.id for run in runs]


def operations(server):
    return [request.operation or request.kind for request in server.asked()]


def test_pages_of_runs_come_with_config_and_summary_without_a_request_a_run(server):
    add_runs(server, 500)
    runs = connect(server).runs(PATH, per_page=100, lazy=False)
    rows = [(r.id, r.config["jacobian_coefficient"], *r.summary_metrics.values(), r.heartbeat_at, r.url) for r in runs]
    assert rows[42] == ("run042", 4.2, 42, "2026-07-01T00:42:00Z", f"{server.url}/{PATH}/runs/run042")
    assert len(rows) == len({row[0] for row in rows}) == 500
    assert operations(server) == ["Runs"] * 5


def test_lazy_runs_cost_a_request_a_run_once_their_config_is_read(server):
    add_runs(server, 3)
    for run in connect(server).runs(PATH):
        assert run.config and run.summary_metrics
    assert operations(server) == ["Runs", "Run", "Run", "Run"]


def test_one_request_tells_how_many_runs_there_are_and_the_newest_heartbeat(server):
    add_runs(server, 40)
    runs = connect(server).runs(PATH, order="-heartbeat_at", per_page=1)
    assert (len(runs), runs[0].heartbeat_at) == (40, "2026-07-01T00:39:00Z")
    assert operations(server) == ["Runs"]


def test_the_server_selects_the_runs_that_lived_since_a_time(server):
    add_runs(server, 40)
    server.change_run(*PROJECT, "run007", summary={"x": 1}, heartbeat_at="2026-07-02T00:00:00Z")
    server.change_run(*PROJECT, "run008", state="running", heartbeat_at="2026-07-02T00:00:00Z")
    server.change_run(*PROJECT, "run009", tags=["seen"])
    since = {"heartbeatAt": {"$gte": "2026-07-01T00:38:00Z"}}
    api = connect(server)
    assert ids(api.runs(PATH, filters=since, order="+heartbeat_at")) == ["run038", "run039", "run007", "run008"]
    finished = {"$and": [since, {"state": {"$in": ["finished"]}}]}
    assert ids(api.runs(PATH, filters=finished)) == ["run007", "run038", "run039"]


@pytest.mark.parametrize("text", ["2026-07-01T00:00:00", "2026-07-01T00:00:00+00:00"])
def test_a_filter_by_a_time_that_wandb_would_not_write_matches_nothing(server, text):
    add_runs(server, 3)
    assert len(connect(server).runs(PATH, filters={"createdAt": {"$gte": text}})) == 0


def test_the_client_repeats_its_old_answer_until_it_is_flushed(server):
    add_runs(server, 3)
    api = connect(server)
    assert len(ids(api.runs(PATH))) == 3
    server.delete_run(*PROJECT, "run001")
    assert len(ids(api.runs(PATH))) == 3
    api.flush()
    assert ids(api.runs(PATH)) == ["run000", "run002"]


def test_runs_that_come_and_go_between_pages_neither_hide_nor_repeat_others(server):
    add_runs(server, 10)
    runs = iter(connect(server).runs(PATH, per_page=4))
    first = [next(runs).id for _ in range(4)]
    server.delete_run(*PROJECT, "run000")
    server.delete_run(*PROJECT, "run003")
    assert first + ids(list(runs)[4:]) == [f"run{i:03d}" for i in range(10)]


def test_a_page_with_malformed_runs_is_lost_but_for_its_raw_answer(server):
    add_runs(server, 30)
    server.fail("malformed", on="runs", after=1)
    runs = connect(server).runs(PATH, per_page=10, lazy=False)
    with pytest.raises(CommError):
        ids(runs)
    edges = runs.last_response["project"]["runs"]["edges"]
    assert [edge["node"]["name"] for edge in edges[::2]] == [f"run{i:03d}" for i in range(10, 20, 2)]
    assert ids(runs) == [f"run{i:03d}" for i in [*range(10), *range(20, 30)]]


@pytest.mark.parametrize(
    ("fault", "asked", "message"),
    [
        ({"what": 401}, 1, "told to answer 401"),
        ({"what": 404}, 1, "told to answer 404"),
        ({"what": 429, "retry_after": 1}, 2, "giving up after 2 attempt.*HTTP 429"),
        ({"what": 500}, 2, "giving up after 2 attempt.*HTTP 500"),
        ({"what": "cut"}, 1, "unexpected EOF"),
    ],
)
def test_a_fault_ends_in_an_error_that_names_it(server, fault, asked, message):
    add_pair(server)
    api = connect(server)
    api.artifact(f"{PAIR}:v0")
    server.forget()
    server.fail(**fault, on="artifact", times=None)
    with pytest.raises(CommError, match=f"(?s){message}"):
        api.artifact(f"{PAIR}:v0")
    assert operations(server) == ["ArtifactMembershipByName"] * asked


def test_a_fault_that_passes_is_outlived_in_the_middle_of_the_pages(server):
    add_runs(server, 20)
    server.fail(500, on="runs", after=1)
    assert len(ids(connect(server).runs(PATH, per_page=10))) == 20
    assert operations(server) == ["Runs"] * 3


def test_the_timeout_bounds_a_request_with_all_its_retries_and_the_error_does_not_tell_why(server):
    add_pair(server)
    api = connect(server, timeout=1)
    server.fail("hang", on="artifact")
    start = time.monotonic()
    with pytest.raises(CommError, match="did not respond in time"):
        api.artifact(f"{PAIR}:v0")
    assert time.monotonic() - start < 15  # what the client waits without a limit is far longer


def test_a_server_that_is_gone_refuses_connections_and_comes_back_where_it_was(server):
    add_pair(server)
    api = connect(server)
    server.stop()
    with pytest.raises(CommError, match="connection refused"):
        api.artifact(f"{PAIR}:v0")
    server.start()
    assert api.artifact(f"{PAIR}:v0").version == "v0"


def test_what_is_not_there_is_an_error_that_names_it(server):
    add_pair(server)
    api = connect(server)
    with pytest.raises(ValueError, match="Could not find project nope"):
        ids(api.runs("ent/nope"))
    with pytest.raises(CommError, match="project 'nope' not found"):
        api.artifact("ent/nope/pair:v0")
    with pytest.raises(CommError, match="'pair:v7' not found in 'ent/proj'"):
        api.artifact(f"{PAIR}:v7")
    with pytest.raises(CommError, match="this artifact is of type 'model'"):
        api.artifact(f"{PAIR}:v0", type="dataset")
    with pytest.raises(CommError, match="Could not find run"):
        api.run(f"{PATH}/nope")


def test_a_wrong_key_is_refused_at_once_and_not_repeated_in_the_error(server):
    with pytest.raises(AuthenticationError, match="not logged in") as error:
        wandb.Api(api_key="f" * 40)
    assert "f" * 40 not in str(error.value)
    assert operations(server) == ["Viewer"]


def test_no_key_at_all_is_an_error_without_a_request(server, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    with pytest.raises(UsageError, match="No API key configured"):
        wandb.Api()
    assert not server.requests


def test_a_new_version_takes_latest_and_an_old_one_keeps_its_name(server):
    assert [add_pair(server, aliases=["best"]), add_pair(server), add_pair(server, weights=b"new")] == [0, 0, 1]
    api = connect(server)
    latest, best = api.artifact(f"{PAIR}:latest", type="model"), api.artifact(f"{PAIR}:best")
    assert (latest.version, latest.aliases, latest.size) == ("v1", ["latest"], 5)
    assert (best.version, best.aliases, best.type) == ("v0", ["best"], "model")
    assert operations(server) == ["ServerFeaturesQuery", "ArtifactMembershipByName", "ArtifactMembershipByName"]
    assert best.digest == best.manifest.digest() != latest.digest


def test_a_download_brings_every_file_once_and_verifies(server, tmp_path):
    add_pair(server)
    artifact = connect(server).artifact(f"{PAIR}:v0")
    server.forget()
    artifact.download(tmp_path / "first")
    artifact.verify(tmp_path / "first")
    assert (tmp_path / "first" / "sae_weights.safetensors").read_bytes() == WEIGHTS
    assert operations(server) == [
        "FetchArtifactManifest",
        "manifest",
        "GetArtifactMembershipFileUrls",
        "file",
        "file",
    ]
    server.forget()
    artifact.download(tmp_path / "second")
    assert operations(server) == ["GetArtifactMembershipFileUrls"]


def test_a_file_that_does_not_match_its_manifest_is_kept_by_download_and_refused_by_verify(server, tmp_path):
    add_pair(server)
    artifact = connect(server).artifact(f"{PAIR}:v0")
    server.fail("corrupt", on="file", times=2)
    artifact.download(tmp_path / "first")
    with pytest.raises(ValueError, match="Digest mismatch"):
        artifact.verify(tmp_path / "first")
    server.forget()
    for folder in ("first", "second"):
        artifact.download(tmp_path / folder)
        with pytest.raises(ValueError, match="Digest mismatch"):
            artifact.verify(tmp_path / folder)
    assert not server.asked("file")


def test_a_cut_download_leaves_nothing_and_starts_from_the_beginning_again(server, tmp_path):
    add_pair(server)
    artifact = connect(server).artifact(f"{PAIR}:v0")
    server.fail("cut", on="file", times=2)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        artifact.download(tmp_path / "root")
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
    server.forget()
    artifact.download(tmp_path / "root")
    assert [request.range for request in server.asked("file")] == [None, None]


def test_a_signed_address_serves_the_rest_of_a_file_without_the_key_until_it_expires(server):
    add_pair(server)
    file = next(iter(connect(server).artifact(f"{PAIR}:v0").files(names=["sae_weights.safetensors"])))
    rest = urllib.request.Request(file.direct_url, headers={"Range": "bytes=1000-"})
    with urllib.request.urlopen(rest) as answer:
        assert (answer.status, answer.read()) == (206, WEIGHTS[1000:])
    assert (file.size, server.asked("file")[0].authorized) == (len(WEIGHTS), False)
    server.expire_links()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(file.direct_url)


def test_the_key_is_in_no_file_that_the_client_writes_and_its_files_stay_in_the_given_folder(server, tmp_path):
    wandb.teardown()
    add_runs(server, 2)
    add_pair(server)
    api = connect(server)
    ids(api.runs(PATH, lazy=False))
    api.artifact(f"{PAIR}:v0").download()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("core-debug" in path.name for path in written)
    assert all(tmp_path / "client" in path.parents for path in written)
    assert not [path for path in written if server.api_key.encode() in path.read_bytes()]
    assert (tmp_path / "client" / "wandb" / "ent" / "proj" / "run001").is_dir()
