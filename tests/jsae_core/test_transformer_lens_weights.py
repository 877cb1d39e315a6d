import pytest
import torch
from transformers import AutoModelForCausalLM

from jsae_core.transformer_lens_weights import weights_from_transformer_lens
from tests.jsae_core.builders import save_language_model


def model(directory, architecture="gpt_neox", seed=None, **config_changes):
    """A tiny model; with a seed, every one of its weights is another."""
    save_language_model(directory, architecture, **config_changes)
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return loaded.eval()


def as_transformer_lens_has_it(hf_model):
    """Element by element, as TransformerLens documents its shapes: what is under test, the other way and slowly."""
    weights = {name: parameter.detach() for name, parameter in hf_model.named_parameters()}
    d_model, heads = hf_model.config.hidden_size, hf_model.config.num_attention_heads
    d_head = d_model // heads
    state = {
        "embed.W_E": weights["gpt_neox.embed_in.weight"].clone(),
        "ln_final.w": weights["gpt_neox.final_layer_norm.weight"].clone(),
        "ln_final.b": weights["gpt_neox.final_layer_norm.bias"].clone(),
        "unembed.W_U": hf_model.get_output_embeddings().weight.detach().T.clone(),
        "unembed.b_U": torch.zeros(hf_model.config.vocab_size),
    }
    for layer in range(hf_model.config.num_hidden_layers):
        theirs, ours = f"gpt_neox.layers.{layer}", f"blocks.{layer}"
        for part in "QKV":
            state[f"{ours}.attn.W_{part}"] = torch.empty(heads, d_model, d_head)
            state[f"{ours}.attn.b_{part}"] = torch.zeros(heads, d_head)
        state[f"{ours}.attn.W_O"] = torch.empty(heads, d_head, d_model)
        for head in range(heads):
            for place, part in enumerate("QKV"):
                for i in range(d_head):
                    row = head * 3 * d_head + place * d_head + i
                    fused = weights[f"{theirs}.attention.query_key_value.weight"]
                    state[f"{ours}.attn.W_{part}"][head, :, i] = fused[row]
                    if f"{theirs}.attention.query_key_value.bias" in weights:
                        bias = weights[f"{theirs}.attention.query_key_value.bias"]
                        state[f"{ours}.attn.b_{part}"][head, i] = bias[row]
            for i in range(d_head):
                column = weights[f"{theirs}.attention.dense.weight"][:, head * d_head + i]
                state[f"{ours}.attn.W_O"][head, i] = column
        state[f"{ours}.attn.b_O"] = weights.get(f"{theirs}.attention.dense.bias", torch.zeros(d_model)).clone()
        for name, linear in (("in", "dense_h_to_4h"), ("out", "dense_4h_to_h")):
            state[f"{ours}.mlp.W_{name}"] = weights[f"{theirs}.mlp.{linear}.weight"].T.clone()
            state[f"{ours}.mlp.b_{name}"] = weights[f"{theirs}.mlp.{linear}.bias"].clone()
        for name, norm in (("ln1", "input_layernorm"), ("ln2", "post_attention_layernorm")):
            state[f"{ours}.{name}.w"] = weights[f"{theirs}.{norm}.weight"].clone()
            state[f"{ours}.{name}.b"] = weights[f"{theirs}.{norm}.bias"].clone()
    return state


def logits(hf_model):
    with torch.no_grad():
        return hf_model(torch.arange(24).reshape(2, 12)).logits


@pytest.mark.parametrize("changes", [{}, {"attention_bias": False}, {"use_parallel_residual": False}], ids=str)
def test_a_model_given_another_models_weights_says_what_the_other_says(tmp_path, changes):
    source = model(tmp_path / "source", seed=1, **changes)
    target = model(tmp_path / "target", seed=2, **changes)
    assert not torch.allclose(logits(target), logits(source), atol=1e-2)
    weights_from_transformer_lens(as_transformer_lens_has_it(source), target)
    assert torch.equal(logits(target), logits(source))
    for (name, given), got in zip(source.named_parameters(), target.parameters(), strict=True):
        assert torch.equal(given, got), name


