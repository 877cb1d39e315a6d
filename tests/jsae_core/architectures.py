"""Architectures that a language model may have: how to draw a small one, and where Hugging Face keeps its MLP.

The places are written down by hand, so that tests can put hooks there that know nothing of how `jsae_core` finds them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as T
from hypothesis import strategies as st

from tests.jsae_core.builders import character_tokenizer

N_VOCABULARY, CONTEXT = 97, 32
TOKENS = {"vocab_size": N_VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
ACTIVATIONS = st.sampled_from(["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "tanh"])
BOTH = st.booleans()


@dataclass(frozen=True)
class Architecture:
    """`config` draws a config. `into` and `down` are the linear maps of a layer's MLP: one of those that are given its
    input, and the one that gives its output."""

    config: Callable[[Callable], T.PreTrainedConfig]
    into: str
    down: str


def llama_like(kind: type, rename: dict[str, str] | None = None, **flags) -> Callable:
    """Configs in Llama's names. `rename` gives other names, None none; `flags` are drawn, or said."""

    def config(draw) -> T.PreTrainedConfig:
        heads = draw(st.sampled_from([1, 2, 4]))
        values = {
            "hidden_size": 8 * heads,
            "intermediate_size": draw(st.sampled_from([8 * heads, 12, 40])),
            "num_hidden_layers": draw(st.integers(1, 3)),
            "num_attention_heads": heads,
            "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
            "max_position_embeddings": CONTEXT,
            "hidden_act": draw(ACTIVATIONS),
            "tie_word_embeddings": draw(BOTH),
        } | {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in flags.items()}
        names = {name: name for name in values} | (rename or {})
        return kind(**TOKENS, **{names[name]: value for name, value in values.items() if names[name]})

    return config


NO_GROUPS = {"num_key_value_heads": None}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
} | NO_GROUPS
GEMMA_NAMES = {"hidden_act": "hidden_activation"}
WINDOW = {"sliding_window": 4, "head_dim": 8}


def gpt_neo(draw) -> T.PreTrainedConfig:
    kinds = draw(st.lists(st.sampled_from(["global", "local"]), min_size=1, max_size=3))
    return T.GPTNeoConfig(
        **TOKENS,
        hidden_size=16,
        intermediate_size=draw(st.sampled_from([None, 24])),
        num_layers=len(kinds),
        num_heads=draw(st.sampled_from([1, 2, 4])),
        attention_types=[[kinds, 1]],
        window_size=4,
        max_position_embeddings=CONTEXT,
        activation_function=draw(ACTIVATIONS),
    )


def opt(draw) -> T.PreTrainedConfig:
    return T.OPTConfig(
        **TOKENS,
        hidden_size=16,
        ffn_dim=draw(st.sampled_from([16, 24])),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=draw(st.sampled_from([1, 2])),
        max_position_embeddings=CONTEXT,
        activation_function=draw(ACTIVATIONS),
        word_embed_proj_dim=draw(st.sampled_from([8, 16])),
        do_layer_norm_before=draw(BOTH),
        enable_bias=draw(BOTH),
        layer_norm_elementwise_affine=draw(BOTH),
        tie_word_embeddings=draw(BOTH),
    )


def bart(draw) -> T.PreTrainedConfig:
    """The decoder of an encoder and a decoder, of another number of layers each."""
    sizes = {"ffn_dim": draw(st.sampled_from([16, 24])), "attention_heads": draw(st.sampled_from([1, 2]))}
    return T.BartConfig(
        **TOKENS | {"pad_token_id": 1},
        d_model=16,
        encoder_layers=draw(st.integers(1, 3)),
        decoder_layers=draw(st.integers(1, 3)),
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()},
        max_position_embeddings=CONTEXT,
        activation_function=draw(ACTIVATIONS),
        scale_embedding=draw(BOTH),
    )


def bloom(draw) -> T.PreTrainedConfig:
    return T.BloomConfig(
        **TOKENS,
        hidden_size=16,
        n_layer=draw(st.integers(1, 3)),
        n_head=draw(st.sampled_from([1, 2, 4])),
        apply_residual_connection_post_layernorm=draw(BOTH),
        seq_length=CONTEXT,
    )


def falcon(draw) -> T.PreTrainedConfig:
    newer = draw(BOTH)
    several_keys = {"num_kv_heads": draw(st.sampled_from([1, 2, 4]))} if newer else {"multi_query": draw(BOTH)}
    return T.FalconConfig(
        **TOKENS,
        **several_keys,
        hidden_size=16,
        ffn_hidden_size=draw(st.sampled_from([16, 24])),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        activation=draw(ACTIVATIONS),
        new_decoder_architecture=newer,
        parallel_attn=newer or draw(BOTH),
        bias=draw(BOTH),
        alibi=draw(BOTH),
    )


def mpt(draw) -> T.PreTrainedConfig:
    return T.MptConfig(
        **TOKENS,
        d_model=16,
        n_layers=draw(st.integers(1, 3)),
        n_heads=draw(st.sampled_from([2, 4])),
        max_seq_len=CONTEXT,
        attn_config={"clip_qkv": draw(st.sampled_from([None, 1.0]))},
    )


def gemma3_with_images(draw) -> T.PreTrainedConfig:
    text = llama_like(T.Gemma3TextConfig, GEMMA_NAMES, **WINDOW)(draw)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": draw(st.integers(1, 3))}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    special = {"image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94}
    return T.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        tie_word_embeddings=text.tie_word_embeddings,
        **special,
    )


