"""How alike the latents of two SAEs are, whatever their order.

Here: matching decoder rows, one to one or each with its nearest. Not here: which SAEs are compared (two seeds of one
recipe in `jsae_assets.assets.sweeps`, two variants in `jsae_assets.site`).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024
MATCHED_AT_MOST = 4096  # latents: matching takes d_sae^2 numbers of memory and up to d_sae^3 steps


def latent_similarity(one: Tensor, other: Tensor) -> float | None:
    """The mean cosine of the decoder rows of two SAEs, matched one to one so that this mean is as large as possible.

    1 if both have the same latents in any order. Random directions give more than 0, since each row is matched with one
    that happens to be near; the excess grows with d_sae and falls with d_model.

    Args:
        one, other: W_dec, [d_sae, d_model] each.

    Returns:
        The mean cosine, or None if there are more than `MATCHED_AT_MOST` latents.

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


def nearest_latents(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """For each latent of an SAE, the latent of another SAE whose decoder row has the largest cosine with its own.

    Args:
        one, other: W_dec, [d_sae, d_model] each; d_sae may differ.

    Returns:
        The other SAE's latents, int64 [d_sae], and the cosines of the two rows, float32 [d_sae].
    """
    one, other = (torch.nn.functional.normalize(rows.float(), dim=1) for rows in (one, other))
    cosines, latents = zip(*((rows @ other.T).max(dim=1) for rows in one.split(ROWS_AT_ONCE)), strict=True)
    return torch.cat(latents), torch.cat(cosines)
