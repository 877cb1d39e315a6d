"""Drawing elements of the Jacobians of a stream: which token, which output rank, which input rank.

Here: what `ablation.py` and `linearity.py` have in common. Not here: what is done with a sample.

With the same seed, a larger random sample begins with every smaller one, in the order of drawing. So the curves that
`linearity.py` measures belong to elements on which `ablation.py` intervenes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.activations import documents_of
from jsae_core.jacobian import Sandwich
from jsae_core.measures.moments import Estimate, NamedMoments
from jsae_core.measures.resuming import Computation, Parts
from jsae_core.memory import moved
from jsae_core.sae_pair import SAEPair

Ranks = Literal["random", "diagonal", "all"]
CPU = torch.device("cpu")
# up to so many elements, all are permuted; of more, up to half are drawn one by one, and repeated ones passed over
PERMUTED = 2**22


class TooFewElements(ValueError):
    """More samples were asked for than there are elements, or none."""


class Samples(NamedTuple):
    """Elements of Jacobians, in token order; each [n_samples], int64."""

    token: Tensor
    output_rank: Tensor
    input_rank: Tensor
    drawn: Tensor  # place in the order of drawing; the samples with places below n are a random sample of n

    def split(self, size: int | list[int]) -> list[Samples]:
        parts = [values.split(size) for values in self]
        return [Samples(*columns) for columns in zip(*parts, strict=True)]


def draw_samples(
    n_tokens: int, k: int, n_samples: int | None, ranks: Ranks, seed: int, device: torch.device = CPU
) -> Samples:
    """Elements of `n_tokens` Jacobians of k x k.

    Args:
        n_samples: how many; None: every element.
        ranks: "random": without replacement from all; "diagonal": the i-th input with the i-th output latent; "all":
            every element. The last two count as drawn in the order of tokens.
        device: the device for the samples, which are the same on every device.

    Raises:
        TooFewElements: there are fewer than `n_samples`.
        ValueError: `ranks` is unknown.
    """
    per_token = {"random": k * k, "diagonal": k, "all": k * k}.get(ranks)
    if per_token is None:
        raise ValueError(f"unknown ranks {ranks!r}; expected 'random', 'diagonal' or 'all'")
    available = n_tokens * per_token
    n_samples = available if n_samples is None else n_samples
    if not 1 <= n_samples <= available:
        raise TooFewElements(
            f"n_samples is {n_samples}, but {n_tokens} tokens with k {k} hold {available} samples of ranks {ranks!r}; "
            "expected a number from 1 to that"
        )
    if ranks == "random":
        chosen, drawn = _draw(available, n_samples, seed, device).sort()
    else:
        chosen = drawn = torch.arange(n_samples, device=device)
    token, element = chosen // per_token, chosen % per_token
    if ranks == "diagonal":
        return Samples(token, element, element, drawn)
    return Samples(token, element // k, element % k, drawn)


def _draw(available: int, n: int, seed: int, device: torch.device) -> Tensor:
    """n different numbers below `available`. A longer draw with the same seed begins with every shorter one.

    numpy's generator draws on every device, so that the numbers are the same; all else is done on the device."""
    if available <= PERMUTED:
        return moved(torch.from_numpy(np.random.default_rng(seed).permutation(available)[:n]), device)
    first_half = size = min(n, available // 2)
    drawn = torch.empty(0, dtype=torch.int64, device=device)
    while len(drawn) < first_half:
        numbers = torch.from_numpy(np.random.default_rng(seed).integers(available, size=size))
        drawn, size = _without_repeated(moved(numbers, device)), 2 * size
    drawn = drawn[:first_half]
    if n == first_half:
        return drawn
    # from here on, most numbers drawn would be repeated ones
    is_left = torch.ones(available, dtype=torch.bool, device=device)
    is_left[drawn] = False
    left = is_left.nonzero()[:, 0]
    order = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(len(left))[: n - first_half])
    return torch.cat([drawn, left[moved(order, device)]])


def _without_repeated(numbers: Tensor) -> Tensor:
    """Each number once, at its first place."""
    ordered, place = numbers.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return numbers[place[is_first].sort().values]


def elements(samples: Samples, sandwich: Sandwich, row: Tensor) -> dict[str, Tensor]:
    """Which element each sample is: the columns that every table of samples begins with, [n_samples] each.

    Args:
        sandwich: of some tokens.
        row: [n_samples], the place of each sample's token among them.
    """
    token, output_rank, input_rank, drawn = samples
    return {
        "token": token,
        "output_rank": output_rank,
        "input_rank": input_rank,
        "drawn": drawn,
        "output_latent": sandwich.output_latents[row, output_rank],
        "input_latent": sandwich.input_latents[row, input_rank],
    }


def at_least_float32(values: Tensor) -> Tensor:
    """16-bit floats become float32: numpy has no bfloat16."""
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values


def table(columns: Mapping[str, Tensor]) -> pd.DataFrame:
    """A table with a column for each tensor [n_samples], of `at_least_float32`."""
    return pd.DataFrame({name: at_least_float32(values).cpu().numpy() for name, values in columns.items()})


def named(places: Any, names: Sequence[str]) -> pd.api.extensions.ExtensionArray:
    """A column of texts, made from the place of each text among `names`, which is much faster than from the texts."""
    return pd.array(names, dtype="str").take(places)


def with_document(frame: pd.DataFrame, stream: Iterable[Tensor]) -> pd.DataFrame:
    """Samples with a column `document`, the number of the document that their token is from; a document that is cut
    into pieces has one number. If the stream names no documents, each token is one."""
    documents = documents_of(stream)
    return frame.assign(document=frame["token"] if documents is None else documents.numpy()[frame["token"]])


def moments_of(samples: pd.DataFrame, values: Mapping[str, np.ndarray]) -> NamedMoments:
    """The moments of quantities of samples, which are in token order and have a column `document`."""
    moments = NamedMoments()
    columns = {name: torch.tensor(np.asarray(column, dtype=float)) for name, column in values.items()}
    moments.add(columns, torch.tensor(samples["document"].to_numpy(np.int64)))
    return moments


def shares(samples: pd.DataFrame, column: str, classes: Sequence[str]) -> dict[str, Estimate]:
    """The share of each class among samples in token order, by a column that names their class."""
    return moments_of(samples, {name: samples[column] == name for name in classes}).estimates()


class KeptInputs:
    """The MLP inputs of a stream, kept in memory."""

    def __init__(self, pair: SAEPair):
        self._pair, self._chunks = pair, Parts(pair.device)

    def read(self, work: Computation, stream: Iterable[Tensor]) -> Tensor:
        """The inputs that are read before shards are merged, [n_tokens, d_model]. Raises ValueError if they hold NaN or
        infinite values."""
        for x, _, _ in work.tokens(stream, {"chunks": self._chunks}):
            if len(x):
                self._chunks.append({"x": x})
        if not self._chunks:
            return self._pair.input_sae.W_enc.new_empty(0, self._pair.config.d_in)
        x = self._chunks.joined()["x"]
        if not torch.isfinite(x).all():
            raise ValueError("the MLP inputs hold NaN or infinite values")
        return x

    def all(self) -> Tensor:
        """The inputs of the whole stream, [n_tokens, d_model], once shards are merged. Raises ValueError if it holds
        no token."""
        if not self._chunks:
            raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
        return self._chunks.joined()["x"]
