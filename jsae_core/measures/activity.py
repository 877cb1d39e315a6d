"""How many latents are alive: the share that was never active, against the number of tokens read, and an estimate of
how many of those are alive all the same.

Here: when latents are first active. Not here: on what text they are (`contexts.py`).

Whether a latent counts as dead depends on how many tokens were read. The latents that are alive but have not been seen
yet are estimated from those that were seen in one document or two (Chao's estimator for incidence data, bias-corrected:
Chao, 1987; Gotelli and Colwell, 2011): with D documents, Q1 latents in exactly one of them and Q2 in exactly two, at
least (D - 1) / D * Q1 (Q1 - 1) / (2 (Q2 + 1)). This is a lower bound, so the remaining latents are an upper bound on
the dead ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from jsae_core.checkpoints import Checkpoint, State
from jsae_core.jacobian import run_sandwich
from jsae_core.measures.resuming import Computation
from jsae_core.sae_pair import SAEPair

NUMBERS = (1, 2, 5)  # times powers of ten: the numbers of tokens at which the curve has a point
FEWEST_TOKENS = 100


@torch.no_grad()
def latent_activity(pair: SAEPair, stream: Iterable[Tensor], checkpoint: Checkpoint | None = None) -> pd.DataFrame:
    """The share of latents that were never above zero in the first tokens of a stream.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]. Read once.
        checkpoint: as for `jacobian_histogram`.

    Returns:
        For each `side` ("input", "output"), a row for each number of tokens `n_tokens` (100, 200, 500, ... and all):
        `dead`, the share of latents that was not active in the first so many tokens; and, the same in all rows of a
        side, `unseen`, the share of latents that are estimated to be alive although they were active in none of the
        tokens, and `n_documents`, the number of documents that the estimate rests on.

    Raises:
        ValueError: the stream is empty.
    """
    sides = {side: _Side(pair.config.d_sae) for side in ("input", "output")}
    work = Computation(checkpoint, "latent_activity 2", pair, stream, shardable=True)
    for x, documents, start in work.tokens(stream, sides):
        if not len(x):
            continue
        places = torch.arange(start, start + len(x))
        documents = places if documents is None else documents
        sandwich = run_sandwich(pair, x)
        sides["input"].add(sandwich.input_activations, sandwich.input_latents, places, documents)
        sides["output"].add(sandwich.output_activations, sandwich.output_latents, places, documents)
    work.merge_shards()
    if not sides["input"].n_tokens:
        raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
    return pd.concat([side.table(name) for name, side in sides.items()], ignore_index=True)


class _Side:
    """For each latent of an SAE, [d_sae]: the token in which it was first active, and in how many documents it was
    active."""

    def __init__(self, d_sae: int):
        self._first = torch.full((d_sae,), torch.iinfo(torch.int64).max)
        self._n_documents = torch.zeros(d_sae, dtype=torch.int64)
        self._last_document = torch.full((d_sae,), -1)
        self._documents = 0
        self.n_tokens = 0

    def add(self, activations: Tensor, latents: Tensor, places: Tensor, documents: Tensor) -> None:
        """Activations and latents [n, k] of tokens with their places in the stream and their documents [n], which are
        in order."""
        self._documents, self.n_tokens = int(documents[-1]) + 1, int(places[-1]) + 1
        token, rank = (activations > 0).cpu().nonzero(as_tuple=True)
        active = latents.cpu()[token, rank]
        self._first.scatter_reduce_(0, active, places[token], "amin")
        d_sae = len(self._first)
        occurrences = (documents[token] * d_sae + active).unique()
        document, latent = occurrences.div(d_sae, rounding_mode="floor"), occurrences % d_sae
        is_new = self._last_document[latent] != document  # a document may have begun in the batch before
        self._n_documents.index_add_(0, latent[is_new], torch.ones_like(latent[is_new]))
        self._last_document.scatter_reduce_(0, latent, document, "amax")

    def state(self) -> State:
        tensors = {"first": self._first, "n_documents": self._n_documents, "last_document": self._last_document}
        return State(tensors, {"documents": self._documents, "n_tokens": self.n_tokens})

    def take_in(self, state: State) -> None:
        names = ("first", "n_documents", "last_document")
        first, n_documents, last_document = (state.tensors[name].cpu() for name in names)
        self._first = torch.minimum(self._first, first)
        self._n_documents += n_documents  # no document is in two shards
        self._last_document = torch.maximum(self._last_document, last_document)
        self._documents = max(self._documents, state.values["documents"])
        self.n_tokens = max(self.n_tokens, state.values["n_tokens"])

    def table(self, side: str) -> pd.DataFrame:
        n_tokens = self.n_tokens
        numbers = [n for n in _round_numbers(n_tokens) if n < n_tokens] + [n_tokens]
        dead = [(self._first >= n).double().mean().item() for n in numbers]
        once, twice = (int((self._n_documents == n).sum()) for n in (1, 2))
        of_all = (self._documents - 1) / self._documents * once * (once - 1) / (2 * (twice + 1))
        unseen = max(0.0, min(of_all / len(self._first), dead[-1]))
        return pd.DataFrame(
            {"side": side, "n_tokens": numbers, "dead": dead, "unseen": unseen, "n_documents": self._documents}
        )


def _round_numbers(most: int) -> list[int]:
    return [
        number * 10**power
        for power in range(len(str(most)))
        for number in NUMBERS
        if number * 10**power >= FEWEST_TOKENS
    ]
