import math

import numpy
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from jsae_core import MLPInputs, PairConfig, SAEPair, load_language_model, run_sandwich
from jsae_core.measures import pair_quality, reconstruction_quality
from tests.jsae_core.builders import ARCHITECTURES, changed, random_pair, random_sae_tensors, save_language_model

D_MODEL, D_SAE, K, LAYER = 16, 40, 4, 1
JACOBIAN_SCALE = 5e-3  # brings random |J| to both sides of the thresholds
LENGTHS = (3, 12, 1, 7, 2, 9, 7)
SIDES = ("input", "output")
SPLICES = ("input", "output", "pair", "zero_input", "zero_output")
THRESHOLDS = (0.005, 0.01, 0.015, 0.02)
OVER_TOKENS = {f"{what}_{name}" for what in ("ce", "kl") for name in SPLICES} | {"ce_clean"}
OVER_JACOBIANS = {f"above_{t}" for t in THRESHOLDS} | {"kurtosis", "norm_l2t", "norm_l4t", "norm_linft", "l1_over_l2"}
MLP_OF = {
    "gpt_neox": lambda model: model.gpt_neox.layers[LAYER].mlp,
    "gpt2": lambda model: model.transformer.h[LAYER].mlp,
    "llama": lambda model: model.model.layers[LAYER].mlp,
    "gemma2": lambda model: model.model.layers[LAYER].mlp,
}


def pair_of(
    language_model,
    k: int = K,
    jacobian_scale: float = JACOBIAN_SCALE,
    trained_on_bos: bool = True,
    **tensors: Tensor,
) -> SAEPair:
    """A random pair around a model's own MLP."""
    dtype = language_model.dtype
    config = PairConfig(
        "tiny",
        LAYER,
        D_MODEL,
        D_SAE,
        k,
        dtype=str(dtype).removeprefix("torch."),
        apply_b_dec_to_input=False,
        trained_on_bos=trained_on_bos,
    )
    random = random_sae_tensors(D_MODEL, D_SAE, dtype)
    random["_W_dec"] *= jacobian_scale
    return SAEPair.from_tensors(random | tensors, config, language_model)


@pytest.fixture(scope="module")
def documents():
    generator = torch.Generator().manual_seed(5)
    return [
        torch.cat([torch.tensor([0]), torch.randint(1, 97, (length - 1,), generator=generator)]) for length in LENGTHS
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("neox"))


@pytest.fixture(scope="module")
def language_model(directory):
    return load_language_model(directory, dtype="float64")


@pytest.fixture(scope="module")
def pair(language_model):
    return pair_of(language_model)


@pytest.fixture(scope="module")
def quality(pair, language_model, documents):
    return pair_quality(pair, language_model, documents)


@pytest.fixture(scope="module")
def magnitude(pair, language_model, documents):
    """|J| of every measured token."""
    return run_sandwich(pair, torch.cat(list(MLPInputs(language_model, documents, LAYER)))).jacobian.abs().numpy()


TOKENS_OF_DOCUMENTS = [length - 1 for length in LENGTHS if length > 1]  # BOS left out
PREDICTIONS_OF_DOCUMENTS = [length - 2 for length in LENGTHS if length > 2]


def standard_error(values) -> float:
    """Of a mean over all tokens, or over all predictions, for documents drawn at random."""
    sizes = TOKENS_OF_DOCUMENTS if len(values) == sum(TOKENS_OF_DOCUMENTS) else PREDICTIONS_OF_DOCUMENTS
    documents = numpy.split(numpy.asarray(values) - numpy.mean(values), numpy.cumsum(sizes)[:-1])
    sums = numpy.array([document.sum() for document in documents])
    return math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values)


