"""What is measured of single tokens' Jacobians: norms, shares above thresholds, kurtosis; and counts on any scale.

Here: the measures of |J| that `histogram.py` and `quality.py` share, so that a name has one definition. Not here:
computing Jacobians, and the tokens over which means are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jsae_core.terms import THRESHOLDS

MANTISSA_BITS = 2  # of a float32 that number the logarithmic bins, four in each doubling
_SHIFT = 23 - MANTISSA_BITS
LOGARITHMIC_BINS = (2**8 - 1) << MANTISSA_BITS  # they hold all finite numbers


def token_norms(magnitude: Tensor) -> dict[str, Tensor]:
    """Per-token norms of |J| [n, k, k]: root mean square, fourth-power mean, maximum; each [n]."""
    largest = magnitude.amax(dim=(1, 2))
    # fourth powers are taken of |J| over its maximum, since those of a small |J| would underflow in float32
    squares = (magnitude / largest.clamp(min=torch.finfo(magnitude.dtype).tiny)[:, None, None]).square_()
    return {
        "l2t": squares.mean(dim=(1, 2)).sqrt() * largest,
        "l4t": squares.square_().mean(dim=(1, 2)).pow(0.25) * largest,
        "linft": largest,
    }


def token_measures(magnitude: Tensor) -> dict[str, Tensor]:
    """Measures of each token's |J| [n, k, k]: `above_{t}` (the share of elements, for each of THRESHOLDS), `norm_l2t`,
    `norm_l4t`, `norm_linft`, `kurtosis` (E[J^4] / E[J^2]^2, uncentred) and `l1_over_l2` (mean |J| over root mean
    square), 0 where J is; each [n].
    """
    norms = token_norms(magnitude)
    root = norms["l2t"].clamp(min=torch.finfo(magnitude.dtype).tiny)
    return (
        shares_above(magnitude)
        | {f"norm_{name}": values for name, values in norms.items()}
        | {"kurtosis": (norms["l4t"] / root) ** 4, "l1_over_l2": magnitude.mean(dim=(1, 2)) / root}
    )


def shares_above(magnitude: Tensor) -> dict[str, Tensor]:
    """`above_{t}`: the share of each token's elements |J| [n, k, k] that `terms.is_above` each threshold; [n] each."""
    # ones and zeros of |J|'s own dtype, since summing booleans takes four times as long
    above = torch.empty_like(magnitude)
    return {f"above_{t}": torch.ge(magnitude, t, out=above).mean(dim=(1, 2)) for t in THRESHOLDS}


def logarithmic_edges() -> Tensor:
    """The edges of the bins of `logarithmic_counts`, [LOGARITHMIC_BINS + 1] float64: from 0 to infinity, each at most a
    quarter above the one before."""
    numbers = torch.arange(LOGARITHMIC_BINS + 1, dtype=torch.int32) << _SHIFT
    return numbers.view(torch.float32).double()


def logarithmic_counts(magnitude: Tensor) -> Tensor:
    """How many magnitudes, of any shape and scale, are in each of `LOGARITHMIC_BINS` bins; int64.

    The exponent and the first binary digits of the float32 number the bin, so no logarithm is taken."""
    numbers = magnitude.float().view(torch.int32).bitwise_right_shift(_SHIFT).view(-1)
    if magnitude.device.type == "cuda":  # bincount would wait for the device
        return torch.histc(numbers.float(), LOGARITHMIC_BINS, 0, LOGARITHMIC_BINS).long()
    return torch.bincount(numbers, minlength=LOGARITHMIC_BINS)
