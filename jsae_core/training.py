"""Train a pair: two SAEs at once, with the Jacobian penalty or (coefficient 0) without.

Here: the step, the state that training goes on from. Not here: the terms of the loss (`losses.py`), the schedules
(`recipe.py`), where activations come from (`activations.py`) and in which order (`shuffling.py`), how a finished pair
is measured (`measures/`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from jsae_core.checkpoints import Checkpoint, State
from jsae_core.losses import Losses, losses_of
from jsae_core.memory import available_bytes
from jsae_core.mlp import MLP
from jsae_core.objectives import OBJECTIVES
from jsae_core.pace import SECONDS_BETWEEN_REPORTS
from jsae_core.pair_format import PairConfig, tensor_name
from jsae_core.recipe import TrainingConfig
from jsae_core.sae import SAE_WEIGHTS
from jsae_core.sae_pair import SAEPair
from jsae_core.shuffling import ShuffledBatches
from jsae_core.tensor_files import content_digest

STATE_VERSION = "train_pair 2"  # raise it when the content of a checkpoint or the computation of a step changes


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of training: the losses of the last step (and the accounted share, if the recipe asks for it), and
    `spared`, the number of steps that a checkpoint made unnecessary."""

    step: int
    steps: int
    input_loss: float
    output_loss: float
    jacobian_loss: float
    spared: int = 0
    accounted_share: float | None = None


