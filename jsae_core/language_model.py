"""A language model and what happens at one of its MLPs.

Here: loading (TransformerLens's bridge, weights unprocessed), its randomised twin, the MLP's input and output at a
layer, what the model says when they are replaced, the frozen MLP.
Not here: batching documents (`activations.py`), text and tokens (`text.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jsae_core.memory import fitting
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
        n_layers, d_model, context_size, n_vocabulary: sizes.
    """

    def __init__(self, name: str, bridge: TransformerBridge):
        self.name = name
        self.bridge = bridge
        self.n_layers: int = bridge.cfg.n_layers
        self.d_model: int = bridge.cfg.d_model
        self.context_size: int = bridge.cfg.n_ctx
        self.n_vocabulary: int = bridge.cfg.d_vocab

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
    def clean_pass(self, tokens: Tensor, layer: int) -> CleanPass:
        """Run all blocks, and keep what is needed to go on from the MLP of a layer with other outputs of it.

        Args:
            tokens: [row, position], as for `mlp_activations`.

        Raises:
            ValueError: as `mlp_activations` does.
        """
        self._check_layer(layer)
        tokens = self._checked(tokens)
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable:
            return lambda module, args, output: kept.update({name: _hidden(output)})

        def keep_at(name: str) -> Callable:
            return lambda tensor, hook: kept.update({name: tensor})

        modules = {"attention": self.bridge.blocks[layer].attn} | (
            {"entering": self.bridge.blocks[layer - 1]} if layer else {}
        )
        handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
        points = [
            (f"blocks.{layer}.mlp.hook_in", keep_at("input")),
            (f"blocks.{layer}.mlp.hook_out", keep_at("output")),
        ]
        try:
            leaving = self._blocks_output(tokens, points)
        finally:
            for handle in handles:
                handle.remove()
        return CleanPass(
            kept["input"], kept["output"], leaving, tokens, layer, kept.get("entering"), kept["attention"], self
        )

    @torch.no_grad()
    def logits(self, blocks_output: Tensor) -> Tensor:
        """What leaves the last block, [n, d_model] -> logits [n, vocabulary]: the final norm and the unembedding, and
        whatever else the model does there."""
        blocks = self.bridge.blocks
        tokens = torch.zeros(len(blocks_output), 1, dtype=torch.int64, device=self.device)
        with _giving(dict.fromkeys(blocks, blocks_output[:, None])):
            return self.bridge(tokens, return_type="logits")[:, 0]

    def _blocks_output(self, tokens: Tensor, hooks: list) -> Tensor:
        """What leaves the last block, [row, position, d_model]; the unembedding is not run."""
        from transformer_lens.model_bridge.exceptions import StopAtLayerException

        last: list[Tensor] = []

        def stop(tensor: Tensor, hook) -> None:
            last.append(tensor)
            raise StopAtLayerException(tensor)

        hooks = [*hooks, (f"blocks.{self.n_layers - 1}.hook_out", stop)]
        self.bridge.run_with_hooks(tokens, return_type=None, stop_at_layer=self.n_layers, fwd_hooks=hooks)
        return last[0]

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
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.n_vocabulary):
            raise ValueError(
                f"token ids run from {int(tokens.min())} to {int(tokens.max())}, but {self.name} has a vocabulary of "
                f"{self.n_vocabulary}; were they made with another model's tokenizer?"
            )
        return tokens.reshape(-1, tokens.shape[-1]).to(self.device)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"{self.name} has layers 0 to {self.n_layers - 1}; there is no layer {layer}")


@dataclass(frozen=True)
class CleanPass:
    """One run of a language model over some tokens, nothing replaced.

    Attributes, each [row, position, d_model]:
        mlp_input, mlp_output: what enters and what leaves the MLP of a layer.
        blocks_output: what leaves the last block.
    """

    mlp_input: Tensor
    mlp_output: Tensor
    blocks_output: Tensor
    _tokens: Tensor
    _layer: int
    _entering: Tensor | None  # what enters the layer's block; None: the embedding, which is made again
    _attention: Tensor
    _language_model: LanguageModel

    @torch.no_grad()
    def resumed(self, mlp_output: Tensor) -> Tensor:
        """What leaves the last block, [row, position, d_model], if `mlp_output` (same shape) leaves that MLP. Nothing
        before it is computed again: the model runs, but its earlier parts give what they gave."""
        blocks = self._language_model.bridge.blocks
        layer = blocks[self._layer]
        given = dict.fromkeys(list(blocks)[: self._layer], self._entering)
        given |= {layer.attn: (self._attention, None), layer.mlp: mlp_output}
        with _giving(given):
            return self._language_model._blocks_output(self._tokens, [])


def _hidden(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextlib.contextmanager
def _giving(outputs: Mapping[torch.nn.Module, object]) -> Iterator[None]:
    """Modules that give a fixed output and compute nothing."""
    for module, output in outputs.items():  # not by setattr, which the bridge's modules pass on to what they wrap
        vars(module)["forward"] = lambda *args, output=output, **kwargs: output
    try:
        yield
    finally:
        for module in outputs:
            del vars(module)["forward"]


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
        MemoryError: the device has no room for it.
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
    with _loading(name, looks_local), fitting(f"the language model {name}", device):
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
    except MemoryError:
        raise
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
