"""Files that carry a digest of themselves in their header, which shows whether they are still exactly what was written.

The digest is xxh3_128 over the whole file, with zeros in place of the digest itself. It detects damage, not forgery.
Here: writing the digest into a file and comparing it. Not here: which entry of the header holds it (`io_managers.py`),
what happens to damaged files (`stored.py`).
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import xxhash
from upath import UPath

PREFIX = "xxh3_128-of-this-file:"
UNSEALED = PREFIX + "0" * 32  # the placeholder, written first, that the digest replaces
_SEALED = re.compile(PREFIX + "[0-9a-f]{32}")
HEADER_BYTES = 2**24  # a header lies within this many bytes of the file's beginning or end
SOURCE_DIGEST = "source_digest"  # the metadata with the digest of what a pair or a text was made from


def in_groups(digest: str) -> str:
    """Return a digest as metadata shows it: in groups, so that it does not widen the table that it stands in."""
    before, colon, digits = digest.rpartition(":")
    groups = [digits[start : start + 8] for start in range(0, len(digits), 8)]
    return " ".join(filter(None, [before + colon, *groups]))


def out_of_groups(shown: str) -> str:
    """Return the digest that metadata shows, in groups or not."""
    return "".join(shown.split())


def seal(path: Path) -> str:
    """Replace the one UNSEALED in a file's header by the digest, and return the digest with its prefix."""
    at, digest = _locate(path, UNSEALED)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(digest.encode())
    return digest


def is_undamaged(path: Path, carried: str) -> bool:
    """Whether a file is unchanged since the digest `carried` was written into its header."""
    if not _SEALED.fullmatch(carried):
        return False
    try:
        return _locate(path, carried)[1] == carried
    except ValueError:
        return False


def may_carry_a_digest(path: Path) -> bool:
    """Whether a digest stands anywhere within `HEADER_BYTES` of either end of a file. If it does, a header that can be
    read but holds no digest is damaged."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _position_in_header(content, PREFIX) >= 0


def file_digest(path: Path | UPath) -> str:
    """Return the xxh3_128 of a whole file, for files that carry no digest themselves."""
    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**20):
            hashed.update(block)
    return hashed.hexdigest()


def _locate(path: Path, carried: str) -> tuple[int, str]:
    """Return the position of a digest in a file, and the digest that the file should carry. Raises ValueError if the
    file does not hold `carried`."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = _position_in_header(content, carried)
        if at < 0:
            raise ValueError(f"{path} does not carry {carried}")
        hashed = xxhash.xxh3_128()
        with memoryview(content) as view:
            hashed.update(view[:at])
            hashed.update(UNSEALED.encode())
            hashed.update(view[at + len(carried) :])
        return at, PREFIX + hashed.hexdigest()


def _position_in_header(content: mmap.mmap, text: str) -> int:
    """Return the position of a text in the header at the beginning or the end of a file; -1 if it is in neither."""
    at = content.find(text.encode(), 0, HEADER_BYTES)
    return at if at >= 0 else content.rfind(text.encode(), max(0, len(content) - HEADER_BYTES))
