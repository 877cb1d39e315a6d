"""How alike the latents of two SAEs are, whatever their order.

Here: matching decoder rows one to one. Not here: which SAEs are to be alike (`jsae_assets.assets.sweeps` compares the
seeds of a recipe).
"""

from __future__ import annotations

import torch
from torch import Tensor

MATCHED_AT_MOST = 4096  # latents: the matching takes a cost of d_sae^2 numbers and up to d_sae^3 steps


def latent_similarity(one: Tensor, other: Tensor) -> float | None:
    """The mean cosine of the decoder rows of two SAEs, matched one to one so that it is the largest there is.

    1 where they have the same latents in any order. Random directions do not give 0, since each row is matched with one
    that happens to be near: the smaller d_model and the larger d_sae are, the more.

    Args:
        one, other: W_dec, [d_sae, d_model] each.

    Returns:
        None where there are more than `MATCHED_AT_MOST` latents.

    Raises:
        ValueError: the shapes differ.
    """
    from scipy.optimize import linear_sum_assignment

    if one.shape != other.shape:
        raise ValueError(f"the decoders have the shapes {tuple(one.shape)} and {tuple(other.shape)}; expected the same")
    if len(one) > MATCHED_AT_MOST:
        return None
    rows, others = (torch.nn.functional.normalize(W_dec.double().cpu(), dim=1) for W_dec in (one, other))
    cosines = (rows @ others.T).numpy()
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())
