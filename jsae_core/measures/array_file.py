"""Tensors in a temporary file, for what a measure keeps of all tokens and memory does not hold.

Here: writing a tensor, reading it or some of its rows again. Not here: what is kept and how it is put in order
(`kept_jacobians.py`, `latent_rows.py`).
"""

from __future__ import annotations

import math
import os
import tempfile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jsae_core.memory import TemporaryFileError


class InFile(NamedTuple):
    """Where a tensor is in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class ArrayFile:
    """A temporary file without a name, which goes with the process if not before. TMPDIR says where it is.

    Args:
        holds: what is kept in it, for who has to make room.
    """

    def __init__(self, holds: str):
        self._holds = holds
        self._file = tempfile.TemporaryFile(prefix="jsae-")

    def close(self) -> None:
        self._file.close()

    def write(self, tensor: Tensor) -> InFile:
        """Append a tensor; one of bfloat16, which numpy does not have, as float32.

        Raises:
            TemporaryFileError: there is no room. It is an OSError.
        """
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        array, offset = tensor.cpu().numpy(), self._file.seek(0, os.SEEK_END)
        try:
            array.tofile(self._file)
        except OSError as error:
            raise TemporaryFileError(
                f"{self._holds} could not be kept in a temporary file in {tempfile.gettempdir()}: after {offset:,} "
                f"bytes there was no room for {array.nbytes:,} more ({error}). Name a folder on a larger disk in "
                "TMPDIR, or measure fewer tokens"
            ) from error
        return InFile(offset, array.shape, array.dtype)

    def read(self, kept: InFile, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of what was written."""
        shape = ((kept.shape[0] if stop is None else stop) - start, *kept.shape[1:])
        self._file.seek(kept.offset + start * math.prod(kept.shape[1:]) * kept.dtype.itemsize)
        return np.fromfile(self._file, kept.dtype, math.prod(shape)).reshape(shape)
