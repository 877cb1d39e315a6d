"""Kinds of sources of pairs through Dagster: the hub as a source, and what is recorded and published of any."""

import json
from pathlib import Path

import dagster as dg
import pytest
import torch
from safetensors.torch import load_file

from jsae_assets.definitions import SettingError, default_resources
from jsae_assets.digests import out_of_groups
from jsae_assets.making import run_all
from jsae_core import load_language_model
from tests.jsae_assets.artifacts import (
    artifact_files,
    assert_refused_if_it_changes_while_it_is_read,
    publish,
    randomised_artifact_files,
)
from tests.jsae_assets.conftest import ANYTHING_GOES, failures, metadata

# wandb keeps what it uploads where the first use in a process said
pytestmark = pytest.mark.usefixtures("no_wandb_process_left")

WEIGHTS, LANGUAGE_MODEL = "sae_weights.safetensors", "randomized_llm_weights.safetensors"


@pytest.fixture
def files(language_model, tmp_path):
    return artifact_files(tmp_path / "artifact", load_language_model(language_model))


@pytest.fixture
def on_hub(entries, graph):
    """Makes the tiny graph with the JSAE pair of layer 1 from the hub."""

    def make(**settings):
        changed = entries()
        changed["pairs"][1] = {
            "variant": "jsae",
            "model": "tiny",
            "layers": [1],
            "hub": "lab/pairs",
            "subfolder": "layer{layer}",
            "least_explained_variance": ANYTHING_GOES,
        } | settings
        tiny = graph(changed)
        tiny.tokenise()
        return tiny

    return make


def in_layer_1(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"layer1/{name}": data for name, data in files.items()}


def test_a_pair_from_the_hub_is_stored_as_it_is_with_commit_and_digest(on_hub, hub, files, tmp_path):
    commit = hub.commit("lab/pairs", in_layer_1(files), "v1")
    tiny = on_hub(revision="v1")
    result = tiny.measure(1, "jsae/sae_pair", "jsae/jacobian_histogram")
    assert failures(result) == {}
    told = metadata(result, "jsae/sae_pair")
    assert told["source"] == f"hub lab/pairs@{commit}/layer1"
    assert told["artifact_version"] == commit
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(["jsae", "sae_pair"]))
    (record,) = tiny.instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization.tags["dagster/data_version"] == out_of_groups(told["source_digest"])
    fetched, stored = load_file(tmp_path / "artifact" / WEIGHTS), load_file(tiny.file("jsae/sae_pair"))
    assert all(torch.equal(fetched[name], stored[name]) for name in fetched)
    downloaded = len(hub.downloads())
    assert failures(tiny.measure(1, "jsae/sae_pair")) == {}
    assert len(hub.downloads()) == downloaded > 0


def test_a_corrupt_pair_from_the_hub_is_refused_and_the_stored_one_stays(on_hub, hub, files):
    hub.commit("lab/pairs", in_layer_1(files))
    hub.corrupt.add(f"layer1/{WEIGHTS}")
    tiny = on_hub()
    stored = tiny.file("jsae/sae_pair")
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"the pair of last week")
    (message,) = failures(tiny.measure(1, "jsae/sae_pair")).values()
    assert "arrived with other contents" in message and "lab/pairs" in message
    assert stored.read_bytes() == b"the pair of last week"


def test_a_pair_from_the_hub_that_changes_while_it_is_read_is_refused_and_the_stored_one_stays(
    on_hub, hub, files, monkeypatch
):
    hub.commit("lab/pairs", in_layer_1(files))
    tiny = on_hub()
    assert_refused_if_it_changes_while_it_is_read(tiny, monkeypatch)
    assert failures(tiny.measure(1, "jsae/sae_pair")) == {}  # the files are mended


def test_a_moved_branch_is_noticed_once_and_a_commit_to_other_files_is_not(
    on_hub, hub, files, language_model, tmp_path
):
    hub.commit("lab/pairs", in_layer_1(files))
    tiny = on_hub()
    (sensor,) = [s for s in tiny.definitions.sensors if s.name == "moved_aliases"]

    def asked_for() -> list[str]:
        context = dg.build_sensor_context(tiny.instance, repository_def=tiny.definitions.get_repository_def())
        return [request.partition_key for request in sensor.evaluate_tick(context).run_requests]

    tiny.measure(1, "jsae/sae_pair")
    hub.commit("lab/pairs", in_layer_1(files) | {"README.md": b"words"})
    assert asked_for() == []
    newer = artifact_files(tmp_path / "newer", load_language_model(language_model), seed=5)
    hub.commit("lab/pairs", in_layer_1(newer))
    assert len(asked_for()) == 1
    tiny.measure(1, "jsae/sae_pair")
    assert asked_for() == []


def test_all_pairs_of_a_hub_that_does_not_answer_wait_for_it_once_together(entries, graph, hub, monkeypatch):
    monkeypatch.setattr("jsae_core.hub.LONGEST_WAIT", 0.2)
    hub.silent = True
    changed = entries()
    changed["pairs"] = [
        {"variant": variant, "model": "tiny", "layers": [0, 1], "hub": f"lab/{variant}", "subfolder": "layer{layer}"}
        for variant in ("traditional", "jsae")
    ]
    tiny = graph(changed)
    failed = run_all(tiny.catalog, tiny.definitions, tiny.instance, lambda place: place.partition != "tiny")
    assert len(hub.requests) == 1
    told = [line for message in failed for line in message.splitlines() if "did not give lab/" in line]
    assert len(told) == 4 and sum("the hub did not answer, or not to the end" in line for line in told) == 1


