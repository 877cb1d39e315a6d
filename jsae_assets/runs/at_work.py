"""Which runs are at work: the process of a run holds a lock for as long as it lives.

A process that is killed cannot say so: its run would stay "Started" for good, and keep its slot of the pool. So
whoever begins or waits looks for runs whose lock nobody holds, marks them failed and frees their slots; with a daemon
the sensor `dead_runs` does. A run of another machine is never judged: only that machine knows. Here: the lock of a run,
what became of runs without one, what a run waits for, and that it ends when it is told to. Not here: locks themselves
(`jsae_core.locks`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg

from jsae_assets.resources import POOL
from jsae_core.locks import holder, holding, if_free, this_machine

SECONDS_BETWEEN_LOOKS = 3.0
LOOKS_BETWEEN_REMINDERS = 20  # of what is still waited for: a minute
SECONDS_BETWEEN_INTERRUPTIONS = 1.0
LOOKS_WHILE_ENDING = 5  # for which a run that is on its way out is left alone
BEGINNING = "beginning-"  # how the lock of a process is named that is about to execute a run, before its number
STOPPING, END = {signal.SIGINT, signal.SIGTERM}, b"\0"


def _locks(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "at_work"


@contextlib.contextmanager
def at_work(instance: dg.DagsterInstance, run_id: str, say: Callable[[str], None]) -> Iterator[threading.Event]:
    """To be held by the process that executes a run. Says what the run has to wait for, clears up after runs that died
    meanwhile, which it may be waiting for, and has Terminate, SIGINT and SIGTERM end it.

    Gives what is set once it was told to end: how the run ended does not show that where a library took the
    interruption for an error of its own.
    """
    _locks(instance).mkdir(parents=True, exist_ok=True)
    lock, thread, told_to_end = _locks(instance) / run_id, threading.current_thread(), threading.Event()
    with holding(lock), _noticed_signals() as (signals, end):
        watch = threading.Thread(target=_watch, args=(instance, run_id, say, signals, thread, told_to_end), daemon=True)
        watch.start()
        try:
            yield told_to_end
        finally:
            end()
            watch.join()
            lock.unlink()


@contextlib.contextmanager
def _beginning(instance: dg.DagsterInstance) -> Iterator[None]:
    """To be held by a process from before Dagster marks its run as started until it holds the run's lock. Which run it
    is to be, it does not know yet."""
    _locks(instance).mkdir(parents=True, exist_ok=True)
    lock = _locks(instance) / f"{BEGINNING}{os.getpid()}-{uuid.uuid4()}"
    with holding(lock):
        try:
            yield
        finally:
            lock.unlink()


@contextlib.contextmanager
def _noticed_signals() -> Iterator[tuple[socket.socket, Callable[[], object]]]:
    """Where the numbers of the signals arrive that this process is sent, and what puts END there."""
    arriving, sending = socket.socketpair()
    with arriving, sending:
        sending.setblocking(False)
        if threading.current_thread() is not threading.main_thread():  # signals are noticed in this one alone
            yield arriving, lambda: sending.send(END)
            return
        handlers = {number: signal.signal(number, _noticed) for number in STOPPING}
        before = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
        try:
            yield arriving, lambda: sending.send(END)
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _noticed(number: int, frame: object) -> None:
    """Nothing more: whoever watches the run has been sent the number. Dagster has a handler of its own in steps."""


def _watch(
    instance: dg.DagsterInstance,
    run_id: str,
    say: Callable[[str], None],
    signals: socket.socket,
    thread: threading.Thread,
    told_to_end: threading.Event,
) -> None:
    said, looks, received = None, 0, b""
    while True:
        received += _arrived(signals, SECONDS_BETWEEN_LOOKS)
        if STOPPING & set(received):
            told_to_end.set()
        if END in received:
            return
        if told_to_end.is_set() or _is_terminated(instance, run_id):
            told_to_end.set()
            return _interrupt_until_it_ends(instance, run_id, signals, thread)
        waits_for = what_is_waited_for(instance, run_id)
        if waits_for is None:
            said, looks = None, 0
            continue
        for sentence in release_dead_runs(instance):
            say(sentence)
        if waits_for != said or looks % LOOKS_BETWEEN_REMINDERS == 0:
            say(waits_for)
        said, looks = waits_for, looks + 1


def _arrived(signals: socket.socket, seconds: float) -> bytes:
    """What arrives within so many seconds, as soon as it does. (`select` fails in a process with over 1,024 open
    files.)"""
    signals.settimeout(seconds)
    try:
        return signals.recv(64)
    except TimeoutError:
        return b""


def _is_terminated(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether somebody asked for the run's end in the UI; the code server that is to signal it may be gone."""
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


def _interrupt_until_it_ends(
    instance: dg.DagsterInstance, run_id: str, signals: socket.socket, thread: threading.Thread
) -> None:
    """Dagster turns a signal into an exception, in a step. That may be lost: where Python cannot raise it (a callback,
    `__del__`), and in any library that takes it for a failed import or request and goes on without. So it comes again,
    unless the thread is on its way out already: what clears up there is not to be interrupted."""
    received, looks_while_ending = b"", 0
    while END not in received:
        if received := _arrived(signals, SECONDS_BETWEEN_INTERRUPTIONS):
            continue
        looks_while_ending = looks_while_ending + 1 if _is_ending(thread) else 0
        if looks_while_ending % LOOKS_WHILE_ENDING == 0:
            _interrupt(thread, what_is_waited_for(instance, run_id) is not None)


