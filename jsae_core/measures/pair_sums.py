"""Sums of |J| over tokens for every pair of latents, in one d_sae x d_sae matrix.

Here: the matrix, and where it is worth its memory. Not here: the same sums where it is not (`kept_jacobians.py`).

The sums are whole numbers of a small unit (fixed point), so they are the same in every order that a device may add in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from jsae_core.checkpoints import State
from jsae_core.memory import available_bytes, piece_factor

DIGITS = 32  # binary, of the largest |J| of the first batch
SUMS_ON_CPU = 2**22  # 32 MiB: d_sae 2048
SHARE_OF_DEVICE = 1 / 4  # of the memory that is available
MEANS_AT_ONCE = 2**22  # 32 MiB of float64


def sums_fit(d_sae: int, device: torch.device) -> bool:
    """Whether there is room for a sum for every pair of latents, and these are the faster way. On a CPU that is so only
    if they nearly fit its cache, since the whole matrix is read at the end, however few tokens there are."""
    if device.type == "cpu":
        return d_sae**2 <= SUMS_ON_CPU
    available = available_bytes(device) if device.type == "cuda" else None
    return available is not None and 8 * d_sae**2 <= SHARE_OF_DEVICE * available


class PairSums:
    """Sums over tokens of |J| between each output and each input latent.

    A term is rounded to a multiple of the unit, 2^-32 to 2^-31 of the largest |J| of the first batch: it is off by at
    most 2^-32 of that |J|, and so is a mean. The sums have room for 2^30 times that |J|.
    """

    def __init__(self, d_sae: int, device: torch.device):
        self._sums = torch.zeros(d_sae**2, dtype=torch.int64, device=device)
        self._d_sae = d_sae
        self._unit: float | None = None

    def begin_at(self, magnitude: Tensor) -> None:
        """Take the unit from |J| of the stream's first batch, which another shard may add."""
        largest = magnitude.max().item()
        self._unit = 2.0 ** ((math.frexp(largest)[1] if 0 < largest < math.inf else 0) - DIGITS)

    def add(self, magnitude: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """|J| [n, k_out, k_in], in float32 or wider, between input latents [n, k_in] and output latents [n, k_out]."""
        if self._unit is None:
            self.begin_at(magnitude)
        assert self._unit is not None
        places = (outputs[:, :, None] * self._d_sae + inputs[:, None]).view(-1)
        terms = magnitude.mul(1 / self._unit).round_().long().view(-1)
        self._sums.scatter_add_(0, places, terms)

    def state(self) -> State:
        return State({"sums": self._sums}, {"unit": self._unit})

    def take_in(self, state: State) -> None:
        """Add stored sums. If their unit differs, as on another kind of device, both are cut to multiples of the larger
        unit."""
        sums, unit = state.tensors["sums"], state.values["unit"]
        if unit is None:
            return
        common = max(unit, self._unit or unit)
        self._sums = self._sums // round(common / (self._unit or common)) + sums // round(common / unit)
        self._unit = common

    def means(self, counts: Tensor, largest: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Each sum over how often its output latent was active (`counts` [d_sae]), 0 where it never was, [n, d_sae] for
        n output latents at a time; and how often they were, [n, 1]. `largest` is the largest |J| that was added.

        Raises:
            OverflowError: a sum may have been larger than there is room for.
        """
        unit = self._unit or 1.0
        if largest / unit * int(counts.max()) >= 2.0**63:
            raise OverflowError(
                f"sums of |J| over as many as {int(counts.max())} tokens, of as much as {largest:.3g} each, may have "
                f"exceeded {2.0**63 * unit:.3g}, the most they have room for; measure fewer tokens at once"
            )
        at_once = max(1, piece_factor(counts.device) * MEANS_AT_ONCE // self._d_sae)
        for sums, count in zip(self._sums.view(-1, self._d_sae).split(at_once), counts.split(at_once), strict=True):
            yield sums.double().mul_(unit).div_(count[:, None].clamp(min=1)), count[:, None]
