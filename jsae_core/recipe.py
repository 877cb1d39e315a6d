"""The recipe a pair is trained by: its sizes and its schedules, as plain numbers.

Apart from `training.py`, so that a catalog can be read and checked without importing torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

OBJECTIVE_NAMES = ("l1", "l1nb", "l1nt", "cl1", "cl1nb", "cl1nt", "tanh", "scad", "exp", "log2", "loge", "lp")
LARGEST_SEED = 2**63 - 1  # what torch's and numpy's generators both take


@dataclass(frozen=True)
class TrainingConfig:
    """A recipe. The defaults are those of the paper's pairs, where they do not depend on the model.

    Attributes:
        jacobian_coefficient: lambda; 0 trains the traditional twin and computes no Jacobian.
        batch_tokens: tokens a step.
        learning_rate_warm_up, learning_rate_decay, jacobian_warm_up: shares of all steps, between 0 and 1.
        gradient_clip: the largest norm of a gradient; above 0, infinity clips none.
        objective: what lambda weighs, a function of the Jacobian by its name in `objectives.py`; "l1" is mean |J|.
        buffer_tokens: activations held for shuffling; a stream that fits is read once and gone through in epochs.
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

    def __post_init__(self):
        for name in ("d_sae", "k", "steps", "batch_tokens", "buffer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, larger than d_sae, {self.d_sae}")
        if not (0 <= self.jacobian_coefficient < math.inf and 0 < self.learning_rate < math.inf):
            raise ValueError(
                f"jacobian_coefficient is {self.jacobian_coefficient} and learning_rate {self.learning_rate}, expected "
                "finite numbers, at least 0 and above 0"
            )
        for name in ("learning_rate_warm_up", "learning_rate_decay", "jacobian_warm_up"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a share of all steps, between 0 and 1 (not a number "
                    "of steps)"
                )
        if self.objective not in OBJECTIVE_NAMES:
            raise ValueError(f"objective is {self.objective!r}, expected one of {', '.join(OBJECTIVE_NAMES)}")
        if not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip is {self.gradient_clip}, expected a norm above 0")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}, expected a whole number from 0 to 2**63 - 1")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, linear decay to 0 over the last steps. `step` counts from 0."""
        warm_up = max(1, round(self.steps * self.learning_rate_warm_up))
        decay = max(1, round(self.steps * self.learning_rate_decay))
        return self.learning_rate * min(1.0, (step + 1) / warm_up, (self.steps - step) / decay)

    def jacobian_coefficient_at(self, step: int) -> float:
        """Linear warm-up from 0 to lambda."""
        warm_up = round(self.steps * self.jacobian_warm_up)
        return self.jacobian_coefficient * (min(1.0, step / warm_up) if warm_up else 1.0)