def _interrupt(thread: threading.Thread, is_waiting: bool) -> None:
    assert thread.ident is not None
    # Dagster looks for signals while a step begins and is executed, not while it waits; and Python gives them to the
    # main thread alone
    if thread is threading.main_thread() and not is_waiting:
        signal.pthread_kill(thread.ident, signal.SIGINT)
    else:
        interruption = ctypes.py_object(dg.DagsterExecutionInterruptedError)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), interruption)


def _is_ending(thread: threading.Thread) -> bool:
    """Whether a thread handles an interruption at this moment: an `except`, a `finally` or the end of a `with`."""
    found = sys._current_exceptions().get(thread.ident)
    error = found[1] if isinstance(found, tuple) else found  # as Python 3.11 and later ones give it
    while error is not None and not isinstance(error, dg.DagsterExecutionInterruptedError):
        error = error.__context__
    return error is not None


def what_is_waited_for(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """For which slot a run waits and who holds it; None if it waits for none."""
    pool = instance.event_log_storage.get_concurrency_info(POOL)
    waiting = [step.step_key for step in pool.pending_steps if step.run_id == run_id and not step.assigned_timestamp]
    others = [slot for slot in pool.claimed_slots if slot.run_id != run_id]
    if not waiting or not others:
        return None
    held = [f"{_described(instance, slot.run_id)} holds with {slot.step_key.replace('__', '/')}" for slot in others]
    said = f"{_assets(waiting)} waits for a slot of the pool {POOL}, which {' and '.join(held)}"
    if all(_is_of_this_machine(_locks(instance) / slot.run_id) for slot in others):
        return said
    return f"{said}. If that run is gone for good, mark it as failed: in `jsae ui`, under Runs"


def _is_of_this_machine(lock: Path) -> bool:
    return lock.exists() and holder(lock).endswith(f" on {this_machine()}")


def _assets(steps: list[str]) -> str:
    first = steps[0].replace("__", "/")
    return first if len(steps) == 1 else f"{first} (and {len(steps) - 1} more)"


def _described(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    named = [] if run is None else [run.job_name, *filter(None, [run.tags.get("dagster/partition")])]
    lock = _locks(instance) / run_id
    named.append(holder(lock) if lock.exists() else "perhaps on another machine")
    return f"run {run_id[:8]} ({', '.join(named)})"


def release_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of this machine as failed whose process is gone, and free their slots.

    Returns:
        A sentence about each run that was still counted as running.
    """
    said = []
    for lock in sorted(_locks(instance).glob("*")):
        with if_free(lock) as abandoned:
            if not abandoned or not _is_of_this_machine(lock):
                continue
            run = _run_of(instance, lock)
            if run is not None and not run.is_finished:
                sentence = (
                    f"The process of {_described(instance, run.run_id)} is gone: marked as failed, its slot is free"
                )
                instance.report_run_failed(run, sentence)
                said.append(sentence)
            instance.event_log_storage.free_concurrency_slots_for_run(lock.name if run is None else run.run_id)
            lock.unlink()
    return said


def _run_of(instance: dg.DagsterInstance, lock: Path) -> dg.DagsterRun | None:
    """The run of an abandoned lock."""
    if not lock.name.startswith(BEGINNING):
        return instance.get_run_by_id(lock.name)
    process = int(lock.name.removeprefix(BEGINNING).split("-")[0])
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        began = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_START)
        by = [entry.dagster_event.pid for entry in began if entry.dagster_event is not None]
        if by == [process] and not (lock.parent / run.run_id).exists():
            return run
    return None


class _AtWork(dg.Executor):
    """Another executor, while whose runs execute it is known that they do. Dagster makes it before it marks the run as
    started."""

    def __init__(self, executor: dg.Executor, instance: dg.DagsterInstance):
        self._executor, self._until_at_work = executor, contextlib.ExitStack()
        self._until_at_work.enter_context(_beginning(instance))

    @property
    def retries(self):
        return self._executor.retries

    @property
    def step_dependency_config(self):
        return self._executor.step_dependency_config

    def execute(self, plan_context, execution_plan) -> Iterator[dg.DagsterEvent]:
        with at_work(plan_context.instance, plan_context.run_id, plan_context.log.info):
            self._until_at_work.close()
            yield from self._executor.execute(plan_context, execution_plan)


def known_at_work(executor: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """The same executor, while whose runs execute it is known that they do."""

    return dg.ExecutorDefinition(
        name=executor.name,
        config_schema=executor.config_schema,  # type: ignore[arg-type]  # accepted, though not annotated
        requirements=executor.get_requirements,
        executor_creation_fn=lambda context: _AtWork(executor.executor_creation_fn(context), context.instance),
        description=executor.description,
    )
