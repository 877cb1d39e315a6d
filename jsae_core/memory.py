"""What the C library does with memory that was freed. Not here: how much memory a measure takes."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h names them
KEPT_BLOCK_BYTES = 2**29


def keep_freed_memory() -> None:
    """Let this process use memory again that it has freed, instead of giving it back and asking for new pages, which
    the system must find and zero: on CPUs a quarter of the time of most measures here. Blocks above 512 MiB are given
    back as before. Where the C library is not glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