def in_layers(into: str, down: str) -> tuple[str, str]:
    return f"model.layers.{{}}.{into}", f"model.layers.{{}}.{down}"


LLAMA_MLP = in_layers("mlp.gate_proj", "mlp.down_proj")
GPT2_MLP = "transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp.c_proj"
FOUR_H = "transformer.h.{}.mlp.dense_h_to_4h", "transformer.h.{}.mlp.dense_4h_to_h"
OPT_MLP = "model.decoder.layers.{}.fc1", "model.decoder.layers.{}.fc2"
ARCHITECTURES: dict[str, Architecture] = {
    "GPT-NeoX": Architecture(
        llama_like(T.GPTNeoXConfig, NO_GROUPS, use_parallel_residual=BOTH, attention_bias=BOTH),
        "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    ),
    "GPT-2": Architecture(
        llama_like(
            T.GPT2Config,
            GPT2_NAMES,
            scale_attn_weights=BOTH,
            scale_attn_by_inverse_layer_idx=BOTH,
            reorder_and_upcast_attn=BOTH,
        ),
        *GPT2_MLP,
    ),
    "GPT-J": Architecture(
        llama_like(T.GPTJConfig, GPT2_NAMES, rotary_dim=4, tie_word_embeddings=False),
        "transformer.h.{}.mlp.fc_in",
        "transformer.h.{}.mlp.fc_out",
    ),
    "GPT-Neo": Architecture(gpt_neo, *GPT2_MLP),
    "OPT": Architecture(opt, *OPT_MLP),
    "BART's decoder": Architecture(bart, *OPT_MLP),
    "BLOOM": Architecture(bloom, *FOUR_H),
    "Falcon": Architecture(falcon, *FOUR_H),
    "MPT": Architecture(mpt, "transformer.blocks.{}.ffn.up_proj", "transformer.blocks.{}.ffn.down_proj"),
    "Llama": Architecture(llama_like(T.LlamaConfig, attention_bias=BOTH, mlp_bias=BOTH), *LLAMA_MLP),
    "Mistral": Architecture(llama_like(T.MistralConfig, sliding_window=st.sampled_from([None, 4])), *LLAMA_MLP),
    "Qwen 2": Architecture(llama_like(T.Qwen2Config), *LLAMA_MLP),
    "Qwen 3": Architecture(llama_like(T.Qwen3Config, head_dim=8, attention_bias=BOTH), *LLAMA_MLP),
    "Gemma": Architecture(llama_like(T.GemmaConfig, head_dim=8), *LLAMA_MLP),
    "Gemma 2": Architecture(llama_like(T.Gemma2Config, GEMMA_NAMES, **WINDOW), *LLAMA_MLP),
    "Gemma 3": Architecture(llama_like(T.Gemma3TextConfig, GEMMA_NAMES, **WINDOW), *LLAMA_MLP),
    "Gemma 3 with images": Architecture(
        gemma3_with_images,
        "model.language_model.layers.{}.mlp.gate_proj",
        "model.language_model.layers.{}.mlp.down_proj",
    ),
    "Phi": Architecture(
        llama_like(T.PhiConfig, qk_layernorm=BOTH, tie_word_embeddings=False), *in_layers("mlp.fc1", "mlp.fc2")
    ),
    "Phi 3": Architecture(llama_like(T.Phi3Config), *in_layers("mlp.gate_up_proj", "mlp.down_proj")),
    "StableLM": Architecture(
        llama_like(T.StableLmConfig, use_parallel_residual=BOTH, qk_layernorm=BOTH, use_qkv_bias=BOTH), *LLAMA_MLP
    ),
    "OLMo": Architecture(llama_like(T.OlmoConfig, clip_qkv=st.sampled_from([None, 1.0])), *LLAMA_MLP),
    "OLMo 2": Architecture(llama_like(T.Olmo2Config), *LLAMA_MLP),
    "OLMo 3": Architecture(llama_like(T.Olmo3Config, sliding_window=4), *LLAMA_MLP),
    "Cohere": Architecture(llama_like(T.CohereConfig, use_qk_norm=BOTH, logit_scale=0.3), *LLAMA_MLP),
    "Cohere 2": Architecture(llama_like(T.Cohere2Config, sliding_window=4, logit_scale=0.3), *LLAMA_MLP),
    "SmolLM 3": Architecture(llama_like(T.SmolLM3Config), *LLAMA_MLP),
    "StarCoder 2": Architecture(llama_like(T.Starcoder2Config, use_bias=BOTH), *in_layers("mlp.c_fc", "mlp.c_proj")),
    "Granite": Architecture(llama_like(T.GraniteConfig, residual_multiplier=0.3, logits_scaling=2.0), *LLAMA_MLP),
    "RecurrentGemma": Architecture(
        llama_like(
            T.RecurrentGemmaConfig,
            GEMMA_NAMES | {"max_position_embeddings": None},
            head_dim=8,
            attention_window_size=8,
            lru_width=None,
        ),
        *in_layers("mlp_block.gate_proj", "mlp_block.down_proj"),
    ),
}


def save_random(config: T.PreTrainedConfig, directory: Path) -> Path:
    """A random model in Hugging Face format. Gains and biases are random too, so that folding them would show."""
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.3)
    model.save_pretrained(directory)
    character_tokenizer().save_pretrained(directory)
    return directory


@contextmanager
def saved(config: T.PreTrainedConfig) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield save_random(config, Path(directory))
