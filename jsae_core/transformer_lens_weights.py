"""Loading weights in TransformerLens's format, as artifacts of randomised models hold them, into a Hugging Face model.

Here: mapping TransformerLens 2's names and shapes to GPT-NeoX, the architecture of all models in the paper.
Not here: loading the model (`language_model.py`), fetching the file (`artifacts.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM, PreTrainedModel

# entries of HookedTransformer's state dict that are not weights: causal mask and rotary tables, both from its config
BUFFERS = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)")


@torch.no_grad()
def weights_from_transformer_lens(state: Mapping[str, Tensor], hf_model: PreTrainedModel) -> None:
    """Overwrite every weight of a Hugging Face GPT-NeoX with those of a TransformerLens state dict.

    The state dict must be that of an unprocessed model (LayerNorm neither folded nor centred). All of it is checked
    before the first weight is overwritten.

    Raises:
        ValueError: the model is not a GPT-NeoX; tensors are missing, left over, of another shape or not finite; or the
            model has no place for one (a bias where it has none, two embeddings where it has one).
    """
    if hf_model.config.model_type != "gpt_neox":
        raise ValueError(
            f"{hf_model.config.model_type}: only the TransformerLens weights of GPT-NeoX (Pythia) can be put into a "
            "Hugging Face model here"
        )
    given = {name: tensor for name, tensor in state.items() if not BUFFERS.fullmatch(name)}
    _check(given, _shapes(hf_model))
    arranged = _arranged(given, hf_model)
    if any(target is None and tensor.count_nonzero() for target, tensor in arranged):
        raise ValueError(
            "the state dict has nonzero biases where this model has none; was it folded, or is it of another model?"
        )
    if hf_model.config.tie_word_embeddings and not torch.equal(given["embed.W_E"], given["unembed.W_U"].T):
        raise ValueError("embed.W_E and unembed.W_U differ, but this model has one weight for both")
    for target, tensor in arranged:
        if target is not None:
            target.copy_(tensor)


def _shapes(hf_model: GPTNeoXForCausalLM) -> dict[str, tuple[int, ...]]:
    """The shape of each weight that TransformerLens has for this model, by its name."""
    config = hf_model.config
    d_model, d_mlp, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    d_head = d_model // heads
    block: dict[str, tuple[int, ...]] = {f"attn.W_{part}": (heads, d_model, d_head) for part in "QKV"}
    block |= {f"attn.b_{part}": (heads, d_head) for part in "QKV"}
    block |= {"attn.W_O": (heads, d_head, d_model), "attn.b_O": (d_model,)}
    block |= {"mlp.W_in": (d_model, d_mlp), "mlp.b_in": (d_mlp,)}
    block |= {"mlp.W_out": (d_mlp, d_model), "mlp.b_out": (d_model,)}
    block |= {f"{norm}.{name}": (d_model,) for norm in ("ln1", "ln2") for name in ("w", "b")}
    return (
        {"embed.W_E": (config.vocab_size, d_model)}
        | {f"blocks.{i}.{name}": shape for i in range(config.num_hidden_layers) for name, shape in block.items()}
        | {"ln_final.w": (d_model,), "ln_final.b": (d_model,)}
        | {"unembed.W_U": (d_model, config.vocab_size), "unembed.b_U": (config.vocab_size,)}
    )


def _check(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for what, names in (("missing", shapes.keys() - given.keys()), ("left over", given.keys() - shapes.keys())):
        if names:
            some = sorted(names)[:5]
            raise ValueError(
                f"{len(names)} tensors {what}, such as {', '.join(some)}; is this the unprocessed state dict "
                "(LayerNorm not folded) of this very model, written by TransformerLens?"
            )
    for name, shape in shapes.items():
        if tuple(given[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(given[name].shape)}, but this model expects {shape}")
        if not torch.isfinite(given[name]).all():
            raise ValueError(f"{name} holds NaN or infinite values")


def _arranged(given: Mapping[str, Tensor], hf_model: GPTNeoXForCausalLM) -> list[tuple[Tensor | None, Tensor]]:
    """Each parameter of the model with its new values; None in place of a parameter that the model does not have."""
    body, unembed = hf_model.gpt_neox, hf_model.get_output_embeddings()
    arranged = [
        (body.embed_in.weight, given["embed.W_E"]),
        (body.final_layer_norm.weight, given["ln_final.w"]),
        (body.final_layer_norm.bias, given["ln_final.b"]),
        (unembed.weight, given["unembed.W_U"].T),
        (unembed.bias, given["unembed.b_U"]),
    ]
    for i, layer in enumerate(body.layers):
        block = {name.removeprefix(f"blocks.{i}."): t for name, t in given.items() if name.startswith(f"blocks.{i}.")}
        attention, mlp = layer.attention, layer.mlp
        # GPT-NeoX keeps queries, keys and values of a head together, head after head
        weights = torch.stack([block[f"attn.W_{part}"] for part in "QKV"], dim=1)  # [heads, 3, d_model, d_head]
        biases = torch.stack([block[f"attn.b_{part}"] for part in "QKV"], dim=1)  # [heads, 3, d_head]
        arranged += [
            (attention.query_key_value.weight, weights.transpose(2, 3).flatten(0, 2)),
            (attention.query_key_value.bias, biases.flatten()),
            (attention.dense.weight, block["attn.W_O"].flatten(0, 1).T),
            (attention.dense.bias, block["attn.b_O"]),
            (mlp.dense_h_to_4h.weight, block["mlp.W_in"].T),
            (mlp.dense_h_to_4h.bias, block["mlp.b_in"]),
            (mlp.dense_4h_to_h.weight, block["mlp.W_out"].T),
            (mlp.dense_4h_to_h.bias, block["mlp.b_out"]),
            (layer.input_layernorm.weight, block["ln1.w"]),
            (layer.input_layernorm.bias, block["ln1.b"]),
            (layer.post_attention_layernorm.weight, block["ln2.w"]),
            (layer.post_attention_layernorm.bias, block["ln2.b"]),
        ]
    return arranged
