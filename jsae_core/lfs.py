"""Placeholders that git leaves in place of large files where git-lfs is missing.

Here: telling one from the file itself. Not here: what the files hold, and the errors about it.
"""

from __future__ import annotations

from pathlib import Path

BEGINNING = b"version https://git-lfs"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is only a placeholder. A missing one (or a broken link) is none: the error comes when it is
    read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING
