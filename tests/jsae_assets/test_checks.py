"""The blocking check: pairs that were trained on other activations, or that are not of this model, go no further."""

import json
from dataclasses import replace

import dagster as dg
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jsae_assets.io_managers import SafetensorsIOManager, SafetensorsStore
from jsae_core import MLPInputs, SAEPair, TrainingConfig, load_language_model, train_pair
from jsae_core.mlp import MLP
from jsae_core.text import split_documents
from tests.jsae_assets.conftest import failures, materialised
from tests.jsae_core.builders import random_pair, write_artifact

LAYER = 1
# trained well enough that both SAEs explain far more than half of the variance of what they were trained on
CONFIG = TrainingConfig(d_sae=64, k=12, jacobian_coefficient=0.0, steps=400, batch_tokens=256, learning_rate=0.01)
CHECKED = "jsae/sae_pair"


def evaluation(result) -> dg.AssetCheckEvaluation:
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


@pytest.fixture(scope="module")
def lm(language_model):
    return load_language_model(language_model)


@pytest.fixture(scope="module")
def true_inputs(measured, lm):
    documents = split_documents(load_file(measured.graph.file("tokens", None)))
    return torch.cat(list(MLPInputs(lm, documents, LAYER)))


def norm_parameters(lm):
    norm = lm.hugging_face.gpt_neox.layers[LAYER].post_attention_layernorm
    return norm.weight.detach(), norm.bias.detach()


def pair_artifact(folder, inputs, mlp, config=CONFIG):
    """An artifact without an MLP of its own, as older ones are, of a pair trained on these inputs."""
    pair = train_pair(inputs, mlp, config, model_name="tiny", layer=LAYER)
    tensors = {name: tensor for name, tensor in pair.tensors().items() if not name.startswith("mlp.")}
    return write_artifact(folder, tensors, pair.config.to_artifact())


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, lm, true_inputs):
    """The same recipe on the MLP's true input, and on what it is where LayerNorm's gain and bias are folded away."""
    folder = tmp_path_factory.mktemp("check")
    mlp = lm.mlp(LAYER)
    gain, bias = norm_parameters(lm)
    folded_mlp = MLP(mlp.W_in * gain[:, None], mlp.W_out, mlp.activation, mlp.b_in + bias @ mlp.W_in, mlp.b_out)
    folded_inputs = (true_inputs - bias) / gain
    # the folded MLP of folded inputs is the same function: only what the input SAE was fed differs
    torch.testing.assert_close(folded_mlp(folded_inputs), mlp(true_inputs), rtol=1e-3, atol=1e-4)
    return {
        "true": pair_artifact(folder / "true", true_inputs, mlp),
        "folded": pair_artifact(folder / "folded", folded_inputs, folded_mlp),
        "badly": pair_artifact(folder / "badly", true_inputs, mlp, replace(CONFIG, steps=3, jacobian_coefficient=9.0)),
    }


@pytest.fixture
def graph_of(entries, graph):
    """The tiny graph with its JSAE pair from an artifact and the check's own thresholds."""

    def make(directory):
        changed = entries()
        changed["pairs"][1] = {"variant": "jsae", "model": "tiny", "layers": [LAYER], "directory": str(directory)}
        made = graph(changed)
        made.tokenise()
        return made

    return make


def test_a_pair_that_was_trained_on_the_mlps_true_input_passes_and_is_measured(graph_of, artifacts):
    result = graph_of(artifacts["true"]).measure(LAYER, CHECKED, "jsae/jacobian_histogram")
    assert failures(result) == {}
    assert materialised(result) == {CHECKED, "jsae/jacobian_histogram"}
    check = evaluation(result)
    assert check.passed
    assert check.partition == "tiny:1"
    assert "measured on" not in check.description
    for side in ("input", "output"):
        assert check.metadata[f"explained_variance_{side}"].value > 0.5


def test_a_pair_that_was_trained_on_folded_activations_fails_and_is_not_measured(graph_of, artifacts):
    folded = graph_of(artifacts["folded"])
    result = folded.measure(LAYER, CHECKED, "jsae/jacobian_histogram", "jsae/jacobian_examples")
    assert not result.success
    check = evaluation(result)
    assert not check.passed
    assert check.blocking
    assert "that of folded input (normalised without gain and bias)" in check.description
    assert "so it was trained on other activations than the model gives it" in check.description
    assert "trained badly" not in check.description
    explained = {name: check.metadata[f"explained_variance_{name}"].value for name in ("input", "input_folded")}
    assert explained["input"] < explained["input_folded"]
    assert materialised(result) == {CHECKED}
    assert not folded.file("jsae/jacobian_histogram").exists()


