"""Do a few input latents make an output latent, or does the pair bypass the input latents?

Here: how much of the output latents' pre-activations the input latents account for, and how many of them it takes (the
edge curve). Not here: the Jacobian (`jacobian.py`), what a single intervention does (`ablation.py`).

A small or sparse Jacobian is no proof of sparse computation: what an output latent computes may pass through the
biases and through the error of the input SAE instead. Write the MLP's input as x = b_dec + sum_i s_i d_i + e, with the
activations s_i and the decoder rows d_i of the k active input latents and the SAE's error e. Keeping only the latents
in a set S gives x_S = x - sum_{i not in S} s_i d_i; the error stays. p_o(x) is the pre-activation of output latent o
at MLP(x), for the k outputs that are in the TopK at x, and a_oi = J_oi s_i is what latent i contributes to first order.

x_S enters each branch of the MLP as z_S = z_empty + sum_{i in S} s_i D_i, D being rows of the Jacobian's input table,
and p_o is affine in the hidden layer with the row E_o of the output table. So for an output of a token, a larger S
takes the rows D_i of what is new in it, the activation, and one product with E_o.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from jsae_core.checkpoints import Checkpoint, State
from jsae_core.jacobian import run_sandwich
from jsae_core.measures.moments import Estimate, NamedMoments, flat
from jsae_core.measures.resuming import Computation, RandomNumbers
from jsae_core.memory import cached_piece, moved
from jsae_core.sae import decode, pre_activations
from jsae_core.sae_pair import SAEPair

ORDERS = ("attribution", "random", "ablation")
KEPT = (0, 1, 2, 4, 8, 16)
MOST = 0.9  # the share of the attributions that n90 asks for
HIDDEN_BYTES = 2**22  # hidden layers at once, one for each output of a token, so that they stay in a CPU's cache
SHARES_OF_P = {"accounted_share": "accounted", "completeness": "attributed"}
MEANS = ("p", "p_without_latents", "p_reconstruction", "p_bias", "n90", "participation_ratio")


class Accounting(NamedTuple):
    """`estimates`: numbers over all `n_tokens` tokens, by name. `by_latent`: the same numbers for each output latent
    that was active."""

    estimates: dict[str, Estimate]
    n_tokens: int
    by_latent: pd.DataFrame

    @property
    def overall(self) -> dict[str, float]:
        return flat(self.estimates) | {"n_tokens": float(self.n_tokens)}

    def table(self) -> pd.DataFrame:
        """Both as one table. The first row describes all output latents together and has no `output_latent`; the rows
        of single latents have no standard errors."""
        together = pd.DataFrame([self.overall]).astype({"n_tokens": "int64"})
        rows = pd.concat([together, self.by_latent], ignore_index=True)
        rows.insert(0, "output_latent", rows.pop("output_latent").astype("Int64"))
        return rows


def latent_accounting(
    pair: SAEPair,
    stream: Iterable[Tensor],
    kept: Sequence[int] = KEPT,
    order: str = "attribution",
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> dict[str, float]:
    """How much of the output latents' pre-activations the input latents account for, and how many of them it takes.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]. Read once.
        kept: how many of a token's input latents, the first in the order, each output latent keeps; a number above k
            keeps all.
        order: how a token's input latents are ordered for each of its output latents: "attribution" (|J_oi s_i|,
            descending), "ablation" (the exact change of p_o if latent i alone is removed, descending), "random".
        seed: the seed of the random order, which otherwise depends only on the token's place in the stream.
        checkpoint: as for `jacobian_histogram`.

    Returns:
        Means over tokens and the k output latents that are in the TopK: `p` (pre-activation at x), `p_without_latents`
        (at x less all input latents), `p_reconstruction` (at the input SAE's reconstruction), `p_bias` (at its b_dec),
        `n90` (the least number of input latents whose |J_oi s_i| add up to 90% of their sum), `participation_ratio`
        ((sum |a|)^2 / sum a^2). Ratios of sums over tokens and outputs: `accounted_share`
        sum (p(x) - p(x_empty)) / sum p(x); `completeness` sum_oi a_oi / sum p(x); for each n in `kept`, `r2_{n}` =
        1 - sum (p(x_S) - p(x))^2 / sum (p(x_empty) - p(x))^2, with S the first n in the order. A ratio whose
        denominator is 0 is 0. All with their standard error over documents under the same name with `_se`; `n_tokens`.
        Of merged shards (`merge_shards`) these are sums in float64 in another order: the same to 1e-12.

    Raises:
        ValueError: the stream is empty or not finite, the order is unknown, or a number to keep is negative.
    """
    overall = latent_accountings(pair, stream, kept, [order], seed, checkpoint).overall
    return {name.replace(f"_{order}_", "_", 1): value for name, value in overall.items()}


@torch.no_grad()
def latent_accountings(
    pair: SAEPair,
    stream: Iterable[Tensor],
    kept: Sequence[int] = KEPT,
    orders: Sequence[str] = ("attribution", "random"),
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> Accounting:
    """`latent_accounting` for several orders at once, overall and for each output latent. R^2 is named
    `r2_{order}_{n}`; the table has `output_latent`, `n_tokens` (in which it was active) and no standard errors."""
    unknown = [order for order in orders if order not in ORDERS]
    if unknown:
        raise ValueError(f"unknown order {unknown[0]!r}; expected one of {', '.join(ORDERS)}")
    if any(n < 0 for n in kept):
        raise ValueError(f"the numbers of latents to keep are {list(kept)}; expected none below 0")
    of_zero, of_bias = _of_all_output_latents(pair)
    k, hidden = pair.config.k, pair.mlp.W_in[0]
    at_once = max(1, cached_piece(HIDDEN_BYTES, pair.device) // (k * hidden.nbytes))
    random_numbers = RandomNumbers(seed, k, k)
    sums = _Sums(pair)
    settings = {"kept": list(kept), "orders": list(orders), "seed": seed}
    work = Computation(checkpoint, "latent_accountings 2", pair, stream, settings, shardable=True)
    for x, documents, place in work.tokens(stream, {"sums": sums, "random_numbers": random_numbers}):
        sandwich = run_sandwich(pair, x)
        for start in range(0, len(x), at_once):
            part = slice(start, start + at_once)
            tokens = _Tokens(
                pair,
                x[part],
                sandwich.input_activations[part],
                sandwich.input_latents[part],
                sandwich.output_latents[part],
                of_zero,
            )
            attribution = sandwich.jacobian[part] * tokens.activations[:, None]
            magnitudes, by_attribution = attribution.abs().sort(dim=2, descending=True, stable=True)
            levels = _levels(tokens, of_bias)
            values = levels | _concentration(attribution, magnitudes)
            for order in orders if kept else ():
                in_order = by_attribution
                if order == "ablation":
                    in_order = _descending((levels["p"][:, :, None] - tokens.lacking_each()).abs())
                elif order == "random":
                    in_order = _descending(moved(random_numbers.of(place + start, len(tokens.x)), pair.device))
                values |= _errors(tokens, in_order, levels, order, kept)
            sums.add(tokens.output_latents, values, None if documents is None else documents[part])
    work.merge_shards()
    return Accounting(sums.estimates(), sums.n_tokens, sums.by_latent())


def _of_all_output_latents(pair: SAEPair) -> tuple[Tensor, Tensor]:
    """The pre-activation of every output latent [d_sae] if the hidden layer is zero, and at the input SAE's b_dec."""
    of_zero = pre_activations(pair.output_sae, pair.mlp.b_out[None])[0]
    hidden = pair.mlp.hidden(pair.mlp.branch_values(pair.input_sae.b_dec))
    return of_zero, torch.addmv(of_zero, pair.tables().outputs, hidden)


class _Tokens:
    """Some tokens, and the pre-activations of their output latents where only some input latents are kept.

    Attributes, for n tokens:
        activations [n, k_in]; output_latents [n, k_out]; x, reconstruction [n, d_model].
    """

    def __init__(
        self,
        pair: SAEPair,
        x: Tensor,
        activations: Tensor,
        input_latents: Tensor,
        output_latents: Tensor,
        of_zero: Tensor,
    ):
        self.x, self.activations, self.output_latents = x, activations, output_latents
        sae, self._mlp, self._directions = pair.input_sae, pair.mlp, pair.tables().inputs
        self._input_latents = input_latents
        self.reconstruction = decode(sae.W_dec, sae.b_dec, activations, input_latents)
        self._without_latents = self._mlp.branch_values(x - (self.reconstruction - sae.b_dec))
        self._readers = pair.tables().outputs[output_latents]  # E
        self._of_zero = of_zero[output_latents]

    def levels(self) -> tuple[Tensor, Tensor, Tensor]:
        """p [n, k_out] at x, at x less all input latents, and at the reconstruction."""
        branch_values = (
            self._mlp.branch_values(self.x),
            self._without_latents,
            self._mlp.branch_values(self.reconstruction),
        )
        hidden = torch.stack([self._mlp.hidden(values) for values in branch_values], dim=2)
        # one product for all: of a matrix with a single vector, a batch takes longer than of a matrix with three
        p, without, at_reconstruction = torch.baddbmm(self._of_zero[:, :, None], self._readers, hidden).unbind(dim=2)
        return p, without, at_reconstruction

    def keeping_first(self, in_order: Tensor, numbers: Sequence[int]) -> Iterator[Tensor]:
        """p [n, k_out] with only the first input latents of an order kept, for each of these ascending numbers.

        Args:
            in_order: [n, k_out, k_in], for each output latent the places of the token's input latents.
        """
        (n, k_out, _), k_in = in_order.shape, self.activations.shape[1]
        latents, activations = (
            of_token[:, None].expand(n, k_out, k_in).gather(2, in_order[:, :, : max(numbers)]).flatten(0, 1)
            for of_token in (self._input_latents, self.activations)
        )
        values = torch.cat(self._without_latents, dim=1)[:, None].repeat(1, k_out, 1)
        for before, number in zip((0, *numbers), numbers, strict=False):
            new = slice(before, number)
            if latents[:, new].shape[1]:
                values += F.embedding_bag(
                    latents[:, new].contiguous(),
                    self._directions,
                    per_sample_weights=activations[:, new].contiguous(),
                    mode="sum",
                ).unflatten(0, (n, k_out))
            hidden = self._mlp.hidden(values.chunk(len(self._without_latents), dim=2))
            yield hidden.mul_(self._readers).sum(dim=2) + self._of_zero

    def lacking_each(self) -> Tensor:
        """p [n, k_out, k_in] with one input latent removed, for each of them."""
        others = 1 - torch.eye(self.activations.shape[1], dtype=self.x.dtype, device=self.x.device)
        directions = self._directions[self._input_latents].chunk(len(self._without_latents), dim=2)
        hidden = self._mlp.hidden(
            [
                torch.baddbmm(value[:, None], others * self.activations[:, None], of_branch)
                for value, of_branch in zip(self._without_latents, directions, strict=True)
            ]
        )
        return torch.baddbmm(self._of_zero[:, :, None], self._readers, hidden.transpose(1, 2))


def _levels(tokens: _Tokens, of_bias: Tensor) -> dict[str, Tensor]:
    """Pre-activations with and without the input latents' contribution, and their difference, [n, k_out] each."""
    p, without, at_reconstruction = tokens.levels()
    return {
        "p": p,
        "p_without_latents": without,
        "p_reconstruction": at_reconstruction,
        "p_bias": of_bias[tokens.output_latents],
        "accounted": p - without,
        "unkept": (without - p).square(),
    }


def _concentration(attribution: Tensor, magnitudes: Tensor) -> dict[str, Tensor]:
    """Over how many input latents an output latent's attributions [n, k_out, k_in] are spread; [n, k_out] each.

    Args:
        magnitudes: the attributions' absolute values, in descending order.
    """
    total, squares = magnitudes.sum(dim=2), magnitudes.square().sum(dim=2)
    return {
        "attributed": attribution.sum(dim=2),
        "n90": (magnitudes.cumsum(dim=2) < MOST * total[:, :, None]).sum(dim=2) + (total > 0),
        "participation_ratio": torch.where(squares > 0, total.square() / squares, 0),
    }


def _descending(importance: Tensor) -> Tensor:
    """The order of each output latent's input latents: places in [n, k_out, k_in], the most important first."""
    return importance.argsort(dim=2, descending=True, stable=True)


def _errors(
    tokens: _Tokens, in_order: Tensor, levels: Mapping[str, Tensor], order: str, kept: Sequence[int]
) -> dict[str, Tensor]:
    """Squared differences from p if only the first input latents of an order are kept, [n, k_out] for each number
    kept."""
    numbers = sorted({n for n in kept if n})
    errors = {0: levels["unkept"]}
    if numbers:
        kept_at = zip(numbers, tokens.keeping_first(in_order, numbers), strict=True)
        errors |= {n: (p - levels["p"]).square() for n, p in kept_at}
    return {f"error_{order}_{n}": errors[n] for n in kept}


class _Sums:
    """Sums over tokens, for all output latents together and for each one."""

    def __init__(self, pair: SAEPair):
        self._d_sae = pair.config.d_sae
        self._moments = NamedMoments()
        self._of_latents: Tensor | None = None  # [d_sae, quantities and how often the latent was active]
        self._names: list[str] = []

    def add(self, output_latents: Tensor, values: Mapping[str, Tensor], documents: Tensor | None) -> None:
        """`values`: [n, k_out] each, of output latents [n, k_out]; the document of each token [n]."""
        self._names = list(values)
        columns = torch.stack([value.double() for value in values.values()], dim=2)
        self._moments.add(dict(zip(self._names, columns.mean(dim=1).unbind(dim=1), strict=True)), documents)
        columns = torch.cat([columns, torch.ones_like(columns[:, :, :1])], dim=2).flatten(0, 1)
        if self._of_latents is None:
            self._of_latents = columns.new_zeros(self._d_sae, columns.shape[1])
        self._of_latents.index_add_(0, output_latents.reshape(-1), columns)

    def state(self) -> State:
        of_latents = {} if self._of_latents is None else {"of_latents": self._of_latents}
        return State.joined({"moments": self._moments.state(), "sums": State(of_latents, {"names": self._names})})

    def take_in(self, state: State) -> None:
        self._moments.take_in(state.part("moments"))
        sums = state.part("sums")
        of_latents = sums.tensors.get("of_latents")
        if of_latents is not None:
            self._of_latents = of_latents if self._of_latents is None else self._of_latents + of_latents
            self._names = sums.values["names"]

    @property
    def n_tokens(self) -> int:
        return self._moments.n_tokens

    def estimates(self) -> dict[str, Estimate]:
        """As `latent_accountings` says."""
        if not self.n_tokens:
            raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
        means = self._moments.estimates()
        results = {name: means[name] for name in MEANS}
        results |= {name: self._moments.ratio({part: 1.0}, {"p": 1.0}) for name, part in SHARES_OF_P.items()}
        # 1 - error / unkept, as a ratio
        results |= {
            _r2(name): self._moments.ratio({"unkept": 1.0, name: -1.0}, {"unkept": 1.0}) for name in self._errors()
        }
        if not all(math.isfinite(value) for value in flat(results).values()):
            raise ValueError("what was measured holds NaN or infinite values; are the MLP inputs finite?")
        return results

    def by_latent(self) -> pd.DataFrame:
        """A row for each output latent that was active."""
        assert self._of_latents is not None
        sums = pd.DataFrame(self._of_latents.cpu().numpy(), columns=[*self._names, "n_tokens"])
        sums = sums[sums["n_tokens"] > 0]
        columns = {"output_latent": sums.index, "n_tokens": sums["n_tokens"].astype("int64")}
        columns |= {name: sums[name] / sums["n_tokens"] for name in MEANS}
        columns |= {name: _ratio(sums[part], sums["p"]) for name, part in SHARES_OF_P.items()}
        columns |= {_r2(name): _ratio(sums["unkept"] - sums[name], sums["unkept"]) for name in self._errors()}
        return pd.DataFrame(columns).reset_index(drop=True)

    def _errors(self) -> list[str]:
        return [name for name in self._names if name.startswith("error_")]


def _r2(error: str) -> str:
    return error.replace("error_", "r2_", 1)


def _ratio(above: pd.Series, below: pd.Series) -> pd.Series:
    """The ratio, or 0 where the denominator is 0."""
    return (above / below.where(below != 0)).fillna(0.0)
