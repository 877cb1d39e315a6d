"""The memory of a device: how much there is, how large pieces of work may be, and using freed memory again.

Also here: moving tensors from the host to a device, and sizes in words. Not here: how much memory a measure takes.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

# glibc's numbers for what `mallopt` sets, by their names in malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BLOCK_BYTES = 2**29
WHAT_TO_DO = "compute on another device, with fewer digits (bfloat16), or with nothing else beside it"
# a CUDA device's pieces are larger than a CPU's by a factor of its memory / 4 GB, at most 16
LARGEST_PIECE_FACTOR, BYTES_PER_FACTOR = 16, 4 * 10**9
BATCH_TOKENS, MOST_BATCHES = 4096, 4  # on a CPU, and how many of them on a CUDA device at once
CACHED_PIECES = 8  # pieces made to stay in a CPU's cache are larger by this factor too on a CUDA device


class TemporaryFileError(OSError):
    """What did not fit in memory could not be written to a temporary file either."""


def keep_freed_memory() -> None:
    """Let this process use memory again that it has freed, instead of giving it back and asking for new pages, which
    the system must find and zero: on CPUs a quarter of the time of most measures here. Blocks above 512 MiB are given
    back as before. Where the C library is not glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a device; None if that cannot be known (MPS)."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return None


def piece_factor(device: torch.device) -> int:
    """Return how many times larger than on a CPU the pieces are into which work is split. On a CPU pieces stay in the
    cache. On a CUDA device they grow with its memory, up to 16 times, so that launching a piece's kernels does not take
    longer than running them."""
    if device.type != "cuda":
        return 1
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    return max(1, min(LARGEST_PIECE_FACTOR, total // BYTES_PER_FACTOR))


def usual_batch(device: torch.device) -> int:
    """Return how many tokens a language model and a pair are given at once. On a CUDA device it is more, because the
    same work then takes fewer launches."""
    return BATCH_TOKENS * min(MOST_BATCHES, piece_factor(device))


def cached_piece(n_bytes: int, device: torch.device) -> int:
    """Return the bytes of a piece of work that on a CPU is limited to `n_bytes`, so that it stays in the cache. On a
    CUDA device pieces are larger, since launching the kernels of one so small takes longer than running them."""
    return n_bytes * (CACHED_PIECES * piece_factor(device) if device.type == "cuda" else 1)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device. To a CUDA device it is copied from pinned memory, while both go on
    computing. (Torch uses that memory again only once the copy is done.)"""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class MemoryBudget:
    """Room for tensors that are kept because they will be needed again: first on the device they are on, then on the
    host.

    Args:
        device: where they are computed.
        most: bytes on the device, and as many on the host. None: a quarter of what is free there when the first tensor
            is to be kept.
    """

    def __init__(self, device: torch.device, most: int | None = None):
        self._device = device
        self._most = most
        self._left: dict[str, int] = {}  # bytes, by kind of device

    def kept(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the tensor where it is kept, on the device or on the host; None if neither has room. Room that was
        taken is not given back."""
        for kind in dict.fromkeys((self._device.type, "cpu")):
            if kind not in self._left:
                self._left[kind] = self._room(kind)
            if tensor.nbytes <= self._left[kind]:
                self._left[kind] -= tensor.nbytes
                return tensor if kind == self._device.type else tensor.to(kind)
        return None

    def _room(self, kind: str) -> int:
        if self._most is not None:
            return self._most
        import torch

        return (available_bytes(self._device if kind == self._device.type else torch.device(kind)) or 0) // 4


def check_room(what: str, n_bytes: int, device: torch.device) -> None:
    """Raise MemoryError if a device has no room for something that is not there yet. The message says how much it
    takes, how much there is, and what to do."""
    available = available_bytes(device)
    if available is not None and n_bytes > available:
        raise MemoryError(
            f"{device} has no room for {what}: {in_bytes(n_bytes)} are needed, {in_bytes(available)} are left of "
            f"{in_bytes(_total_bytes(device))}; {WHAT_TO_DO}"
        )


def weights_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def in_bytes(size: int) -> str:
    """A size in words, in the largest unit that fits: "1.5 GB", "120 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 100 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size} bytes"


def _total_bytes(device: torch.device) -> int:
    """Return all bytes of a device for which `available_bytes` is known."""
    if device.type == "cpu":
        return psutil.virtual_memory().total
    import torch

    return torch.cuda.get_device_properties(device).total_memory


@contextlib.contextmanager
def fitting(what: str, device: torch.device | str, n_bytes: int) -> Iterator[None]:
    """Context manager in which an error about a device's memory says what did not fit, and what to do.

    Args:
        n_bytes: the bytes that are moved to the device. (A CPU has them already.)

    Raises:
        MemoryError: at once if it is known that they do not fit; else in place of torch's OutOfMemoryError, which says
            neither.
    """
    import torch

    if torch.device(device).type != "cpu":
        check_room(what, n_bytes, torch.device(device))
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"{what} does not fit {device} beside what is there already: {in_bytes(n_bytes)} are needed; {WHAT_TO_DO} "
            f"({error})"
        ) from error