def score_of(zeroed: numpy.ndarray, spliced: numpy.ndarray, clean: numpy.ndarray) -> tuple[float, float]:
    """A score and its standard error, that of its linear approximation."""
    z, s, c = zeroed.mean(), spliced.mean(), clean.mean()
    gradient = numpy.array([(s - c) / (z - c) ** 2, -1 / (z - c), (z - s) / (z - c) ** 2])
    return (z - s) / (z - c), standard_error(gradient @ [zeroed, spliced, clean])


def hooked_log_probabilities(model, mlp, document: Tensor, mlp_input=None, mlp_output=None) -> numpy.ndarray:
    """Of one document alone, from Hugging Face's model with hooks on its MLP."""
    handles = []
    if mlp_input is not None:
        handles.append(mlp.register_forward_pre_hook(lambda module, args: (mlp_input(args[0]),)))
    if mlp_output is not None:
        handles.append(mlp.register_forward_hook(lambda module, args, output: mlp_output(output)))
    with torch.no_grad():
        logits = model(document[None]).logits[0].double().numpy()
    for handle in handles:
        handle.remove()
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))


def predictions_by_hugging_face(model, mlp, pair: SAEPair, documents: list[Tensor]) -> dict[str, numpy.ndarray]:
    """Cross-entropy and divergence of every measured token, BOS left out, one document and one splice at a time. BOS
    itself keeps what it has where the pair was not trained on it."""

    def at_places(replacement):
        first = 0 if pair.config.trained_on_bos else 1
        return lambda x: torch.cat([x[:, :first], replacement(x[:, first:])], dim=1)

    def reconstruct(sae):
        return at_places(lambda x: sae.decode(sae.encode(x)))

    zeros = at_places(torch.zeros_like)
    input_side, output_side = reconstruct(pair.input_sae), reconstruct(pair.output_sae)
    splices = {
        "clean": {},
        "input": {"mlp_input": input_side},
        "output": {"mlp_output": output_side},
        "pair": {"mlp_input": input_side, "mlp_output": output_side},
        "zero_input": {"mlp_input": zeros},
        "zero_output": {"mlp_output": zeros},
    }
    values: dict[str, list[float]] = {}
    for document in documents:
        log_p = {name: hooked_log_probabilities(model, mlp, document, **splice) for name, splice in splices.items()}
        for name, spliced in log_p.items():
            for position in range(1, len(document)):
                divergence = (numpy.exp(log_p["clean"][position]) * (log_p["clean"] - spliced)[position]).sum()
                values.setdefault(f"kl_{name}", []).append(divergence)
            for position in range(1, len(document) - 1):
                values.setdefault(f"ce_{name}", []).append(-spliced[position, document[position + 1]])
    del values["kl_clean"]
    return {name: numpy.array(per_token) for name, per_token in values.items()}


