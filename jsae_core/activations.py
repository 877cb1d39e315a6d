"""A stream of MLP inputs: documents in, batches of activations out.

Here: packing documents into padded batches, leaving out BOS and padding again, numbering the document of each token,
keeping computed batches for the next reader. Not here: tokens (`text.py`), the model (`language_model.py`), measures
of a stream (`measures/`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jsae_core.memory import moved
from jsae_core.tensor_files import content_digest
from jsae_core.text import document_numbers

if TYPE_CHECKING:
    from jsae_core.language_model import LanguageModel
    from jsae_core.memory import MemoryBudget


@dataclass(frozen=True)
class MLPInputs:
    """The MLP's inputs at one layer over some documents; can be read any number of times.

    Iterating gives float tensors [n_tokens, d_model] in document order, BOS and padding left out. They may be kept for
    the next reader, so they are not to be written to.

    Attributes:
        documents: 1-d token tensors, BOS first; every read iterates over them again.
        batch_tokens: the most tokens, padding included, that the model is given at once (a longer document makes a
            batch of its own).
        convention: which tensor counts as the MLP's input, by its name in `LanguageModel.mlp_input_conventions`.
        budget: the memory in which computed batches are kept; a batch that does not fit is computed again by every
            read. None: no batch is kept.
        sources: the number of the whole document that each is a piece of, ascending, as `text.numbered_tokens_of` and
            `text.split_sources` give it; measures count the pieces of one as one (`text.document_numbers`). None: none
            is a piece.

    Raises:
        ValueError: the model has no such layer, a document is no such tensor, or `sources` has not one number for each
            document, or they do not ascend.
    """

    language_model: LanguageModel
    documents: Sequence[Tensor]
    layer: int
    batch_tokens: int = 8192
    budget: MemoryBudget | None = None
    convention: str = "true"
    sources: Sequence[int] | None = None
    # by the number of the batch
    _kept_batches: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.language_model.check_layer(self.layer)
        if isinstance(self.documents, Sized):  # training tokenises long texts while it reads them
            _check_documents(self.documents)
        if self.sources is not None:
            document_numbers(len(self.documents), self.sources)

    def __iter__(self) -> Iterator[Tensor]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[Tensor]:
        """Iterate from item number `first` on, without computing the items before it."""
        for number, documents in enumerate(batched(self.documents, self.batch_tokens)):
            if number < first:
                continue
            if number in self._kept_batches:
                yield moved(self._kept_batches[number], self.language_model.device)
                continue
            computed = self._computed(_pad(documents))
            kept = None if self.budget is None else self.budget.kept(computed)
            if kept is not None:
                self._kept_batches[number] = kept
            yield computed

    def digest(self) -> str:
        """Digest of all that the items depend on: documents, layer, convention, batch size, the model's weights; and of
        which documents belong together."""
        documents = content_digest({str(number): document for number, document in enumerate(self.documents)})
        parts: list[object] = [
            documents,
            self.language_model.digest(),
            self.layer,
            self.batch_tokens,
            self.convention,
        ]
        if self.sources is not None:
            numbers = document_numbers(len(self.documents), self.sources)
            parts += [numbers] if len(set(numbers)) < len(numbers) else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _computed(self, batch: Batch) -> Tensor:
        if self.convention == "true":
            mlp_input, _ = self.language_model.mlp_activations(batch.tokens, self.layer)
        else:
            conventions = self.language_model.mlp_input_conventions(batch.tokens, self.layer)
            # a model that does not normalise its MLP's input has only the true convention
            mlp_input = conventions.get(self.convention, conventions["true"])
        # as indices, not as a mask: counting the elements of a mask makes the processor wait for the device
        indices = moved(batch.measured.flatten().nonzero()[:, 0], mlp_input.device)
        return mlp_input.flatten(0, 1).index_select(0, indices)

    @cached_property
    def document_lengths(self) -> list[int]:
        """The number of rows that a full read yields for each document; for all pieces of one together."""
        return _lengths(self.documents, self.sources)

    @cached_property
    def item_lengths(self) -> list[int]:
        """How many rows each item has."""
        lengths = (map(len, documents) for documents in batched(self.documents, self.batch_tokens))
        return [sum(length - 1 for length in of_item) for of_item in lengths]

    @property
    def n_tokens(self) -> int:
        """The number of rows that a full read yields."""
        return sum(self.document_lengths)


@dataclass(frozen=True)
class FirstDocuments:
    """The MLP inputs of a stream's first documents. Batches of later documents are not computed."""

    stream: MLPInputs
    n_documents: int

    def __iter__(self) -> Iterator[Tensor]:
        remaining = sum(self.document_lengths)
        batches = iter(self.stream)
        while remaining > 0:
            batch = next(batches)[:remaining]
            remaining -= len(batch)
            yield batch

    @property
    def document_lengths(self) -> list[int]:
        """The number of rows that a full read yields for each of these documents."""
        sources = None if self.stream.sources is None else self.stream.sources[: self.n_documents]
        return _lengths(self.stream.documents[: self.n_documents], sources)


