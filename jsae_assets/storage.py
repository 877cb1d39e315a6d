"""Where an asset's partition is stored, and how a file comes there whole.

Here: paths below the storage, which may be any fsspec path. Not here: what a stored file holds and how it is read
(`stored.py`), when one is written (`io_managers.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from upath import UPath

from jsae_assets.partitions import stored_below


def storage(base_path: str | None, instance: dg.DagsterInstance) -> UPath:
    """The folder that everything stored is below: the one that is named, else the instance's own.

    Raises:
        ValueError: it is to be below the home of a user that there is not.
    """
    path = os.path.expanduser(base_path) if base_path else instance.storage_directory()
    if path.startswith("~"):  # left as it was: it would become a folder of that name
        raise ValueError(f"the storage is {path!r}, but there is no such user; expected a path, or one that begins ~/")
    return UPath(path)


def stored_at(key: dg.AssetKey, partition: str | None, extension: str) -> str:
    """Where an asset's partition is stored, relative to the storage: <asset key>/<layer>/<model><extension>, or
    <asset key>/<partition><extension> for what is not of a layer."""
    return "/".join([*key.path, *([] if partition is None else [stored_below(partition)])]) + extension


def files_below(folder: UPath) -> set[str]:
    """The paths, relative to a folder, of all files below it; none if there is no such folder. Elsewhere than on this
    machine it takes one request for a thousand files, where asking for each would take one a file."""
    folder.fs.invalidate_cache()
    found = folder.fs.find(folder.path)
    start = len(folder.path.rstrip("/")) + 1
    return {path[start:] for path in found}


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


@contextlib.contextmanager
def staged(path: UPath) -> Iterator[Path]:
    """A local file to write to; it takes the place of `path` once the block ends without an error, and else is gone.

    On this machine it lies beside its place, so the move is atomic. Elsewhere it is uploaded beside it and renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    if is_local(path):
        local = Path(part.path)
        try:
            yield local
            local.replace(path.path)
        finally:
            local.unlink(missing_ok=True)
    else:
        folder = Path(tempfile.mkdtemp())
        try:
            yield folder / part.name
            path.fs.put(str(folder / part.name), part.path)
            path.fs.mv(part.path, path.path)
        finally:
            shutil.rmtree(folder)
            if part.exists():
                part.unlink()
