"""Where each partition of an asset is stored, and how a file gets there only when it is complete.

Here: paths below the storage folder, which may be any fsspec path. Not here: what a stored file holds and how it is
read (`stored.py`), when one is written (`io_managers.py`).
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
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from jsae_assets.partitions import stored_below
from jsae_core.locks import holding, holding_folder, if_free

PART = ".*.part.*"  # the names of files, or folders, that are being written
LOCK = "lock"  # the file in a part's folder that its writer holds locked
DEAD_AFTER = 24 * 3600.0  # seconds after which a part without a lock is taken for abandoned
# Protocols of storage in which an uploaded file appears at once and whole, and folders exist only in names of files
OBJECT_STORES = ("s3", "s3a")


def storage(base_path: str | None, instance: dg.DagsterInstance) -> UPath:
    """Return the folder of everything stored: `base_path`, or by default the instance's own storage folder. Raises
    ValueError as `named_storage` does."""
    return named_storage(base_path) if base_path else UPath(instance.storage_directory())


def named_storage(base_path: str) -> UPath:
    """Return the storage folder of this path or URL.

    Raises:
        ValueError: the path begins with the home of an unknown user, names an unknown file system, or S3 without a
            bucket, or is a file.
    """
    path = os.path.expanduser(base_path)
    if path.startswith("~"):  # not expanded; it would become a folder whose name begins with "~"
        raise ValueError(f"the storage is {path!r}, but there is no such user; expected a path, or one that begins ~/")
    # s3fs would answer from a listing that it has kept, and so not see what another machine has stored since
    options: dict[str, Any] = {"use_listings_cache": False} if path.partition("://")[0] in OBJECT_STORES else {}
    try:
        place = UPath(path, **options)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"the storage is {path!r}, which fsspec cannot reach ({error}); expected a path, or a URL of a file system "
            "whose package is installed, such as s3://bucket/folder"
        ) from error
    if place.protocol in OBJECT_STORES and not place.path.partition("/")[0]:
        raise ValueError(f"the storage is {path!r}, which names no bucket; expected s3://bucket/folder")
    if is_local(place) and place.is_file():
        raise ValueError(f"the storage is {path!r}, which is a file; expected a folder")
    return place


def stored_at(key: dg.AssetKey, partition: str | None, extension: str) -> str:
    """Return the path of an asset's partition relative to the storage: <asset key>/<layer>/<model><extension> for a
    cell, else <asset key>/<partition><extension>.

    Raises:
        ValueError: a part of the path cannot be the name of a file or folder.
    """
    below = [*key.path, *([] if partition is None else stored_below(partition).split("/"))]
    for part in below:
        if part in ("", ".", "..") or any(sign in "/\\" or not sign.isprintable() for sign in part):
            raise ValueError(
                f"{key.to_user_string()} for {partition!r} cannot be stored: {part!r} cannot be the name of a file or "
                "folder"
            )
    return "/".join(below) + extension


def files_below(folder: UPath) -> dict[str, float]:
    """Return all files below a folder: their paths relative to it, and when each was last changed (seconds since 1970).
    The dict is empty if there is no such folder. In remote storage this takes one request for a thousand files, not one
    for each."""
    folder.fs.invalidate_cache()
    found = folder.fs.find(folder.path, detail=True)
    start = len(folder.path.rstrip("/")) + 1
    return {path[start:]: time_of_change(info) for path, info in found.items()}


def information(paths: Collection[UPath]) -> dict[UPath, Mapping[str, Any]]:
    """Return fsspec's information on those files of one folder that exist. In remote storage this takes one request,
    not one or two for each."""
    (folder,) = {path.parent for path in paths}
    if is_local(folder):
        return {path: path.fs.info(path.path) for path in paths if path.exists()}
    try:
        by_name = {info["name"].rpartition("/")[2]: info for info in folder.fs.ls(folder.path, detail=True)}
    except FileNotFoundError:  # the folder
        return {}
    return {path: by_name[path.name] for path in paths if path.name in by_name}


def last_changed(path: UPath) -> float:
    """Return when a file or its attributes were last changed, in seconds since 1970. Raises FileNotFoundError."""
    return time_of_change(path.fs.info(path.path))


def time_of_change(info: Mapping[str, Any]) -> float:
    """Return the latest time in fsspec's information on a file, in seconds since 1970; 0 if there is none. Each file
    system has its own names for the times."""
    times = [info[name] for name in ("created", "mtime", "LastModified", "updated") if info.get(name)]
    return max((at.timestamp() if isinstance(at, datetime) else float(at) for at in times), default=0.0)


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


class FullDiskError(OSError):
    """The disk has no room for a file. The message names the file, the space that it needs, the space that is free, and
    what to do."""


@contextlib.contextmanager
def staged(path: UPath, size: int | None = None) -> Iterator[Path]:
    """Context manager that gives a temporary local file to write to. If the block ends without an error, the file
    replaces `path`; otherwise it is deleted.

    In local storage the temporary file lies in a folder next to `path` that is locked during writing, so that files
    left by killed processes can be told apart; the move is atomic. In remote storage the finished file is uploaded.

    Args:
        size: about how many bytes will be written, for the error message.

    Raises:
        FullDiskError: the disk has no room for the file.
    """
    if is_local(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(path.parent)
        beside = Path(path.parent.path)
        with _explained_full_disk(path, beside, size), _part_folder(beside, path.name) as folder:
            yield folder / path.name
            (folder / path.name).replace(path.path)
    else:
        with _explained_full_disk(path, Path(tempfile.gettempdir()), size), tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary) / path.name
            yield local
            _upload(local, path)


def _upload(local: Path, path: UPath) -> None:
    """Replace a remote file by a local one, so that nobody ever finds a part of it there."""
    if path.protocol in OBJECT_STORES:
        path.fs.put_file(str(local), path.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent)
    part = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    try:
        path.fs.put_file(str(local), part.path)
        path.fs.mv(part.path, path.path)
    finally:
        delete(part)


def delete(path: UPath) -> None:
    """Delete a file, if it is there. (`UPath.unlink` would look first, which takes up to three requests.)"""
    with contextlib.suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


@contextlib.contextmanager
def one_writer_at_a_time(folder: UPath) -> Iterator[None]:
    """Context manager for writing several files that belong together: only one process at a time writes in the folder,
    so that the files of two processes are never mixed. In remote storage it does nothing."""
    if not is_local(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with holding_folder(Path(folder.path)):
        yield


@contextlib.contextmanager
def _part_folder(beside: Path, name: str) -> Iterator[Path]:
    """Context manager that makes a temporary folder, holds a lock in it while its writer is alive, and deletes it."""
    folder = beside / f".{uuid.uuid4().hex}.part.{name}"
    folder.mkdir()
    try:
        with holding(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _explained_full_disk(path: UPath, folder: Path, size: int | None) -> Iterator[None]:
    """Context manager that turns errors about a full disk into FullDiskError. The block inside it must delete the
    unfinished file, so that the message gives the space that is free without it."""
    try:
        yield
    except FullDiskError:
        raise  # from another file, which is written together with this one
    except Exception as error:
        number = _full_disk_number(error)
        if number is None:
            raise
        larger_place = (
            "set JSAE_STORAGE to a folder"
            if is_local(path)
            else "set TMPDIR, where the file is written first, to a folder"
        )
        needed = "more bytes than are free" if size is None else f"about {size:,} bytes"
        raise FullDiskError(
            number,
            f"{path} could not be written: {os.strerror(number)}. It takes {needed}, and "
            f"{shutil.disk_usage(folder).free:,} are free in {folder}. A file that was stored before is unchanged, and "
            f"the unfinished one is deleted. Make room there, or {larger_place} on a larger disk, and materialise the "
            "asset again",
        ) from error


def _full_disk_number(error: Exception) -> int | None:
    """Return the operating system's error number if an error says that the disk is full, else None. (The errors of
    safetensors and Arrow are no OSErrors; they have the number in their message.)"""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"\b(?:os error|errno) (\d+)", str(error))):
        number = int(match[1])
    return number if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None


def clear_parts(folder: UPath, below: bool = False) -> int:
    """Delete the unfinished files of killed processes in a folder, or (`below`) anywhere below it. Return how many
    there were."""
    if not folder.exists():
        return 0
    parts = list(folder.rglob(PART) if below else folder.glob(PART))
    return sum(_clear(part) for part in parts)


def _clear(part: UPath) -> bool:
    """Delete an unfinished file if no process is writing it any more. Return whether it was deleted."""
    with contextlib.suppress(FileNotFoundError):  # its writer, or another process that cleans up, removed it meanwhile
        if is_local(part) and (Path(part.path) / LOCK).exists():
            with if_free(Path(part.path) / LOCK) as abandoned:
                if abandoned:
                    shutil.rmtree(part.path)
                return abandoned
        if time.time() - last_changed(part) > DEAD_AFTER:
            part.fs.rm(part.path, recursive=True)
            return True
    return False