@pytest.mark.parametrize("trained_on_bos", [True, False], ids=["BOS spliced", "BOS kept"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cross_entropy_and_kl_are_those_of_hugging_face_s_model_with_hooks(
    architecture, trained_on_bos, tmp_path, documents
):
    directory = save_language_model(tmp_path, architecture)
    language_model = load_language_model(directory, dtype="float64")
    pair = pair_of(language_model, jacobian_scale=1, trained_on_bos=trained_on_bos)
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float64).eval()
    per_token = predictions_by_hugging_face(model, MLP_OF[architecture](model), pair, documents)
    quality = pair_quality(pair, language_model, documents, batch_tokens=20)
    assert per_token.keys() == OVER_TOKENS and quality["spliced_at_bos"] == trained_on_bos
    # GPT-2, Llama and Gemma-2 agree to 1e-15, GPT-NeoX to 7e-9: its rotary embedding is float32
    for name, values in per_token.items():
        assert quality[name] == pytest.approx(values.mean(), rel=0, abs=1e-7), name
        assert quality[f"{name}_se"] == pytest.approx(standard_error(values), rel=0, abs=1e-7), name
    for side, zero in (("input", "zero_input"), ("output", "zero_output"), ("pair", "zero_output")):
        for what, clean in (("ce", per_token["ce_clean"]), ("kl", 0 * per_token["kl_input"])):
            score, error = score_of(per_token[f"{what}_{zero}"], per_token[f"{what}_{side}"], clean)
            assert error > 1e-3 and quality[f"{what}_score_{side}"] == pytest.approx(score, rel=1e-6)
            assert quality[f"{what}_score_{side}_se"] == pytest.approx(error, rel=1e-5)
    # the splices differ from the clean pass and from each other, or agreement would prove nothing; only, a gated MLP
    # without biases makes zeros of zeros
    means = {name: per_token[name].mean() for name in per_token if name.startswith("ce_")}
    if language_model.mlp(LAYER).gated:
        assert means.pop("ce_zero_input") == means["ce_zero_output"]
    assert min(numpy.diff(sorted(means.values()))) > 1e-4


def test_float32_agrees_with_float64_to_four_digits(quality, directory, documents):
    language_model = load_language_model(directory)
    single = pair_quality(pair_of(language_model), language_model, documents)
    for name in OVER_TOKENS | OVER_JACOBIANS:
        assert single[name] == pytest.approx(quality[name], rel=1e-3, abs=1e-4), name


def test_a_bfloat16_model_is_measured_with_float32_s_digits(directory, documents):
    language_model = load_language_model(directory, dtype="bfloat16")
    pair = pair_of(language_model, jacobian_scale=1)
    quality = pair_quality(pair, language_model, documents)
    assert all(map(math.isfinite, quality.values()))
    magnitude = run_sandwich(pair, torch.cat(list(MLPInputs(language_model, documents, LAYER)))).jacobian.abs().double()
    assert quality["norm_l2t"] == pytest.approx(magnitude.square().mean(dim=(1, 2)).sqrt().mean().item(), rel=1e-6)
    losses = []
    for document in documents:
        log_p = language_model.hugging_face(document[None]).logits[0].double().log_softmax(-1)
        losses += [-log_p[position, document[position + 1]].item() for position in range(1, len(document) - 1)]
    # the logits themselves are rounded, and padding may move their last digits; log p is not rounded once more
    assert quality["ce_clean"] == pytest.approx(numpy.mean(losses), abs=0.002)


def test_jacobian_measures_are_numpy_s_token_by_token(quality, magnitude):
    per_token: dict[str, list[float]] = {}
    for jacobian in magnitude:
        root = numpy.sqrt((jacobian**2).mean())
        of_token = {f"above_{t}": (jacobian > t).mean() for t in THRESHOLDS} | {
            "kurtosis": (jacobian**4).mean() / (jacobian**2).mean() ** 2,
            "norm_l2t": root,
            "norm_l4t": (jacobian**4).mean() ** 0.25,
            "norm_linft": jacobian.max(),
            "l1_over_l2": jacobian.mean() / root,
        }
        for name, value in of_token.items():
            per_token.setdefault(name, []).append(value)
    assert per_token.keys() == OVER_JACOBIANS
    assert 0.01 < quality["above_0.02"] < quality["above_0.005"] < 0.99
    for name, values in per_token.items():
        assert quality[name] == pytest.approx(numpy.mean(values), rel=1e-9), name
        assert quality[f"{name}_se"] == pytest.approx(standard_error(values), rel=1e-6), name


def test_reconstruction_is_that_of_the_model_s_own_mlp_inputs(quality, pair, language_model, documents):
    expected = reconstruction_quality(pair, MLPInputs(language_model, documents, LAYER))
    assert {name: quality[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert quality["n_tokens"] == sum(LENGTHS) - len(LENGTHS)
    assert quality["n_predictions"] == sum(length - 2 for length in LENGTHS if length > 1)


def test_the_names_are_those_promised_and_every_value_is_a_float(quality):
    scores = {f"{what}_score_{side}" for what in ("ce", "kl") for side in (*SIDES, "pair")}
    sides = {f"{name}_{side}" for name in ("explained_variance", "mse", "cosine", "l0") for side in SIDES}
    means = OVER_TOKENS | OVER_JACOBIANS | scores | sides
    assert quality.keys() == means | {f"{name}_se" for name in means} | {
        "dead_input",
        "dead_output",
        "n_predictions",
        "n_tokens",
        "spliced_at_bos",
    }
    assert all(type(value) is float and math.isfinite(value) for value in quality.values())


@pytest.mark.parametrize("batch_tokens", [1, 20, 50])
def test_nothing_depends_on_the_batch_size(quality, pair, language_model, documents, batch_tokens):
    in_batches = pair_quality(pair, language_model, documents, batch_tokens)
    assert in_batches == pytest.approx(quality, rel=1e-5, abs=1e-7)


def test_documents_weigh_by_their_tokens_and_their_order_does_not_matter(quality, pair, language_model, documents):
    assert pair_quality(pair, language_model, documents[::-1]) == pytest.approx(quality, rel=1e-5, abs=1e-7)
    twice = pair_quality(pair, language_model, documents * 2)
    for name in quality.keys() - {"n_tokens", "n_predictions"}:
        smaller = 1.0
        if name.endswith("_se"):
            n = len(PREDICTIONS_OF_DOCUMENTS if name.startswith("ce_") else TOKENS_OF_DOCUMENTS)
            smaller = math.sqrt((n - 1) / (2 * n - 1))
        assert twice[name] == pytest.approx(smaller * quality[name], rel=1e-5, abs=1e-7), name


def test_documents_of_bos_and_one_token_predict_nothing_and_change_no_cross_entropy(
    quality, pair, language_model, documents
):
    more = pair_quality(pair, language_model, [torch.tensor([0, 7]), *documents, torch.tensor([0, 8])])
    for name in OVER_TOKENS:
        if name.startswith("ce_"):
            assert more[name] == pytest.approx(quality[name], rel=1e-5), name
    assert more["n_tokens"] == quality["n_tokens"] + 2


def test_sparser_jacobians_of_the_same_size_have_a_higher_kurtosis_and_a_lower_l1_over_l2(language_model, documents):
    dense, tensors = pair_of(language_model), random_sae_tensors(D_MODEL, D_SAE, torch.float64)
    uneven = tensors["_W_dec"] * torch.logspace(-4, 0, D_SAE, dtype=torch.float64)[:, None]
    one, other = (
        pair_quality(each, language_model, documents) for each in (dense, pair_of(language_model, _W_dec=uneven))
    )
    assert one["kurtosis"] < other["kurtosis"] and one["l1_over_l2"] > other["l1_over_l2"]


@pytest.mark.parametrize("scale", [1e-60, 1e-15, 1e15])
def test_kurtosis_and_l1_over_l2_do_not_depend_on_the_jacobian_s_size(quality, language_model, documents, scale):
    tensors = random_sae_tensors(D_MODEL, D_SAE, torch.float64)
    scaled = pair_of(language_model, _W_dec=tensors["_W_dec"] * scale)
    result = pair_quality(scaled, language_model, documents)
    for name in ("kurtosis", "l1_over_l2"):
        assert result[name] == pytest.approx(quality[name], rel=1e-6), name


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_a_float32_jacobian_of_any_size_has_its_kurtosis(quality, directory, documents, scale):
    language_model = load_language_model(directory)
    tensors = random_sae_tensors(D_MODEL, D_SAE, torch.float32)
    result = pair_quality(pair_of(language_model, _W_dec=tensors["_W_dec"] * scale), language_model, documents)
    assert result["kurtosis"] == pytest.approx(quality["kurtosis"], rel=1e-3)
    assert result["norm_l4t"] == pytest.approx(quality["norm_l4t"] * scale / JACOBIAN_SCALE, rel=1e-3)


def test_one_latent_a_token_has_a_kurtosis_of_one_and_finite_results(language_model, documents):
    quality = pair_quality(pair_of(language_model, k=1), language_model, documents)
    assert all(map(math.isfinite, quality.values()))
    assert quality["kurtosis"] == pytest.approx(1) and quality["l1_over_l2"] == pytest.approx(1)


def test_latents_that_are_all_dead_reconstruct_b_dec_and_give_finite_results(language_model, documents):
    nothing, silent = torch.zeros(D_MODEL, dtype=torch.float64), torch.full((D_SAE,), -1e4, dtype=torch.float64)
    dead = {"_b_enc": silent, "_b_enc_out": silent, "_b_dec": nothing, "_b_dec_out": nothing}
    quality = pair_quality(pair_of(language_model, **dead), language_model, documents)
    assert all(map(math.isfinite, quality.values()))
    for side in SIDES:
        assert (quality[f"l0_{side}"], quality[f"dead_{side}"]) == (0, 1)
        # reconstructing nothing is zero ablation
        for what in ("ce", "kl"):
            assert quality[f"{what}_{side}"] == pytest.approx(quality[f"{what}_zero_{side}"], abs=1e-9)
            assert quality[f"{what}_score_{side}"] == pytest.approx(0, abs=1e-9)
            assert quality[f"{what}_score_{side}_se"] == pytest.approx(0, abs=1e-6)
    assert quality["norm_l2t"] > 0


def test_a_pair_that_reconstructs_perfectly_scores_one(language_model, documents):
    d = 2 * D_MODEL
    eye = torch.eye(D_MODEL, dtype=torch.float64)
    both_signs, back = torch.cat([eye, -eye], dim=1), torch.cat([eye, -eye])
    one_side = {"W_enc": both_signs, "W_dec": back, "b_enc": 0 * both_signs[0], "b_dec": 0 * eye[0]}
    tensors = {f"_{name}{side}": tensor for side in ("", "_out") for name, tensor in one_side.items()}
    config = PairConfig("tiny", LAYER, D_MODEL, d, d, dtype="float64", apply_b_dec_to_input=False)
    perfect = SAEPair.from_tensors(tensors, config, language_model)
    quality = pair_quality(perfect, language_model, documents)
    for side in (*SIDES, "pair"):
        assert quality[f"ce_{side}"] == pytest.approx(quality["ce_clean"], abs=1e-9)
        assert quality[f"kl_{side}"] == pytest.approx(0, abs=1e-9)
        assert quality[f"ce_score_{side}"] == pytest.approx(1, abs=1e-9)
        assert quality[f"kl_score_{side}"] == pytest.approx(1, abs=1e-9)
        # the square root of float64's rounding
        assert quality[f"ce_score_{side}_se"] == pytest.approx(0, abs=1e-6)
        assert quality[f"kl_score_{side}_se"] == pytest.approx(0, abs=1e-6)


def test_a_jacobian_of_zero_has_zeros_for_measures(language_model, documents):
    nothing = torch.zeros(D_SAE, D_MODEL, dtype=torch.float64)
    quality = pair_quality(pair_of(language_model, _W_dec=nothing), language_model, documents)
    assert all(quality[name] == quality[f"{name}_se"] == 0 for name in OVER_JACOBIANS)
    assert all(map(math.isfinite, quality.values()))


def test_one_token_repeated_gives_finite_results(pair, language_model):
    quality = pair_quality(pair, language_model, [torch.tensor([7] * 9), torch.tensor([7] * 3)])
    assert all(map(math.isfinite, quality.values()))


def test_a_single_document_has_no_standard_error_and_a_single_prediction_none_either(pair, language_model):
    documents = [torch.tensor([0, 5, 6]), torch.tensor([0, 7])]
    alone = pair_quality(pair, language_model, documents[:1])
    assert all(map(math.isfinite, alone.values())) and alone["n_tokens"] == 2
    assert all(value == 0 for name, value in alone.items() if name.endswith("_se"))
    both = pair_quality(pair, language_model, documents)
    # one prediction, Jacobians in two documents
    assert both["ce_clean_se"] == 0 < both["norm_l2t_se"]
    assert all(both[f"ce_score_{side}_se"] == 0 < both[f"kl_score_{side}_se"] for side in (*SIDES, "pair"))


@pytest.mark.parametrize(
    "lengths", [[], [1], [2], [1, 2, 2]], ids=["no documents", "BOS only", "BOS and one token", "both"]
)
def test_documents_in_which_nothing_is_predicted_are_refused(pair, language_model, lengths):
    documents = [torch.arange(length) for length in lengths]
    with pytest.raises(ValueError, match="nothing to predict.*more than two tokens"):
        pair_quality(pair, language_model, documents)


def test_a_pair_of_another_width_is_refused_with_both_widths(language_model, documents):
    with pytest.raises(ValueError, match="d_in is 8, but .* has d_model 16.*do not belong together"):
        pair_quality(random_pair(), language_model, documents)


def test_a_pair_of_a_layer_that_the_model_lacks_is_refused(pair, tmp_path, documents):
    shallow = load_language_model(save_language_model(tmp_path, num_hidden_layers=1), dtype="float64")
    with pytest.raises(ValueError, match=f"layers 0 to 0; there is no layer {LAYER}"):
        pair_quality(pair, shallow, documents)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_pair_of_the_same_width_around_another_mlp_is_refused(language_model, documents, activation):
    other = random_pair(activation, d_model=D_MODEL, d_mlp=24)
    with pytest.raises(ValueError, match=f"MLP does not give what .* layer {LAYER}.*do not belong together"):
        pair_quality(other, language_model, documents)


@pytest.mark.parametrize(("factor", "belongs"), [(1.09, True), (1.11, False)])
def test_a_tenth_of_the_mlp_s_output_decides_whether_it_is_the_model_s(
    pair, language_model, documents, factor, belongs
):
    tensors = pair.tensors()
    other = changed(pair, **{name: factor * tensors[name] for name in ("mlp.W_out", "mlp.b_out")})
    if belongs:
        pair_quality(other, language_model, documents)
    else:
        with pytest.raises(ValueError, match="MLP does not give what"):
            pair_quality(other, language_model, documents)


def test_an_mlp_that_differs_from_the_model_s_in_later_batches_alone_is_refused(pair, language_model):
    first, later = torch.tensor([0, 5, 6]), torch.tensor([0, 7, 8, 9])
    seen = language_model.mlp_activations(first[None], LAYER)[0][0]
    unseen = torch.linalg.svd(seen).Vh[-1]  # a direction in which none of these inputs lies
    other = changed(pair, **{"mlp.W_in": pair.tensors()["mlp.W_in"] + 100 * unseen[:, None]})
    pair_quality(other, language_model, [first])
    with pytest.raises(ValueError, match="MLP does not give what"):
        pair_quality(other, language_model, [first, later], batch_tokens=1)


def test_a_pair_of_another_dtype_than_the_model_s_is_refused_with_both(pair, directory, documents):
    with pytest.raises(ValueError, match="float32.*float64"):
        pair_quality(pair, load_language_model(directory), documents)


def test_a_model_whose_logits_are_not_finite_is_refused(pair, directory, documents):
    broken = load_language_model(directory, dtype="float64")
    broken.hugging_face.get_output_embeddings().weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite: ce_clean.*finite logits"):
        pair_quality(pair, broken, documents)


def test_measuring_leaves_the_model_and_the_pair_as_they_were(pair, language_model, documents):
    logits = language_model.hugging_face(documents[1][None]).logits
    tensors = {name: tensor.clone() for name, tensor in pair.tensors().items()}
    pair_quality(pair, language_model, documents)
    assert torch.equal(language_model.hugging_face(documents[1][None]).logits, logits)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in pair.tensors().items())
