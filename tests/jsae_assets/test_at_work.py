"""Runs whose process was killed give back what they held, runs at work keep it, who waits says for whom, and a run that
is told to end ends, whatever becomes of the first interruption."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from jsae_assets.definitions import build_definitions
from jsae_assets.making import run_all
from jsae_assets.resources import POOL
from jsae_assets.runs import at_work
from jsae_assets.runs.freshness import Place
from jsae_assets.runs.plan import TOKENS_JOB
from tests.jsae_assets.conftest import REPOSITORY, Graph

PATIENCE = 300  # seconds for one thing to happen, on a machine that is busy with others
ONLY_TOKENS = ["run", "--asset", "tokens"]

# A run of another process that holds the slot for good, but computes nothing: quicker to start than one that does.
HOLDER = """
import time, uuid
import dagster as dg
from jsae_assets.runs.at_work import at_work

@dg.op(pool="gpu")
def compute():
    print("holds the slot", flush=True)
    time.sleep(600)

@dg.job(name="measure_cell")
def held():
    compute()

with dg.DagsterInstance.get() as instance:
    run_id = str(uuid.uuid4())
    with at_work(instance, run_id, print):
        held.execute_in_process(instance=instance, run_id=run_id, tags={"dagster/partition": "tiny:1"})
"""

# A run that is killed once Dagster has marked it as started, before it holds its lock.
KILLED_AT_ITS_BEGINNING = """
import os, signal
import dagster as dg
from jsae_assets.runs import at_work
from tests.jsae_assets.test_at_work import job_known_at_work

at_work.at_work = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
with dg.DagsterInstance.get() as instance:
    dg.execute_job(dg.reconstructable(job_known_at_work), instance=instance)
