"""The terms of the training loss, with their gradients.

Here: reconstruction through the active latents alone, the accounted share that the anti-bypass penalty needs, the
auxiliary loss of dead latents. Not here: the term of the Jacobian (`jacobian.py`), the weights of the terms
(`training.py`).

A side is "input" or "output", and its weights are `W_enc`, `b_enc`, `W_dec` and `b_dec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jsae_core.fused import fused_kernels
from jsae_core.jacobian import jacobian_penalty
from jsae_core.mlp import MLP
from jsae_core.recipe import TrainingConfig
from jsae_core.sae import decode, top_k

Weights = Mapping[str, Mapping[str, Tensor]]  # by side, then by name


class Losses(NamedTuple):
    """The terms of one batch, scalars without their weights; terms that the recipe does not ask for are 0 or None.

    Attributes:
        input, output: mean squared errors of the reconstructions.
        jacobian: the objective of the Jacobian.
        auxk: the auxiliary loss of the dead latents, summed over both sides.
        accounted_share: the share of the output latents' pre-activations that the input latents account for.
        active: by side, the latents [n, k] in the TopK, and their activations [n, k].
    """

    input: Tensor
    output: Tensor
    jacobian: Tensor
    auxk: Tensor | None
    accounted_share: Tensor | None
    active: Mapping[str, tuple[Tensor, Tensor]]


def losses_of(
    weights: Weights,
    mlp: MLP,
    x: Tensor,
    config: TrainingConfig,
    objective: Callable[[Tensor], Tensor] | None,
    dead: Mapping[str, Tensor] | None = None,
) -> Losses:
    """The terms of the loss for a batch x [n, d_model].

    Args:
        objective: function of the Jacobians; None computes no Jacobian.
        dead: by side, a mask [d_sae] of the dead latents that the auxiliary loss revives; None leaves this loss out.
    """
    response = mlp.respond(x)
    active: dict[str, _Active] = {}
    chosen: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    reconstructions: dict[str, Tensor] = {}
    auxk: Tensor | None = None
    for side, target in (("input", x), ("output", response.output)):
        part = weights[side]
        with torch.no_grad():
            pre_activations = torch.addmm(part["b_enc"], target, part["W_enc"])
            values, latents = top_k(pre_activations, config.k)
        active[side] = _active(latents, part["W_dec"])
        chosen[side] = _PreActivations.apply(target, part["W_enc"], part["b_enc"], values, active[side])
        reconstructions[side] = active[side].decode(part["W_dec"], part["b_dec"], torch.relu(chosen[side]))
        errors[side] = target - reconstructions[side]
        if config.auxk is not None and dead is not None:
            of_side = _auxk(part, target, errors[side].detach(), pre_activations, dead[side], config.auxk.k)
            auxk = of_side if auxk is None else auxk + of_side
    jacobian, share = x.new_zeros(()), None
    if objective is not None:
        W_dec_in, W_enc_out = weights["input"]["W_dec"], weights["output"]["W_enc"]
        of_latents = (active["input"].latents, active["output"].latents, response.slopes)
        jacobian = jacobian_penalty(W_dec_in, W_enc_out, mlp, *of_latents, objective)
    if config.anti_bypass is not None:
        from_latents = reconstructions["input"] - weights["input"]["b_dec"]
        without = _at(weights["output"], mlp(x - from_latents), active["output"])
        share = (chosen["output"] - without).sum() / chosen["output"].sum()
    return Losses(
        errors["input"].square().mean(),
        errors["output"].square().mean(),
        jacobian,
        auxk,
        share,
        {side: (active[side].latents, torch.relu(chosen[side]).detach()) for side in active},
    )


def _at(part: Mapping[str, Tensor], target: Tensor, active: _Active) -> Tensor:
    """The pre-activations [n, k] that the latents in `active` have at other inputs, `target` [n, d_in], with gradients
    to the encoder and to these inputs."""
    with torch.no_grad():
        values = torch.addmm(part["b_enc"], target, part["W_enc"]).gather(1, active.latents)
    return _PreActivations.apply(target, part["W_enc"], part["b_enc"], values, active)


def _auxk(
    part: Mapping[str, Tensor], target: Tensor, error: Tensor, pre_activations: Tensor, dead: Tensor, k: int
) -> Tensor:
    """mean((e - e_hat)^2), where e is the error that the active latents leave and e_hat its reconstruction, without a
    bias, by the k dead latents with the largest pre-activations (AuxK; Gao et al., 2024, "Scaling and evaluating sparse
    autoencoders", appendix A.2). 0 if no latent is dead."""
    dead_latents = dead.nonzero()[:, 0]
    if not len(dead_latents):
        return target.new_zeros(())
    values, indices = pre_activations[:, dead_latents].topk(min(k, len(dead_latents)))
    active = _active(dead_latents[indices], part["W_dec"])
    chosen = torch.relu(_PreActivations.apply(target, part["W_enc"], part["b_enc"], values, active))
    return (error - active.decode(part["W_dec"], torch.zeros_like(part["b_dec"]), chosen)).square().mean()


class _PreActivations(torch.autograd.Function):
    """The k pre-activations `values` [n, k] of each token, with their gradient with respect to W_enc [d_in, d_sae],
    b_enc and, if asked for, x [n, d_in].

    Only k of the d_sae pre-activations of a token have a gradient. A dense product that includes the other zeros would
    cost as much as the encoder itself: a third of a traditional step at Pythia-70m's shapes."""

    @staticmethod
    def forward(ctx, x, W_enc, b_enc, values, active):
        ctx.save_for_backward(x, W_enc)
        ctx.active = active
        return values.view_as(values)

    @staticmethod
    def backward(ctx, d_values):
        x, W_enc = ctx.saved_tensors
        d_bias = d_values.new_zeros(W_enc.shape[1])
        d_bias.index_add_(0, ctx.active.latents.reshape(-1), d_values.reshape(-1))
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = F.embedding_bag(ctx.active.latents, W_enc.T.contiguous(), per_sample_weights=d_values, mode="sum")
        return d_x, ctx.active.weighted_sums(x, d_values).T, d_bias, None, None


class _Active:
    """The latents [n, k] that are active in each of n tokens, with the sums over them that training needs."""

    def __init__(self, latents: Tensor, d_sae: int):
        self.latents = latents
        self._d_sae = d_sae

    def decode(self, W_dec: Tensor, b_dec: Tensor, activations: Tensor) -> Tensor:
        """The reconstruction [n, d_in] from the activations [n, k], with gradients to all three arguments."""
        return decode(W_dec, b_dec, activations, self.latents)

    def weighted_sums(self, rows: Tensor, weights: Tensor) -> Tensor:
        """For each latent, the sum of the rows [n, width] of the tokens in which it is active, each times its weight
        [n, k]; [d_sae, width]."""
        # the gradient of an embedding's weighted sum is exactly this sum
        with torch.enable_grad():
            table = rows.new_zeros(self._d_sae, rows.shape[1]).requires_grad_()
            weighted = F.embedding_bag(self.latents, table, per_sample_weights=weights, mode="sum")
            (sums,) = torch.autograd.grad(weighted, table, rows)
        return sums


class _ActiveOnGPU(_Active):
    """The same with the fused kernels: the latents are sorted once for all gradients of a step."""

    def __init__(self, latents: Tensor, d_sae: int, kernels: ModuleType):
        super().__init__(latents, d_sae)
        self._kernels = kernels
        self._occurrences = kernels.occurrences(latents, d_sae)

    def decode(self, W_dec: Tensor, b_dec: Tensor, activations: Tensor) -> Tensor:
        return _Decoded.apply(W_dec, activations, self) + b_dec

    def weighted_sums(self, rows: Tensor, weights: Tensor) -> Tensor:
        return self._kernels.weighted_sums(rows, weights, self._occurrences)

    def products(self, table: Tensor, vectors: Tensor) -> Tensor:
        """The products [n, k] of each token's vector [n, width] with its latents' rows of a table [d_sae, width]."""
        return self._kernels.row_products(table, self.latents, vectors)


class _Decoded(torch.autograd.Function):
    """For each token, the sum of its latents' decoder rows times their activations, with its gradients."""

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
