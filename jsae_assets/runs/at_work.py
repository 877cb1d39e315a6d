"""Which runs are at work: the process of a run holds a lock for as long as it lives.

A killed process cannot report its end: its run would stay "Started" for good and keep its slot of the pool. So a
command that begins, and a run that waits for a slot, look for runs whose lock nobody holds, mark them as failed and
free their slots; where a daemon runs, the sensor `dead_runs` does the same. Runs of another machine are left alone,
because only that machine can tell whether their processes are alive. Here: the lock of a run, cleaning up after dead
runs, what a run waits for, and ending a run that is told to end. Not here: locks themselves (`jsae_core.locks`).
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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import dagster as dg

from jsae_assets.resources import POOL
from jsae_core.locks import holder, holding, if_free, this_machine

SECONDS_BETWEEN_LOOKS = 3.0
LOOKS_BETWEEN_REMINDERS = 20  # a run that still waits says so again after these, about a minute
SECONDS_BETWEEN_INTERRUPTIONS = 1.0
LOOKS_WHILE_ENDING = 5  # a run that is already ending is interrupted again after these
BEGINNING = "beginning-"  # begins the name of the lock of a process that is about to execute a run; its number follows
STOPPING, END = {signal.SIGINT, signal.SIGTERM}, b"\0"
TERMINATED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
# a daemon that lost sight of a run that lives on (its machine could not be reached) marks it as failed and begins it
# again elsewhere
GIVEN_UP = (*TERMINATED, dg.DagsterRunStatus.FAILURE)


def _locks(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "at_work"


@contextlib.contextmanager
def at_work(
    instance: dg.DagsterInstance,
    run_id: str,
    say: Callable[[str], None],
    to_end: Collection[dg.DagsterRunStatus] = TERMINATED,
) -> Iterator[threading.Event]:
    """Context manager for the process that executes a run. Until the block ends, a thread reports what the run waits
    for, cleans up after dead runs, for whose slots it may be waiting, and ends the run when it is told to: by SIGINT,
    SIGTERM or a status that somebody else gave it (one of `to_end`).

    It gives an event that is set once the run is told to end. The run's result does not always show that, because a
    library may take the interruption for an error of its own.
    """
    _locks(instance).mkdir(parents=True, exist_ok=True)
    lock, thread, told_to_end = _locks(instance) / run_id, threading.current_thread(), threading.Event()
    with holding(lock), _noticed_signals() as (signals, end):
        watch = threading.Thread(
            target=_watch, args=(instance, run_id, say, to_end, signals, thread, told_to_end), daemon=True
        )
        watch.start()
        try:
            yield told_to_end
        finally:
            end()
            watch.join()
            lock.unlink()


@contextlib.contextmanager
def _beginning(instance: dg.DagsterInstance) -> Iterator[None]:
    """Context manager for a process from before Dagster marks its run as started until it holds the lock of the run.
    The process does not know yet which run that is, so the name of this lock contains the number of the process."""
    _locks(instance).mkdir(parents=True, exist_ok=True)
    lock = _locks(instance) / f"{BEGINNING}{os.getpid()}-{uuid.uuid4()}"
    with holding(lock):
        try:
            yield
        finally:
            lock.unlink()


@contextlib.contextmanager
def _noticed_signals() -> Iterator[tuple[socket.socket, Callable[[], object]]]:
    """Context manager that gives a socket, at which the number of each signal to this process arrives, and a function
    that sends END there."""
    arriving, sending = socket.socketpair()
    with arriving, sending:
        sending.setblocking(False)
        if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
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
    """Do nothing, since the thread that watches the run receives the number of the signal. (During a step, Dagster's
    own handler replaces this one.)"""


def _watch(
    instance: dg.DagsterInstance,
    run_id: str,
    say: Callable[[str], None],
    to_end: Collection[dg.DagsterRunStatus],
    signals: socket.socket,
    thread: threading.Thread,
    told_to_end: threading.Event,
) -> None:
    """Report what the run waits for, and clean up after dead runs, until END arrives. Once the run is told to end,
    interrupt it instead."""
    said, looks, received = None, 0, b""
    while True:
        received += _arrived(signals, SECONDS_BETWEEN_LOOKS)
        if STOPPING & set(received):
            told_to_end.set()
        if END in received:
            return
        if told_to_end.is_set() or _has_status(instance, run_id, to_end):
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
    """Return what arrives within this many seconds, as soon as it does; b"" if nothing does. (Not by `select`, which
    fails in a process with more than 1,024 open files.)"""
    signals.settimeout(seconds)
    try:
        return signals.recv(64)
    except TimeoutError:
        return b""


def _has_status(instance: dg.DagsterInstance, run_id: str, statuses: Collection[dg.DagsterRunStatus]) -> bool:
    """Whether a run has one of these statuses. (Where somebody asked for its end in the UI, the code server that is to
    signal it may be gone.)"""
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status in statuses


def _interrupt_until_it_ends(
    instance: dg.DagsterInstance, run_id: str, signals: socket.socket, thread: threading.Thread
) -> None:
    """Interrupt the thread of the run until END arrives. In a step, Dagster turns the signal into an exception, which
    can get lost: where Python cannot raise it (in a callback or `__del__`), and in a library that takes it for a failed
    import or request and goes on. While the thread handles an interruption it is interrupted less often, so that it
    can clean up."""
    received, looks_while_ending = b"", 0
    while END not in received:
        if received := _arrived(signals, SECONDS_BETWEEN_INTERRUPTIONS):
            continue
        looks_while_ending = looks_while_ending + 1 if _is_ending(thread) else 0
        if looks_while_ending % LOOKS_WHILE_ENDING == 0:
            _interrupt(thread, what_is_waited_for(instance, run_id) is not None)


def _interrupt(thread: threading.Thread, is_waiting: bool) -> None:
    """Interrupt a thread once, by a signal if Dagster handles it there, else by raising Dagster's exception in it."""
    assert thread.ident is not None
    # Dagster handles signals while a step begins and runs, not while the run waits for a slot; and Python handles them
    # in the main thread alone
    if thread is threading.main_thread() and not is_waiting:
        signal.pthread_kill(thread.ident, signal.SIGINT)
    else:
        interruption = ctypes.py_object(dg.DagsterExecutionInterruptedError)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), interruption)