"""


def job_known_at_work() -> dg.JobDefinition:
    @dg.op
    def compute():
        pass

    @dg.job(executor_def=at_work.known_at_work(dg.in_process_executor))
    def held():
        compute()

    return held


def wait_for(what: str, condition: Callable[[], object]) -> object:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen")


@contextlib.contextmanager
def started(home: Path | str, *arguments: str, catalog: Path | None = None) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"DAGSTER_HOME": str(home), "JSAE_DEVICE": "cpu"}
    if catalog is not None:
        environment["JSAE_CATALOG"] = str(catalog)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def holder(instance) -> Iterator[subprocess.Popen]:
    """Another process, whose run of measure_cell at tiny:1 holds the slot."""
    with started(instance.root_directory, "-c", HOLDER) as process:
        for line in process.stdout:
            if "holds the slot" in line:
                break
        else:
            raise AssertionError("the other run did not begin")
        yield process


def run_holding_the_slot(instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    slots = instance.event_log_storage.get_concurrency_info(POOL).claimed_slots
    return instance.get_run_by_id(slots[0].run_id) if slots else None


def make_tokens(graph: Graph) -> list[str]:
    tokens = Place(dg.AssetKey("tokens"), "tiny")
    return run_all(graph.catalog, graph.definitions, graph.instance, lambda place: place == tokens)


def test_after_kill_9_the_next_run_says_so_frees_the_slot_and_goes_on(entries, graph, tmp_path, capsys):
    tiny = graph(entries())
    catalog = tmp_path / "catalog.yaml"
    with started(tiny.instance.root_directory, "-m", "jsae_assets", *ONLY_TOKENS, catalog=catalog) as killed:
        dead = wait_for("the run that is to be killed", lambda: run_holding_the_slot(tiny.instance))
        killed.kill()
        killed.wait()
    assert tiny.instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.STARTED
    assert make_tokens(tiny) == []
    assert tiny.instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.FAILURE
    assert run_holding_the_slot(tiny.instance) is None
    said = [line for line in capsys.readouterr().out.splitlines() if "is gone: marked as failed" in line]
    assert len(said) == 1 and f"run {dead.run_id[:8]} (tokenise_text, tiny, process {killed.pid} on " in said[0]


def test_who_waits_says_for_whom_and_goes_on_once_that_one_is_killed(entries, graph, holder, monkeypatch, capsys):
    monkeypatch.setattr(at_work, "SECONDS_BETWEEN_LOOKS", 0.2)
    tiny, said = graph(entries()), []

    def kill_once_it_is_waited_for():
        wait_for("the waiting", lambda: said.append(capsys.readouterr().out) or "waits until" in "".join(said))
        holder.kill()

    killing = threading.Thread(target=kill_once_it_is_waited_for)
    killing.start()
    assert make_tokens(tiny) == []
    killing.join()
    text = "".join(said) + capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "waits until" in line]
    assert "tokens waits until another run is done, because only one step computes at a time: run " in line
    assert f"(measure_cell, tiny:1, process {holder.pid} on " in line and line.endswith("is computing compute")
    assert "is gone: marked as failed" in text


def test_a_run_at_work_is_left_alone(instance, holder):
    assert at_work.release_dead_runs(instance) == []
    assert run_holding_the_slot(instance).status == dg.DagsterRunStatus.STARTED


def test_a_dead_run_is_noticed_though_its_process_number_was_used_again(instance, holder):
    run = run_holding_the_slot(instance)
    lock = Path(instance.root_directory) / "at_work" / run.run_id
    holder.kill()
    holder.wait()
    lock.write_text(lock.read_text().replace(str(holder.pid), str(os.getpid())))  # as if it were this one's
    assert psutil.pid_exists(os.getpid())
    assert len(at_work.release_dead_runs(instance)) == 1
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert not lock.exists()


def test_a_run_that_was_killed_before_it_held_its_lock_is_noticed_and_another_one_is_not(instance):
    other = dg.DagsterRun(
        "another", run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTED
    )  # of a process that holds no such lock
    instance.add_run(other)
    with started(instance.root_directory, "-c", KILLED_AT_ITS_BEGINNING) as killed:
        said, _ = killed.communicate(timeout=PATIENCE)
    (dead,) = [run for run in instance.get_runs() if run.run_id != other.run_id]
    assert dead.status == dg.DagsterRunStatus.STARTED, said
    (sentence,) = at_work.release_dead_runs(instance)
    assert f"run {dead.run_id[:8]} (held" in sentence
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {dead.run_id: dg.DagsterRunStatus.FAILURE, other.run_id: dg.DagsterRunStatus.STARTED}
    with dg.execute_job(dg.reconstructable(job_known_at_work), instance=instance) as result:
        assert result.success
    assert list((Path(instance.root_directory) / "at_work").iterdir()) == []


def test_a_run_of_another_machine_is_not_judged_and_who_waits_for_it_is_told_what_to_do(instance, holder, monkeypatch):
    run = run_holding_the_slot(instance)
    holder.kill()
    holder.wait()
    monkeypatch.setattr(at_work, "this_machine", lambda: "elsewhere")
    assert at_work.release_dead_runs(instance) == []
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED
    instance.event_log_storage.claim_concurrency_slot(POOL, "waiting", "tokens")
    assert "mark it as failed: in `jsae ui`, under Runs" in at_work.what_is_waited_for(instance, "waiting")


def test_a_finished_run_leaves_no_lock_and_no_thread(entries, graph):
    tiny = graph(entries())
    assert make_tokens(tiny) == []
    assert list((Path(tiny.instance.root_directory) / "at_work").iterdir()) == []
    assert not any(at_work._watch.__name__ in thread.name for thread in threading.enumerate())


def test_under_a_daemon_a_sensor_clears_up(entries, graph, holder):
    tiny = graph(entries())
    (sensor,) = [one for one in tiny.definitions.sensors if one.name == "dead_runs"]
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    holder.kill()
    holder.wait()
    with dg.build_sensor_context(instance=tiny.instance) as context:
        assert "is gone: marked as failed" in sensor.evaluate_tick(context).skip_message
    assert run_holding_the_slot(tiny.instance) is None


def test_who_is_stopped_while_waiting_ends_at_once_and_leaves_the_other_at_work(entries, graph, holder, tmp_path):
    tiny = graph(entries())
    catalog = tmp_path / "catalog.yaml"
    with started(tiny.instance.root_directory, "-m", "jsae_assets", *ONLY_TOKENS, catalog=catalog) as waiting:
        for line in waiting.stdout:
            if "waits until" in line:
                break
        begun = time.monotonic()
        waiting.terminate()
        said, _ = waiting.communicate(timeout=PATIENCE)
        assert time.monotonic() - begun < 10
    assert waiting.returncode == 1
    assert "it was stopped while it waited" in said and "the same command goes on from there" in said
    assert run_holding_the_slot(tiny.instance).status == dg.DagsterRunStatus.STARTED


# Runs that are told to end. Their steps count what happens to them.


def wait_for_ever() -> None:
    """In a step: only an interruption ends it."""
    wait_for("an interruption", lambda: False)


def executed(
    instance: dg.DagsterInstance, step: Callable[[], None], before: Callable[[], None] = lambda: None
) -> tuple[dg.DagsterRun, bool]:
    """A run of one step, and whether it was told to end. `before`: what happens once it is at work, before the step."""

    @dg.op
    def compute():
        step()

    @dg.job
    def of_one_step():
        compute()

    run_id = str(uuid.uuid4())
    with at_work.at_work(instance, run_id, print) as told_to_end:
        before()
        of_one_step.execute_in_process(instance=instance, run_id=run_id, raise_on_error=False)
    return instance.get_run_by_id(run_id), told_to_end.is_set()


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(at_work, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(at_work, "SECONDS_BETWEEN_INTERRUPTIONS", 0.02)


def test_a_run_whose_library_swallows_the_interruption_is_interrupted_until_it_ends(instance, soon):
    swallowed = []

    def step():
        for happens in (lambda: signal.raise_signal(signal.SIGTERM), wait_for_ever, wait_for_ever):
            try:
                happens()
            except BaseException as error:  # as one that tries an import, and goes on without what it wanted
                swallowed.append(type(error))
        wait_for_ever()

    run, told_to_end = executed(instance, step)
    assert swallowed == 3 * [dg.DagsterExecutionInterruptedError] and told_to_end
    assert run.status == dg.DagsterRunStatus.FAILURE  # nobody asked Dagster for its end


def test_a_run_that_is_told_to_end_before_its_step_begins_ends(instance, soon):
    run, told_to_end = executed(instance, wait_for_ever, before=lambda: signal.raise_signal(signal.SIGTERM))
    assert run.is_finished and told_to_end


def test_a_run_that_is_told_to_end_ends_in_a_process_with_many_open_files(instance, soon):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]  # `select` takes numbers below 1,024 alone
    try:
        run, told_to_end = executed(instance, wait_for_ever, before=lambda: signal.raise_signal(signal.SIGTERM))
    finally:
        for number in many:
            os.close(number)
    assert run.is_finished and told_to_end


def test_a_run_that_took_the_interruption_for_an_error_of_its_own_is_known_to_have_been_told_to_end(instance, soon):
    def step():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("some module is missing") from error

    run, told_to_end = executed(instance, step)
    assert run.status == dg.DagsterRunStatus.FAILURE and told_to_end


def test_a_run_that_is_terminated_ends_though_no_signal_reaches_it(instance, soon):
    def step():
        (run,) = instance.get_runs(dg.RunsFilter(job_name="of_one_step"))
        instance.report_run_canceling(run)  # what Terminate does first
        wait_for_ever()

    run, told_to_end = executed(instance, step)
    assert run.status == dg.DagsterRunStatus.CANCELED and told_to_end


def job_that_is_given_up() -> dg.JobDefinition:
    @dg.op
    def compute(context):
        context.instance.report_run_failed(context.run)  # what a daemon does that cannot reach this machine
        wait_for_ever()

    @dg.job(executor_def=at_work.known_at_work(dg.in_process_executor))
    def given_up():
        compute()

    return given_up


def test_a_run_that_lives_on_though_it_was_given_up_for_dead_ends(instance, soon):
    with dg.execute_job(dg.reconstructable(job_that_is_given_up), instance=instance) as result:
        assert result.dagster_run.status == dg.DagsterRunStatus.FAILURE


def test_what_clears_up_after_an_interruption_is_not_interrupted(instance, soon, monkeypatch):
    monkeypatch.setattr(at_work, "LOOKS_WHILE_ENDING", 10**9)
    looks, cleared_up = [], []
    is_ending = at_work._is_ending
    monkeypatch.setattr(at_work, "_is_ending", lambda thread: looks.append(is_ending(thread)) or looks[-1])

    def step():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            wait_for("some looks at it", lambda: len(looks) >= 5)
            cleared_up.append(True)

    executed(instance, step)
    assert cleared_up == [True]


def test_clearing_up_that_does_not_end_is_interrupted_too(instance, soon):
    def step():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            wait_for_ever()

    run, told_to_end = executed(instance, step)
    assert run.is_finished and told_to_end


def test_the_command_begins_nothing_more_though_the_run_it_was_told_to_end_in_went_well(entries, graph):
    tiny = graph(entries())

    @dg.asset(key="tokens", partitions_def=tiny.definitions.get_assets_def("tokens").partitions_def)
    def swallowing():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)

    definitions = build_definitions(tiny.catalog, assets=[swallowing])
    with pytest.raises(KeyboardInterrupt):
        run_all(tiny.catalog, definitions, tiny.instance)
    assert [run.job_name for run in tiny.instance.get_runs()] == [TOKENS_JOB]
