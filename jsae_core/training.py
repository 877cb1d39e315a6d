"""Train a pair: two SAEs at once, with the Jacobian penalty or (coefficient 0) without.

Here: the loss, the schedules, the step, the shuffled buffer of activations. Not here: where activations come from
(`activations.py`), how a finished pair is measured (`measures/`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jsae_core.fused import fused_kernels
from jsae_core.jacobian import jacobian_penalty
from jsae_core.mlp import MLP
from jsae_core.objectives import OBJECTIVES
from jsae_core.pair_format import PairConfig, tensor_name
from jsae_core.recipe import TrainingConfig
from jsae_core.sae import SAE_WEIGHTS, decode, top_k
from jsae_core.sae_pair import SAEPair


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands: losses of the step just done."""

    step: int
    steps: int
    input_loss: float
    output_loss: float
    jacobian_loss: float


def train_pair(
    mlp_inputs: Tensor | Iterable[Tensor],
    mlp: MLP,
    config: TrainingConfig | Mapping[str, Any],
    model_name: str = "unnamed",
    layer: int = 0,
    context_size: int | None = None,
    randomize_llm_weights: bool = False,
    report: Callable[[TrainingProgress], None] | None = None,
) -> SAEPair:
    """Train a pair on the inputs of a frozen MLP.

    The loss is mean((x - x_hat)^2) + mean((y - y_hat)^2) + lambda_t * objective(J), the first two means over tokens and
    features; the objective is mean |J| unless the recipe names another (Farnik et al., 2025, section 3;
    `objectives.py`). A step: unit-norm decoder rows, forward, backward, clipped gradient, Adam.

    Args:
        mlp_inputs: [n_tokens, d_model], or a stream of such; shuffled here. On the MLP's device and in its dtype.
        config: a TrainingConfig, or its fields in a mapping.
        model_name, layer, context_size, randomize_llm_weights: where the inputs came from; written into the pair's
            configuration.
        report: called about twenty times on the way.

    Returns:
        The pair, on the MLP's device. The same inputs and config give the same pair on a CPU.

    Raises:
        ValueError: there are no inputs, a stream larger than the buffer ends before the steps are done, or the loss
            stops being finite.
    """
    if not isinstance(config, TrainingConfig):
        config = TrainingConfig(**config)
    generator = torch.Generator().manual_seed(config.seed)
    weights = {
        side: _initial_weights(mlp.W_in.shape[0], config.d_sae, generator, mlp.W_in) for side in ("input", "output")
    }
    parameters = [weights[side][part] for side in weights for part in SAE_WEIGHTS]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, betas=(0.9, 0.999), fused=True)
    batches = shuffled_batches(mlp_inputs, config.batch_tokens, config.buffer_tokens, generator)
    objective = OBJECTIVES[config.objective] if config.jacobian_coefficient else None
    every = max(1, config.steps // 20)
    for step in range(config.steps):
        x = next(batches, None)
        if x is None:
            raise ValueError(
                f"the stream of MLP inputs ended after {step} of {config.steps} steps of {config.batch_tokens} tokens; "
                "give more text or fewer steps"
            )
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        _normalise_decoders(weights)
        losses = _losses(weights, mlp, x, config.k, objective)
        loss = losses["input"] + losses["output"] + config.jacobian_coefficient_at(step) * losses["jacobian"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == config.steps:
            total, *parts = torch.stack([loss, *losses.values()]).tolist()
            if not math.isfinite(total):
                raise ValueError(f"the loss is {total} at step {step + 1}; lower the learning rate")
            if report is not None:
                report(TrainingProgress(step + 1, config.steps, *parts))
    tensors = {tensor_name(side, name): weights[side][name].detach() for side in weights for name in SAE_WEIGHTS} | {
        f"mlp.{name}": tensor for name, tensor in mlp.named_buffers(recurse=False)
    }
    pair_config = PairConfig(
        model_name=model_name,
        layer=layer,
        context_size=context_size,
        d_in=mlp.W_in.shape[0],
        d_sae=config.d_sae,
        k=config.k,
        jacobian_coefficient=config.jacobian_coefficient,
        dtype=str(mlp.W_in.dtype).removeprefix("torch."),
        apply_b_dec_to_input=False,
        trained_on_bos=False,  # a stream of MLP inputs leaves BOS out
        randomize_llm_weights=randomize_llm_weights,
        mlp_activation=mlp.activation,
        extra=_artifact_recipe(config),
    )
    return SAEPair.from_tensors(tensors, pair_config)


def _initial_weights(d_in: int, d_sae: int, generator: torch.Generator, like: Tensor) -> dict[str, Tensor]:
    W_dec = torch.nn.init.kaiming_uniform_(torch.empty(d_sae, d_in), generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    tensors = {
        "W_enc": W_dec.T.clone(),
        "b_enc": torch.zeros(d_sae),
        "W_dec": W_dec,
        "b_dec": torch.zeros(d_in),
    }
    return {name: tensor.to(like).requires_grad_() for name, tensor in tensors.items()}


@torch.no_grad()
def _normalise_decoders(weights: dict[str, dict[str, Tensor]]) -> None:
    for side in weights.values():
        side["W_dec"] /= side["W_dec"].norm(dim=1, keepdim=True).clamp(min=1e-12)


def _losses(
    weights: dict[str, dict[str, Tensor]],
    mlp: MLP,
    x: Tensor,
    k: int,
    objective: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """The three terms of the loss, lambda left out; the Jacobian's is 0 where there is no objective."""
    response = mlp.respond(x)
    latents, losses = {}, {}
    for side, target in (("input", x), ("output", response.output)):
        part = weights[side]
        with torch.no_grad():
            values, latents[side] = top_k(torch.addmm(part["b_enc"], target, part["W_enc"]), k)
        active = _active(latents[side], part["W_dec"])
        activations = torch.relu(_PreActivations.apply(target, part["W_enc"], part["b_enc"], values, active))
        reconstruction = active.decode(part["W_dec"], part["b_dec"], activations)
        losses[side] = (target - reconstruction).square().mean()
    if objective is None:
        return losses | {"jacobian": x.new_zeros(())}
    W_dec_in, W_enc_out = weights["input"]["W_dec"], weights["output"]["W_enc"]
    of_latents = (latents["input"], latents["output"], response.slopes)
    return losses | {"jacobian": jacobian_penalty(W_dec_in, W_enc_out, mlp, *of_latents, objective)}


class _PreActivations(torch.autograd.Function):
    """The k largest pre-activations of each token, `values` [n, k], with the gradient that they have to W_enc
    [d_in, d_sae] and b_enc; x [n, d_in].

    Only k of d_sae pre-activations of a token have a gradient. A dense product with the rest, which is zero, would cost
    as much as the encoder itself: a third of a traditional step at Pythia-70m's shapes."""

    @staticmethod
    def forward(ctx, x, W_enc, b_enc, values, active):
        ctx.save_for_backward(x)
        ctx.active, ctx.d_sae = active, len(b_enc)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, d_values):
        (x,) = ctx.saved_tensors
        d_bias = d_values.new_zeros(ctx.d_sae)
        d_bias.index_add_(0, ctx.active.latents.reshape(-1), d_values.reshape(-1))
        return None, ctx.active.weighted_sums(x, d_values).T, d_bias, None, None


class _Active:
    """The latents [n, k] that are active in each of n tokens, and what training takes along them."""

    def __init__(self, latents: Tensor, d_sae: int):
        self.latents = latents
        self._d_sae = d_sae

    def decode(self, W_dec: Tensor, b_dec: Tensor, activations: Tensor) -> Tensor:
        """The reconstruction [n, d_in] from the activations [n, k], with gradients to all three."""
        return decode(W_dec, b_dec, activations, self.latents)

    def weighted_sums(self, rows: Tensor, weights: Tensor) -> Tensor:
        """For each latent the sum of its tokens' rows [n, width], each times its weight [n, k]; [d_sae, width]."""
        # what an embedding's gradient is
        with torch.enable_grad():
            table = rows.new_zeros(self._d_sae, rows.shape[1]).requires_grad_()
            weighted = F.embedding_bag(self.latents, table, per_sample_weights=weights, mode="sum")
            (sums,) = torch.autograd.grad(weighted, table, rows)
        return sums


class _ActiveOnGPU(_Active):
    """The same by the fused kernels: the latents are put in order once for all gradients of a step."""

    def __init__(self, latents: Tensor, d_sae: int, kernels: ModuleType):
        super().__init__(latents, d_sae)
        self._kernels = kernels
        self._where = kernels.occurrences(latents, d_sae)

    def decode(self, W_dec: Tensor, b_dec: Tensor, activations: Tensor) -> Tensor:
        return _Decoded.apply(W_dec, activations, self) + b_dec

    def weighted_sums(self, rows: Tensor, weights: Tensor) -> Tensor:
        return self._kernels.weighted_sums(rows, weights, self._where)

    def products(self, table: Tensor, vectors: Tensor) -> Tensor:
        """Of each token's vector [n, width] and its latents' rows of a table [d_sae, width]: [n, k]."""
        return self._kernels.row_products(table, self.latents, vectors)


class _Decoded(torch.autograd.Function):
    """The sums of the latents' rows, and their gradients."""

    @staticmethod
    def forward(ctx, W_dec, activations, active):
        ctx.save_for_backward(W_dec, activations)
        ctx.active = active
        return F.embedding_bag(active.latents, W_dec, per_sample_weights=activations, mode="sum")

    @staticmethod
    def backward(ctx, d_decoded):
        W_dec, activations = ctx.saved_tensors
        return ctx.active.weighted_sums(d_decoded, activations), ctx.active.products(W_dec, d_decoded), None


def _active(latents: Tensor, W_dec: Tensor) -> _Active:
    kernels = fused_kernels(W_dec, latents.shape[1])
    return _Active(latents, len(W_dec)) if kernels is None else _ActiveOnGPU(latents, len(W_dec), kernels)


def _artifact_recipe(config: TrainingConfig) -> dict[str, float | str]:
    """The recipe under the names that the artifact format gives it."""
    return {
        "lr": config.learning_rate,
        "lr_warm_up_steps": round(config.steps * config.learning_rate_warm_up),
        "lr_decay_steps": round(config.steps * config.learning_rate_decay),
        "objective": config.objective,
        "jacobian_warm_up_steps": round(config.steps * config.jacobian_warm_up),
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "train_batch_size_tokens": config.batch_tokens,
        "training_tokens": config.steps * config.batch_tokens,
        "seed": config.seed,
    }


def shuffled_batches(
    mlp_inputs: Tensor | Iterable[Tensor], batch_tokens: int, buffer_tokens: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches [batch_tokens, d_model] in random order.

    What fits the buffer is gone through in epochs, without end. A longer stream is mixed through the buffer, half of
    which is refilled at a time, and ends when the stream does.

    Raises:
        ValueError: the stream holds no token.
    """
    pieces = [mlp_inputs] if isinstance(mlp_inputs, Tensor) else mlp_inputs
    stream = (piece for piece in pieces if len(piece))
    buffer = _read(stream, buffer_tokens)
    if buffer is None:
        raise ValueError("the stream of MLP inputs is empty: there is nothing to train on")
    following = next(stream, None)
    if following is None:
        while True:
            # a batch larger than the data holds some tokens twice
            rounds = -(-batch_tokens // len(buffer))
            order = torch.cat([torch.randperm(len(buffer), generator=generator) for _ in range(rounds)])
            for batch in order.split(batch_tokens):
                if len(batch) == batch_tokens:
                    yield buffer[batch.to(buffer.device)]
    while buffer is not None:
        order = torch.randperm(len(buffer), generator=generator).to(buffer.device)
        keep = len(buffer) // 2 if following is not None else len(buffer) % batch_tokens
        served, kept = order[keep:], order[:keep]
        whole = len(served) // batch_tokens * batch_tokens
        for start in range(0, whole, batch_tokens):
            yield buffer[served[start : start + batch_tokens]]
        if following is None:
            return
        rest = buffer[torch.cat([kept, served[whole:]])]
        refill = _read(stream, buffer_tokens - len(rest) - len(following))
        buffer = torch.cat([part for part in (rest, following, refill) if part is not None])
        following = next(stream, None)


def _read(stream: Iterator[Tensor], tokens: int) -> Tensor | None:
    """At least `tokens` rows of the stream, or all it has left."""
    chunks: list[Tensor] = []
    while tokens > 0 and (chunk := next(stream, None)) is not None:
        chunks.append(chunk)
        tokens -= len(chunk)
    return torch.cat(chunks) if chunks else None
