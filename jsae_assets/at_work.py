"""Which runs are at work: the process of a run holds a lock for as long as it lives.

A process that is killed cannot say so: its run would stay "Started" for good, and keep its slot of the pool. So
whoever begins or waits looks for runs whose lock nobody holds, marks them failed and frees their slots; with a daemon
the sensor `dead_runs` does. A run of another machine is never judged: only that machine knows. Here: the lock of a run,
what became of runs without one, what a run waits for. Not here: locks themselves (`jsae_core.locks`).
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg

from jsae_assets.resources import POOL
from jsae_core.locks import holder, holding, if_free, this_machine

SECONDS_BETWEEN_LOOKS = 3.0
LOOKS_BETWEEN_REMINDERS = 20  # of what is still waited for: a minute
STOPPING, END = {signal.SIGINT, signal.SIGTERM}, b"\0"


def _locks(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "at_work"


@contextlib.contextmanager
def at_work(instance: dg.DagsterInstance, run_id: str, say: Callable[[str], None]) -> Iterator[None]:
    """To be held by the process that executes a run. Says what the run has to wait for, clears up after runs that died
    meanwhile, which it may be waiting for, and has SIGINT and SIGTERM end the waiting."""
    _locks(instance).mkdir(parents=True, exist_ok=True)
    lock, thread = _locks(instance) / run_id, threading.get_ident()
    with holding(lock), _noticed_signals() as (signals, end):
        watch = threading.Thread(target=_watch, args=(instance, run_id, say, signals, thread), daemon=True)
        watch.start()
        try:
            yield
        finally:
            end()
            watch.join()
            lock.unlink()


@contextlib.contextmanager
def _noticed_signals() -> Iterator[tuple[socket.socket, Callable[[], object]]]:
    """Where the numbers of the signals arrive that this process is sent, and what puts END there."""
    arriving, sending = socket.socketpair()
    with arriving, sending:
        sending.setblocking(False)
        is_main = threading.current_thread() is threading.main_thread()  # signals are noticed in this one alone
        before = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False) if is_main else None
        try:
            yield arriving, lambda: sending.send(END)
        finally:
            if before is not None:
                signal.set_wakeup_fd(before)


def _watch(
    instance: dg.DagsterInstance, run_id: str, say: Callable[[str], None], signals: socket.socket, thread: int
) -> None:
    said, looks, received = None, 0, b""
    while True:
        if select.select([signals], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            received += signals.recv(64)
        if END in received:
            return
        waits_for = what_is_waited_for(instance, run_id)
        if waits_for is None:
            said, looks = None, 0
            continue
        if STOPPING & set(received):
            # Dagster looks for signals while a step begins and is executed, not while it waits
            interruption = ctypes.py_object(dg.DagsterExecutionInterruptedError)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), interruption)
            return
        for sentence in release_dead_runs(instance):
            say(sentence)
        if waits_for != said or looks % LOOKS_BETWEEN_REMINDERS == 0:
            say(waits_for)
        said, looks = waits_for, looks + 1


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
            run_id, run = lock.name, instance.get_run_by_id(lock.name)
            if run is not None and not run.is_finished:
                sentence = f"The process of {_described(instance, run_id)} is gone: marked as failed, its slot is free"
                instance.report_run_failed(run, sentence)
                said.append(sentence)
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
            lock.unlink()
    return said


class _AtWork(dg.Executor):
    """Another executor, while whose runs execute it is known that they do."""

    def __init__(self, executor: dg.Executor):
        self._executor = executor

    @property
    def retries(self):
        return self._executor.retries

    @property
    def step_dependency_config(self):
        return self._executor.step_dependency_config

    def execute(self, plan_context, execution_plan) -> Iterator[dg.DagsterEvent]:
        with at_work(plan_context.instance, plan_context.run_id, plan_context.log.info):
            yield from self._executor.execute(plan_context, execution_plan)


def known_at_work(executor: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """The same executor, while whose runs execute it is known that they do."""

    return dg.ExecutorDefinition(
        name=executor.name,
        config_schema=executor.config_schema.as_field(),
        requirements=executor.get_requirements,
        executor_creation_fn=lambda context: _AtWork(executor.executor_creation_fn(context)),
        description=executor.description,
    )
