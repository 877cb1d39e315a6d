import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MixtralConfig, XLNetConfig

from jsae_core import load_language_model
from tests.jsae_core.builders import ARCHITECTURES, character_tokenizer, contents, save_language_model

LAYERS = {
    "gpt_neox": lambda model: model.gpt_neox.layers,
    "gpt2": lambda model: model.transformer.h,
    "llama": lambda model: model.model.layers,
    "gemma2": lambda model: model.model.layers,
}
N_LAYERS = 3
SMALL = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": None}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def directory(architecture, tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp(architecture), architecture)


@pytest.fixture(scope="module")
def language_model(directory):
    return load_language_model(directory)


@pytest.fixture(scope="module")
def hugging_face(directory):
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def neox_directory(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("neox"))


@pytest.fixture(scope="module")
def neox(neox_directory):
    return load_language_model(neox_directory)


@pytest.fixture(scope="module")
def twin(directory):
    """The randomised twin."""
    return load_language_model(directory, randomise_seed=7)


@torch.no_grad()
def redrawn(hugging_face, seed: int):
    """Hugging Face's own model, with what the twin promises written into a copy of it."""
    model, generator = copy.deepcopy(hugging_face), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(*parameter.shape, generator=generator) * 0.8 / math.sqrt(16))
    return model


def parameters(language_model) -> dict[str, torch.Tensor]:
    return dict(language_model.hugging_face.named_parameters())


@pytest.fixture
def tokens():
    return torch.randint(1, 90, (3, 12), generator=torch.Generator().manual_seed(3))


