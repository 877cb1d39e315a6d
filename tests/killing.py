"""Processes that are killed: forked from a server that has imported torch once, so that each begins at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["jsae_core.training", "tests.jsae_assets.conftest"])


def ended_before(seconds: float, work: Callable[..., None], *args: Any) -> bool:
    """Whether `work`, in a process of its own, came to its end in so many seconds; if not, it is killed (SIGKILL).

    Raises:
        RuntimeError: it ended with an error.
    """
    begun = FORKED.Event()
    process = FORKED.Process(target=_begin, args=(begun, work, *args))
    process.start()
    begun.wait()
    process.join(seconds)
    ended = process.exitcode is not None
    process.kill()
    process.join()
    if ended and process.exitcode:
        raise RuntimeError(f"the process ended with status {process.exitcode}")
    return ended


def times_killed(longest: float, seed: int, work: Callable[..., None], *args: Any) -> int:
    """Begin `work` again and again, each time killed at a random moment before so many seconds, until it ends; how
    often it was killed."""
    moments = random.Random(seed)
    kills = 0
    while not ended_before(moments.uniform(0, longest), work, *args):
        kills += 1
    return kills


def killed_once(happened: Callable[[], bool], sign: signal.Signals, work: Callable[..., None], *args: Any) -> float:
    """Begin `work` in a process of its own and send it the signal as soon as something has happened; how many seconds
    later it was gone.

    Raises:
        RuntimeError: it ended before, or is not gone within a minute.
    """
    process = FORKED.Process(target=work, args=args)
    process.start()
    while process.exitcode is None and not happened():
        time.sleep(0.005)
    if process.exitcode is not None:
        raise RuntimeError(f"the process ended with status {process.exitcode} before anything had happened")
    began = time.monotonic()
    os.kill(process.pid, sign)
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise RuntimeError(f"the process lived on a minute after {sign.name}")
    return time.monotonic() - began


def _begin(begun: Any, work: Callable[..., None], *args: Any) -> None:
    begun.set()
    work(*args)
