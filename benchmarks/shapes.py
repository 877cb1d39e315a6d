"""The sizes at which speed is measured, and random models, pairs and inputs of these sizes.

Speed depends only on sizes, so weights are random, not trained. Their scale keeps all numbers finite and gives
Jacobians of a realistic size. Not here: how much work a measurement does (`cases.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import jsae_core
from jsae_core.language_model import LanguageModel, load_language_model
from jsae_core.mlp import MLP
from jsae_core.pair_format import PairConfig
from jsae_core.sae_pair import SAEPair

BOS = "<|endoftext|>"
DOCUMENT_TOKENS = 480  # about the mean of C4's validation documents


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model and of a pair at one of its layers.

    Attributes:
        model_type: "gpt_neox" (plain MLP) or "llama" (gated MLP).
        context: the longest document, in tokens.
        directory: the files of an existing model; None for a model with random weights.
    """

    name: str
    model_type: str
    d_model: int
    d_mlp: int
    n_layers: int
    n_heads: int
    vocabulary: int
    context: int
    layer: int
    d_sae: int
    k: int
    directory: Path | None = None

    @property
    def gated(self) -> bool:
        return self.model_type == "llama"

    @property
    def branches(self) -> int:
        """The number of linear maps from which the MLP's hidden layer is computed."""
        return 2 if self.gated else 1

    @property
    def document_tokens(self) -> int:
        return min(DOCUMENT_TOKENS, self.context)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("pythia-70m", "gpt_neox", 512, 2048, 6, 8, 50304, 2048, 3, 16384, 32),
        Shape("pythia-410m", "gpt_neox", 1024, 4096, 24, 16, 50304, 2048, 15, 65536, 32),
        Shape("gated", "llama", 512, 2048, 6, 8, 32000, 2048, 3, 16384, 32),
        Shape(
            "embedded",
            "gpt_neox",
            128,
            512,
            3,
            4,
            2048,
            256,
            1,
            1024,
            32,
            directory=Path(jsae_core.__file__).parent / "embedded_model",
        ),
        Shape("tiny", "gpt_neox", 16, 64, 3, 2, 128, 32, 1, 64, 4),  # for the tests
    )
}
DEFAULT_SHAPES = tuple(name for name in SHAPES if name != "tiny")


def random_mlp(shape: Shape, seed: int = 0) -> MLP:
    """Weights of variance 1 / fan-in, biases zero; float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def weights(fan_in: int, fan_out: int) -> Tensor:
        return torch.randn(fan_in, fan_out, generator=generator) / fan_in**0.5

    d_model, d_mlp = shape.d_model, shape.d_mlp
    gate = {"W_gate": weights(d_model, d_mlp)} if shape.gated else {}
    return MLP(weights(d_model, d_mlp), weights(d_mlp, d_model), "silu" if shape.gated else "gelu", **gate)


def random_pair(shape: Shape, device: torch.device, mlp: MLP | None = None, seed: int = 0) -> SAEPair:
    """Return a pair with random decoder rows of unit norm, encoders that are their transpose, and zero biases, in
    float32. It is around `mlp`, by default a random one."""
    generator = torch.Generator().manual_seed(seed + 1)
    mlp = random_mlp(shape, seed) if mlp is None else mlp
    tensors = {f"mlp.{name}": tensor.cpu() for name, tensor in mlp.named_buffers(recurse=False)}
    for side in ("", "_out"):
        W_dec = torch.randn(shape.d_sae, shape.d_model, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        tensors |= {
            f"_W_dec{side}": W_dec,
            f"_b_dec{side}": torch.zeros(shape.d_model),
            f"_W_enc{side}": W_dec.T.contiguous(),
            f"_b_enc{side}": torch.zeros(shape.d_sae),
        }
    config = PairConfig(
        model_name=shape.name,
        layer=shape.layer,
        d_in=shape.d_model,
        d_sae=shape.d_sae,
        k=shape.k,
        apply_b_dec_to_input=False,
        mlp_activation=mlp.activation,
    )
    return SAEPair.from_tensors(tensors, config).to(device)


def random_inputs(shape: Shape, n_tokens: int, device: torch.device, seed: int = 0) -> Tensor:
    """Return random MLP inputs [n_tokens, d_model], float32, of unit variance, as after a LayerNorm."""
    return torch.randn(n_tokens, shape.d_model, generator=torch.Generator().manual_seed(seed)).to(device)


def random_documents(shape: Shape, n: int, seed: int = 0) -> list[Tensor]:
    """Return n documents of random tokens, 1-d int64, each beginning with BOS (0)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, shape.vocabulary, (n, shape.document_tokens), generator=generator)
    rows[:, 0] = 0
    return list(rows)


@contextlib.contextmanager
def language_model(shape: Shape, device: torch.device, seed: int = 0) -> Iterator[LanguageModel]:
    """Context manager that gives the shape's language model. A random model is saved to a temporary directory in
    Hugging Face format and loaded from there."""
    if shape.directory is not None:
        yield load_language_model(shape.directory, device)
        return
    with tempfile.TemporaryDirectory() as directory:
        _save_random_model(shape, directory, seed)
        yield load_language_model(directory, device)


def _save_random_model(shape: Shape, directory: str, seed: int) -> None:
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast

    config = (LlamaConfig if shape.gated else GPTNeoXConfig)(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.context,
        # gives logits of about unit variance, so that the predictions change with spliced activations
        initializer_range=shape.d_model**-0.5,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({BOS: 0, "word": 1}, BOS))  # unused, since documents are random token ids
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS, eos_token=BOS, unk_token=BOS)
    tokenizer.save_pretrained(directory)
