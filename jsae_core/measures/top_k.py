"""Whether a latent is among the k largest of an SAE, without encoding everything.

Here: the rule. Not here: which rivals are looked at, and how far their pre-activations are known (`ablation.py`,
`linearity.py`).

A latent is active if fewer than k others have a larger pre-activation. Most of the d_sae others are far below it: what
is known of them at a nearby input is enough to say so, and only some rivals need a closer look. What stays undecided is
encoded in full, so that the answer is always that of the TopK.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 16  # units in the last place of the largest rival by which the order of a sum may change a pre-activation


def among_top_k(
    value: Tensor, rivals: Tensor, counts: Tensor, error: Tensor | float, ceiling: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Whether latents are among the k largest, and for which of them that stays undecided.

    Args:
        value: [...], their pre-activations.
        rivals, counts: [..., m], pre-activations of others, each known up to `error` [...], and which of them count.
        ceiling: [...]; no other latent's pre-activation exceeds it.

    Returns:
        Two [...] bool: among the k largest; undecided (and then not counted among them).
    """
    error = error + ROUNDING * torch.finfo(rivals.dtype).eps * rivals.abs().amax(dim=-1)
    certainly_above = (counts & (rivals > (value + error)[..., None])).sum(dim=-1)
    possibly_above = (counts & (rivals > (value - error)[..., None])).sum(dim=-1)
    inside = (possibly_above < k) & (ceiling + error < value)
    # below zero the activation is 0 either way
    return inside, ~inside & (certainly_above < k) & (value > -error)