def hooked_mlp(model, mlp, tokens):
    """What Hugging Face's own MLP module is given and gives back."""
    caught = {}
    handle = mlp.register_forward_hook(lambda module, args, output: caught.update(input=args[0], output=output))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return caught["input"], caught["output"]


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_mlp_activations_are_the_input_and_output_of_hugging_face_s_own_mlp(
    architecture, language_model, hugging_face, tokens, layer
):
    mlp_input, mlp_output = language_model.mlp_activations(tokens, layer)
    expected_input, expected_output = hooked_mlp(hugging_face, LAYERS[architecture](hugging_face)[layer].mlp, tokens)
    torch.testing.assert_close(mlp_input, expected_input, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mlp_output, expected_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_the_frozen_mlp_gives_the_model_s_own_mlp_output(language_model, tokens, layer):
    mlp_input, mlp_output = language_model.mlp_activations(tokens, layer)
    torch.testing.assert_close(language_model.mlp(layer)(mlp_input), mlp_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_no_later_layer_and_no_unembedding_is_run(architecture, language_model, tokens, layer):
    model = language_model.hugging_face
    parts = {number: block.mlp for number, block in enumerate(LAYERS[architecture](model))}
    started = []
    handles = [
        part.register_forward_pre_hook(lambda module, args, name=name: started.append(name))
        for name, part in (parts | {"unembedding": model.get_output_embeddings()}).items()
    ]
    language_model.mlp_activations(tokens, layer)
    for handle in handles:
        handle.remove()
    assert started == list(range(layer + 1))


def test_sizes_are_the_model_s(language_model):
    assert (language_model.n_layers, language_model.d_model, language_model.context_size) == (N_LAYERS, 16, 32)
    assert language_model.dtype == torch.float32 and language_model.device == torch.device("cpu")


def test_the_gate_is_there_for_gated_models_only(architecture, language_model):
    assert language_model.mlp(0).gated == (architecture in ("llama", "gemma2"))


def test_padding_on_the_right_changes_nothing_to_its_left(language_model, tokens):
    padded = tokens.clone()
    padded[:, 7:] = 0
    for whole, cut in zip(
        language_model.mlp_activations(padded, 2), language_model.mlp_activations(tokens[:, :7], 2), strict=True
    ):
        torch.testing.assert_close(whole[:, :7], cut, rtol=1e-5, atol=1e-5)


def test_leading_dimensions_of_the_tokens_are_kept(neox, tokens):
    batch, _ = neox.mlp_activations(tokens, 1)
    single, _ = neox.mlp_activations(tokens[0], 1)
    deeper, _ = neox.mlp_activations(tokens[:2].reshape(2, 1, 12), 1)
    torch.testing.assert_close(single, batch[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deeper, batch[:2].unsqueeze(1), rtol=1e-5, atol=1e-5)


def test_activations_carry_no_graph_and_reading_them_leaves_the_model_as_it_was(neox, tokens):
    before = neox.hugging_face(tokens).logits
    assert not any(tensor.requires_grad for tensor in neox.mlp_activations(tokens, 1))
    torch.testing.assert_close(neox.hugging_face(tokens).logits, before, rtol=0, atol=0)


def test_weights_are_those_of_the_file_neither_folded_nor_centred(neox, neox_directory):
    stored = load_file(neox_directory / "model.safetensors")
    for layer in range(N_LAYERS):
        mlp, prefix = neox.mlp(layer), f"gpt_neox.layers.{layer}.mlp"
        assert torch.equal(mlp.W_in.T, stored[f"{prefix}.dense_h_to_4h.weight"])
        assert torch.equal(mlp.b_in, stored[f"{prefix}.dense_h_to_4h.bias"])
        assert torch.equal(mlp.W_out.T, stored[f"{prefix}.dense_4h_to_h.weight"])
        assert torch.equal(mlp.b_out, stored[f"{prefix}.dense_4h_to_h.bias"])


def test_changing_the_frozen_mlp_does_not_change_the_model(neox, tokens):
    before = neox.mlp_activations(tokens, 1)[1]
    mlp = neox.mlp(1)
    for buffer in mlp.buffers():
        buffer.zero_()
    assert torch.equal(neox.mlp_activations(tokens, 1)[1], before)


SPLICES = {
    "nothing": {},
    "the input": {"mlp_input": lambda x: 0.5 * x.flip(-1)},
    "the output": {"mlp_output": lambda y: 2 - y},
    "both": {"mlp_input": lambda x: 0.5 * x.flip(-1), "mlp_output": lambda y: 2 - y},
    "a zeroed input": {"mlp_input": torch.zeros_like},
    "a zeroed output": {"mlp_output": torch.zeros_like},
}


def spliced_logits(language_model, tokens, layer, mlp_input=None, mlp_output=None):
    """Logits [row, position, vocabulary] with the MLP's input or output replaced, from one clean pass."""
    clean = language_model.clean_pass(tokens, layer)
    y = clean.mlp_output if mlp_input is None else language_model.mlp(layer)(mlp_input(clean.mlp_input))
    y = y if mlp_output is None else mlp_output(y)
    return language_model.logits(clean.resumed(y).flatten(0, 1)).view(*tokens.shape, -1)


each_splice = pytest.mark.parametrize("splice", SPLICES.values(), ids=SPLICES)


@each_splice
@pytest.mark.parametrize("layer", [0, N_LAYERS - 1])
def test_spliced_logits_are_hugging_face_s_with_hooks_on_its_mlp(
    architecture, language_model, hugging_face, tokens, layer, splice
):
    mlp = LAYERS[architecture](hugging_face)[layer].mlp
    handles = []
    if "mlp_input" in splice:
        handles.append(mlp.register_forward_pre_hook(lambda module, args: (splice["mlp_input"](args[0]),)))
    if "mlp_output" in splice:
        handles.append(mlp.register_forward_hook(lambda module, args, output: splice["mlp_output"](output)))
    with torch.no_grad():
        expected = hugging_face(tokens).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(spliced_logits(language_model, tokens, layer, **splice), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_a_clean_pass_keeps_what_mlp_activations_gives_and_ends_in_hugging_face_s_logits(
    language_model, hugging_face, tokens, layer
):
    clean = language_model.clean_pass(tokens, layer)
    for kept, expected in zip(
        (clean.mlp_input, clean.mlp_output), language_model.mlp_activations(tokens, layer), strict=True
    ):
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = hugging_face(tokens).logits
    logits = language_model.logits(clean.blocks_output.flatten(0, 1)).view_as(expected)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_resuming_runs_nothing_before_the_mlp_of_the_layer_nor_that_mlp(neox, tokens, monkeypatch):
    clean = neox.clean_pass(tokens, 1)
    linear, ran = torch.nn.Linear.forward, []

    def recording(module, *args):
        ran.append(module)
        return linear(module, *args)

    monkeypatch.setattr(torch.nn.Linear, "forward", recording)
    clean.resumed(torch.zeros_like(clean.mlp_output))
    last = [m for m in neox.hugging_face.gpt_neox.layers[2].modules() if isinstance(m, torch.nn.Linear)]
    assert set(ran) == set(last)


def test_a_splice_changes_the_model_for_its_own_pass_only(neox, tokens):
    before = spliced_logits(neox, tokens, 1)
    for splice in SPLICES.values():
        assert torch.equal(spliced_logits(neox, tokens, 1, **splice), before) == (not splice)
    clean = neox.clean_pass(tokens, 1)
    with pytest.raises(RuntimeError):
        clean.resumed(torch.zeros(3, 12, 5))
    with pytest.raises(RuntimeError):
        neox.logits(torch.zeros(3, 5))
    assert torch.equal(spliced_logits(neox, tokens, 1), before)


def test_a_resumed_pass_carries_no_graph(neox, tokens):
    assert not spliced_logits(neox, tokens, 1, **SPLICES["both"]).requires_grad


def test_padding_on_the_right_changes_no_spliced_logits_to_its_left(language_model, tokens):
    padded = tokens.clone()
    padded[:, 7:] = 0
    whole, cut = (spliced_logits(language_model, ids, 1, **SPLICES["both"]) for ids in (padded, tokens[:, :7]))
    torch.testing.assert_close(whole[:, :7], cut, rtol=1e-5, atol=1e-5)


# --- the randomised twin ---


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_the_twin_is_hugging_face_s_model_with_redrawn_weights_in_it(architecture, twin, hugging_face, tokens, layer):
    model = redrawn(hugging_face, 7)
    expected = hooked_mlp(model, LAYERS[architecture](model)[layer].mlp, tokens)
    for ours, theirs in zip(twin.mlp_activations(tokens, layer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        logits = model(tokens).logits
    torch.testing.assert_close(spliced_logits(twin, tokens, layer), logits, rtol=1e-5, atol=1e-5)


@each_splice
def test_the_twin_s_spliced_logits_are_hugging_face_s_with_hooks_on_its_mlp(
    architecture, twin, hugging_face, tokens, splice
):
    model = redrawn(hugging_face, 7)
    mlp = LAYERS[architecture](model)[1].mlp
    if "mlp_input" in splice:
        mlp.register_forward_pre_hook(lambda module, args: (splice["mlp_input"](args[0]),))
    if "mlp_output" in splice:
        mlp.register_forward_hook(lambda module, args, output: splice["mlp_output"](output))
    with torch.no_grad():
        expected = model(tokens).logits
    torch.testing.assert_close(spliced_logits(twin, tokens, 1, **splice), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_the_twin_s_frozen_mlp_gives_its_own_mlp_output_and_not_the_pretrained_one(twin, language_model, tokens, layer):
    mlp_input, mlp_output = twin.mlp_activations(tokens, layer)
    torch.testing.assert_close(twin.mlp(layer)(mlp_input), mlp_output, rtol=1e-5, atol=1e-5)
    assert (language_model.mlp(layer)(mlp_input) - mlp_output).norm() > 0.1 * mlp_output.norm()


def test_biases_and_normalisation_are_the_pretrained_ones_bit_by_bit_and_nothing_else_is(twin, language_model):
    random, pretrained = parameters(twin), parameters(language_model)
    assert random.keys() == pretrained.keys()
    assert {parameter.ndim for parameter in random.values()} == {1, 2}
    for name, parameter in random.items():
        if parameter.ndim == 1:
            assert torch.equal(parameter, pretrained[name]), name
        else:
            assert (parameter == pretrained[name]).double().mean() < 0.01, name


def test_the_bits_of_hugging_face_s_redrawn_parameters_are_in_the_twin(twin, hugging_face):
    held = list(parameters(twin).values())
    for name, parameter in redrawn(hugging_face, 7).named_parameters():
        assert any(torch.equal(parameter, ours) for ours in held), name


def test_redrawn_weights_have_a_standard_deviation_of_four_fifths_over_the_root_of_the_width_and_no_mean(twin):
    for name, parameter in parameters(twin).items():
        if parameter.ndim > 1:
            n = parameter.numel()
            assert parameter.std().item() == pytest.approx(0.2, rel=4 / math.sqrt(2 * n)), name
            assert abs(parameter.mean().item()) < 4 * 0.2 / math.sqrt(n), name


def test_no_two_weight_matrices_of_the_twin_are_drawn_alike(twin):
    first = [twin.mlp(layer).W_in[0, :8] for layer in range(N_LAYERS)] + [twin.mlp(0).W_out[:8, 0]]
    assert len({tuple(values.tolist()) for values in first}) == N_LAYERS + 1


def test_a_twin_of_a_model_with_tied_embeddings_has_them_tied(architecture, twin, hugging_face):
    def tied(model):
        return torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)

    assert tied(twin.hugging_face) == tied(hugging_face) == (architecture in ("gpt2", "gemma2"))


def test_a_seed_decides_the_twin_s_weights_and_zero_is_one(neox_directory):
    torch.manual_seed(1)
    zero = parameters(load_language_model(neox_directory, randomise_seed=0))
    torch.manual_seed(2)
    again = parameters(load_language_model(neox_directory, randomise_seed=0))
    other = parameters(load_language_model(neox_directory, randomise_seed=1))
    pretrained = parameters(load_language_model(neox_directory))
    for name, parameter in zero.items():
        assert torch.equal(parameter, again[name]), name
        for another in (other, pretrained):
            assert torch.equal(parameter, another[name]) == (parameter.ndim == 1), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_same_seed_gives_the_same_weights_in_every_dtype_but_for_rounding(neox_directory, dtype):
    single = parameters(load_language_model(neox_directory, randomise_seed=7))
    other = load_language_model(neox_directory, dtype=dtype, randomise_seed=7)
    assert other.dtype == other.mlp(0).W_in.dtype == dtype
    for name, parameter in parameters(other).items():
        assert torch.equal(parameter, single[name].to(dtype)), name


def test_loading_the_twin_leaves_the_pretrained_model_as_it_was(neox_directory, tokens):
    files, pretrained = contents(neox_directory), load_language_model(neox_directory)
    weights = {name: parameter.clone() for name, parameter in parameters(pretrained).items()}
    logits = spliced_logits(pretrained, tokens, 1)
    randomised = load_language_model(neox_directory, randomise_seed=7)
    assert contents(neox_directory) == files
    assert all(torch.equal(parameter, weights[name]) for name, parameter in parameters(pretrained).items())
    assert torch.equal(spliced_logits(pretrained, tokens, 1), logits)
    assert torch.equal(spliced_logits(load_language_model(neox_directory), tokens, 1), logits)
    assert (spliced_logits(randomised, tokens, 1) - logits).norm() > 0.1 * logits.norm()


def test_the_twin_s_name_says_what_it_is_and_sizes_and_tokenizer_are_the_pretrained_ones(twin, language_model):
    assert twin.name == f"{language_model.name} (weights randomised)" != language_model.name
    for attribute in ("n_layers", "d_model", "context_size", "dtype", "device"):
        assert getattr(twin, attribute) == getattr(language_model, attribute), attribute
    assert twin.tokenizer("def f(x)")["input_ids"] == language_model.tokenizer("def f(x)")["input_ids"]


def test_the_twin_is_frozen_and_says_the_same_every_time(twin, tokens):
    assert not any(parameter.requires_grad for parameter in parameters(twin).values())
    assert torch.equal(spliced_logits(twin, tokens, 0), spliced_logits(twin, tokens, 0))


def test_a_twin_of_a_broken_model_is_refused_naming_the_directory(tmp_path):
    save_language_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} .*could not be loaded"):
        load_language_model(tmp_path, randomise_seed=0)


# --- what is loaded, and what is refused ---


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "silu", "quick_gelu"])
def test_the_activation_is_the_one_the_model_s_config_names(tmp_path, tokens, activation):
    language_model = load_language_model(save_language_model(tmp_path, hidden_act=activation))
    mlp = language_model.mlp(1)
    mlp_input, mlp_output = language_model.mlp_activations(tokens, 1)
    assert mlp.activation == activation
    torch.testing.assert_close(mlp(mlp_input), mlp_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "torch.float64", torch.float64], ids=str)
def test_a_model_is_loaded_in_the_dtype_asked_for(neox_directory, dtype, tokens):
    language_model = load_language_model(neox_directory, dtype=dtype)
    assert language_model.dtype == language_model.mlp(0).W_in.dtype == torch.float64
    assert language_model.mlp_activations(tokens, 0)[0].dtype == torch.float64


def test_the_tokenizer_saved_beside_the_model_comes_with_it(neox):
    text = "def f(x): return x"
    theirs = neox.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert theirs == character_tokenizer()(text)["input_ids"]


def test_a_relative_directory_given_as_text_is_read_as_a_directory(neox_directory, monkeypatch):
    monkeypatch.chdir(neox_directory.parent)
    assert load_language_model(neox_directory.name).d_model == 16


@pytest.mark.parametrize("layer", [N_LAYERS, -1])
def test_a_layer_that_the_model_does_not_have_is_refused_naming_those_it_has(neox, tokens, layer):
    of_tokens = (neox.mlp_activations, neox.clean_pass)
    for ask in (lambda: neox.mlp(layer), *(lambda method=method: method(tokens, layer) for method in of_tokens)):
        with pytest.raises(ValueError, match=f"layers 0 to {N_LAYERS - 1}; there is no layer {layer}"):
            ask()


@pytest.mark.parametrize("token", [-1, 97])
def test_a_token_outside_the_vocabulary_is_refused_with_the_vocabulary_s_size(neox, token):
    for ask in (neox.mlp_activations, neox.clean_pass):
        with pytest.raises(ValueError, match=f"{token}.*vocabulary of 97"):
            ask(torch.tensor([0, 5, token]), 0)


@pytest.mark.parametrize(
    "tokens",
    [torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), torch.ones(1, 4), torch.tensor(3)],
    ids=["no position", "no row", "fractions", "no dimension"],
)
def test_what_is_no_row_of_token_ids_is_refused_with_its_type_and_shape(neox, tokens):
    for ask in (neox.mlp_activations, neox.clean_pass):
        with pytest.raises(ValueError, match=r"tokens are torch\..* of shape \(.*expected token ids"):
            ask(tokens, 0)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_is_none_is_refused(neox_directory, seed):
    with pytest.raises(ValueError, match=rf"randomise_seed is {seed}, expected a whole number from 0 to 2\*\*63 - 1"):
        load_language_model(neox_directory, randomise_seed=seed)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, is_causal=False),
        Gemma3TextConfig(**SMALL, head_dim=8, use_bidirectional_attention=True),
        XLNetConfig(vocab_size=97, d_model=16, n_layer=3, n_head=2, d_inner=24),  # -1 is what it says of its context
    ],
    ids=["Llama", "Gemma 3", "XLNet"],
)
def test_a_model_that_looks_ahead_is_refused_as_padding_would_change_what_it_says(tmp_path, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="changes with tokens that come later, .*; expected a causal language model"):
        load_language_model(tmp_path)


