"""A file that carries a digest of itself: whether it is, to the last byte, what was written.

It is xxh3_128 over the whole file, in which the digest itself counts as zeros. It finds damage, not forgery. Here:
carrying it and comparing it. Not here: where in a header it stands (`io_managers.py`), what is done about damage
(`stored.py`).
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import xxhash
from upath import UPath

PREFIX = "xxh3_128-of-this-file:"
UNSEALED = PREFIX + "0" * 32  # what is written first
_SEALED = re.compile(PREFIX + "[0-9a-f]{32}")
HEADER_BYTES = 2**24  # a header is found in so many bytes from either end


def seal(path: Path) -> str:
    """Replace the one UNSEALED in a file, in its header, by the digest; gives what stands there then."""
    at, digest = _located(path, UNSEALED)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(digest.encode())
    return digest


def is_whole(path: Path, carried: str) -> bool:
    """Whether a file is as it was when `carried`, which its header holds, was put there."""
    if not _SEALED.fullmatch(carried):
        return False
    try:
        return _located(path, carried)[1] == carried
    except ValueError:
        return False


def may_carry_one(path: Path) -> bool:
    """Whether anything looks like a digest where headers are: then a header that has none is damaged."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _found(content, PREFIX) >= 0


def file_digest(path: Path | UPath) -> str:
    """Of a file that carries none."""
    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**20):
            hashed.update(block)
    return hashed.hexdigest()


def _located(path: Path, carried: str) -> tuple[int, str]:
    """Where a digest stands, and the one that belongs there. Raises ValueError where it stands nowhere."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = _found(content, carried)
        if at < 0:
            raise ValueError(f"{path} carries no {carried}")
        hashed = xxhash.xxh3_128()
        with memoryview(content) as view:
            hashed.update(view[:at])
            hashed.update(UNSEALED.encode())
            hashed.update(view[at + len(carried) :])
        return at, PREFIX + hashed.hexdigest()


def _found(content: mmap.mmap, text: str) -> int:
    """Where in a header, which is at the beginning or the end, a text stands; -1 if it does not."""
    at = content.find(text.encode(), 0, HEADER_BYTES)
    return at if at >= 0 else content.rfind(text.encode(), max(0, len(content) - HEADER_BYTES))
