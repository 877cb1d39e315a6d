"""A new implementation of the original's procedure (Farnik et al., 2025), with which the measures of `jsae_core` are
compared.

Each measure is one plain function. It works in the same order as the original: one document, token or sample at a time;
both tables of the Jacobian built again at every call; activations as dense vectors of length d_sae; both SAEs decoded
densely, even if the reconstruction is not needed; sums of |J| in a dense d_sae x d_sae matrix. The results have the
same meaning as those of `jsae_core`, in a form that can be compared. Pairs must not use `apply_b_dec_to_input`; the
paper's do not.

Nothing here may call the optimised code of `jsae_core`: of a pair and of a language model, only the weights and the
hooks are used. Gated MLPs, which the original does not support, are treated in the same way.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sae_lens import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file
from torch import Tensor

from jsae_core.language_model import LanguageModel
from jsae_core.mlp import MLP
from jsae_core.recipe import TrainingConfig
from jsae_core.sae_pair import SAEPair

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BINS, RANGE = 1100, 1.1
NAN_SCAN_EVERY = 20  # documents
SWEEP_POINTS, LEAST_RANGE, TOLERANCE = 100, 5.0, 0.01
NOTEWORTHY = 0.01


class Sandwich(NamedTuple):
    jacobian: Tensor  # [..., k_out, k_in]
    input_latents: Tensor  # [..., k]
    output_latents: Tensor  # [..., k]
    input_activations: Tensor  # [..., d_sae]
    output_activations: Tensor  # [..., d_sae]


def encode(sae: TopKSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the dense activations [..., d_sae] of x [..., d_in], and the k active latents [..., k] in descending
    order."""
    return _top(x @ sae.W_enc + sae.b_enc, sae.cfg.k)


