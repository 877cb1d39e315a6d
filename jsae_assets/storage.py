"""Where an asset's partition is stored, and how a file comes there whole.

Here: paths below the storage, which may be any fsspec path. Not here: what a stored file holds and how it is read
(`stored.py`), when one is written (`io_managers.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from jsae_assets.partitions import stored_below
from jsae_core.locks import holding, holding_folder, if_free

PART = ".*.part.*"  # the names of what is being written
LOCK = "lock"  # in the folder of a part
DEAD_AFTER = 24 * 3600.0  # seconds, of a part that no lock tells of


def storage(base_path: str | None, instance: dg.DagsterInstance) -> UPath:
    """The folder that everything stored is below: the one that is named, else the instance's own. Raises ValueError as
    `named_storage` does."""
    return named_storage(base_path) if base_path else UPath(instance.storage_directory())


def named_storage(base_path: str) -> UPath:
    """
    Raises:
        ValueError: it is to be below the home of a user that there is not, in a file system that is not known, or in
            the place of a file.
    """
    path = os.path.expanduser(base_path)
    if path.startswith("~"):  # left as it was: it would become a folder of that name
        raise ValueError(f"the storage is {path!r}, but there is no such user; expected a path, or one that begins ~/")
    try:
        place = UPath(path)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"the storage is {path!r}, which fsspec cannot reach ({error}); expected a path, or a URL of a file system "
            "whose package is installed, such as s3://bucket/folder"
        ) from error
    if is_local(place) and place.is_file():
        raise ValueError(f"the storage is {path!r}, which is a file; expected a folder")
    return place


def stored_at(key: dg.AssetKey, partition: str | None, extension: str) -> str:
    """Where an asset's partition is stored, relative to the storage: <asset key>/<layer>/<model><extension>, or
    <asset key>/<partition><extension> for what is not of a layer.

    Raises:
        ValueError: it would not be below the storage, or not where it seems to be.
    """
    below = [*key.path, *([] if partition is None else stored_below(partition).split("/"))]
    for part in below:
        if part in ("", ".", "..") or any(sign in "/\\" or not sign.isprintable() for sign in part):
            raise ValueError(
                f"{key.to_user_string()} for {partition!r} cannot be stored: {part!r} is no name of a file or folder"
            )
    return "/".join(below) + extension


def files_below(folder: UPath) -> dict[str, float]:
    """The paths, relative to a folder, of all files below it, and when each was changed last; none if there is no such
    folder. Elsewhere than on this machine it takes one request for a thousand files, where asking for each would take
    one a file."""
    folder.fs.invalidate_cache()
    found = folder.fs.find(folder.path, detail=True)
    start = len(folder.path.rstrip("/")) + 1
    return {path[start:]: _changed(said) for path, said in found.items()}


def last_changed(path: UPath) -> float:
    """When a file was written, or anything was done to it, in seconds since 1970. Raises FileNotFoundError."""
    return _changed(path.fs.info(path.path))


def _changed(said: Mapping[str, Any]) -> float:
    """By what a file system says of a file: the times' names are each one's own; without any, 0."""
    times = [said[name] for name in ("created", "mtime", "LastModified", "updated") if said.get(name)]
    return max((one.timestamp() if isinstance(one, datetime) else float(one) for one in times), default=0.0)


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


class FullDiskError(OSError):
    """There is no room for a file. The message says which, how much, where, and what to do."""


@contextlib.contextmanager
def staged(path: UPath, size: int | None = None) -> Iterator[Path]:
    """A local file to write to; it takes the place of `path` once the block ends without an error, and else is gone.

    On this machine it lies beside its place, in a folder that is locked while it is written, so that what a killed
    process left is known; the move is atomic. Elsewhere it is uploaded beside it and renamed.

    Args:
        size: about how many bytes will be written, for who has to make room for them.

    Raises:
        FullDiskError: there is no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent)
    if is_local(path):
        beside = Path(path.parent.path)
        with _told_of_full_disk(path, beside, size), _part_folder(beside, path.name) as folder:
            yield folder / path.name
            (folder / path.name).replace(path.path)
    else:
        part = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
        with _told_of_full_disk(path, Path(tempfile.gettempdir()), size), tempfile.TemporaryDirectory() as here:
            local = Path(here) / part.name
            try:
                yield local
                path.fs.put(str(local), part.path)
                path.fs.mv(part.path, path.path)
            finally:
                if part.exists():
                    part.unlink()


@contextlib.contextmanager
def in_turn(folder: UPath) -> Iterator[None]:
    """To be around the writing of several files that belong together: of those that write in their folder one does at a
    time, so that no two mix theirs. Elsewhere than in a file system nobody waits."""
    if not is_local(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with holding_folder(Path(folder.path)):
        yield


@contextlib.contextmanager
def _part_folder(beside: Path, name: str) -> Iterator[Path]:
    """A folder whose writer is known to be alive for as long as the block takes."""
    folder = beside / f".{uuid.uuid4().hex}.part.{name}"
    folder.mkdir()
    try:
        with holding(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _told_of_full_disk(path: UPath, folder: Path, size: int | None) -> Iterator[None]:
    """To be around what deletes a part that could not be written, to say what is free then."""
    try:
        yield
    except FullDiskError:
        raise  # of another file, which is written with this one
    except Exception as error:
        reason = _no_room(error)
        if reason is None:
            raise
        elsewhere = "set JSAE_STORAGE to a folder" if is_local(path) else "set TMPDIR, where it is made, to a folder"
        needed = "more bytes than are free" if size is None else f"about {size:,} bytes"
        raise FullDiskError(
            reason,
            f"{path} could not be written: {os.strerror(reason)}. It takes {needed}, and "
            f"{shutil.disk_usage(folder).free:,} are free in {folder}. What was there before is as it was, and nothing "
            f"of this is left. Make room there, or {elsewhere} on a larger disk, and materialise it again",
        ) from error


def _no_room(error: Exception) -> int | None:
    """The number of a system's error that says that there is no room, if it is one. (safetensors and Arrow raise errors
    of their own, which say the number in words.)"""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (said := re.search(r"\b(?:os error|errno) (\d+)", str(error))):
        number = int(said[1])
    return number if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None


def clear_parts(folder: UPath, below: bool = False) -> int:
    """Delete what killed processes were writing in a folder, or anywhere below it; how many files that were."""
    if not folder.exists():
        return 0
    found = list(folder.rglob(PART) if below else folder.glob(PART))
    return sum(_cleared(part) for part in found)


def _cleared(part: UPath) -> bool:
    """Whether a part was one that nobody writes any more."""
    with contextlib.suppress(FileNotFoundError):  # its writer, or another that clears up, was quicker
        if is_local(part) and (Path(part.path) / LOCK).exists():
            with if_free(Path(part.path) / LOCK) as abandoned:
                if abandoned:
                    shutil.rmtree(part.path)
                return abandoned
        if time.time() - last_changed(part) > DEAD_AFTER:
            part.fs.rm(part.path, recursive=True)
            return True
    return False
