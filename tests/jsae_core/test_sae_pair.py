import json
import re

import pytest
import torch
from sae_lens import TopKSAE
from safetensors.torch import load_file, save_file

from jsae_core import SAEPair, load_language_model, memory, run_sandwich, tables
from jsae_core.pair_format import PairConfig
from jsae_core.sae import active_latents, decode
from tests.jsae_core.builders import (
    D_MLP,
    D_MODEL,
    D_SAE,
    K,
    artifact_config,
    contents,
    mlp_tensors,
    random_inputs,
    random_mlp,
    random_pair,
    random_sae_tensors,
    save_language_model,
    write_artifact,
)

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
SAE_KEYS = {f"_{name}{side}" for side in ("", "_out") for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
MLP_KEYS = {"mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out"}


def artifact_tensors(activation: str = "gelu") -> dict[str, torch.Tensor]:
    return random_sae_tensors(dtype=torch.float32) | mlp_tensors(random_mlp(activation, dtype=torch.float32))


@pytest.fixture
def artifact(tmp_path):
    """A whole, good artifact that names its MLP's activation."""
    return write_artifact(tmp_path / "pair", artifact_tensors(), artifact_config(mlp_activation="gelu"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A GPT-NeoX as wide as the pairs here, with an activation that they would not guess."""
    directory = tmp_path_factory.mktemp("model")
    return load_language_model(
        save_language_model(directory, hidden_size=D_MODEL, intermediate_size=D_MLP, hidden_act="gelu_new")
    )


def rewrite_config(directory, **changes):
    config = json.loads((directory / CONFIG).read_text()) | changes
    (directory / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value != "REMOVED"}))


def rewrite_tensors(directory, changes):
    tensors = load_file(directory / WEIGHTS) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, directory / WEIGHTS)


# --- the artifact format ---


def test_an_artifact_is_read_with_every_tensor_in_its_place(artifact):
    pair, tensors = SAEPair.load(artifact), artifact_tensors()
    for side, sae in (("", pair.input_sae), ("_out", pair.output_sae)):
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(sae, name), tensors[f"_{name}{side}"])
    for name in ("W_in", "b_in", "W_out", "b_out"):
        assert torch.equal(getattr(pair.mlp, name), tensors[f"mlp.{name}"])


def test_an_artifact_s_configuration_is_read_whole(artifact):
    config = SAEPair.load(artifact).config
    assert (config.model_name, config.layer) == ("tiny", 1)
    assert (config.d_in, config.d_sae, config.k, config.jacobian_coefficient) == (D_MODEL, D_SAE, K, 1.0)
    assert (config.context_size, config.prepend_bos, config.apply_b_dec_to_input) == (2048, True, False)
    assert config.extra["dataset_path"] == "allenai/c4"


def test_the_older_key_names_are_read_as_the_newer_ones(artifact):
    newer = SAEPair.load(artifact)
    config = json.loads((artifact / CONFIG).read_text())
    older = {
        "hook_point": "hook_name",
        "hook_point_layer": "hook_layer",
        "hook_point_head_index": "hook_head_index",
        "activation_fn": "activation_fn_str",
        "use_jacobian_loss": "is_pair",
    }
    for old, new in older.items():
        config[old] = config.pop(new)
    (artifact / CONFIG).write_text(json.dumps(config))
    assert SAEPair.load(artifact).config == newer.config


@pytest.mark.parametrize("spelling", ["float64", "torch.float64"])
def test_both_spellings_of_the_dtype_mean_the_same(artifact, spelling):
    rewrite_config(artifact, dtype=spelling)
    pair = SAEPair.load(artifact)
    assert pair.config.dtype == "float64"
    assert pair.input_sae.W_enc.dtype == pair.output_sae.b_dec.dtype == pair.mlp.W_in.dtype == torch.float64


def test_absent_keys_mean_what_they_meant_when_they_were_not_written(artifact):
    absent = ("prepend_bos", "apply_b_dec_to_input", "normalize_activations", "dtype", "jacobian_coefficient")
    rewrite_config(artifact, **dict.fromkeys(absent, "REMOVED"))
    pair = SAEPair.load(artifact)
    assert pair.config.prepend_bos and pair.config.apply_b_dec_to_input and pair.config.trained_on_bos
    assert pair.config.dtype == "float32" and pair.config.jacobian_coefficient == 0
    assert pair.input_sae.cfg.apply_b_dec_to_input and pair.output_sae.cfg.apply_b_dec_to_input


@pytest.mark.parametrize("name", ["sae_pair_tiny_layer1_20_J0_k4", "sae_pair_tiny_layer1_20_J0.0_k4", "any name"])
@pytest.mark.parametrize("coefficient", [0, 0.0])
def test_how_a_zero_coefficient_is_spelt_makes_no_difference(tmp_path, name, coefficient):
    config = artifact_config(mlp_activation="gelu", jacobian_coefficient=coefficient)
    pair = SAEPair.load(write_artifact(tmp_path / name, artifact_tensors(), config))
    assert pair.config.jacobian_coefficient == 0.0


def test_the_activation_that_an_artifact_does_not_name_comes_from_the_language_model(tmp_path, language_model):
    artifact = write_artifact(
        tmp_path, random_sae_tensors(dtype=torch.float32) | mlp_tensors(language_model.mlp(1)), artifact_config()
    )
    pair = SAEPair.load(artifact, language_model=language_model)
    assert pair.mlp.activation == pair.config.mlp_activation == "gelu_new"


def test_an_mlp_that_the_artifact_lacks_comes_from_the_language_model_s_layer(tmp_path, language_model):
    artifact = write_artifact(tmp_path, random_sae_tensors(dtype=torch.float32), artifact_config(hook_layer=2))
    pair, x = SAEPair.load(artifact, language_model=language_model), random_inputs(3, dtype=torch.float32)
    torch.testing.assert_close(pair.mlp(x), language_model.mlp(2)(x), rtol=0, atol=0)


def test_without_its_mlp_or_a_language_model_a_pair_is_refused_saying_which_model_to_load(artifact):
    rewrite_tensors(artifact, dict.fromkeys(MLP_KEYS))
    with pytest.raises(ValueError, match=rf"{WEIGHTS}.*mlp\.W_in.*load_language_model\('tiny'\)"):
        SAEPair.load(artifact)


def test_without_an_activation_or_a_language_model_a_pair_is_refused_saying_which_model_to_load(artifact):
    rewrite_config(artifact, mlp_activation="REMOVED")
    with pytest.raises(ValueError, match=r"no MLP activation.*load_language_model\('tiny'\)"):
        SAEPair.load(artifact)


def test_a_pair_with_another_model_s_mlp_is_refused(artifact, language_model):
    with pytest.raises(ValueError, match=r"mlp\.W_in differs"):
        SAEPair.load(artifact, language_model=language_model)


def test_a_pair_of_another_activation_than_the_language_model_s_is_refused(tmp_path, language_model):
    tensors = random_sae_tensors(dtype=torch.float32) | mlp_tensors(language_model.mlp(1))
    artifact = write_artifact(tmp_path, tensors, artifact_config(mlp_activation="relu"))
    with pytest.raises(ValueError, match="'relu'.*do not belong together"):
        SAEPair.load(artifact, language_model=language_model)


def test_a_pair_of_another_layer_of_the_same_model_is_refused(tmp_path, language_model):
    tensors = random_sae_tensors(dtype=torch.float32) | mlp_tensors(language_model.mlp(2))
    with pytest.raises(ValueError, match="do not belong together"):
        SAEPair.load(write_artifact(tmp_path, tensors, artifact_config(hook_layer=1)), language_model=language_model)


@pytest.mark.parametrize(("share", "belongs"), [(0.005, True), (0.02, False)])
@pytest.mark.parametrize("name", ["W_in", "b_in", "W_out", "b_out"])
def test_a_hundredth_of_the_largest_weight_decides_whether_an_mlp_is_the_model_s(
    tmp_path, language_model, name, share, belongs
):
    tensors = random_sae_tensors(dtype=torch.float32) | mlp_tensors(language_model.mlp(1))
    changed = tensors[f"mlp.{name}"].clone()
    changed.view(-1)[3] -= share * changed.abs().max()
    artifact = write_artifact(tmp_path, tensors | {f"mlp.{name}": changed}, artifact_config())
    if belongs:
        assert torch.equal(getattr(SAEPair.load(artifact, language_model=language_model).mlp, name), changed)
    else:
        assert f"mlp.{name} differs" in refused(artifact, language_model=language_model)


def test_a_gated_mlp_without_the_biases_that_the_model_s_has_is_refused(tmp_path):
    directory = save_language_model(
        tmp_path / "lm", "llama", hidden_size=D_MODEL, intermediate_size=D_MLP, mlp_bias=True
    )
    llama = load_language_model(directory)
    tensors = random_sae_tensors(dtype=torch.float32) | mlp_tensors(llama.mlp(1))
    artifact = write_artifact(tmp_path / "pair", tensors, artifact_config())
    assert SAEPair.load(artifact, language_model=llama).mlp.gated
    rewrite_tensors(artifact, {"mlp.b_in": None})
    assert "mlp.b_in differs" in refused(artifact, language_model=llama)


def test_a_pair_of_another_width_than_the_model_is_refused_with_both_widths(tmp_path, language_model):
    artifact = write_artifact(tmp_path, random_sae_tensors(d_in=6), artifact_config(d_in=6))
    with pytest.raises(ValueError, match=f"d_in is 6.*d_model {D_MODEL}"):
        SAEPair.load(artifact, language_model=language_model)


def test_a_pair_of_a_layer_beyond_the_model_is_refused_naming_the_model_s_layers(tmp_path, language_model):
    artifact = write_artifact(tmp_path, random_sae_tensors(), artifact_config(hook_layer=3))
    with pytest.raises(ValueError, match="layers 0 to 2; there is no layer 3"):
        SAEPair.load(artifact, language_model=language_model)


# --- each half is a SAELens SAE ---


@pytest.mark.parametrize("apply_b_dec_to_input", [False, True])
def test_each_half_encodes_and_decodes_as_saelens_does(apply_b_dec_to_input):
    pair, x = random_pair(apply_b_dec_to_input=apply_b_dec_to_input), random_inputs(9)
    for sae in (pair.input_sae, pair.output_sae):
        assert isinstance(sae, TopKSAE) and sae.cfg.k == K
        activations, latents = active_latents(sae, x)
        dense = torch.zeros(9, D_SAE, dtype=x.dtype).scatter(1, latents, activations)
        torch.testing.assert_close(dense, sae.encode(x), rtol=0, atol=1e-12)
        ours = decode(sae.W_dec, sae.b_dec, activations, latents)
        torch.testing.assert_close(ours, sae.decode(sae.encode(x)), rtol=0, atol=1e-12)


def test_each_half_says_in_saelens_s_words_of_which_model_and_place_it_is():
    pair = random_pair()
    for sae, hook in ((pair.input_sae, "hook_in"), (pair.output_sae, "hook_out")):
        metadata = sae.cfg.metadata
        assert (metadata.model_name, metadata.hook_name) == ("tiny", f"blocks.1.mlp.{hook}")
        assert metadata.prepend_bos is True


def test_each_half_still_works_in_saelens_after_the_pair_was_converted():
    pair, x = random_pair(dtype=torch.float32).double(), random_inputs(9)
    for sae in (pair.input_sae, pair.output_sae):
        expected = (x @ sae.W_enc + sae.b_enc).topk(K).values.relu()
        torch.testing.assert_close(sae.encode(x).topk(K).values, expected, rtol=0, atol=1e-12)


def test_nothing_in_a_pair_can_be_trained_by_accident(artifact):
    assert not any(parameter.requires_grad for parameter in SAEPair.load(artifact).parameters())


# --- saving ---


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_a_saved_pair_loads_again_unchanged_without_a_language_model(tmp_path, gated):
    pair, x = random_pair("silu", gated), random_inputs(5)
    pair.save(tmp_path / "new" / "folder")
    again = SAEPair.load(tmp_path / "new" / "folder")
    assert again.tensors().keys() == pair.tensors().keys()
    assert all(torch.equal(tensor, pair.tensors()[name]) for name, tensor in again.tensors().items())
    torch.testing.assert_close(run_sandwich(again, x).jacobian, run_sandwich(pair, x).jacobian)
    for key in ("model_name", "layer", "d_in", "d_sae", "k", "jacobian_coefficient", "dtype", "mlp_activation"):
        assert getattr(again.config, key) == getattr(pair.config, key)


def test_a_saved_pair_has_the_artifact_format_s_files_tensors_and_keys(tmp_path):
    random_pair().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, CONFIG}
    assert load_file(tmp_path / WEIGHTS).keys() == SAE_KEYS | MLP_KEYS
    config = json.loads((tmp_path / CONFIG).read_text())
    unneeded = {"dataset_path", "lr"}
    assert artifact_config().keys() - unneeded <= config.keys()
    assert config["activation_fn_kwargs"] == {"k": K}
    assert config["hook_name"] == "blocks.1.ln2.hook_normalized" and config["hook_layer"] == 1


def test_a_saved_pair_says_what_its_inputs_were(tmp_path):
    random_pair().save(tmp_path)
    assert "gain and bias" in json.loads((tmp_path / CONFIG).read_text())["input_convention"]


def test_keys_that_nothing_here_reads_survive_loading_and_saving(artifact, tmp_path):
    rewrite_config(artifact, wandb_project="jsaes", l1_coefficient=None)
    SAEPair.load(artifact).save(tmp_path / "again")
    config = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert config.items() >= {"wandb_project": "jsaes", "l1_coefficient": None, "lr": 0.0005}.items()


def test_a_converted_pair_is_saved_in_the_dtype_it_has(tmp_path):
    random_pair(dtype=torch.float32).double().save(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["dtype"] == "float64"
    assert SAEPair.load(tmp_path).mlp.W_in.dtype == torch.float64


def test_saving_over_a_pair_replaces_it(artifact):
    pair = random_pair(seed=5)
    pair.save(artifact)
    assert torch.equal(SAEPair.load(artifact).input_sae.W_enc, pair.input_sae.W_enc)


def test_a_failing_save_leaves_the_files_already_there_untouched_and_nothing_besides(artifact):
    before = contents(artifact)
    pair = random_pair(seed=5)
    pair.config = PairConfig(**vars(pair.config) | {"extra": {"unwritable": object()}})
    with pytest.raises(TypeError):
        pair.save(artifact)
    assert contents(artifact) == before


def test_loading_changes_nothing_in_the_artifact(artifact):
    before = contents(artifact)
    SAEPair.load(artifact)
    assert contents(artifact) == before


def test_a_pair_stored_in_one_file_loads_from_its_header(tmp_path):
    pair = random_pair()
    save_file(pair.tensors(), tmp_path / "pair.safetensors", {"cfg": json.dumps(pair.config.to_artifact())})
    again = SAEPair.load(tmp_path / "pair.safetensors")
    assert torch.equal(again.output_sae.W_dec, pair.output_sae.W_dec) and again.config.k == K


# --- what is refused, and how it is named ---


def refused(path, error=ValueError, language_model=None) -> str:
    before = contents(path) if path.is_dir() else None
    with pytest.raises(error) as caught:
        SAEPair.load(path, language_model=language_model)
    if before is not None:
        assert contents(path) == before
    return str(caught.value)


def test_a_missing_directory_is_refused_with_what_was_expected_there(tmp_path):
    message = refused(tmp_path / "nowhere", FileNotFoundError)
    assert "nowhere" in message and WEIGHTS in message and CONFIG in message


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_refused_with_its_name(artifact, name):
    (artifact / name).unlink()
    assert str(artifact / name) in refused(artifact, FileNotFoundError)


def test_a_loaded_pair_does_not_change_with_its_files(artifact):
    pair, whole = SAEPair.load(artifact), (artifact / WEIGHTS).read_bytes()
    with (artifact / WEIGHTS).open("r+b") as file:  # in place, as another program may
        file.write(bytes(len(whole)))
    assert all(torch.equal(tensor, artifact_tensors()[name]) for name, tensor in pair.tensors().items())


def test_weights_of_which_git_holds_a_pointer_alone_are_refused_with_what_fetches_them(artifact):
    (artifact / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 9\n")
    message = refused(artifact)
    assert str(artifact / WEIGHTS) in message and "git lfs pull" in message


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_weights_file_is_refused_with_its_name(artifact, kept):
    whole = (artifact / WEIGHTS).read_bytes()
    (artifact / WEIGHTS).write_bytes(whole[:kept])
    assert str(artifact / WEIGHTS) in refused(artifact)


@pytest.mark.parametrize("text", ["", '{"model_name": "ti', "[1, 2]", "3"])
def test_a_configuration_that_is_no_json_object_is_refused_with_its_name(artifact, text):
    (artifact / CONFIG).write_text(text)
    assert str(artifact / CONFIG) in refused(artifact)


@pytest.mark.parametrize("name", sorted(SAE_KEYS | MLP_KEYS))
def test_a_missing_tensor_is_refused_with_its_name(artifact, name):
    rewrite_tensors(artifact, {name: None})
    message = refused(artifact)
    assert str(artifact / WEIGHTS) in message and re.search(rf"missing: {re.escape(name)}\b", message)


@pytest.mark.parametrize("name", sorted(SAE_KEYS | MLP_KEYS))
def test_a_tensor_of_the_wrong_shape_is_refused_with_its_name(artifact, name):
    rewrite_tensors(artifact, {name: torch.zeros(3)})
    message = refused(artifact)
    assert str(artifact / WEIGHTS) in message and re.search(r"mlp\.W|" + re.escape(name), message)
    assert "expected" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool])
@pytest.mark.parametrize("name", ["_W_enc", "_b_dec_out", "mlp.W_out"])
def test_weights_that_are_whole_numbers_are_refused_with_their_name(artifact, name, dtype):
    rewrite_tensors(artifact, {name: artifact_tensors()[name].to(dtype)})
    message = refused(artifact)
    assert str(artifact / WEIGHTS) in message and f"{name} holds {dtype}, expected" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["_W_enc", "_b_dec_out", "mlp.W_out"])
def test_weights_that_are_not_finite_are_refused_with_their_name(artifact, name, value):
    tensor = artifact_tensors()[name]
    tensor.view(-1)[0] = value
    rewrite_tensors(artifact, {name: tensor})
    message = refused(artifact)
    assert str(artifact / WEIGHTS) in message and name in message and "1 NaN or infinite" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation_fn_kwargs": {"k": D_SAE + 1}}, f"k is {D_SAE + 1}, larger than d_sae, {D_SAE}"),
        ({"activation_fn_kwargs": {"k": 0}}, "k is 0"),
        ({"activation_fn_kwargs": {"k": 2.5}}, "k is 2.5"),
        ({"activation_fn_kwargs": {"k": "many"}}, "k is 'many'"),
        ({"activation_fn_kwargs": {}}, "activation_fn_kwargs.k is missing"),
        ({"activation_fn_kwargs": "REMOVED"}, "activation_fn_kwargs.k is missing"),
        ({"d_in": -1}, "d_in is -1"),
        ({"d_sae": "20"}, "d_sae is '20'"),
        ({"d_sae": "REMOVED", "model_name": "REMOVED"}, "model_name, d_sae missing"),
        ({"hook_name": "REMOVED", "hook_layer": "REMOVED"}, "hook_layer missing"),
        ({"hook_layer": 2}, "hook_layer is 2, but hook_name is 'blocks.1.ln2.hook_normalized'"),
        ({"hook_layer": "three"}, "layer is 'three'"),
        ({"hook_layer": -1}, "layer is -1"),
        ({"hook_layer": True}, "layer is True"),
        ({"hook_name": "REMOVED", "hook_layer": -1}, "layer is -1"),
        ({"dtype": "float31"}, "dtype is 'float31'"),
        ({"dtype": "int64"}, "dtype is 'int64'"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn', expected float32 or float64 or bfloat16 or float16"),
        ({"hook_layer": "1"}, "layer is '1', expected a whole number"),
        ({"is_pair": "no"}, "is_pair is 'no'"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations is 'expected_average_only_in'"),
        ({"jacobian_coefficient": "strong"}, "jacobian_coefficient is 'strong'"),
        ({"jacobian_coefficient": float("inf")}, "jacobian_coefficient is inf"),
        ({"jacobian_coefficient": -1}, "jacobian_coefficient is -1"),
        ({"mlp_activation": "gelu_newish"}, "unknown MLP activation 'gelu_newish'"),
        ({"mlp_activation": 3}, "mlp_activation is 3"),
        ({"jacobian_coefficient": True}, "jacobian_coefficient is True"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is None, expected true or false"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is 'false', expected true or false"),
        ({"randomize_llm_weights": 1}, "randomize_llm_weights is 1, expected true or false"),
        ({"context_size": "2048"}, "context_size is '2048'"),
        ({"model_name": None}, "model_name is None"),
        ({"metadata": [1]}, "metadata is [1]"),
        ({"activation_fn_kwargs": [4]}, "activation_fn_kwargs is [4]"),
        ({"k": K + 1}, "activation_fn_kwargs.k and k differ"),
    ],
)
def test_a_configuration_that_no_pair_can_have_is_refused_with_its_key(artifact, changes, named):
    rewrite_config(artifact, **changes)
    message = refused(artifact)
    assert str(artifact / CONFIG) in message and named in message


def test_all_latents_may_be_kept_and_a_setting_on_top_counts_before_one_of_the_metadata(artifact):
    rewrite_config(artifact, activation_fn_kwargs={"k": D_SAE}, metadata={"hook_layer": 7, "d_sae": 3})
    config = SAEPair.load(artifact).config
    assert (config.k, config.layer, config.d_sae) == (D_SAE, 1, D_SAE)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor_out"])
def test_a_factor_that_scales_latents_is_refused_though_the_configuration_is_silent_and_ones_are_not(artifact, name):
    rewrite_tensors(artifact, {name: torch.full((D_SAE,), 3.0)})
    message = refused(artifact)
    assert str(artifact / WEIGHTS) in message and f"{name} scales latents, which is not supported" in message
    rewrite_tensors(artifact, {name: torch.ones(D_SAE)})
    assert SAEPair.load(artifact).config.k == K


@pytest.mark.parametrize("name", ["_threshold", "_log_threshold_out", "_r_mag", "_b_gate", "_W_skip", "mlp.W_3"])
def test_a_tensor_that_no_pair_of_topk_saes_has_is_refused_though_the_configuration_is_silent(artifact, name):
    rewrite_tensors(artifact, {name: torch.ones(D_SAE)})
    message = refused(artifact)
    assert str(artifact / WEIGHTS) in message and f"{name} does not belong to a pair of TopK SAEs" in message


@pytest.mark.parametrize("name", ["is_pair", "use_jacobian_loss"])
def test_a_pair_whose_loss_had_no_jacobian_term_has_no_coefficient_whatever_the_default_says(artifact, name):
    rewrite_config(artifact, is_pair="REMOVED")
    rewrite_config(artifact, **{name: False})
    assert SAEPair.load(artifact).config.jacobian_coefficient == 0
    rewrite_config(artifact, **{name: True})
    assert SAEPair.load(artifact).config.jacobian_coefficient == 1


def test_a_tilde_is_the_home_of_whoever_runs_this_and_no_folder_of_that_name(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    random_pair().save("~/pair")
    assert SAEPair.load("~/pair").config == SAEPair.load(home / "pair").config
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is True"),
        (
            {"activation_fn_str": "tanh-relu"},
            "activation_fn_str is 'tanh-relu', which is not supported; expected \"topk\"",
        ),
        ({"activation_fn_str": "REMOVED", "activation_fn": "relu"}, "activation_fn_str is 'relu'"),
        ({"architecture": "jumprelu"}, "architecture is 'jumprelu'"),
        ({"prepend_bos": False}, "prepend_bos is False"),
        ({"prepend_bos": None}, "prepend_bos is None"),
        ({"hook_name": "blocks.1.hook_resid_mid"}, "hook_name is 'blocks.1.hook_resid_mid'"),
        ({"hook_name": "REMOVED", "hook_point": "blocks.1.hook_mlp_out"}, "hook_name is 'blocks.1.hook_mlp_out'"),
        ({"hook_head_index": 0}, "hook_head_index is 0"),
        ({"seqpos_slice": [1, None]}, "seqpos_slice is [1, None]"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"transcode": True}, "transcode is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"d_out": D_MODEL + 1}, f"d_out is {D_MODEL + 1}, which is not supported; expected d_in, {D_MODEL}"),
        ({"input_convention": "folded"}, "input_convention is 'folded'"),
        ({"model_from_pretrained_kwargs": {"fold_ln": True}}, "model_from_pretrained_kwargs.fold_ln is True"),
        ({"metadata": {"prepend_bos": False}, "prepend_bos": "REMOVED"}, "prepend_bos is False"),
    ],
)
def test_what_a_configuration_asks_for_and_is_not_computed_here_is_refused_with_its_key(artifact, changes, named):
    rewrite_config(artifact, **changes)
    message = refused(artifact)
    assert str(artifact / CONFIG) in message and named in message


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_activations": False},
        {"normalize_activations": None},
        {"finetuning_scaling_factor": False},
        {"seqpos_slice": [None]},
        {"hook_layer": None},
        {"context_size": None},
        {"model_from_pretrained_kwargs": {"center_writing_weights": False, "dtype": "float32"}},
        {"model_from_pretrained_kwargs": None},
        {"hook_name": "blocks.1.mlp.hook_in"},
        {"transcode": False, "skip_connection": None, "d_out": D_MODEL},
        {"architecture": "topk", "k": K},
    ],
)
def test_false_and_null_mean_that_nothing_is_asked_for(artifact, changes):
    expected = SAEPair.load(artifact).input_sae.encode(random_inputs(3, dtype=torch.float32))
    rewrite_config(artifact, **changes)
    pair = SAEPair.load(artifact)
    assert pair.config.layer == 1 and pair.config.k == K
    assert torch.equal(pair.input_sae.encode(random_inputs(3, dtype=torch.float32)), expected)


def test_the_newer_layout_with_k_on_top_and_a_metadata_section_is_read_as_the_older_one(tmp_path, artifact):
    older = SAEPair.load(artifact)
    newer = {
        "architecture": "topk",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "k": K,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "jacobian_coefficient": 1,
        "mlp_activation": "gelu",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "tiny",
            "hook_name": "blocks.1.mlp.hook_in",
            "hook_head_index": None,
            "prepend_bos": True,
            "seqpos_slice": [None],
            "context_size": 2048,
            "model_from_pretrained_kwargs": {},
        },
    }
    pair = SAEPair.load(write_artifact(tmp_path / "newer", artifact_tensors(), newer))
    names = (
        "model_name",
        "layer",
        "d_in",
        "d_sae",
        "k",
        "jacobian_coefficient",
        "context_size",
        "apply_b_dec_to_input",
    )
    assert [getattr(pair.config, name) for name in names] == [getattr(older.config, name) for name in names]
    x = random_inputs(3, dtype=torch.float32)
    assert torch.equal(run_sandwich(pair, x).jacobian, run_sandwich(older, x).jacobian)
    pair.save(tmp_path / "again")
    again = SAEPair.load(tmp_path / "again")
    assert [getattr(again.config, name) for name in names] == [getattr(pair.config, name) for name in names]


def test_a_configuration_that_contradicts_the_weights_is_refused_with_both_shapes(artifact):
    rewrite_config(artifact, d_sae=D_SAE + 1)
    message = refused(artifact)
    assert f"({D_MODEL}, {D_SAE})" in message and f"({D_MODEL}, {D_SAE + 1})" in message


def test_a_lone_weights_file_is_refused_asking_for_its_directory(artifact):
    message = refused(artifact / WEIGHTS)
    assert str(artifact / WEIGHTS) in message and "artifact directory" in message


@pytest.mark.parametrize("header", ["{not json", "[1]", '"text"'])
def test_a_stored_file_with_a_broken_header_is_refused_with_its_name(tmp_path, header):
    save_file(artifact_tensors(), tmp_path / "pair.safetensors", {"cfg": header})
    assert str(tmp_path / "pair.safetensors") in refused(tmp_path / "pair.safetensors")


def test_a_gated_mlp_that_lost_its_gate_is_refused_rather_than_read_as_a_plain_one(tmp_path):
    random_pair("silu", gated=True).save(tmp_path)
    rewrite_tensors(tmp_path, {"mlp.W_gate": None})
    assert "missing: mlp.W_gate" in refused(tmp_path)


def test_a_gated_mlp_without_biases_is_read_with_zeros(tmp_path):
    pair = random_pair("silu", gated=True)
    pair.save(tmp_path)
    rewrite_tensors(tmp_path, dict.fromkeys(("mlp.b_in", "mlp.b_gate", "mlp.b_out")))
    mlp = SAEPair.load(tmp_path).mlp
    assert mlp.gated and not (mlp.b_in.any() or mlp.b_gate.any() or mlp.b_out.any())


def counted_builds(monkeypatch) -> list[int]:
    """Rows of the tables that are built, call by call."""
    rows, build = [], tables.build_tables

    def counting(W_dec_in, W_enc_out, mlp):
        rows.append(len(W_dec_in))
        return build(W_dec_in, W_enc_out, mlp)

    monkeypatch.setattr(tables, "build_tables", counting)
    return rows


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_the_rows_built_for_some_latents_are_those_of_the_tables(gated):
    pair = random_pair("silu", gated)
    input_latents, output_latents = torch.tensor([[3, 3, 17]]), torch.tensor([[0, 5, 19]])
    rows, input_rows, output_rows = pair.table_rows(input_latents, output_latents)
    tables = random_pair("silu", gated).tables()
    torch.testing.assert_close(rows.inputs[input_rows], tables.inputs[input_latents])
    torch.testing.assert_close(rows.outputs[output_rows], tables.outputs[output_latents])


def test_a_prompt_builds_the_rows_it_needs_and_many_prompts_the_tables_once(monkeypatch):
    built, pair = counted_builds(monkeypatch), random_pair()
    for seed in range(8):
        run_sandwich(pair, random_inputs(2, seed=seed))
    # of 8 latents a prompt two prompts fit into d_sae 20, then the tables are built
    assert len(built) == 3 and max(built[:2]) <= 8 and built[2] == D_SAE
    pair.double()
    run_sandwich(pair, random_inputs(2))
    assert len(built) == 3


def test_changed_weights_change_the_rows_of_a_prompt():
    pair, x = random_pair(), random_inputs(1)
    before = run_sandwich(pair, x).jacobian
    with torch.no_grad():
        pair.input_sae.W_dec.mul_(2)
    torch.testing.assert_close(run_sandwich(pair, x).jacobian, 2 * before)


def test_tables_that_the_device_has_no_room_for_are_refused_with_both_sizes(monkeypatch):
    pair = random_pair()
    monkeypatch.setattr(tables, "tables_bytes", lambda *arguments: 3_200_000_000)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1_500_000_000)
    with pytest.raises(MemoryError, match=r"tables .* made of: 3\.2 GB are needed, 1\.5 GB are left of [\d,.]+ GB; "):
        pair.tables()
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert pair.tables().inputs.shape == (D_SAE, D_MLP)
