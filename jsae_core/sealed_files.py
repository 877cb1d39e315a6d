"""Files that carry a digest of themselves in their header, which shows whether they are still exactly what was written.

The digest is xxh3_128 over the whole file, with zeros in place of the digest itself. It detects damage, not forgery.
Here: writing the digest into a file and comparing it. Not here: which files carry one (`jsae_assets/io_managers.py`),
how a header is read (`tensor_files.py`).
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path

import xxhash

DIGEST = "digest"  # the name of the header's entry, whose value is JSON
PREFIX = "xxh3_128-of-this-file:"
UNSEALED = PREFIX + "0" * 32  # the placeholder, written first, that the digest replaces
_SEALED = re.compile(PREFIX + "[0-9a-f]{32}")
HEADER_BYTES = 2**24  # a header lies within this many bytes of the file's beginning or end


def seal(path: Path) -> str:
    """Replace the one UNSEALED in a file's header by the digest, and return the digest with its prefix."""
    at, digest = _locate(path, UNSEALED)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(digest.encode())
    return digest


def carried_digest(path: Path, header: Mapping[str, str]) -> str | None:
    """Return the digest that a file with this header carries; None if it carries none, and "" if a digest stands in
    the file but the header, being damaged, no longer names it."""
    carried = header.get(DIGEST, "").strip('"')
    return None if not carried and not _may_carry_a_digest(path) else carried


def is_undamaged(path: Path, carried: str) -> bool:
    """Whether a file is unchanged since the digest `carried` was written into its header."""
    if not _SEALED.fullmatch(carried):
        return False
    try:
        return _locate(path, carried)[1] == carried
    except ValueError:
        return False


def check_undamaged(path: Path, header: Mapping[str, str]) -> None:
    """Raises ValueError if a stored file with this header carries a digest and is no longer what was written. The
    message names the file and says what to do."""
    carried = carried_digest(path, header)
    if carried is not None and not is_undamaged(path, carried):
        raise ValueError(
            f"{path} is damaged: its bytes are not those that were written, by the digest that it carries. "
            "Delete it and materialise it again: `jsae run` does"
        )


def _may_carry_a_digest(path: Path) -> bool:
    """Whether a digest stands anywhere within `HEADER_BYTES` of either end of a file. If it does, a header that can be
    read but holds no digest is damaged."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _position_in_header(content, PREFIX) >= 0


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
