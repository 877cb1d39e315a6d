"""Means over tokens, ratios of such means, and their standard errors, from running sums: memory does not grow with the
number of tokens.

Tokens of one document are not independent, so standard errors treat documents, each with all its tokens, as drawn at
random (the sandwich estimator for clusters: Liang and Zeger, 1986). If no documents are named, each token counts as
one.

Two variants measured on the same documents are compared document by document, which removes the variation that both
share (`difference`).

Not here: which quantities are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jsae_core.checkpoints import State


class Estimate(NamedTuple):
    """A number that was measured on documents.

    Attributes:
        influence: [n_documents] float64 on the CPU, what each document adds to the number, to first order; they sum to
            zero. None if no documents were named.
        documents: [n_documents] int64, the documents' numbers, ascending; None if they are not known.
    """

    value: float
    standard_error: float
    influence: Tensor | None = None
    documents: Tensor | None = None


def flat(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Each number, with its standard error under its name with `_se`."""
    numbers: dict[str, float] = {}
    for name, estimate in estimates.items():
        numbers |= {name: estimate.value, f"{name}_se": estimate.standard_error}
    return numbers


def spread(influence: Tensor) -> float:
    """The standard error of a number whose D documents, drawn at random, have these influences [D]:
    sqrt(D / (D - 1) sum of squares). 0 for a single document."""
    n = len(influence)
    return math.sqrt(influence.square().sum().item() * n / (n - 1)) if n > 1 else 0.0


def difference(one: Estimate, other: Estimate) -> Estimate:
    """`one` less `other`, measured on the same documents. The error is that of the differences between documents'
    influences, so variation that both share cancels. A document without a sample in one of them adds nothing to it.

    Raises:
        ValueError: the documents of one of them are not known, or have no numbers and are not as many.
    """
    if one.influence is None or other.influence is None:
        raise ValueError("only what was measured on named documents can be compared document by document")
    if one.documents is not None and other.documents is not None:
        documents = torch.cat([one.documents, other.documents]).unique()
        influence = _over(documents, one.documents, one.influence) - _over(documents, other.documents, other.influence)
    elif len(one.influence) == len(other.influence):
        influence = one.influence - other.influence
    else:
        raise ValueError(
            f"{len(one.influence)} documents cannot be compared with {len(other.influence)} one by one; expected the "
            "same ones"
        )
    return Estimate(one.value - other.value, spread(influence), influence)


def _over(documents: Tensor, some: Tensor, influence: Tensor) -> Tensor:
    """Influences of some of `documents` (ascending) as influences of all of them, 0 for the others."""
    place = torch.searchsorted(documents, some)
    return torch.zeros(len(documents), dtype=torch.float64).index_add(0, place, influence)