# A randomised language model's weights


@pytest.fixture
def randomised(language_model, tmp_path) -> dict[str, bytes]:
    return randomised_artifact_files(tmp_path / "made", language_model)


@pytest.fixture
def randomised_graph(controlled_entries, graph):
    def make(**source):
        changed = controlled_entries()
        (entry,) = [entry for entry in changed["pairs"] if entry["variant"] == "jsae_randomised"]
        del entry["train"]
        entry |= source | {"least_explained_variance": ANYTHING_GOES}
        tiny = graph(changed)
        tiny.tokenise()
        return tiny

    return make


def kept_files(tiny, kind: str) -> list[Path]:
    return list((tiny.storage.parent / kind).rglob(LANGUAGE_MODEL))


def test_randomised_weights_are_fetched_again_where_the_cache_lacks_them_and_refused_where_they_differ(
    randomised_graph, hub, randomised
):
    commit = hub.commit("lab/pairs", randomised)
    tiny = randomised_graph(hub="lab/pairs")
    assert failures(tiny.measure(1, "jsae_randomised/sae_pair")) == {}
    hub.commit("lab/pairs", {name: data for name, data in randomised.items() if name != LANGUAGE_MODEL})
    (kept,) = kept_files(tiny, "hub")
    for file in kept.parent.iterdir():
        file.unlink()
    kept.parent.rmdir()
    assert failures(tiny.measure(1, "jsae_randomised/jacobian_histogram")) == {}  # that commit's, not main's
    assert any(commit in request for request in hub.downloads()[-3:])
    hub.stop()
    assert failures(tiny.measure(1, "jsae_randomised/jacobian_histogram")) == {}  # from the cache, nothing is asked
    (kept,) = kept_files(tiny, "hub")
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    (message,) = failures(tiny.measure(1, "jsae_randomised/jacobian_histogram")).values()
    assert "holds other weights" in message and "Materialise jsae_randomised/sae_pair" in message


def test_nothing_of_this_machine_or_its_user_is_stored_with_a_pair_or_published(
    randomised_graph, randomised, tmp_path, tmp_path_factory, monkeypatch
):
    sentinel = "user-who-stays-unnamed"
    folder = tmp_path_factory.mktemp("elsewhere") / sentinel / "pairs"
    folder.mkdir(parents=True)
    for name, data in randomised.items():
        (folder / name).write_bytes(data)
    for name in ("USER", "LOGNAME", "USERNAME", "WANDB_USERNAME", "WANDB_HOST", "HOSTNAME"):
        monkeypatch.setenv(name, sentinel)
    tiny = randomised_graph(directory=str(folder))
    result = tiny.measure(1, "jsae_randomised/sae_pair", "jsae_randomised/jacobian_histogram")
    assert failures(result) == {}
    stored = {name: data for name, data in tiny.stored().items() if "jsae_randomised" in name}
    assert len(stored) == 2
    assert not [name for name, data in stored.items() if sentinel.encode() in data or str(tmp_path).encode() in data]
    told = metadata(result, "jsae_randomised/sae_pair")
    assert told["source"] == "directory .../pairs"
    assert not [name for name, value in told.items() if sentinel in str(value)]

    assert failures(publish(tiny, variant="jsae_randomised")) == {}
    (run,) = (tiny.storage.parent / "wandb" / "wandb").glob("offline-run-*")
    (staged,) = (tiny.storage.parent / "wandb").rglob("staging")
    uploaded = [path for folder in (run, staged) for path in folder.rglob("*") if path.is_file()]
    uploaded = [path for path in uploaded if path.parent.name != "logs"]  # those stay here
    contents = [path.read_bytes() for path in uploaded]
    assert randomised[LANGUAGE_MODEL] in contents
    assert not [path.name for path, data in zip(uploaded, contents, strict=True) if sentinel.encode() in data]
    (published,) = [data for data in contents if data.startswith(b"{") and b"randomize_llm_weights" in data]
    assert "language_model_weights" not in json.loads(published)


# Where things are stored


def test_a_tilde_in_the_storage_is_the_home_of_whoever_runs_this(instance, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-somebody"))
    monkeypatch.setenv("JSAE_STORAGE", "~/stored")
    monkeypatch.chdir(tmp_path)
    stores = default_resources()
    for name in ("tensors", "tables", "figures"):
        manager = stores[name].create_io_manager(dg.build_init_resource_context(instance=instance))
        assert str(manager.base) == str(tmp_path / "home-of-somebody" / "stored")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("~no-such-user/stored", "'~no-such-user/stored', but there is no such user"),
        ("nosuch://bucket/stored", "'nosuch://bucket/stored', which fsspec cannot reach"),
        ("s3://", "'s3://', which names no bucket; expected s3://bucket/folder"),
        ("s3:///stored", "'s3:///stored', which names no bucket"),
        ("a-file", "'a-file', which is a file; expected a folder"),
    ],
)
def test_a_storage_that_cannot_be_is_refused_and_makes_no_folder(tmp_path, monkeypatch, place, said):
    monkeypatch.setenv("JSAE_STORAGE", place)
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    with pytest.raises(SettingError, match=f"^JSAE_STORAGE: the storage is {said}"):
        default_resources()
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]
