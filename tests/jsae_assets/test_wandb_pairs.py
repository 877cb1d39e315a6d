"""Pairs from wandb through Dagster: fetched, checked, measured and drawn; refused where they are broken; published."""

import dagster as dg
import pytest
import torch
from safetensors.torch import load, load_file

from jsae_assets.digests import out_of_groups
from jsae_assets.partitions import cell_key
from jsae_core import SAEPair, load_language_model
from jsae_core.pair_format import LANGUAGE_MODEL_FILE
from tests.jsae_assets.artifacts import artifact_files, publish, randomised_artifact_files
from tests.jsae_assets.conftest import ANYTHING_GOES, CELL_FIGURES, PER_VARIANT, failures, materialised, metadata

# wandb keeps what it uploads where the first use in a process said
pytestmark = pytest.mark.usefixtures("no_wandb_process_left")

NAME = "sae_pair_tiny_layer1_40_J0.5_k5"


@pytest.fixture
def files(language_model, tmp_path):
    return artifact_files(tmp_path / "artifact", load_language_model(language_model))


@pytest.fixture
def remote(entries, graph, server):
    """Makes the tiny graph with the JSAE pair of layer 1 from wandb, by some alias."""

    def make(alias: str, graph=graph):
        changed = entries()
        changed["pairs"][1] = {
            "variant": "jsae",
            "model": "tiny",
            "layers": [1],
            "wandb": f"lab/pairs/sae_pair_tiny_layer{{layer}}_40_J0.5_k5:{alias}",
            "least_explained_variance": ANYTHING_GOES,
        }
        tiny = graph(changed)
        if not tiny.file("tokens", None).exists():
            tiny.tokenise()
        return tiny

    return make


def test_a_pair_is_fetched_checked_measured_and_drawn(remote, measured_again, server, files, tmp_path):
    server.add_artifact("lab", "pairs", NAME, files)
    tiny = remote("v0", measured_again)  # the pair that it is compared with is measured
    made_of_it = {f"jsae/{name}" for name in PER_VARIANT} | {f"figures/jsae/{name}" for name in CELL_FIGURES}
    result = tiny.measure(1, *made_of_it)
    assert failures(result) == {}
    assert materialised(result) == made_of_it
    fetched = load_file(tmp_path / "artifact" / "sae_weights.safetensors")
    stored = load_file(tiny.file("jsae/sae_pair"))
    assert fetched.keys() == stored.keys()
    assert all(torch.equal(fetched[name], stored[name]) for name in fetched)


def test_version_and_digest_are_told_and_are_the_data_version(remote, server, files):
    server.add_artifact("lab", "pairs", NAME, files)
    tiny = remote("latest")
    told = metadata(tiny.measure(1, "jsae/sae_pair"), "jsae/sae_pair")
    assert told["source"] == f"wandb lab/pairs/{NAME}:v0"
    digest = out_of_groups(told["source_digest"])
    assert told["artifact_version"] == "v0" and len(digest) == 32
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(["jsae", "sae_pair"]))
    (record,) = tiny.instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization.tags["dagster/data_version"] == f"v0 {digest}"


def test_a_second_materialisation_downloads_nothing(remote, server, files):
    server.add_artifact("lab", "pairs", NAME, files)
    tiny = remote("v0")
    tiny.measure(1, "jsae/sae_pair")
    server.forget()
    assert failures(tiny.measure(1, "jsae/sae_pair")) == {}
    assert not server.asked("download")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda server: server.fail("corrupt", on="file", times=None), "digest"),
        (lambda server: server.fail(404, on="artifact", times=None), NAME),
        (lambda server: server.stop(), "network"),
    ],
    ids=["a corrupt file", "no such artifact", "no network"],
)
def test_a_pair_that_does_not_arrive_whole_is_refused_and_the_stored_one_stays(
    remote, server, files, fault, expected, monkeypatch
):
    monkeypatch.setenv("WANDB__FILE_TRANSFER_RETRY_MAX", "1")
    server.add_artifact("lab", "pairs", NAME, files)
    tiny = remote("v0")
    stored = tiny.file("jsae/sae_pair")
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"the pair of last week")
    fault(server)
    (message,) = failures(tiny.measure(1, "jsae/sae_pair")).values()
    assert expected in message and "lab" in message
    assert stored.read_bytes() == b"the pair of last week"


