"""Rows that belong to latents, from batches of tokens: written to a temporary file as they come, and read again some
latents at a time, so that what is made of them takes memory for a few latents and not for all tokens.

Here: the file, and which latents are taken together. Not here: what the rows hold (`contexts.py`, `connections.py`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jsae_core.memory import TemporaryFileError


class _InFile(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class _Batch(NamedTuple):
    """The rows of n tokens, in the order of their latents, those of a latent in the order of the tokens."""

    latents: _InFile  # [n k]
    tokens: _InFile  # [n k], the row's token
    of_rows: Mapping[str, _InFile]  # [n k, ...]
    of_tokens: Mapping[str, _InFile]  # [n, ...]


class LatentRows:
    """A row for each latent that is active in a token: k a token.

    Attributes:
        counts: int64 [d_sae], the rows of each latent.
    """

    def __init__(self, d_sae: int):
        self.counts = np.zeros(d_sae, dtype=np.int64)
        self._batches: list[_Batch] = []

    def __enter__(self) -> LatentRows:
        self._file = tempfile.TemporaryFile(prefix="latents-")
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
                self._written(of_latents.int()),
                self._written((order // k).int()),
                {name: self._written(column.flatten(0, 1).cpu()[order]) for name, column in of_rows.items()},
                {name: self._written(column.cpu()) for name, column in of_tokens.items()},
            )
        )

    def blocks(self, most_rows: int, most_latents: int) -> Iterator[range]:
        """Successive ranges of latents, at most `most_latents` long, which have at most `most_rows` rows or are one
        latent."""
        ends = self.counts.cumsum()
        start = 0
        while start < len(ends):
            before = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, before + most_rows, side="right"))
            stop = min(max(stop, start + 1), start + most_latents)
            yield range(start, stop)
            start = stop

    def read(self, latents: range) -> Iterator[dict[str, np.ndarray]]:
        """The rows of a range of latents, those of one batch at a time: `latent` [rows] and the columns by their names.
        The rows of a latent come in the order of the tokens."""
        for batch in self._batches:
            of_latents = self._read(batch.latents)
            rows = slice(*np.searchsorted(of_latents, [latents.start, latents.stop]).tolist())
            if rows.start == rows.stop:
                continue
            tokens = self._read(batch.tokens, rows)
            yield {
                "latent": of_latents[rows],
                **{name: self._read(column, rows) for name, column in batch.of_rows.items()},
                **{name: self._read(column)[tokens] for name, column in batch.of_tokens.items()},
            }

    def _written(self, tensor: Tensor) -> _InFile:
        if tensor.dtype == torch.bfloat16:  # numpy has none
            tensor = tensor.float()
        array, offset = tensor.numpy(), self._file.seek(0, os.SEEK_END)
        try:
            array.tofile(self._file)
        except OSError as error:
            raise TemporaryFileError(
                f"the rows of latents could not be kept in a temporary file in {tempfile.gettempdir()}, after "
                f"{offset / 1e9:.1f} GB: {error}. Name a folder on a larger disk in TMPDIR, or measure fewer tokens"
            ) from error
        return _InFile(offset, array.shape, array.dtype)

    def _read(self, kept: _InFile, rows: slice | None = None) -> np.ndarray:
        start, stop = (rows.start, rows.stop) if rows else (0, kept.shape[0])
        shape = (stop - start, *kept.shape[1:])
        row_bytes = int(np.prod(kept.shape[1:])) * kept.dtype.itemsize
        self._file.seek(kept.offset + start * row_bytes)
        return np.fromfile(self._file, kept.dtype, int(np.prod(shape))).reshape(shape)