def _is_ending(thread: threading.Thread) -> bool:
    """Whether a thread is handling an interruption at this moment: in an `except`, a `finally` or a `with` that
    ends."""
    found = sys._current_exceptions().get(thread.ident)
    error = found[1] if isinstance(found, tuple) else found  # as Python 3.11 and later ones give it
    while error is not None and not isinstance(error, dg.DagsterExecutionInterruptedError):
        error = error.__context__
    return error is not None


def what_is_waited_for(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """Return a sentence that says which runs compute in a pool's slots, for one of which a run waits; None if it waits
    for none."""
    pool = instance.event_log_storage.get_concurrency_info(POOL)
    waiting = [step.step_key for step in pool.pending_steps if step.run_id == run_id and not step.assigned_timestamp]
    others = [slot for slot in pool.claimed_slots if slot.run_id != run_id]
    if not waiting or not others:
        return None
    held = [f"{_described(instance, slot.run_id)} is computing {slot.step_key.replace('__', '/')}" for slot in others]
    at_once = "one step computes" if pool.slot_count == 1 else f"{pool.slot_count} steps compute"
    said = f"{_assets(waiting)} waits until another run is done, because only {at_once} at a time: {' and '.join(held)}"
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
        A sentence about each run that the instance still counted as running.
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
    """Return the run of an abandoned lock, or None if there is no such run."""
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
    """An executor that executes runs by another one and holds the lock of each meanwhile. Dagster makes it before it
    marks the run as started, so from then on it holds a lock for the process."""

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
        with at_work(plan_context.instance, plan_context.run_id, plan_context.log.info, GIVEN_UP):
            self._until_at_work.close()
            yield from self._executor.execute(plan_context, execution_plan)


def known_at_work(executor: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """Return the same executor, but one that holds the lock of each run while it executes it."""
    return dg.ExecutorDefinition(
        name=executor.name,
        config_schema=executor.config_schema,  # type: ignore[arg-type]  # accepted, though not annotated
        requirements=executor.get_requirements,
        executor_creation_fn=lambda context: _AtWork(executor.executor_creation_fn(context), context.instance),
        description=executor.description,
    )
