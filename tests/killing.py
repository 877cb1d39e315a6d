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


def killed_again_and_again(times: int, seconds: float, seed: int, work: Callable[..., None], *args: Any) -> None:
    """Begin `work` again and again, killed so many times in all, each at a random moment before so many seconds; then
    let it come to its end.

    Where it came to its end before it could be killed, it is begun again, and killed sooner from then on: how fast the
    machine is does not decide how often it is killed.
    """
    moments = random.Random(seed)
    while times:
        if ended_before(moments.uniform(0, seconds), work, *args):
            seconds /= 2
        else:
            times -= 1
    if not ended_before(600, work, *args):
        raise RuntimeError("work that was killed again and again did not end within ten minutes")


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
