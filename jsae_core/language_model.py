"""A language model and what happens at one of its MLPs.

Here: loading (TransformerLens's bridge, weights unprocessed), its randomised twin, the MLP's input and output at a
layer, what the model says when they are replaced, the frozen MLP.
Not here: batching documents (`activations.py`), text and tokens (`text.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jsae_core.mlp import MLP
from jsae_core.tensor_files import read_tensors
from jsae_core.transformer_lens_weights import weights_from_transformer_lens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel


class LanguageModel:
    """A causal language model, with weights as Hugging Face has them: nothing folded, nothing centred.

    Attributes:
        name: the hub name or directory it was loaded from.
        bridge: TransformerLens's bridge; `bridge.tokenizer` is the Hugging Face tokenizer.
        n_layers, d_model, context_size: sizes.
    """

    def __init__(self, name: str, bridge: TransformerBridge):
        self.name = name
        self.bridge = bridge
        self.n_layers: int = bridge.cfg.n_layers
        self.d_model: int = bridge.cfg.d_model
        self.context_size: int = bridge.cfg.n_ctx

    @property
    def tokenizer(self):
        return self.bridge.tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.bridge.original_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.bridge.original_model.parameters()).dtype

    @torch.no_grad()
    def mlp_activations(self, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The MLP's input and output at a layer; nothing after that MLP is run.

        Args:
            tokens: [..., position] token ids. Documents shorter than the rest are padded on the right: attention is
                causal, so padding changes nothing to its left.

        Returns:
            Two [..., position, d_model]: what enters the MLP (after its LayerNorm, gain and bias included) and what
            leaves it, before anything is added to it.

        Raises:
            ValueError: the model has no such layer, or a token id is outside its vocabulary.
        """
        from transformer_lens.model_bridge.exceptions import StopAtLayerException

        self._check_layer(layer)
        rows = self._checked(tokens)
        caught: dict[str, Tensor] = {}
        names = [f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.mlp.hook_out"]

        def keep(tensor: Tensor, hook) -> None:
            caught[hook.name] = tensor.detach()
            if len(caught) == len(names):
                # the bridge's own signal; stop_at_layer alone runs the unembedding too where the layer is the last
                raise StopAtLayerException(tensor)

        self.bridge.run_with_hooks(
            rows, return_type=None, stop_at_layer=layer + 1, fwd_hooks=[(name, keep) for name in names]
        )
        mlp_input, mlp_output = (caught[name].reshape(*tokens.shape, -1) for name in names)
        return mlp_input, mlp_output

    @torch.no_grad()
    def spliced_logits(
        self,
        tokens: Tensor,
        layer: int,
        mlp_input: Callable[[Tensor], Tensor] | None = None,
        mlp_output: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits [..., position, vocabulary] with the MLP's input or output at a layer replaced on the way.

        Args:
            tokens: as for `mlp_activations`.
            mlp_input, mlp_output: given what stands there, [rows, position, d_model], return what shall; None leaves
                it as it is.

        Raises:
            ValueError: as `mlp_activations` does.
        """
        self._check_layer(layer)
        replaced = {"hook_in": mlp_input, "hook_out": mlp_output}
        hooks = [
            (f"blocks.{layer}.mlp.{name}", lambda tensor, hook, replace=replace: replace(tensor))
            for name, replace in replaced.items()
            if replace is not None
        ]
        logits = self.bridge.run_with_hooks(self._checked(tokens), return_type="logits", fwd_hooks=hooks)
        return logits.reshape(*tokens.shape, -1)

    def mlp(self, layer: int) -> MLP:
        """The frozen MLP of a layer, on the model's device and in its dtype. Raises ValueError as above."""
        self._check_layer(layer)
        module = self.bridge.blocks[layer].mlp
        linears = dict(module.named_children())
        if not {"in", "out"} <= linears.keys():
            raise ValueError(
                f"{self.name}, layer {layer}: its MLP is a {type(module).__name__} without the linear maps 'in' and "
                "'out'; only plain and gated MLPs have a Jacobian here"
            )
        W_in, b_in = _row_major(linears["in"])
        W_out, b_out = _row_major(linears["out"])
        W_gate, b_gate = _row_major(linears["gate"]) if "gate" in linears else (None, None)
        return MLP(W_in, W_out, self.bridge.cfg.act_fn, b_in, b_out, W_gate, b_gate)

    def _checked(self, tokens: Tensor) -> Tensor:
        """[rows, position] on the model's device."""
        vocabulary = self.bridge.cfg.d_vocab
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocabulary):
            raise ValueError(
                f"token ids run from {int(tokens.min())} to {int(tokens.max())}, but {self.name} has a vocabulary of "
                f"{vocabulary}; were they made with another model's tokenizer?"
            )
        return tokens.reshape(-1, tokens.shape[-1]).to(self.device)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"{self.name} has layers 0 to {self.n_layers - 1}; there is no layer {layer}")


