"""Whether two ways of computing the same thing agree. Not here: what is compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Disagreement(AssertionError):
    """Two ways of computing the same thing gave different results."""


@dataclass(frozen=True)
class Agreement:
    """What was compared, the largest difference found, the largest allowed.

    `ties` is how many values differed by more, and were few enough to be decided by rounding: where two latents are as
    good as equal, one of them is in the TopK and which one it is depends on the order of a sum.
    """

    what: str
    difference: float
    tolerance: float
    ties: int = 0


def agree(what: str, difference: Tensor, tolerance: float, exempt: float = 0.0) -> Agreement:
    """Differences of any shape, all but a share `exempt` of which must be within the tolerance.

    Raises:
        Disagreement: they are not, or there is no difference to look at.
    """
    difference = difference.detach().double().abs().flatten().cpu()
    beyond = ~(difference <= tolerance)  # NaN is beyond
    if not difference.numel() or beyond.sum() > exempt * difference.numel():
        raise Disagreement(
            f"{what}: {int(beyond.sum())} of {difference.numel()} values differ from the original's procedure by more "
            f"than {tolerance:g}, the largest by {difference.max().item() if difference.numel() else 0:g}"
        )
    return Agreement(what, difference[~beyond].max().item(), tolerance, int(beyond.sum()))


def relative(ours: Tensor, original: Tensor) -> Tensor:
    """Differences as shares of the original's values."""
    original = original.double().cpu()
    return (ours.double().cpu() - original).abs() / original.abs().clamp(min=torch.finfo(torch.float64).tiny)
