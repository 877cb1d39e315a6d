"""A stream of MLP inputs: documents in, batches of activations out.

Here: packing documents into padded batches, dropping BOS and padding again, and which document a token is from. Not
here: tokens (`text.py`), the model (`language_model.py`), anything that is measured on a stream (`measures/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jsae_core.language_model import LanguageModel


@dataclass(frozen=True)
class MLPInputs:
    """The MLP's inputs at one layer over some documents; can be read any number of times.

    Iterating gives float tensors [n_tokens, d_model] in document order, BOS and padding left out.

    Attributes:
        documents: 1-d token tensors, BOS first.
        batch_tokens: the most tokens, padding counted, that the model is given at once (a longer document goes alone).
    """

    language_model: LanguageModel
    documents: Sequence[Tensor]
    layer: int
    batch_tokens: int = 8192

    def __iter__(self) -> Iterator[Tensor]:
        for batch in packed(self.documents, self.batch_tokens):
            mlp_input, _ = self.language_model.mlp_activations(batch.tokens, self.layer)
            # as places, not as a mask: to see how many there are, the processor would wait for the device
            places = batch.measured.flatten().nonzero()[:, 0].to(mlp_input.device)
            yield mlp_input.flatten(0, 1).index_select(0, places)

    @property
    def document_lengths(self) -> list[int]:
        """How many rows a full read gives of each document."""
        return [len(document) - 1 for document in self.documents]

    @property
    def n_tokens(self) -> int:
        """How many rows a full read gives."""
        return sum(self.document_lengths)


def with_documents(stream: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each item of a stream [n_tokens, d_model] with the number of the document that each token is from, [n_tokens]
    int64 on the CPU. A stream has them if it has `document_lengths`; in any other each token counts as a document."""
    lengths = getattr(stream, "document_lengths", None)
    start = 0
    documents = None if lengths is None else torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    for item in stream:
        end = start + len(item)
        yield item, torch.arange(start, end) if documents is None else documents[start:end]
        start = end


@dataclass(frozen=True)
class Batch:
    """Documents side by side, padded on the right."""

    tokens: Tensor  # [documents, position] int64
    measured: Tensor  # [documents, position] bool: neither BOS nor padding


def packed(documents: Sequence[Tensor], batch_tokens: int) -> Iterator[Batch]:
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
