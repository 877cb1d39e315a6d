"""Locks that end with the process that holds them, however it ends: kill -9 and a lost power supply included.

A lock is a file, locked by the operating system, that says who holds it. Neither process numbers nor times are
compared, so none that was used again misleads. Where the file system knows no locks nobody waits, and nothing counts
as free. Here: holding one, who holds it, whether one is free. Not here: what they stand for: a fetch (`artifacts.py`,
`hub.py`), and in `jsae_assets` runs, the instance, files that are being written, devices.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path


def this_machine() -> str:
    return platform.node()


@contextlib.contextmanager
def holding(path: Path, what: str = "", say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock for as long as the block takes. The file stays.

    Args:
        what: what is done while it is held: "fetches the pair".
        say: is told for whom this one has to wait, if it has to, and what that one does.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if say is not None:
                say(f"Waiting for {holder(path)}, which {what} (its lock: {path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks here
        with contextlib.suppress(OSError):  # no room: then it does not say who holds it
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {this_machine()}".encode())
        yield


@contextlib.contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """Hold a folder itself as a lock for as long as the block takes: it leaves no file behind, and says nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Whether there is a lock and nobody holds it; if so, it is held by this process for as long as the block takes, so
    that no two clear up at once."""
    try:
        file = path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.exists()  # else another one has just cleared up
        except OSError:
            mine = False
        yield mine


def holder(path: Path) -> str:
    """Who holds a lock, or held it last: "process 123 on its machine"."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