def _row_major(linear) -> tuple[Tensor, Tensor | None]:
    """Weight [in, out] and bias: Hugging Face's Linear keeps [out, in], GPT-2's Conv1D keeps [in, out]."""
    module = linear.original_component
    weight = module.weight.detach()
    return weight.clone() if type(module).__name__ == "Conv1D" else weight.T.clone(), (
        None if module.bias is None else module.bias.detach().clone()
    )


def load_language_model(
    name_or_directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    randomise_seed: int | None = None,
    randomised_weights: str | Path | None = None,
) -> LanguageModel:
    """Load a model from the Hugging Face hub or a local directory in its format, tokenizer included.

    Args:
        randomise_seed: redraw every weight matrix and embedding from N(0, 0.8 / sqrt(d_model)), which is the standard
            deviation, with this seed; biases and normalisation stay as they were trained (Farnik et al., 2025: the
            control that shows what training the language model has to do with sparse Jacobians). The same seed gives
            the same weights on every device.
        randomised_weights: a safetensors file with weights that were randomised before, in TransformerLens's names, as
            published artifacts bring them; instead of a seed.

    Raises:
        FileNotFoundError: a directory was named that does not hold a model, or there is no file of weights.
        ValueError: the model cannot be reached or read, the dtype is none, or the weights are not this model's.
        RuntimeError, AssertionError: torch's own, where this machine lacks the device.
    """
    from transformer_lens.model_bridge import TransformerBridge

    name = str(name_or_directory)
    looks_local = isinstance(name_or_directory, Path) or name.startswith((".", "/", "~")) or Path(name).is_dir()
    if looks_local and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"{name}: holds no config.json; expected a model in Hugging Face format (config.json, model.safetensors, "
            "tokenizer.json)"
        )
    torch_dtype = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or the like")
    if randomise_seed is not None and randomised_weights is not None:
        raise ValueError(f"a randomise_seed ({randomise_seed}) and randomised_weights were given; expected at most one")
    randomised = randomise_seed is not None or randomised_weights is not None
    weights = None if randomised_weights is None else _read_weights(randomised_weights)
    torch.empty(0, device=device)  # so that a missing device is not taken for a missing model below
    # the bridge keeps some weights twice (fused and split): they are changed where Hugging Face keeps them once
    hf_model = None
    if randomised:
        with _loading(name, looks_local):
            hf_model = _hugging_face(name, torch_dtype)
    if randomise_seed is not None:
        _randomise(hf_model, randomise_seed)
    if weights is not None:
        try:
            weights_from_transformer_lens(weights, hf_model)
        except ValueError as error:
            raise ValueError(f"{randomised_weights}: {error}") from error
    with _loading(name, looks_local):
        bridge = TransformerBridge.boot_transformers(
            name, device=str(device), dtype=torch_dtype, hf_model=hf_model and hf_model.to(device)
        )
    bridge.eval().requires_grad_(False)
    return LanguageModel(f"{name} (weights randomised)" if randomised else name, bridge)


@contextlib.contextmanager
def _loading(name: str, looks_local: bool) -> Iterator[None]:
    """Makes any error of loading a model one that says which, and what to look at."""
    try:
        yield
    except Exception as error:  # transformers, huggingface_hub, httpx and safetensors each raise their own
        where = "local directory" if looks_local else "model on the Hugging Face hub"
        hint = (
            "are config.json, model.safetensors and tokenizer.json complete?"
            if looks_local
            else "check the name and the network, or download it and name its directory"
        )
        raise ValueError(f"{name} ({where}) could not be loaded: {type(error).__name__}: {error}\n{hint}") from error


def _hugging_face(name: str, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="eager")


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.8 / math.sqrt(model.config.hidden_size)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # biases and normalisation have one dimension
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; expected the weights of a randomised language model")
    return read_tensors(path)[0]
