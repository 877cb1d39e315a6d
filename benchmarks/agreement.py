"""Checks that two ways of computing the same values agree. Not here: what is compared (`cases.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Disagreement(AssertionError):
    """Two ways of computing the same thing gave different results."""


@dataclass(frozen=True)
class Agreement:
    """A comparison that succeeded.

    Attributes:
        what: what was compared.
        difference: the largest difference within the tolerance.
        tolerance: the largest difference allowed.
        ties: how many values differed by more. They are few enough to be explained by rounding: if two latents have
            almost equal pre-activations, the order of a sum decides which of them is in the TopK.
    """

    what: str
    difference: float
    tolerance: float
    ties: int = 0


def agree(what: str, difference: Tensor, tolerance: float, exempt: float = 0.0) -> Agreement:
    """Check that all differences (of any shape), except a share `exempt`, are within the tolerance.

    Raises:
        Disagreement: they are not, or `difference` is empty.
    """
    difference = difference.detach().double().abs().flatten().cpu()
    beyond = ~(difference <= tolerance)  # NaN counts as beyond the tolerance
    if not difference.numel() or beyond.sum() > exempt * difference.numel():
        raise Disagreement(
            f"{what}: {int(beyond.sum())} of {difference.numel()} values differ from the original's procedure by more "
            f"than {tolerance:g}, the largest by {difference.max().item() if difference.numel() else 0:g}"
        )
    return Agreement(what, difference[~beyond].max().item(), tolerance, int(beyond.sum()))


def relative(ours: Tensor, original: Tensor) -> Tensor:
    """Return the differences relative to the original's values."""
    original = original.double().cpu()
    return (ours.double().cpu() - original).abs() / original.abs().clamp(min=torch.finfo(torch.float64).tiny)
