"""The recipe by which a pair is trained: its sizes and its schedules, as plain numbers.

Separate from `training.py`, so that a catalog can be read and checked without importing torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from jsae_core.names import advice

OBJECTIVE_NAMES = ("l1", "l1nb", "l1nt", "cl1", "cl1nb", "cl1nt", "tanh", "scad", "exp", "log2", "loge", "lp")
LARGEST_SEED = 2**63 - 1  # the largest that the generators of torch and numpy both take
COUNTS = ("d_sae", "k", "steps", "batch_tokens", "buffer_tokens", "gradient_accumulation")
SHARES_OF_STEPS = ("learning_rate_warm_up", "learning_rate_decay", "jacobian_warm_up")


def _check_numbers(settings: AuxK | AntiBypass | TrainingConfig) -> None:
    """Raises ValueError if a setting that is a number was given something else, or a whole number a fraction."""
    for setting in fields(settings):
        kind, value = {"int": Integral, "float": Real}.get(str(setting.type)), getattr(settings, setting.name)
        if kind is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            whole = "whole " if kind is Integral else ""
            raise ValueError(f"{setting.name} is {value!r}, expected a {whole}number")


@dataclass(frozen=True)
class AuxK:
    """An auxiliary loss that can revive dead latents (AuxK; Gao et al., 2024, "Scaling and evaluating sparse
    autoencoders", appendix A.2; the defaults are theirs).

    Attributes:
        coefficient: the weight of this loss, above 0.
        k: how many dead latents together reconstruct the error that the active ones leave.
        dead_after_tokens: a latent counts as dead once it was active in none of the last so many tokens.
    """

    coefficient: float = 1 / 32
    k: int = 512
    dead_after_tokens: int = 10_000_000

    def __post_init__(self):
        _check_numbers(self)
        if not (0 < self.coefficient < math.inf and self.k >= 1 and self.dead_after_tokens >= 1):
            raise ValueError(
                f"auxk has coefficient {self.coefficient}, k {self.k} and dead_after_tokens {self.dead_after_tokens}, "
                "expected a finite coefficient above 0, and k and dead_after_tokens of at least 1"
            )


@dataclass(frozen=True)
class AntiBypass:
    """A penalty on output latents that the input latents do not account for: weight * max(0, threshold - A), where A is
    the accounted share (`jsae_core.measures.latent_accounting`) of the batch. Without it, a pair can make its Jacobian
    small by bypassing the input latents, through biases and the input SAE's error.

    Attributes:
        weight: the weight of this penalty, above 0.
        threshold: the accounted share from which on there is no penalty, above 0 and at most 1.
    """

    weight: float
    threshold: float = 0.9

    def __post_init__(self):
        _check_numbers(self)
        if not (0 < self.weight < math.inf and 0 < self.threshold <= 1):
            raise ValueError(
                f"anti_bypass has weight {self.weight} and threshold {self.threshold}, expected a finite weight above "
                "0 and a threshold above 0 and at most 1"
            )


def _term(name: str, kind: type[AuxK] | type[AntiBypass], given: Any) -> AuxK | AntiBypass | None:
    """Return an optional term of the loss, made from its settings if they were given as a mapping. Raises ValueError if
    they are neither such a term nor its settings."""
    if given is None or isinstance(given, kind):
        return given
    try:
        return kind(**given)
    except TypeError as error:
        known = ", ".join(setting.name for setting in fields(kind))
        raise ValueError(f"{name} is {given!r}, expected a mapping of its settings, {known} ({error})") from error


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of training. The defaults are those of the paper's pairs, except for settings that depend on the
    model.

    Attributes:
        jacobian_coefficient: lambda; with 0, a traditional pair is trained and no Jacobian is computed.
        batch_tokens: tokens in each step.
        learning_rate_warm_up, learning_rate_decay, jacobian_warm_up: shares of all steps, between 0 and 1.
        gradient_clip: the largest norm of the gradient, above 0; infinity switches clipping off.
        mlp_out_mse_coefficient: the weight of the output SAE's error; the input SAE's error has weight 1.
        auxk, anti_bypass: optional terms of the loss, as an object or as a mapping of its settings.
        gradient_accumulation: into how many parts a step divides its batch, to take less memory; must divide
            batch_tokens. The gradient is the mean of the parts' gradients. It equals that of the whole batch, except
            for objectives (and the accounted share) that are not means over tokens.
        objective: the function of the Jacobian that lambda weighs, by its name in `objectives.py`; "l1" is mean |J|.
        buffer_tokens: activations held for shuffling; a stream that fits is read once and repeated in epochs.
    """

    d_sae: int
    k: int
    jacobian_coefficient: float
    steps: int
    batch_tokens: int = 4096
    learning_rate: float = 5e-4
    learning_rate_warm_up: float = 0.01
    learning_rate_decay: float = 0.2
    jacobian_warm_up: float = 0.05
    gradient_clip: float = 1.0
    seed: int = 0
    buffer_tokens: int = 2**19
    objective: str = "l1"
    mlp_out_mse_coefficient: float = 1.0
    auxk: AuxK | None = None
    anti_bypass: AntiBypass | None = None
    gradient_accumulation: int = 1

    def __post_init__(self):
        for name, kind in (("auxk", AuxK), ("anti_bypass", AntiBypass)):
            object.__setattr__(self, name, _term(name, kind, getattr(self, name)))
        _check_numbers(self)
        if found := [*problems(vars(self))]:
            raise ValueError("\n".join(found))

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, linear decay to 0 over the last steps. `step` counts from 0."""
        warm_up = max(1, round(self.steps * self.learning_rate_warm_up))
        decay = max(1, round(self.steps * self.learning_rate_decay))
        return self.learning_rate * min(1.0, (step + 1) / warm_up, (self.steps - step) / decay)

    def jacobian_coefficient_at(self, step: int) -> float:
        """Linear warm-up from 0 to lambda."""
        warm_up = round(self.steps * self.jacobian_warm_up)
        return self.jacobian_coefficient * (min(1.0, step / warm_up) if warm_up else 1.0)


def problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each of these settings of a `TrainingConfig` that is out of its bounds, and for those that
    contradict each other. Settings that are left out are not judged."""
    for name, value in settings.items():
        if expected := _expected(name, value):
            yield f"{name} is {value!r}{expected}"
    k, d_sae = settings.get("k"), settings.get("d_sae")
    if k is not None and d_sae is not None and k > d_sae >= 1:
        yield f"k is {k}, larger than d_sae, {d_sae}"
    batch, parts = settings.get("batch_tokens"), settings.get("gradient_accumulation")
    if batch is not None and parts is not None and parts >= 1 and batch % parts:
        yield f"gradient_accumulation is {parts}, which does not divide batch_tokens, {batch}, into equal parts"


def _expected(name: str, value: Any) -> str | None:
    """Return what is expected of a setting, if this value is out of its bounds."""
    if name in COUNTS and value < 1:
        return ", expected at least 1"
    if name in ("jacobian_coefficient", "mlp_out_mse_coefficient") and not 0 <= value < math.inf:
        return ", expected a finite number, at least 0"
    if name == "learning_rate" and not 0 < value < math.inf:
        return ", expected a finite number above 0"
    if name in SHARES_OF_STEPS and not 0 <= value <= 1:
        return ", expected a share of all steps, between 0 and 1 (not a number of steps)"
    if name == "objective" and value not in OBJECTIVE_NAMES:
        return f"; {advice(value, OBJECTIVE_NAMES)}"
    if name == "gradient_clip" and not value > 0:
        return ", expected a norm above 0"
    if name == "seed" and not 0 <= value <= LARGEST_SEED:
        return ", expected a whole number from 0 to 2**63 - 1"
    return None