def _top(pre_activations: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, latents = torch.topk(pre_activations, k, dim=-1)
    return torch.zeros_like(pre_activations).scatter(-1, latents, torch.relu(values)), latents


def decode(sae: TopKSAE, activations: Tensor) -> Tensor:
    """Return the reconstruction [..., d_in] from dense activations [..., d_sae]."""
    return activations @ sae.W_dec + sae.b_dec


def respond(mlp: MLP, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the MLP's output for x [..., d_model], and the derivative of its hidden layer with respect to each branch
    [..., d_mlp]."""
    z = x @ mlp.W_in + mlp.b_in
    with torch.enable_grad():
        argument = (x @ mlp.W_gate + mlp.b_gate if mlp.gated else z).detach().requires_grad_()
        value = mlp.phi(argument)
        (slope,) = torch.autograd.grad(value, argument, torch.ones_like(value))
    value = value.detach()
    hidden, slopes = (value * z, [slope * z, value]) if mlp.gated else (value, [slope])
    return hidden @ mlp.W_out + mlp.b_out, slopes


def jacobian(
    W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP, input_latents: Tensor, output_latents: Tensor, slopes: list[Tensor]
) -> Tensor:
    """Return J [..., k_out, k_in], from tables that are built for this call."""
    outputs = mlp.W_out @ W_enc_out
    moved = sum(
        (W_dec_in @ branch)[input_latents] * slope[..., None, :]
        for branch, slope in zip(mlp.branches, slopes, strict=True)
    )
    return torch.einsum("...im,m...o->...oi", moved, outputs[:, output_latents])


def sandwich(pair: SAEPair, x: Tensor) -> Sandwich:
    """Return the latents and Jacobians of a document or a token, x [..., d_model]."""
    input_activations, input_latents = encode(pair.input_sae, x)
    decode(pair.input_sae, input_activations)
    mlp_output, slopes = respond(pair.mlp, x)
    output_activations, output_latents = encode(pair.output_sae, mlp_output)
    decode(pair.output_sae, output_activations)
    J = jacobian(pair.input_sae.W_dec, pair.output_sae.W_enc, pair.mlp, input_latents, output_latents, slopes)
    return Sandwich(J, input_latents, output_latents, input_activations, output_activations)


@torch.no_grad()
def histogram(pair: SAEPair, documents: Iterable[Tensor], with_means: bool = True) -> dict[str, Tensor]:
    """Return `hist`, `count_jac` and, from a dense d_sae x d_sae matrix of float64 sums, `mean_jac_hist`.

    Args:
        documents: MLP inputs, each [n_tokens, d_model].
        with_means: False leaves out the matrix and `mean_jac_hist`, if they do not fit in memory.
    """
    d_sae = pair.config.d_sae
    hist = torch.zeros(BINS, device=pair.device)
    count = torch.zeros(d_sae, dtype=torch.int64, device=pair.device)
    sums = torch.zeros(d_sae if with_means else 0, d_sae, dtype=torch.float64, device=pair.device)
    for number, document in enumerate(documents, start=1):
        token = sandwich(pair, document)
        magnitude = token.jacobian.abs()
        hist += torch.histc(magnitude, BINS, 0, RANGE)
        count += token.output_latents.flatten().bincount(minlength=d_sae)
        if with_means:
            places = (
                token.output_latents[:, :, None].expand_as(magnitude).flatten(),
                token.input_latents[:, None, :].expand_as(magnitude).flatten(),
            )
            sums.index_put_(places, magnitude.flatten().double(), accumulate=True)
            if number % NAN_SCAN_EVERY == 0 and sums.isnan().any():
                raise ValueError("the sums of |J| contain NaN")
    result = {"hist": hist.long().cpu(), "count_jac": count.cpu()}
    if with_means:
        means = sums / count.clamp(min=1)[:, None]
        # in blocks, because counts in float32 are not exact up to d_sae^2
        blocks = (torch.histc(block, BINS, 0, RANGE).long() for block in means.flatten().split(2**20))
        result["mean_jac_hist"] = torch.stack(list(blocks)).sum(dim=0).cpu()
    return result


@torch.no_grad()
def ablation(pair: SAEPair, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return J[i, i], and the change of the i-th output latent when one unit of the i-th input latent is taken away,
    for every token of x [n, d_model]; both are [n * k]."""
    predicted, changes = [], []
    for token in x:
        before = sandwich(pair, token)
        for rank in range(pair.config.k):
            input_latent, output_latent = before.input_latents[rank], before.output_latents[rank]
            mlp_output, _ = respond(pair.mlp, token - pair.input_sae.W_dec[input_latent])
            after, _ = encode(pair.output_sae, mlp_output)
            predicted.append(before.jacobian[rank, rank])
            changes.append(after[output_latent] - before.output_activations[output_latent])
    return torch.stack(predicted), torch.stack(changes)


class Curve(NamedTuple):
    input_values: Tensor  # [100]
    output_values: Tensor  # [100]
    shape: str


@torch.no_grad()
def function_shapes(pair: SAEPair, x: Tensor, samples: Sequence[tuple[int, int, int]]) -> list[Curve]:
    """Return a curve for each sample (token, output rank, input rank). Samples must be sorted by token; x [n,
    d_model]."""
    curves: list[Curve] = []
    encoded = None
    for token, output_rank, input_rank in samples:
        if encoded != token:
            encoded = token
            activations, input_latents = encode(pair.input_sae, x[token])
            _, output_latents = encode(pair.output_sae, respond(pair.mlp, x[token])[0])
        input_latent, output_latent = input_latents[input_rank], output_latents[output_rank]
        strength, direction = activations[input_latent], pair.input_sae.W_dec[input_latent]
        values = torch.linspace(0, max(LEAST_RANGE, strength.item() + 1), SWEEP_POINTS, device=x.device)
        swept = x[token] - strength * direction + values[:, None] * direction
        swept_activations, _ = encode(pair.output_sae, respond(pair.mlp, swept)[0])
        outputs = swept_activations[:, output_latent]
        curves.append(Curve(values, outputs, _shape(values.cpu().numpy(), outputs.cpu().numpy())))
    return curves


def _shape(x: np.ndarray, y: np.ndarray) -> str:
    if _is_line(x, y):
        return "linear"
    nonzero = np.flatnonzero(y)
    first, last = nonzero[0], nonzero[-1]  # there are nonzero values, since a curve of zeros is a line
    if first > 0 and _is_line(x[first:], y[first:]):
        return "jumprelu"
    if last < len(y) - 1 and _is_line(x[: last + 1], y[: last + 1]):
        return "jumprelu"
    return "other"


def _is_line(x: np.ndarray, y: np.ndarray) -> bool:
    columns = np.stack([x, np.ones_like(x)], axis=1)
    solution, *_ = np.linalg.lstsq(columns, y)
    return bool((np.abs(y - columns @ solution) < TOLERANCE).all())


def hooked_model(language_model: LanguageModel) -> TransformerBridge:
    """Return the same model with TransformerLens's hooks, with which the original reads and splices activations."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        language_model.name,
        device=str(language_model.device),
        dtype=language_model.dtype,
        tokenizer=language_model.tokenizer,
        hf_model=copy.deepcopy(language_model.hugging_face),  # a copy, because the bridge changes the model
    )
    return bridge.eval().requires_grad_(False)


@torch.no_grad()
def quality(pair: SAEPair, bridge: TransformerBridge, documents: Sequence[Tensor]) -> dict[str, float]:
    """Return means over tokens (without BOS), with the names of `pair_quality`. For each document the whole language
    model runs five times, and the sandwich once."""
    sums: dict[str, float] = {}
    layer = pair.config.layer
    predicted = measured = 0
    for document in documents:
        tokens = document[None].to(pair.input_sae.W_dec.device)
        mlp_input, mlp_output = _true_activations(bridge, tokens, layer)
        splices = {
            "input": ("hook_in", decode(pair.input_sae, encode(pair.input_sae, mlp_input)[0])),
            "output": ("hook_out", decode(pair.output_sae, encode(pair.output_sae, mlp_output)[0])),
            "zero_input": ("hook_in", torch.zeros_like(mlp_input)),
            "zero_output": ("hook_out", torch.zeros_like(mlp_output)),
        }
        clean = bridge(tokens, return_type="logits").log_softmax(-1)
        values = {"ce_clean": _cross_entropy(clean, tokens)}
        for name, (hook, replacement) in splices.items():
            spliced = _spliced(bridge, tokens, f"blocks.{layer}.mlp.{hook}", replacement).log_softmax(-1)
            values[f"ce_{name}"] = _cross_entropy(spliced, tokens)
            values[f"kl_{name}"] = F.kl_div(spliced, clean, log_target=True, reduction="none").sum(-1)[0, 1:].sum()
        magnitude = sandwich(pair, mlp_input[0, 1:]).jacobian.abs()
        squares = magnitude.square()
        values["kurtosis"] = (squares.square().mean(dim=(1, 2)) / squares.mean(dim=(1, 2)).square()).sum()
        values[f"above_{NOTEWORTHY}"] = (magnitude > NOTEWORTHY).float().mean(dim=(1, 2)).sum()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        predicted += len(document) - 2
        measured += len(document) - 1
    return {name: value / (predicted if name.startswith("ce") else measured) for name, value in sums.items()}


def _true_activations(bridge: TransformerBridge, tokens: Tensor, layer: int) -> list[Tensor]:
    names = [f"blocks.{layer}.mlp.{hook}" for hook in ("hook_in", "hook_out")]
    _, cache = bridge.run_with_cache(tokens, names_filter=names, stop_at_layer=layer + 1)
    return [cache[name] for name in names]


def _spliced(bridge: TransformerBridge, tokens: Tensor, hook: str, replacement: Tensor) -> Tensor:
    hooks = [(hook, lambda tensor, hook: replacement)]
    return bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)


def _cross_entropy(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy, summed over the tokens that positions after BOS predict. `log_probabilities` is
    [1, position, vocabulary], `tokens` is [1, position]."""
    return -log_probabilities[0, 1:-1].gather(-1, tokens[0, 2:, None]).sum()


class Trainer:
    """Trains a pair: each step normalises the decoder rows, runs forward and backward, clips the gradient, and updates
    with Adam.

    Args:
        weights: W_enc, b_enc, W_dec and b_dec of the input SAE and of the output SAE; they are changed in place.
    """

    def __init__(self, weights: Sequence[dict[str, Tensor]], mlp: MLP, config: TrainingConfig):
        self.weights, self.mlp, self.config = weights, mlp, config
        self.parameters = [weight.requires_grad_() for side in weights for weight in side.values()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=(0.9, 0.999))

    def step(self, x: Tensor) -> list[float]:
        """Take a step on x [batch, d_model]. Return the losses of the input SAE and of the output SAE, and mean |J|,
        which is computed even if the coefficient is 0. Learning rate and coefficient are constant."""
        with torch.no_grad():
            for side in self.weights:
                side["W_dec"] /= side["W_dec"].norm(dim=1, keepdim=True)
        mlp_output, slopes = respond(self.mlp, x)
        losses, latents = [], []
        for side, target in zip(self.weights, (x, mlp_output), strict=True):
            activations, active = _top(target @ side["W_enc"] + side["b_enc"], self.config.k)
            reconstruction = activations @ side["W_dec"] + side["b_dec"]
            losses.append((target - reconstruction).square().mean())
            latents.append(active)
        inputs, outputs = self.weights
        J = jacobian(inputs["W_dec"], outputs["W_enc"], self.mlp, *latents, slopes)
        losses.append(J.abs().mean())
        loss = losses[0] + losses[1] + self.config.jacobian_coefficient * losses[2]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        self.optimizer.step()
        return [value.item() for value in losses]


def load(directory: Path, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of both SAEs and of the MLP by their names in the artifact. The SAEs are constructed with
    random weights first, and then get the artifact's weights."""
    config = json.loads((directory / "cfg.json").read_text())
    tensors = load_file(directory / "sae_weights.safetensors", device=str(device))
    loaded = {name: tensor for name, tensor in tensors.items() if name.startswith("mlp.")}
    for side in ("", "_out"):
        sae = TopKSAE(
            TopKSAEConfig(
                d_in=config["d_in"],
                d_sae=config["d_sae"],
                k=config["activation_fn_kwargs"]["k"],
                device=str(device),
                apply_b_dec_to_input=config["apply_b_dec_to_input"],
            )
        )
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        sae.load_state_dict({name: tensors[f"_{name}{side}"] for name in names})
        loaded |= {f"_{name}{side}": getattr(sae, name) for name in names}
    return loaded
