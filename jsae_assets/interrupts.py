"""Ctrl-C in a terminal: the command says one sentence, and no process prints a traceback.

Here: what an interrupt does outside of runs, and to the processes that copy a run's output to the terminal. Not here:
how a run ends (`runs/at_work.py`). Nothing here imports Dagster before it is needed, because that takes seconds, in
which Ctrl-C may be pressed too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

IN_STEPS = "DagsterExecutionInterruptedError"  # what Dagster makes of an interrupt in a step


def end_at_once(sentence: str) -> None:
    """From now on, let Ctrl-C end this process with a sentence. An exception would not do while modules are imported:
    some of them take any exception for a package that is not installed."""

    def end(number: int, frame: object) -> None:
        os.write(sys.stdout.fileno(), f"\n{sentence}\n".encode() if sentence else b"\n")
        os._exit(1)

    signal.signal(signal.SIGINT, end)


def be_raised() -> None:
    """From now on, let Ctrl-C raise KeyboardInterrupt, also in a process that began with interrupts ignored (a script's
    `jsae ui &`): Dagster gives SIGTERM the same handler, so nothing would end it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _unraisable


def _unraisable(error: Any) -> None:
    """Print an exception that Python could not raise, as it would without this hook, but not an interrupt:
    `runs/at_work.py` interrupts a run again until it ends."""
    if not isinstance(error.exc_value, KeyboardInterrupt) and error.exc_type.__name__ != IN_STEPS:
        sys.__unraisablehook__(error)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Let the processes that this thread starts meanwhile never hear an interrupt."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spare_what_copies_output() -> None:
    """Let Ctrl-C not reach the processes with which Dagster copies the output of a run to the terminal: one of them
    would print a traceback. Dagster ends them itself."""
    from dagster._core.execution import compute_logs

    copying = compute_logs.execute_posix_tail

    @contextlib.contextmanager
    def copying_unheard(path: str, stream: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            with _unheard():
                processes = stack.enter_context(copying(path, stream))
            yield processes

    compute_logs.execute_posix_tail = copying_unheard