def train_pair(
    mlp_inputs: Tensor | Iterable[Tensor],
    mlp: MLP,
    config: TrainingConfig | Mapping[str, Any],
    model_name: str = "unnamed",
    layer: int = 0,
    context_size: int | None = None,
    randomize_llm_weights: bool = False,
    report: Callable[[TrainingProgress], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> SAEPair:
    """Train a pair on the inputs of a frozen MLP.

    The loss is mean((x - x_hat)^2) + mean((y - y_hat)^2) + lambda_t * objective(J), the first two means over tokens and
    features; the objective is mean |J| unless the recipe names another (Farnik et al., 2025, section 3;
    `objectives.py`). What a recipe may weigh otherwise or add, `TrainingConfig` says. A step: unit-norm decoder rows,
    forward, backward, clipped gradient, Adam.

    Args:
        mlp_inputs: [n_tokens, d_model], or a stream of such; shuffled here. On the MLP's device and in its dtype.
        config: a TrainingConfig, or its fields in a mapping.
        model_name, layer, context_size, randomize_llm_weights: where the inputs came from; written into the pair's
            configuration.
        report: called about twenty times on the way, and at least every few seconds.
        checkpoint: where the state of training is kept on the way. If it holds one of the same inputs, MLP and config,
            training goes on from there, and ends as it would have without the interruption (on a CPU: bit for bit).
            Remove it once the pair is stored.

    Returns:
        The pair, on the MLP's device. The same inputs and config give the same pair on a CPU.

    Raises:
        ValueError: there are no inputs, or ones of another shape, dtype or device than the MLP takes; a stream larger
            than the buffer ends before the steps are done; or the loss stops being finite.
        MemoryError: the device has no room for pairs of this size.
    """
    if not isinstance(config, TrainingConfig):
        config = TrainingConfig(**config)
    _check_room(config.d_sae, mlp.W_in)
    generator = torch.Generator().manual_seed(config.seed)
    weights = {
        side: _initial_weights(mlp.W_in.shape[0], config.d_sae, generator, mlp.W_in) for side in ("input", "output")
    }
    parameters = [weights[side][part] for side in weights for part in SAE_WEIGHTS]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, betas=(0.9, 0.999), fused=True)
    batches = ShuffledBatches(mlp_inputs, config.batch_tokens, config.buffer_tokens, generator)
    objective = OBJECTIVES[config.objective] if config.jacobian_coefficient else None
    # of each latent, the tokens since it was last active
    unused = {side: torch.zeros(config.d_sae, dtype=torch.int64, device=mlp.W_in.device) for side in weights}
    every, reported, start = max(1, config.steps // 20), time.monotonic(), 0
    if checkpoint is not None:
        checkpoint = checkpoint.of(STATE_VERSION, *_digests(config, mlp), batches.first_digest())
        start = _resumed(checkpoint, optimizer, parameters, unused, batches)
    for step in range(start, config.steps):
        x = next(batches, None)
        if x is None:
            raise ValueError(
                f"the stream of MLP inputs ended after {step} of {config.steps} steps of {config.batch_tokens} tokens; "
                "give more text or fewer steps"
            )
        _check_inputs(x, mlp.W_in)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        _normalise_decoders(weights)
        optimizer.zero_grad()
        dead = None
        if config.auxk:
            dead = {side: tokens >= config.auxk.dead_after_tokens for side, tokens in unused.items()}
        terms: list[Tensor] = []
        for part in x.split(config.batch_tokens // config.gradient_accumulation):
            losses = losses_of(weights, mlp, part, config, objective, dead)
            loss = _total(losses, config, step) / config.gradient_accumulation
            loss.backward()
            terms.append(_reported_terms(loss, losses, config))
            if config.auxk:
                _count_unused(unused, losses)
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        optimizer.step()
        if checkpoint is not None and checkpoint.due():
            state = _state(step + 1, optimizer, parameters, unused, batches)
            checkpoint.save(state.tensors, state.values)
        late = time.monotonic() - reported >= SECONDS_BETWEEN_REPORTS
        if (step + 1) % every == 0 or step + 1 == config.steps or late:
            reported = time.monotonic()
            total, of_input, of_output, of_jacobian, share = torch.stack(terms).sum(dim=0).tolist()
            if not math.isfinite(total):
                raise ValueError(
                    f"the loss is {total} at step {step + 1}; are the MLP inputs finite? If so, lower the learning rate"
                )
            if report is not None:
                accounted = share if config.anti_bypass else None
                of_terms = (of_input, of_output, of_jacobian)
                report(TrainingProgress(step + 1, config.steps, *of_terms, spared=start, accounted_share=accounted))
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


def _check_inputs(x: Tensor, weight: Tensor) -> None:
    """Raise ValueError if an MLP with these first weights, [d_model, d_mlp], cannot be given a batch x."""
    if x.ndim != 2 or len(weight) != x.shape[1] or (x.dtype, x.device) != (weight.dtype, weight.device):
        shape = ", ".join(map(str, ("n_tokens", *x.shape[1:])))
        raise ValueError(
            f"the MLP inputs are {x.dtype} of shape [{shape}] on {x.device}; expected {weight.dtype} of shape "
            f"[n_tokens, {len(weight)}] on {weight.device}, as the MLP's weights are"
        )


def _total(losses: Losses, config: TrainingConfig, step: int) -> Tensor:
    """The loss: the weighted sum of its terms."""
    total = losses.input + config.mlp_out_mse_coefficient * losses.output
    total = total + config.jacobian_coefficient_at(step) * losses.jacobian
    if config.auxk is not None and losses.auxk is not None:
        total = total + config.auxk.coefficient * losses.auxk
    if config.anti_bypass is not None and losses.accounted_share is not None:
        total = total + config.anti_bypass.weight * torch.relu(config.anti_bypass.threshold - losses.accounted_share)
    return total


def _reported_terms(loss: Tensor, losses: Losses, config: TrainingConfig) -> Tensor:
    """What one part of a batch adds to the numbers that a step reports: the loss, its first three terms, the accounted
    share."""
    share = losses.input.new_zeros(()) if losses.accounted_share is None else losses.accounted_share
    terms = torch.stack([losses.input, losses.output, losses.jacobian, share])
    return torch.cat([loss.detach()[None], terms.detach() / config.gradient_accumulation])


def _count_unused(unused: dict[str, Tensor], losses: Losses) -> None:
    """Update, in place, how many tokens each latent has not been active for."""
    for side, (latents, activations) in losses.active.items():
        unused[side] += len(latents)
        unused[side][latents[activations > 0]] = 0


def _digests(config: TrainingConfig, mlp: MLP) -> tuple[str, str, str]:
    """What the trained pair depends on besides its inputs: recipe, activation and digest of the MLP's weights."""
    return json.dumps(asdict(config)), mlp.activation, content_digest(dict(mlp.named_buffers(recurse=False)))


def _state(
    step: int,
    optimizer: torch.optim.Adam,
    parameters: list[Tensor],
    unused: dict[str, Tensor],
    batches: ShuffledBatches,
) -> State:
    """The state after `step` steps: the parameters, Adam's state of each, for how many tokens each latent has not been
    active, and the position in the batches."""
    order = State.joined({"batches": batches.state()})
    tensors = {**order.tensors} | {f"unused.{side}": tokens for side, tokens in unused.items()}
    for number, parameter in enumerate(parameters):
        tensors[f"{number}.value"] = parameter
        tensors |= {f"{number}.adam.{name}": tensor for name, tensor in optimizer.state[parameter].items()}
    return State(tensors, {"step": step, **order.values})


def _resumed(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Adam,
    parameters: list[Tensor],
    unused: dict[str, Tensor],
    batches: ShuffledBatches,
) -> int:
    """Restore everything that `_state` holds, and return the number of steps done; 0 if there is no usable state."""
    state = checkpoint.load()
    if state is None:
        return 0
    if not batches.restore(state.part("batches")):
        checkpoint.refuse("the stream of MLP inputs has changed")
        return 0
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(state.tensors[f"{number}.value"])
        for side, tokens in unused.items():
            tokens.copy_(state.tensors[f"unused.{side}"])
    adam = {
        number: {name: _like(parameter, tensor) for name, tensor in state.part(f"{number}.adam").tensors.items()}
        for number, parameter in enumerate(parameters)
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": adam})
    return state.values["step"]


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy of the tensor. If it has the parameter's shape, it gets its memory layout, too, as fused Adam expects."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor.clone()


def _check_room(d_sae: int, like: Tensor) -> None:
    """Raises MemoryError if the weights of both SAEs, their gradients and Adam's two means for each do not fit the free
    memory. (On a CPU, an allocation beyond the memory succeeds, and the process is killed when it uses it.)"""
    needed, free = 4 * 2 * 2 * like.shape[0] * d_sae * like.element_size(), available_bytes(like.device)
    if free is not None and needed > free:
        raise MemoryError(
            f"training a pair with d_sae {d_sae:,} takes at least {needed / 2**30:,.1f} GiB for weights, gradients and "
            f"Adam, but {free / 2**30:,.1f} GiB are free on {like.device}; give a smaller d_sae"
        )


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


def _artifact_recipe(config: TrainingConfig) -> dict[str, Any]:
    """The recipe under the artifact format's names; optional settings only if they differ from their defaults."""
    options = ("mlp_out_mse_coefficient", "auxk", "anti_bypass", "gradient_accumulation")
    values, default = asdict(config), {field.name: field.default for field in fields(TrainingConfig)}
    return {name: values[name] for name in options if values[name] != default[name]} | {
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
