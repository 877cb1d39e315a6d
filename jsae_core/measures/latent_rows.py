"""Rows that belong to latents: written to a temporary file batch by batch of tokens, and read again a few latents at a
time, so that computing with them takes memory for a few latents instead of all tokens.

Here: the file, and which latents are taken together. Not here: what the rows hold (`contexts.py`, `connections.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jsae_core.checkpoints import LazyTensors, State, without_prefix
from jsae_core.measures.array_file import ArrayFile, InFile


class _Batch(NamedTuple):
    """The rows of n tokens, in the order of their latents, those of a latent in the order of the tokens."""

    latents: InFile  # [n k]
    tokens: InFile  # [n k], the row's token
    of_rows: Mapping[str, InFile]  # [n k, ...]
    of_tokens: Mapping[str, InFile]  # [n, ...]


class LatentRows:
    """Rows for the latents that are active in tokens, k for each token.

    Attributes:
        counts: int64 [d_sae], the rows of each latent.
    """

    def __init__(self, d_sae: int):
        self.counts = np.zeros(d_sae, dtype=np.int64)
        self._batches: list[_Batch] = []

    def __enter__(self) -> LatentRows:
        self._file = ArrayFile("the rows of latents")
        return self

    def __exit__(self, *exc_info) -> None:
        self._file.close()

    def add(self, latents: Tensor, of_rows: Mapping[str, Tensor], of_tokens: Mapping[str, Tensor]) -> None:
        """Keep the rows of some tokens.

        Args:
            latents: [n, k].
            of_rows: columns [n, k, ...] that each row has for itself.
            of_tokens: columns [n, ...] that the rows of a token share.

        Raises:
            OSError: the temporary file cannot be written.
        """
        k = latents.shape[1]
        of_latents, order = latents.reshape(-1).cpu().sort(stable=True)
        self.counts += np.bincount(of_latents.numpy(), minlength=len(self.counts))
        self._batches.append(
            _Batch(
                self._file.write(of_latents.int()),
                self._file.write((order // k).int()),
                {name: self._file.write(column.flatten(0, 1).cpu()[order]) for name, column in of_rows.items()},
                {name: self._file.write(column) for name, column in of_tokens.items()},
            )
        )

    def state(self) -> State:
        latents, tokens = ([getattr(batch, name) for batch in self._batches] for name in ("latents", "tokens"))
        lists: dict[str, list[InFile]] = {"latents": latents, "tokens": tokens}
        for batch in self._batches:
            for name, column in batch.of_rows.items():
                lists.setdefault(f"of_rows.{name}", []).append(column)
            for name, column in batch.of_tokens.items():
                lists.setdefault(f"of_tokens.{name}", []).append(column)
        return State(lists={name: LazyTensors(columns, self._tensor) for name, columns in lists.items()})

    def take_in(self, state: State) -> None:
        lists = state.lists
        names = list(lists)
        for columns in zip(*lists.values(), strict=True):
            column = dict(zip(names, columns, strict=True))
            self.counts += np.bincount(column["latents"].numpy(), minlength=len(self.counts))
            written = {name: self._file.write(tensor) for name, tensor in column.items()}
            self._batches.append(
                _Batch(
                    written["latents"],
                    written["tokens"],
                    without_prefix(written, "of_rows."),
                    without_prefix(written, "of_tokens."),
                )
            )

    def _tensor(self, kept: InFile) -> Tensor:
        return torch.from_numpy(self._file.read(kept))

    def blocks(self, most_rows: int, most_latents: int) -> Iterator[range]:
        """Successive ranges of latents. Each has at most `most_latents` latents, and at most `most_rows` rows unless it
        is a single latent."""
        ends = self.counts.cumsum()
        start = 0
        while start < len(ends):
            before = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, before + most_rows, side="right"))
            stop = min(max(stop, start + 1), start + most_latents)
            yield range(start, stop)
            start = stop

    def read(self, latents: range) -> Iterator[dict[str, np.ndarray]]:
        """Yield the rows of a range of latents, one batch at a time: `latent` [rows] and the columns by their names.
        The rows of a latent come in the order of the tokens."""
        for batch in self._batches:
            of_latents = self._file.read(batch.latents)
            rows = slice(*np.searchsorted(of_latents, [latents.start, latents.stop]).tolist())
            if rows.start == rows.stop:
                continue
            tokens = self._file.read(batch.tokens, rows.start, rows.stop)
            yield {
                "latent": of_latents[rows],
                **{name: self._file.read(column, rows.start, rows.stop) for name, column in batch.of_rows.items()},
                **{name: self._file.read(column)[tokens] for name, column in batch.of_tokens.items()},
            }
