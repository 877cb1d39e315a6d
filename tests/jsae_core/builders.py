"""Small random pairs, artifacts and language models for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from jsae_core.mlp import MLP
from jsae_core.pair_format import PairConfig
from jsae_core.sae_pair import SAEPair

D_MODEL, D_MLP, D_SAE, K = 8, 12, 20, 4
BOS = "<|endoftext|>"

ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "gpt_neox": GPTNeoXConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=32
    ),
    "gpt2": GPT2Config(n_embd=16, n_inner=24, n_layer=3, n_head=2, n_positions=32),
    "llama": LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        pad_token_id=None,
    ),
    "gemma2": Gemma2Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=32,
        sliding_window=4,
    ),
}


def random_mlp(
    activation: str = "gelu",
    gated: bool = False,
    d_model: int = D_MODEL,
    d_mlp: int = D_MLP,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> MLP:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    gate = {"W_gate": random(d_model, d_mlp), "b_gate": random(d_mlp)} if gated else {}
    return MLP(random(d_model, d_mlp), random(d_mlp, d_model), activation, random(d_mlp), random(d_model), **gate)


def random_sae_tensors(
    d_in: int = D_MODEL, d_sae: int = D_SAE, dtype: torch.dtype = torch.float64, seed: int = 1
) -> dict[str, Tensor]:
    """The eight tensors of both SAEs under their artifact names, decoder rows of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"_W_enc": (d_in, d_sae), "_b_enc": (d_sae,), "_W_dec": (d_sae, d_in), "_b_dec": (d_in,)}
    tensors = {
        f"{name}{side}": torch.randn(*shape, generator=generator, dtype=torch.float64)
        for side in ("", "_out")
        for name, shape in shapes.items()
    }
    for side in ("", "_out"):
        tensors[f"_W_dec{side}"] /= tensors[f"_W_dec{side}"].norm(dim=1, keepdim=True)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def random_pair(
    activation: str = "gelu",
    gated: bool = False,
    d_model: int = D_MODEL,
    d_mlp: int = D_MLP,
    d_sae: int = D_SAE,
    k: int = K,
    dtype: torch.dtype = torch.float64,
    apply_b_dec_to_input: bool = False,
    seed: int = 0,
) -> SAEPair:
    mlp = random_mlp(activation, gated, d_model, d_mlp, dtype, seed)
    config = PairConfig(
        model_name="tiny",
        layer=1,
        d_in=d_model,
        d_sae=d_sae,
        k=k,
        dtype=str(dtype).removeprefix("torch."),
        apply_b_dec_to_input=apply_b_dec_to_input,
        mlp_activation=activation,
    )
    tensors = random_sae_tensors(d_model, d_sae, dtype, seed + 1)
    return SAEPair.from_tensors(tensors | mlp_tensors(mlp), config)


def changed(pair: SAEPair, **tensors: Tensor) -> SAEPair:
    """The pair with other tensors under some of its artifact names."""
    return SAEPair.from_tensors(pair.tensors() | tensors, pair.config)


def random_inputs(n: int, d_model: int = D_MODEL, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def count_encoded(monkeypatch, module) -> list[int]:
    """How many inputs a measure's module encodes in full, call by call."""
    rows, encode = [], module.active_latents

    def counting(sae, x):
        rows.append(len(x))
        return encode(sae, x)

    monkeypatch.setattr(module, "active_latents", counting)
    return rows


def mlp_tensors(mlp: MLP) -> dict[str, Tensor]:
    names = ("W_in", "b_in", "W_out", "b_out") + (("W_gate", "b_gate") if mlp.gated else ())
    return {f"mlp.{name}": getattr(mlp, name) for name in names}


def artifact_config(**changes) -> dict:
    """A cfg.json as the original writes it: among many others, the keys that matter here."""
    return {
        "model_name": "tiny",
        "hook_name": f"blocks.{changes.get('hook_layer', 1)}.ln2.hook_normalized",
        "hook_layer": 1,
        "hook_head_index": None,
        "is_pair": True,
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": "none",
        "apply_b_dec_to_input": False,
        "jacobian_coefficient": 1,
        "dtype": "float32",
        "prepend_bos": True,
        "context_size": 2048,
        "dataset_path": "allenai/c4",
        "lr": 0.0005,
    } | changes


def write_artifact(directory: Path, tensors: dict[str, Tensor], config: dict) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "sae_weights.safetensors")
    (directory / "cfg.json").write_text(json.dumps(config))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, to compare before and after."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character or newline; 0 is BOS."""
    characters = ["\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({BOS: 0} | {c: i for i, c in enumerate(characters, start=1)}, BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS)


def save_language_model(directory: Path, architecture: str = "gpt_neox", **config_changes) -> Path:
    """A random model in Hugging Face format. Gains and biases are random too, so that folding them would show."""
    tokenizer = character_tokenizer()
    config = type(ARCHITECTURES[architecture])(
        **ARCHITECTURES[architecture].to_diff_dict()
        | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
        | config_changes
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.3)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