class Moments:
    """Means over tokens of several quantities, and how much these means vary between documents."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._origin: Any = None  # a Tensor: where the first tokens are: far from zero, squares hide a small spread
        self._n_documents = 0
        # over documents: sums and products of each document's sums, the last of which is its number of tokens
        self._sum: Any = 0.0  # a Tensor from the first document on
        self._products: Any = 0.0
        self._unfinished: tuple[int, Tensor] | None = None  # the last document, which the next tokens may continue
        self._named: list[Tensor] = []  # the sums of documents that were named, and their numbers
        self._numbers: list[Tensor] = []

    def begin_at(self, values: Tensor) -> None:
        """Take the origin from these tokens [n_tokens, n_quantities], the first ones, which another shard adds."""
        self._origin = values.double().mean(dim=0)

    def add(self, values: Tensor, documents: Tensor | None = None) -> None:
        """Take in some tokens.

        Args:
            values: [n_tokens, n_quantities].
            documents: [n_tokens] int64 on the CPU, the number of the document that each token is from. The tokens of a
                document follow each other, possibly over several calls. None: each token is a document.
        """
        if not len(values):
            return
        values = values.double()
        if self._origin is None:
            self._origin = values.mean(dim=0)
        rows = torch.cat([values - self._origin, values.new_ones(len(values), 1)], dim=1)
        self.n_tokens += len(values)
        if documents is None:
            self._finish(rows)
            return
        numbers, lengths = documents.unique_consecutive(return_counts=True)
        # only a number for each document goes to the device; for one a token, the processor would wait
        every_row = torch.arange(len(numbers), device=rows.device)
        row_of_token = every_row.repeat_interleave(lengths.to(rows.device), output_size=len(rows))
        sums = rows.new_zeros(len(numbers), rows.shape[1]).index_add_(0, row_of_token, rows)
        if self._unfinished is not None and self._unfinished[0] == int(numbers[0]):
            sums[0] += self._unfinished[1]
        elif self._unfinished is not None:
            self._finish_named(torch.tensor([self._unfinished[0]]), self._unfinished[1][None])
        self._finish_named(numbers[:-1], sums[:-1])
        self._unfinished = (int(numbers[-1]), sums[-1])

    def state(self) -> State:
        if not self.n_tokens:
            return State()
        tensors = {"origin": self._origin, "sum": self._sum, "products": self._products}
        values: dict[str, Any] = {"n_tokens": self.n_tokens, "n_documents": self._n_documents}
        if self._unfinished is not None:
            values["unfinished"], tensors["unfinished"] = self._unfinished
        return State(tensors, values, {"numbers": self._numbers, "named": self._named})

    def take_in(self, state: State) -> None:
        """Add a stored state. If documents were named and the origins are equal, the sums are, to the last bit, those
        of adding all tokens here; otherwise up to rounding."""
        if not state.values:
            return
        if not self.n_tokens:
            self._begin_with(state)
            return
        self.n_tokens += state.values["n_tokens"]
        move = self._from_origin(state.tensors["origin"])
        if "unfinished" not in state.values:
            self._n_documents += state.values["n_documents"]
            self._sum = self._sum + move @ state.tensors["sum"]
            self._products = self._products + move @ state.tensors["products"] @ move.T
            return
        if self._unfinished is not None:
            self._finish_named(torch.tensor([self._unfinished[0]]), self._unfinished[1][None])
        for numbers, sums in zip(state.lists["numbers"], state.lists["named"], strict=True):
            self._finish_named(numbers, sums.to(move.device) @ move.T)
        self._unfinished = state.values["unfinished"], move @ state.tensors["unfinished"]

    def _begin_with(self, state: State) -> None:
        self.n_tokens, self._n_documents = state.values["n_tokens"], state.values["n_documents"]
        self._origin, self._sum, self._products = (state.tensors[name] for name in ("origin", "sum", "products"))
        if "unfinished" in state.values:
            self._unfinished = state.values["unfinished"], state.tensors["unfinished"]
            self._numbers = list(state.lists["numbers"])
            self._named = [sums.to(self._sum.device) for sums in state.lists["named"]]

    def _from_origin(self, origin: Tensor) -> Tensor:
        """The matrix that turns a document's sums relative to another origin into sums relative to this one."""
        move = torch.eye(len(origin) + 1, dtype=origin.dtype, device=origin.device)
        move[:-1, -1] = origin - self._origin
        return move

    def _finish_named(self, numbers: Tensor, rows: Tensor) -> None:
        self._numbers.append(numbers)
        self._named.append(rows)
        self._finish(rows)

    def _finish(self, rows: Tensor) -> None:
        self._n_documents, self._sum, self._products = self._with(rows)

    def _with(self, rows: Tensor) -> tuple[int, Tensor, Tensor]:
        return self._n_documents + len(rows), self._sum + rows.sum(dim=0), self._products + rows.T @ rows

    def _totals(self) -> tuple[int, Tensor, Tensor]:
        """The number of documents, and the sums and products over all of them."""
        if not self.n_tokens:
            raise ValueError("there is no token to take a mean over")
        if self._unfinished is None:
            return self._n_documents, self._sum, self._products
        return self._with(self._unfinished[1][None])

    @property
    def mean(self) -> Tensor:
        """The means over tokens, [n_quantities] float64. Raises ValueError if there was no token."""
        _, sums, _ = self._totals()
        return (self._origin + sums[:-1] / self.n_tokens).cpu()

    def standard_error(self, weights: Tensor) -> float:
        """The standard error of the mean of `quantities @ weights`; weights [n_quantities] float64. 0 for a single
        document.

        With s_d the sum of document d, n_d its number of tokens, N that of all and D documents:
        sqrt(D / (D - 1) sum_d (s_d - mean n_d)^2) / N.
        """
        n_documents, sums, products = self._totals()
        if n_documents < 2:
            return 0.0
        residual = self._residual(weights, sums)
        squares = (residual @ products @ residual).item()
        return math.sqrt(max(0.0, squares) * n_documents / (n_documents - 1)) / self.n_tokens

    def influence(self, weights: Tensor) -> Tensor | None:
        """The influence of each document on that mean, (s_d - mean n_d) / N: [n_documents] float64; None if none was
        named."""
        if self._unfinished is None:
            return None
        _, sums, _ = self._totals()
        rows = torch.cat([*self._named, self._unfinished[1][None]])
        return (rows @ self._residual(weights, sums)).cpu() / self.n_tokens

    def estimate(self, value: float, weights: Tensor) -> Estimate:
        """A value whose error, to first order, is that of the mean of `quantities @ weights`."""
        return Estimate(value, self.standard_error(weights), self.influence(weights), self._documents())

    def _documents(self) -> Tensor | None:
        if self._unfinished is None:
            return None
        return torch.cat([*self._numbers, torch.tensor([self._unfinished[0]])])

    def _residual(self, weights: Tensor, sums: Tensor) -> Tensor:
        weights = weights.to(sums)
        return torch.cat([weights, -(sums[:-1] @ weights)[None] / self.n_tokens])


