"""Locks that end with the process that holds them, even after kill -9 or a power failure.

A lock is a file that the operating system locks and that says who holds it. Process numbers and times are not compared,
so a reused process number cannot mislead. On a file system without locks nobody waits, and no lock counts as free.
Here: holding a lock, naming its holder, testing whether it is free. Not here: what a lock protects: a fetch
(`artifacts.py`, `hub.py`), and in `jsae_assets` runs, the instance, files that are being written, devices.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


def this_machine() -> str:
    return platform.node()


@contextlib.contextmanager
def holding(path: Path, what: str = "", say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock at `path` for the duration of the block; wait for it if another process holds it. The file stays.

    Args:
        what: what the holder of this lock does, such as "fetches the pair".
        say: receives a message if this process has to wait: for which process, and what that one does.
    """
    with path.open("a+", encoding="utf-8") as file:
        if not _try_to_take(file):
            if say is not None:
                say(f"Waiting for {holder(path)}, which {what} (its lock: {path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # on a full disk the file does not say who holds the lock
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {this_machine()}".encode())
        yield


def _try_to_take(file: TextIO) -> bool:
    """Take the lock of an open file unless another process holds it. Return whether this process has it; on a file
    system without locks every process does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """Hold a folder itself as a lock for the duration of the block; this leaves no file behind and reports nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # this file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def if_not_held(path: Path) -> Iterator[bool]:
    """Yield whether no other process holds the lock at `path`; if so, this one holds it for the duration of the block.
    The file stays. On a file system without locks nobody holds one."""
    with path.open("a+", encoding="utf-8") as file:
        yield _try_to_take(file)


@contextlib.contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Yield whether the lock exists and nobody holds it. If so, this process holds it for the duration of the block, so
    that no two processes clear up at once."""
    try:
        file = path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = path.exists()  # otherwise another process has just removed it
        except OSError:
            is_free = False
        yield is_free


def holder(path: Path) -> str:
    """The process that holds a lock, or held it last, such as "process 123 on host"."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
