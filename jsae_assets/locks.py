"""Locks that end with the process that holds them, however it ends: kill -9 and a lost power supply included.

A lock is a file, locked by the operating system, that says who holds it. Neither process numbers nor times are
compared, so none that was used again misleads. Where the file system knows no locks nobody waits, and nothing counts as
abandoned. Here: holding one, whether one was abandoned. Not here: what they stand for (`at_work.py`, `home.py`,
`storage.py`).
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
def holding(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock for as long as the block takes. Who has to wait for it says for whom, if there is somebody to tell.
    The file stays."""
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if say is not None:
                say(f"Waiting for {path}, which {holder(path)} holds")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks here
        file.truncate(0)
        file.write(f"process {os.getpid()} on {this_machine()}")
        file.flush()
        yield


@contextlib.contextmanager
def if_abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody holds a lock; if so, it is held by this process for as long as the block takes, so that two do not
    clear up at once."""
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
