"""Processes that are killed: forked from a server that has imported torch once, so that each begins at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["jsae_core.training"])


def ended_before(seconds: float, work: Callable[..., None], *args: Any) -> bool:
    """Whether `work`, in a process of its own, came to its end in so many seconds; if not, it is killed (SIGKILL).

    Raises:
        RuntimeError: it ended with an error.
    """
    process = FORKED.Process(target=work, args=args)
    process.start()
    process.join(seconds)
    ended = process.exitcode is not None
    process.kill()
    process.join()
    if ended and process.exitcode:
        raise RuntimeError(f"the process ended with status {process.exitcode}")
    return ended