def test_a_mixture_of_experts_is_refused_as_it_has_no_single_mlp(tmp_path):
    config = MixtralConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        max_position_embeddings=32,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layer 0.*only plain and gated MLPs"):
        load_language_model(tmp_path).mlp(0)


@pytest.mark.parametrize("as_text", [False, True], ids=["path", "text"])
def test_a_directory_without_a_model_is_refused_with_its_name_and_what_was_expected(tmp_path, as_text):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: holds no config.json.*model.safetensors"):
        load_language_model(str(tmp_path) if as_text else tmp_path)


def test_a_missing_directory_is_refused_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_language_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_model_file_is_refused_naming_the_directory(tmp_path, name):
    save_language_model(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{tmp_path} .*could not be loaded"):
        load_language_model(tmp_path)


def test_missing_weights_are_refused_naming_the_directory(tmp_path):
    save_language_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} .*could not be loaded"):
        load_language_model(tmp_path)


def test_a_hub_model_that_cannot_be_reached_is_refused_saying_what_to_do():
    with pytest.raises(
        ValueError, match=r"(?s)EleutherAI/pythia-1b \(model on the Hugging Face hub\).*Unset it; or download"
    ):
        load_language_model("EleutherAI/pythia-1b")


def test_a_dtype_that_is_none_is_refused(neox_directory):
    with pytest.raises(ValueError, match="dtype is 'float33'"):
        load_language_model(neox_directory, dtype="float33")


def test_a_device_that_is_missing_is_not_taken_for_a_missing_model(neox_directory):
    with pytest.raises((RuntimeError, AssertionError), match="(?i)cuda|device"):
        load_language_model(neox_directory, device="cuda:77")