def test_a_moved_alias_is_noticed_once_and_only_for_pairs_that_were_fetched(
    remote, server, files, language_model, tmp_path
):
    server.add_artifact("lab", "pairs", NAME, files)
    tiny = remote("latest")
    sensor = tiny.definitions.get_sensor_def("moved_aliases")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED

    def asked_for() -> list[tuple[str, set[str]]]:
        context = dg.build_sensor_context(tiny.instance, repository_def=tiny.definitions.get_repository_def())
        return [
            (request.partition_key, {key.to_user_string() for key in request.asset_selection})
            for request in sensor.evaluate_tick(context).run_requests
        ]

    assert asked_for() == []
    tiny.measure(1, "jsae/sae_pair")
    assert asked_for() == []
    others = artifact_files(tmp_path / "newer", load_language_model(language_model), seed=5)
    server.add_artifact("lab", "pairs", NAME, others)
    of_the_pair = {f"jsae/{name}" for name in PER_VARIANT} | {f"figures/jsae/{name}" for name in CELL_FIGURES}
    assert asked_for() == [(cell_key("tiny", 1), of_the_pair)]
    tiny.measure(1, "jsae/sae_pair")
    assert asked_for() == []


def test_pairs_named_by_version_need_no_sensor(remote):
    assert "moved_aliases" not in {sensor.name for sensor in remote("v3").definitions.sensors}


def test_a_randomised_pair_brings_its_language_models_weights_along(
    controlled_entries, graph, server, language_model, tmp_path
):
    files = randomised_artifact_files(tmp_path / "artifact", language_model)
    server.add_artifact("lab", "pairs", "randomised", files)
    changed = controlled_entries()
    (entry,) = [entry for entry in changed["pairs"] if entry["variant"] == "jsae_randomised"]
    del entry["train"]
    entry |= {"wandb": "lab/pairs/randomised:v0", "least_explained_variance": ANYTHING_GOES}
    tiny = graph(changed)
    tiny.tokenise()
    result = tiny.measure(1, *(f"jsae_randomised/{name}" for name in PER_VARIANT))
    assert failures(result) == {}  # pair_quality compares the pair's MLP with what the language model does
    pair = SAEPair.load(tiny.file("jsae_randomised/sae_pair"))
    torch.testing.assert_close(pair.mlp.W_in, load(files[LANGUAGE_MODEL_FILE])["blocks.1.mlp.W_in"])


# Publishing


def test_a_pair_trained_here_is_published_offline_and_the_asset_says_where(entries, graph, server):
    tiny = graph(entries())
    tiny.tokenise()
    tiny.measure(1, "jsae/sae_pair", raise_on_error=True)
    server.forget()
    result = publish(tiny, variant="jsae")
    assert result.success, failures(result)
    assert server.requests == []
    observed = tiny.instance.fetch_observations(dg.AssetKey(["jsae", "sae_pair"]), limit=1).records[0]
    told = {name: value.value for name, value in observed.asset_observation.metadata.items()}
    assert told["artifact"] == "lab/pairs/sae_pair_tiny_layer1_64_J1_k8"
    assert told["to_upload"].startswith("wandb sync ")
    assert (tiny.storage.parent / "wandb").is_dir()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"variant": "nobody"}, "variant is 'nobody', which is not in the catalog; expected one of traditional, jsae"),
        ({"variant": "traditional"}, "materialise traditional/sae_pair for tiny:1 first"),
        ({"variant": "jsae", "project": "lab"}, "'lab' is not a wandb project"),
    ],
)
def test_what_cannot_be_published_is_refused_with_the_reason(entries, graph, config, expected):
    tiny = graph(entries())
    tiny.tokenise()
    tiny.measure(1, "jsae/sae_pair", raise_on_error=True)
    (message,) = failures(publish(tiny, **config)).values()
    assert expected in message


def test_a_pair_on_a_model_randomised_here_is_not_published_without_its_weights(controlled_entries, graph):
    tiny = graph(controlled_entries())
    tiny.tokenise()
    tiny.measure(1, "jsae_randomised/sae_pair", raise_on_error=True)
    (message,) = failures(publish(tiny, variant="jsae_randomised")).values()
    assert "here, from a seed" in message