def test_it_undoes_what_transformer_lens_itself_makes_of_the_model(tmp_path):
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights

    source, target = model(tmp_path / "source", seed=1), model(tmp_path / "target", seed=2)
    sizes = HookedTransformerConfig(
        n_layers=3, d_model=16, n_ctx=32, d_head=8, n_heads=2, d_mlp=24, d_vocab=source.config.vocab_size, act_fn="gelu"
    )
    weights_from_transformer_lens(convert_neox_weights(source, sizes), target)
    assert torch.equal(logits(target), logits(source))


def test_masks_and_rotary_tables_beside_the_weights_are_left_where_they_are(tmp_path):
    source, target = model(tmp_path / "source", seed=1), model(tmp_path / "target", seed=2)
    tables = {f"blocks.0.attn.{name}": torch.zeros(2) for name in ("mask", "IGNORE", "rotary_sin", "rotary_cos")}
    weights_from_transformer_lens(as_transformer_lens_has_it(source) | tables, target)
    assert torch.equal(logits(target), logits(source))


def test_weights_take_the_models_own_dtype(tmp_path):
    source, target = model(tmp_path / "source", seed=1), model(tmp_path / "target", seed=2).to(torch.bfloat16)
    weights_from_transformer_lens(as_transformer_lens_has_it(source), target)
    given, got = source.gpt_neox.embed_in.weight, target.gpt_neox.embed_in.weight
    assert got.dtype == torch.bfloat16 and torch.equal(got, given.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.ln2.w": None}, r"1 tensors missing, such as blocks\.1\.ln2\.w; .*not folded"),
        ({"blocks.3.ln2.w": torch.zeros(16)}, r"1 tensors left over, such as blocks\.3\.ln2\.w"),
        ({"pos_embed.W_pos": torch.zeros(32, 16)}, r"left over, such as pos_embed\.W_pos"),
        ({"blocks.2.attn.W_O": torch.zeros(2, 16, 8)}, r"blocks\.2\.attn\.W_O has shape \(2, 16, 8\).*\(2, 8, 16\)"),
        (
            {"embed.W_E": torch.zeros(50304, 16)},
            r"embed\.W_E has shape \(50304, 16\), but this model expects \(97, 16\)",
        ),
        ({"blocks.0.mlp.b_in": torch.full((24,), torch.nan)}, r"blocks\.0\.mlp\.b_in holds NaN"),
        ({"unembed.b_U": torch.ones(97)}, "nonzero biases where this model has none"),
    ],
)
def test_weights_that_are_not_this_models_are_refused_and_it_stays_as_it_was(tmp_path, changes, message):
    target = model(tmp_path, seed=2)
    before = logits(target)
    state = as_transformer_lens_has_it(model(tmp_path, seed=1)) | changes
    with pytest.raises(ValueError, match=message):
        weights_from_transformer_lens({name: t for name, t in state.items() if t is not None}, target)
    assert torch.equal(logits(target), before)


def test_attention_biases_for_a_model_without_them_are_refused(tmp_path):
    target = model(tmp_path / "target", attention_bias=False)
    with pytest.raises(ValueError, match="nonzero biases"):
        weights_from_transformer_lens(as_transformer_lens_has_it(model(tmp_path / "source")), target)


def test_two_embeddings_for_a_model_that_has_one_are_refused(tmp_path):
    target = model(tmp_path / "target", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="one weight for both"):
        weights_from_transformer_lens(as_transformer_lens_has_it(model(tmp_path / "source", seed=1)), target)


def test_another_architecture_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="llama: only .* GPT-NeoX"):
        weights_from_transformer_lens({}, model(tmp_path, "llama"))
