"""Means over tokens, ratios of such means, and their standard errors, from running sums: memory does not grow with the
number of tokens. Tokens are taken as independent.

Not here: what is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Moments:
    """First and second moments of several quantities that each token has."""

    def __init__(self):
        self.n = 0
        self._origin: Tensor | float = 0.0  # where the first tokens are: far from zero, squares hide a small spread
        self._sum: Tensor | float = 0.0
        self._products: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """`values` [n_tokens, n_quantities]."""
        values = values.double()
        if not self.n:
            self._origin = values.mean(dim=0)
        values = values - self._origin
        self.n += len(values)
        self._sum += values.sum(dim=0)
        self._products += values.T @ values

    @property
    def mean(self) -> Tensor:
        """[n_quantities] float64. Raises ValueError if there was no token."""
        if not self.n:
            raise ValueError("there is no token to take a mean over")
        return (self._origin + self._sum / self.n).cpu()

    def standard_error(self, weights: Tensor) -> float:
        """Of the mean of `quantities @ weights`; weights [n_quantities] float64. 0 for a single token."""
        weights = weights.to(self._products)
        second = weights @ self._products @ weights / self.n
        variance = (second - (self._sum @ weights / self.n).square()).item()
        return math.sqrt(max(0.0, variance) / max(1, self.n - 1))


class NamedMoments:
    """`Moments` of quantities that are told apart by name."""

    def __init__(self):
        self._names: list[str] = []
        self._moments = Moments()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """A quantity a name, each [n_tokens]; the same names each time."""
        self._names = list(values)
        self._moments.add(torch.stack([tensor.double() for tensor in values.values()], dim=1))

    def means(self) -> dict[str, float]:
        """The mean of each quantity, and its standard error under its name with `_se`."""
        results = {}
        for name, mean in zip(self._names, self._moments.mean.tolist(), strict=True):
            results |= {name: mean, f"{name}_se": self._moments.standard_error(self._weights({name: 1.0}))}
        return results

    def ratio(self, above: Mapping[str, float], below: Mapping[str, float]) -> tuple[float, float]:
        """Ratio of two weighted sums of means, and its standard error to first order (the delta method): that of the
        mean of `above - ratio * below`, over `below`. Both 0 where the denominator is."""
        above, below = self._weights(above), self._weights(below)
        numerator, denominator = ((self._moments.mean @ weights).item() for weights in (above, below))
        if not denominator:
            return 0.0, 0.0
        ratio = numerator / denominator
        return ratio, self._moments.standard_error(above - ratio * below) / abs(denominator)

    def _weights(self, weights: Mapping[str, float]) -> Tensor:
        return torch.tensor([weights.get(name, 0.0) for name in self._names], dtype=torch.float64)