class NamedMoments:
    """`Moments` of quantities that have names."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._moments = Moments()

    @property
    def n_tokens(self) -> int:
        return self._moments.n_tokens

    def state(self) -> State:
        moments = self._moments.state()
        return State(moments.tensors, {**moments.values, "names": self._names}, moments.lists)

    def take_in(self, state: State) -> None:
        values = dict(state.values)
        self._names = values.pop("names") or self._names
        self._moments.take_in(State(state.tensors, values, state.lists))

    def begin_at(self, values: Mapping[str, Tensor]) -> None:
        """As `Moments.begin_at`."""
        self._moments.begin_at(_stacked(values))

    def add(self, values: Mapping[str, Tensor], documents: Tensor | None = None) -> None:
        """Add the quantities, each [n_tokens], under the same names in every call; `documents` as for `Moments.add`."""
        self._names = list(values)
        self._moments.add(_stacked(values), documents)

    def estimates(self) -> dict[str, Estimate]:
        """The mean of each quantity."""
        return {
            name: self._moments.estimate(mean, self._weights({name: 1.0}))
            for name, mean in zip(self._names, self._moments.mean.tolist(), strict=True)
        }

    def means(self) -> dict[str, float]:
        """The mean of each quantity, and its standard error under its name with `_se`."""
        return flat(self.estimates())

    def ratio(self, above: Mapping[str, float], below: Mapping[str, float]) -> Estimate:
        """Ratio of two weighted sums of means, with its standard error to first order (the delta method): that of the
        mean of `above - ratio * below`, over `below`. 0 without error where the denominator is 0."""
        numerator_weights, denominator_weights = self._weights(above), self._weights(below)
        mean = self._moments.mean
        numerator, denominator = (mean @ numerator_weights).item(), (mean @ denominator_weights).item()
        if not denominator:
            return self._moments.estimate(0.0, torch.zeros_like(mean))
        ratio = numerator / denominator
        return self._moments.estimate(ratio, (numerator_weights - ratio * denominator_weights) / denominator)

    def estimate(self, value: float, weights: Mapping[str, float]) -> Estimate:
        """A value whose error, to first order, is that of this weighted sum of means."""
        return self._moments.estimate(value, self._weights(weights))

    def _weights(self, weights: Mapping[str, float]) -> Tensor:
        return torch.tensor([weights.get(name, 0.0) for name in self._names], dtype=torch.float64)


def _stacked(values: Mapping[str, Tensor]) -> Tensor:
    columns = list(values.values())
    if len({column.dtype for column in columns}) > 1:
        columns = [column.double() for column in columns]  # stacked in their own dtype they might lose digits
    return torch.stack(columns, dim=1)
