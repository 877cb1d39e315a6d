"""Tensors in a temporary file, for what a measure keeps of all tokens and memory does not hold.

Here: writing a tensor, reading it or some of its rows again. Not here: what is kept and how it is put in order
(`kept_jacobians.py`, `latent_rows.py`).
"""

from __future__ import annotations

import math
import tempfile
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jsae_core.memory import TemporaryFileError

PENDING_BYTES = 2**29  # copied from a CUDA device but not written yet


class InFile(NamedTuple):
    """Where a tensor is in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class ArrayFile:
    """A temporary file without a name, which disappears with the process at the latest. TMPDIR says where it is.

    A tensor on a CUDA device is copied while the device goes on computing, and written once it has been copied.

    Args:
        holds: what is kept in it, for the error that asks to make room.
    """

    def __init__(self, holds: str):
        self._holds = holds
        self._file = tempfile.TemporaryFile(prefix="jsae-")
        self._end = self._written = 0  # bytes
        self._pending: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def close(self) -> None:
        self._file.close()

    def write(self, tensor: Tensor) -> InFile:
        """Append a tensor; one of bfloat16, which numpy does not have, as float32.

        Raises:
            TemporaryFileError: there is no room for this, or for what came before. It is an OSError.
        """
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        offset, self._end = self._end, self._end + tensor.nbytes
        if tensor.device.type == "cuda":
            on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            on_host.copy_(tensor, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._pending.append((copied, on_host))
            self._write_pending(PENDING_BYTES)
        else:
            on_host = tensor.cpu()
            self._append(on_host)
        return InFile(offset, tuple(on_host.shape), on_host.numpy().dtype)

    def _write_pending(self, most_bytes: int) -> None:
        """Write what has been copied, and wait for more until at most so many bytes are pending."""
        while self._pending and (self._pending[0][0].query() or self._end - self._written > most_bytes):
            copied, on_host = self._pending.popleft()
            copied.synchronize()
            self._append(on_host)

    def _append(self, on_host: Tensor) -> None:
        array = on_host.numpy()
        self._file.seek(self._written)
        try:
            array.tofile(self._file)
        except OSError as error:
            raise TemporaryFileError(
                f"{self._holds} could not be kept in a temporary file in {tempfile.gettempdir()}: after "
                f"{self._written:,} bytes there was no room for {array.nbytes:,} more ({error}). Name a folder on a "
                "larger disk in TMPDIR, or measure fewer tokens"
            ) from error
        self._written += array.nbytes

    def read(self, kept: InFile, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of what was written."""
        self._write_pending(0)
        shape = ((kept.shape[0] if stop is None else stop) - start, *kept.shape[1:])
        self._file.seek(kept.offset + start * math.prod(kept.shape[1:]) * kept.dtype.itemsize)
        return np.fromfile(self._file, kept.dtype, math.prod(shape)).reshape(shape)