def _check_documents(documents: Iterable[object]) -> None:
    for number, document in enumerate(documents, start=1):
        if not isinstance(document, Tensor) or document.ndim != 1 or not len(document):
            name = type(document).__name__
            found = f"tensor of shape {tuple(document.shape)}" if isinstance(document, Tensor) else name
            raise ValueError(
                f"document {number} is a {found}; expected a 1-d tensor of token ids, BOS first, as "
                "jsae_core.text.tokenise makes of texts"
            )


def _lengths(documents: Sequence[Tensor], sources: Sequence[int] | None) -> list[int]:
    of_each = [len(document) - 1 for document in documents]
    lengths: Counter[int] = Counter()
    for number, length in zip(document_numbers(len(of_each), sources), of_each, strict=True):
        lengths[number] += length
    return list(lengths.values())


def with_documents(
    stream: Iterable[Tensor], items: Iterable[Tensor] | None = None, start: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield each item [n_tokens, d_model] of a stream with the document number of each of its tokens, [n_tokens] int64
    on the CPU; with None where the stream has no `document_lengths`.

    Args:
        items: the items of the stream from token number `start` on. None: all items.

    Raises:
        ValueError: an item is no such tensor.
    """
    documents = documents_of(stream)
    for item in stream if items is None else items:
        if not isinstance(item, Tensor) or item.ndim != 2:
            found = f"a tensor of shape {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__
            raise ValueError(
                f"the stream of MLP inputs gives {found}; expected tensors [n_tokens, d_model], and of a single one [x]"
            )
        yield item, None if documents is None else documents[start : start + len(item)]
        start += len(item)


def documents_of(stream: Iterable[Tensor]) -> Tensor | None:
    """The document number of each token of a stream, [n_tokens] int64; None if it has no `document_lengths`."""
    lengths = getattr(stream, "document_lengths", None)
    return None if lengths is None else torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


@dataclass(frozen=True)
class Batch:
    """Documents side by side, padded on the right."""

    tokens: Tensor  # [documents, position] int64
    measured: Tensor  # [documents, position] bool: neither BOS nor padding


def packed(documents: Iterable[Tensor], batch_tokens: int) -> Iterator[Batch]:
    """Batches of consecutive documents, as `batched` gives them, padded."""
    return map(_pad, batched(documents, batch_tokens))


def batched(documents: Iterable[Tensor], batch_tokens: int) -> Iterator[list[Tensor]]:
    """Consecutive documents: as many in each list as fit `batch_tokens` when padded to the longest of them."""
    batch: list[Tensor] = []
    longest = 0
    for document in documents:
        length = len(document)
        if batch and max(longest, length) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], 0
        batch.append(document)
        longest = max(longest, length)
    if batch:
        yield batch


def _pad(documents: list[Tensor]) -> Batch:
    tokens = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    lengths = torch.tensor([len(document) for document in documents])
    position = torch.arange(tokens.shape[1])
    return Batch(tokens, (position > 0) & (position < lengths[:, None]))