def test_the_failure_of_the_run_says_what_the_check_found_and_its_numbers(graph_of, artifacts):
    """Dagster's own would say that a blocking check has failed, and not why."""
    result = graph_of(artifacts["folded"]).measure(LAYER, CHECKED)
    (failed,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    check = evaluation(result)
    assert failed.user_failure_data.description == check.description
    assert failed.user_failure_data.metadata == check.metadata
    assert "explained_variance_input_folded" in check.metadata
    assert check.description in failed.error.message


def test_folded_activations_are_found_whatever_the_catalog_asks_to_be_explained(entries, graph, artifacts):
    """The SAE explains much of the true input, too, so the bound alone does not find it."""
    changed = entries()
    pair = {"variant": "jsae", "model": "tiny", "layers": [LAYER], "directory": str(artifacts["folded"])}
    changed["pairs"][1] = pair | {"least_explained_variance": {"input": 0.0, "output": 0.0}}
    made = graph(changed)
    made.tokenise()
    check = evaluation(made.measure(LAYER, CHECKED))
    assert not check.passed and "it was trained on other activations" in check.description


def test_only_a_pair_from_elsewhere_is_suspected_of_other_activations_where_the_model_hardly_tells_them_apart(
    graph_of, artifacts, entries, graph, monkeypatch
):
    monkeypatch.setattr("jsae_assets.checks.MARGIN", 2.0)  # no true input wins by that
    check = evaluation(graph_of(artifacts["true"]).measure(LAYER, CHECKED))
    assert not check.passed and "which of them it was trained on cannot be told" in check.description
    trained = graph(entries())
    trained.tokenise()
    check = evaluation(trained.measure(LAYER, CHECKED))
    assert check.passed, check.description


def test_a_badly_trained_pair_is_told_so_and_not_that_it_was_trained_on_other_activations(graph_of, artifacts):
    check = evaluation(graph_of(artifacts["badly"]).measure(LAYER, CHECKED))
    assert not check.passed
    assert "it was trained badly (the Jacobian coefficient is 9" in check.description
    assert "other activations" not in check.description


def test_a_pair_that_was_trained_on_shorter_documents_is_measured_and_told_so(graph_of, artifacts, tmp_path):
    config = json.loads((artifacts["true"] / "cfg.json").read_text()) | {"context_size": 4}
    pair = write_artifact(tmp_path / "pair", load_file(artifacts["true"] / "sae_weights.safetensors"), config)
    check = evaluation(graph_of(pair).measure(LAYER, CHECKED))
    assert check.passed
    said = "trained on documents of at most 4 tokens and is measured on some of up to 32, on positions"
    assert said in check.description


def test_the_variance_explained_that_the_check_tells_is_that_of_the_true_inputs(graph_of, artifacts, true_inputs, lm):
    """Counted here from SAELens's own encoder and decoder, over the documents that the check probes."""
    made = graph_of(artifacts["true"])
    check = evaluation(made.measure(LAYER, CHECKED))
    pair = SAEPair.load(artifacts["true"], language_model=lm)
    probed = split_documents(load_file(made.file("tokens", None)))[:32]
    x = true_inputs[: sum(len(document) - 1 for document in probed)]
    for side, sae, values in (("input", pair.input_sae, x), ("output", pair.output_sae, lm.mlp(LAYER)(x))):
        error = (values - sae.decode(sae.encode(values))).square().sum()
        expected = 1 - error / (values - values.mean(dim=0)).square().sum()
        assert check.metadata[f"explained_variance_{side}"].value == pytest.approx(expected.item(), abs=1e-3)


def test_the_thresholds_are_the_catalogs(entries, graph, artifacts):
    changed = entries()
    changed["pairs"][1] = {
        "variant": "jsae",
        "model": "tiny",
        "layers": [LAYER],
        "directory": str(artifacts["true"]),
        "least_explained_variance": {"input": 0.5, "output": 1.0},
    }
    strict = graph(changed)
    strict.tokenise()
    check = evaluation(strict.measure(LAYER, CHECKED))
    assert not check.passed
    assert "the output SAE explains" in check.description
    assert "expected at least 100%" in check.description


def not_finite(value: float):
    def damage(tensors, config):
        tensors["_b_enc"][0] = value
        return tensors, config

    return damage


def with_another_mlp(tensors, config):
    tensors["mlp.W_in"] = 2 * tensors["mlp.W_in"]
    return tensors, config


def of_another_width(tensors, config):
    narrow = random_pair(dtype=torch.float32)
    return narrow.tensors(), narrow.config.to_artifact()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (not_finite(float("nan")), "_b_enc holds 1 NaN or infinite"),
        (not_finite(float("-inf")), "_b_enc holds 1 NaN or infinite"),
        (with_another_mlp, "on the same inputs the pair's MLP gives other outputs than the model's, by"),
        (of_another_width, "d_in is 8, the model's d_model 16"),
    ],
    ids=["NaN", "infinity", "another MLP", "another width"],
)
def test_it_is_the_stored_pair_that_is_checked_and_damage_to_it_is_named(entries, graph, damage, expected):
    """What is stored is not what was computed."""

    class Damaging(SafetensorsIOManager):
        def write(self, obj, path, header):
            super().write(obj, path, header)
            if isinstance(obj, SAEPair):
                with safe_open(path, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
                    written = file.metadata()
                tensors, config = damage(tensors, json.loads(written["cfg"]))
                save_file(tensors, path, metadata=written | {"cfg": json.dumps(config)})

    class DamagingStore(SafetensorsStore):
        def manager(self, *places):
            return Damaging(*places)

    tiny = graph(entries(), tensors=DamagingStore())
    tiny.tokenise()
    result = tiny.measure(LAYER, CHECKED, "jsae/jacobian_histogram")
    assert not result.success
    assert not evaluation(result).passed
    assert expected in evaluation(result).description
    assert materialised(result) == {CHECKED}
