"""Which convention of the MLP's input a pair was trained on: of the embedded model, and of random ones."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers as T
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

from jsae_core import MLPInputs, SAEPair, TrainingConfig, load_language_model, train_pair
from jsae_core.measures import (
    InputConventions,
    input_conventions,
    jacobian_histogram,
    jacobian_measures,
    reconstruction_quality,
    share_above,
)
from jsae_core.measures.conventions import under
from jsae_core.mlp import MLP
from jsae_core.text import first_tokens, standard_library, tokenise
from tests.jsae_core.architectures import ARCHITECTURES, save_random, saved

EMBEDDED = "jsae_core/embedded_model"
LAYER = 1
RECIPE = TrainingConfig(d_sae=256, k=32, jacobian_coefficient=0.0, steps=80, batch_tokens=256, learning_rate=0.005)
tokens = torch.randint(1, 90, (3, 12), generator=torch.Generator().manual_seed(3))


# --- What the conventions are

LAYER_NORM, RMS_NORM = "LayerNorm", "RMSNorm"
NORMS = {
    "GPT-NeoX": ("gpt_neox.layers.{}.post_attention_layernorm", LAYER_NORM),
    "GPT-2": ("transformer.h.{}.ln_2", LAYER_NORM),
    "GPT-J": ("transformer.h.{}.ln_1", LAYER_NORM),
    "GPT-Neo": ("transformer.h.{}.ln_2", LAYER_NORM),
    "BLOOM": ("transformer.h.{}.post_attention_layernorm", LAYER_NORM),
    "MPT": ("transformer.blocks.{}.norm_2", LAYER_NORM),
    "Phi": ("model.layers.{}.input_layernorm", LAYER_NORM),
    "OLMo": ("model.layers.{}.post_attention_layernorm", LAYER_NORM),
    "Cohere": ("model.layers.{}.input_layernorm", LAYER_NORM),
    "Llama": ("model.layers.{}.post_attention_layernorm", RMS_NORM),
    "Qwen 3": ("model.layers.{}.post_attention_layernorm", RMS_NORM),
    "Phi 3": ("model.layers.{}.post_attention_layernorm", RMS_NORM),
    "Gemma": ("model.layers.{}.post_attention_layernorm", RMS_NORM),
    "Gemma 2": ("model.layers.{}.pre_feedforward_layernorm", RMS_NORM),
    "Gemma 3": ("model.layers.{}.pre_feedforward_layernorm", RMS_NORM),
}


@pytest.mark.parametrize(("name", "place", "kind"), [(name, *norm) for name, norm in NORMS.items()], ids=list(NORMS))
@given(data=st.data())
@settings(max_examples=1, deadline=None)
def test_folded_input_is_normalised_without_gain_and_bias_and_unnormalised_input_is_what_is_normalised(
    name, place, kind, data
):
    with saved(ARCHITECTURES[name].config(data.draw)) as directory:
        language_model = load_language_model(directory)
    layer = language_model.n_layers - 1
    language_model.mlp(layer)  # the model runs until the layer is verified, which the hook is not to see
    norm = language_model.hugging_face.get_submodule(place.format(layer))
    caught = []
    handle = norm.register_forward_pre_hook(lambda module, args: caught.append(args[0].clone()))
    conventions = language_model.mlp_input_conventions(tokens, layer)
    handle.remove()
    (entering,) = caught
    if kind == LAYER_NORM:
        expected = F.layer_norm(entering, entering.shape[-1:], eps=getattr(norm, "eps", 1e-5))
    else:
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
        expected = F.rms_norm(entering, entering.shape[-1:], eps=eps)
    torch.testing.assert_close(conventions["unnormalised"], entering)
    torch.testing.assert_close(conventions["folded"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(conventions["true"], language_model.mlp_activations(tokens, layer)[0])


@pytest.mark.parametrize("do_layer_norm_before", [True, False])
def test_a_norm_is_found_where_rows_and_positions_are_one_dimension_and_where_it_comes_after_attention(
    tmp_path, do_layer_norm_before
):
    config = T.OPTConfig(
        vocab_size=97,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        do_layer_norm_before=do_layer_norm_before,
    )
    conventions = load_language_model(save_random(config, tmp_path)).mlp_input_conventions(tokens, 1)
    entering = conventions["unnormalised"]
    torch.testing.assert_close(conventions["folded"], F.layer_norm(entering, (16,)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["OLMo 2", "OLMo 3"])
@given(data=st.data())
@settings(max_examples=1, deadline=None)
def test_a_model_that_does_not_normalise_its_mlps_input_has_one_convention(name, data):
    with saved(ARCHITECTURES[name].config(data.draw)) as directory:
        assert list(load_language_model(directory).mlp_input_conventions(tokens, 0)) == ["true"]


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX", "OLMo", "Llama", "Gemma 2", "OLMo 2"])
@given(data=st.data())
@settings(max_examples=1, deadline=None)
def test_the_folded_mlp_gives_on_folded_input_what_the_mlp_gives_but_for_the_mean_of_a_layer_norm_s(name, data):
    with saved(ARCHITECTURES[name].config(data.draw)) as directory:
        language_model = load_language_model(directory)
    layer = language_model.n_layers - 1
    inputs = language_model.mlp_input_conventions(tokens, layer)
    expected = language_model.mlp(layer)(inputs["true"])
    if NORMS.get(name, ("", ""))[1] == LAYER_NORM:
        expected = expected - expected.mean(dim=-1, keepdim=True)
    found = language_model.folded_mlp(layer)(inputs.get("folded", inputs["true"]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# --- What a pair says of them


@pytest.fixture(scope="module")
def lm():
    return load_language_model(EMBEDDED)


@pytest.fixture(scope="module")
def documents(lm):
    return first_tokens(tokenise(standard_library("held_out"), lm.tokenizer, 128, 2000), 2000)


@pytest.fixture(scope="module")
def inputs(lm, documents):
    """The layer's MLP inputs by each convention, worked out here from the norm's own parameters."""
    norm = lm.hugging_face.gpt_neox.layers[LAYER].post_attention_layernorm
    true = torch.cat(list(MLPInputs(lm, documents, LAYER)))
    entering = []
    handle = norm.register_forward_pre_hook(lambda module, args: entering.append(args[0][:, 1:].flatten(0, 1)))
    for document in documents:
        lm.mlp_activations(document[None], LAYER)
    handle.remove()
    folded = (true - norm.bias.detach()) / norm.weight.detach()
    return {"true": true, "folded": folded, "unnormalised": torch.cat(entering)}


@pytest.fixture(scope="module")
def pairs(lm, inputs):
    return {name: train_pair(x, lm.mlp(LAYER), RECIPE, model_name="m", layer=LAYER) for name, x in inputs.items()}


@pytest.fixture(scope="module")
def measured(pairs, lm, documents):
    return {name: input_conventions(pair, lm, documents) for name, pair in pairs.items()}


# --- The convention of the reported numbers


@pytest.fixture(scope="module")
def folded_by_transformer_lens(documents):
    """Of layer 1 of the embedded model, as the original's scripts load a pretrained model: the MLP, and its inputs at
    all documents, BOS left out."""
    bridge = TransformerBridge.boot_transformers(EMBEDDED, device="cpu")
    bridge.enable_compatibility_mode(disable_warnings=True)
    hook = f"blocks.{LAYER}.ln2.hook_normalized"
    caches = [bridge.run_with_cache(document[None], names_filter=[hook])[1] for document in documents]
    block = bridge.blocks[LAYER].mlp
    weights = [getattr(block, name).detach() for name in ("W_in", "W_out", "b_in", "b_out")]
    return weights, torch.cat([cache[hook][0, 1:] for cache in caches]).detach()


def test_the_folded_mlp_and_its_input_are_those_of_transformer_lens(lm, documents, folded_by_transformer_lens):
    weights, inputs = folded_by_transformer_lens
    mlp = lm.folded_mlp(LAYER)
    for ours, theirs in zip((mlp.W_in, mlp.W_out, mlp.b_in, mlp.b_out), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    found = torch.cat(list(MLPInputs(lm, documents, LAYER, convention="folded")))
    torch.testing.assert_close(found, inputs, rtol=1e-4, atol=1e-4)


def test_the_published_histogram_is_that_of_the_pair_around_the_mlp_of_transformer_lens_on_its_inputs(
    lm, documents, pairs, folded_by_transformer_lens
):
    (W_in, W_out, b_in, b_out), inputs = folded_by_transformer_lens
    pair = pairs["true"]
    around = SAEPair(pair.config, pair.input_sae, pair.output_sae, MLP(W_in, W_out, "gelu", b_in, b_out))
    expected = jacobian_histogram(around, [inputs])
    found = jacobian_histogram(pair, MLPInputs(lm, documents, LAYER), convention="published")
    assert share_above(found, 0.01) == pytest.approx(share_above(expected, 0.01), abs=1e-4)
    moved = (found["hist"].cumsum(0) - expected["hist"].cumsum(0)).abs().max()
    assert moved < 1e-4 * expected["hist"].sum()
    as_it_is = jacobian_histogram(pair, MLPInputs(lm, documents, LAYER))
    assert abs(share_above(found, 0.01) - share_above(as_it_is, 0.01)) > 0.01  # it matters
    measures = jacobian_measures(pair, MLPInputs(lm, documents, LAYER), convention="published")
    assert measures["above_0.01"].value == pytest.approx(share_above(expected, 0.01), abs=1e-4)


def test_a_pair_on_a_randomised_model_was_published_as_it_is(lm, documents, pairs):
    pair = pairs["true"]
    config = replace(pair.config, randomize_llm_weights=True)
    randomised, stream = SAEPair(config, pair.input_sae, pair.output_sae, pair.mlp), MLPInputs(lm, documents, LAYER)
    assert under("published", randomised, stream) == (randomised, stream)


def test_an_unknown_convention_and_a_stream_without_documents_are_refused(pairs, inputs):
    with pytest.raises(ValueError, match="unknown convention 'folded'; expected one of true, published"):
        jacobian_histogram(pairs["true"], [inputs["true"]], convention="folded")
    with pytest.raises(ValueError, match="needs the documents, not their MLP inputs: expected MLPInputs, not a list"):
        jacobian_histogram(pairs["true"], [inputs["true"]], convention="published")


def test_a_pair_explains_best_what_it_was_trained_on(measured):
    assert measured["true"].rival(margin=0.02) is None
    assert measured["folded"].rival(margin=0.02) == "folded"
    assert measured["unnormalised"].rival(margin=0.02) == "unnormalised"


def test_pairs_that_were_trained_on_other_inputs_explain_more_than_half_of_the_true_ones_all_the_same(measured):
    """Why a fixed bound does not find them."""
    assert measured["folded"].explained_variance["true"] > 0.5


def test_what_is_explained_of_each_convention_is_what_is_explained_of_such_inputs(measured, pairs, inputs):
    for trained_on, pair in pairs.items():
        for name, x in inputs.items():
            expected = reconstruction_quality(pair, [x])["explained_variance_input"]
            assert measured[trained_on].explained_variance[name] == pytest.approx(expected, abs=1e-4)


def test_the_distance_of_a_convention_is_a_share_of_the_true_inputs_variance(measured, inputs):
    true = inputs["true"]
    variance = (true - true.mean(dim=0)).square().sum()
    for name, x in inputs.items():
        expected = ((x - true).square().sum() / variance).item()
        assert measured["true"].distance[name] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_an_mlp_of_folded_weights_is_the_models_on_folded_input_alone(pairs, lm, documents):
    norm, mlp = lm.hugging_face.gpt_neox.layers[LAYER].post_attention_layernorm, lm.mlp(LAYER)
    gain, bias = norm.weight.detach(), norm.bias.detach()
    folded = MLP(mlp.W_in * gain[:, None], mlp.W_out, mlp.activation, mlp.b_in + bias @ mlp.W_in, mlp.b_out)
    pair = pairs["folded"]
    pair.mlp = folded
    try:
        difference = input_conventions(pair, lm, documents).mlp_difference
    finally:
        pair.mlp = mlp
    assert difference["folded"] < 1e-4 < 0.1 < difference["true"]


def test_in_pieces_the_result_is_the_same(measured, pairs, lm, documents):
    in_pieces = input_conventions(pairs["true"], lm, documents, batch_tokens=300)
    for name, value in measured["true"].explained_variance.items():
        assert in_pieces.explained_variance[name] == pytest.approx(value, abs=1e-4)


def test_where_the_true_input_does_not_vary_any_other_is_as_far_as_can_be_and_nothing_is_explained(
    pairs, lm, documents
):
    of_one_token = input_conventions(pairs["true"], lm, [documents[0][:2]])
    assert of_one_token.distance == {"true": 0, "folded": 1, "unnormalised": 1}
    assert set(of_one_token.explained_variance.values()) == {0}


def test_documents_of_bos_alone_are_an_error(pairs, lm, documents):
    with pytest.raises(ValueError, match="no token but BOS"):
        input_conventions(pairs["true"], lm, [documents[0][:1]])


@pytest.mark.parametrize(
    ("explained", "distance", "rival"),
    [
        ({"true": 0.8, "folded": 0.7}, {"folded": 0.1}, None),
        ({"true": 0.8, "folded": 0.79}, {"folded": 0.1}, "folded"),
        ({"true": 0.8, "folded": 0.9, "unnormalised": 0.95}, {"folded": 0.1, "unnormalised": 0.3}, "unnormalised"),
        ({"true": 0.8, "folded": 0.8}, {"folded": 0.001}, None),  # gains of one: it is the true input
        ({"true": math.nan, "folded": 0.8}, {"folded": 0.1}, "folded"),
        ({"true": 0.1}, {}, None),
    ],
)
def test_the_true_input_must_be_better_by_the_margin(explained, distance, rival):
    assert InputConventions(explained, {}, {"true": 0.0} | distance).rival(0.02) == rival
