"""A stream of MLP inputs: documents in, batches of activations out.

Here: packing documents into padded batches, dropping BOS and padding again, which document a token is from, keeping
what the model computed. Not here: tokens (`text.py`), the model (`language_model.py`), anything that is measured on a
stream (`measures/`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jsae_core.memory import moved
from jsae_core.tensor_files import content_digest

if TYPE_CHECKING:
    from jsae_core.language_model import LanguageModel
    from jsae_core.memory import MemoryBudget


@dataclass(frozen=True)
class MLPInputs:
    """The MLP's inputs at one layer over some documents; can be read any number of times.

    Iterating gives float tensors [n_tokens, d_model] in document order, BOS and padding left out. They may be kept for
    the next reader, so they are not to be written to.

    Attributes:
        documents: 1-d token tensors, BOS first; gone through anew by every read.
        batch_tokens: the most tokens, padding counted, that the model is given at once (a longer document goes alone).
        convention: of what is called the MLP's input, by its name in `LanguageModel.mlp_input_conventions`.
        budget: the memory in which batches are kept once the model has computed them; what finds no room there is
            computed again by every read. None: nothing is kept.
    """

    language_model: LanguageModel
    documents: Sequence[Tensor]
    layer: int
    batch_tokens: int = 8192
    budget: MemoryBudget | None = None
    convention: str = "true"
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)  # by batch

    def __iter__(self) -> Iterator[Tensor]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[Tensor]:
        """What iterating gives from its item number `first` on; nothing is computed of those before."""
        for number, batch in enumerate(packed(self.documents, self.batch_tokens)):
            if number < first:
                continue
            if number in self._kept:
                yield moved(self._kept[number], self.language_model.device)
                continue
            computed = self._computed(batch)
            kept = None if self.budget is None else self.budget.kept(computed)
            if kept is not None:
                self._kept[number] = kept
            yield computed

    def digest(self) -> str:
        """Of all that the items depend on: documents, layer, convention, how many tokens at once, the model's
        weights."""
        documents = content_digest({str(number): document for number, document in enumerate(self.documents)})
        parts = [documents, self.language_model.digest(), self.layer, self.batch_tokens, self.convention]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _computed(self, batch: Batch) -> Tensor:
        if self.convention == "true":
            mlp_input, _ = self.language_model.mlp_activations(batch.tokens, self.layer)
        else:
            conventions = self.language_model.mlp_input_conventions(batch.tokens, self.layer)
            # a model that does not normalise its MLP's input has the true one alone
            mlp_input = conventions.get(self.convention, conventions["true"])
        # as places, not as a mask: to see how many there are, the processor would wait for the device
        places = moved(batch.measured.flatten().nonzero()[:, 0], mlp_input.device)
        return mlp_input.flatten(0, 1).index_select(0, places)

    @property
    def document_lengths(self) -> list[int]:
        """How many rows a full read gives of each document."""
        return [len(document) - 1 for document in self.documents]

    @property
    def n_tokens(self) -> int:
        """How many rows a full read gives."""
        return sum(self.document_lengths)


@dataclass(frozen=True)
class FirstDocuments:
    """The inputs at the first documents of a stream: as the stream, but no more of it is computed than they need."""

    stream: MLPInputs
    n_documents: int

    def __iter__(self) -> Iterator[Tensor]:
        left = sum(self.document_lengths)
        batches = iter(self.stream)
        while left > 0:
            batch = next(batches)[:left]
            left -= len(batch)
            yield batch

    @property
    def document_lengths(self) -> list[int]:
        """As of the stream."""
        return self.stream.document_lengths[: self.n_documents]


def with_documents(
    stream: Iterable[Tensor], items: Iterable[Tensor] | None = None, start: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each item of a stream [n_tokens, d_model] with the number of the document that each token is from, [n_tokens]
    int64 on the CPU. A stream has them if it has `document_lengths`; of any other it is None.

    Args:
        items: of the stream, those from token number `start` on. None: all.
    """
    documents = documents_of(stream)
    for item in stream if items is None else items:
        yield item, None if documents is None else documents[start : start + len(item)]
        start += len(item)


def documents_of(stream: Iterable[Tensor]) -> Tensor | None:
    """The number of the document of each token of a stream, [n_tokens] int64, if it has `document_lengths`."""
    lengths = getattr(stream, "document_lengths", None)
    return None if lengths is None else torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


@dataclass(frozen=True)
class Batch:
    """Documents side by side, padded on the right."""

    tokens: Tensor  # [documents, position] int64
    measured: Tensor  # [documents, position] bool: neither BOS nor padding


def packed(documents: Iterable[Tensor], batch_tokens: int) -> Iterator[Batch]:
    """Consecutive documents, as many at once as fit `batch_tokens` when padded to the longest of them."""
    batch: list[Tensor] = []
    longest = 0
    for document in documents:
        if batch and max(longest, len(document)) * (len(batch) + 1) > batch_tokens:
            yield _pad(batch)
            batch, longest = [], 0
        batch.append(document)
        longest = max(longest, len(document))
    if batch:
        yield _pad(batch)


def _pad(documents: list[Tensor]) -> Batch:
    tokens = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    lengths = torch.tensor([len(document) for document in documents])
    position = torch.arange(tokens.shape[1])
    return Batch(tokens, (position > 0) & (position < lengths[:, None]))
