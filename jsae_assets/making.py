"""Making what is missing or out of date, one run after another, with messages in the terminal.

Here: what is left out after a failure, which pairs stay refused, messages about progress, failures and what would be
made. Not here: planning runs (`runs/plan.py`), executing one (`runs/executing.py`), the command line (`command.py`).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import dagster as dg
from dagster._utils.error import SerializableErrorInfo

from jsae_assets.catalog import Catalog
from jsae_assets.entries import report
from jsae_assets.files.left_over import left_over, message_about
from jsae_assets.files.storage import clear_parts, storage
from jsae_assets.partitions import split_cell
from jsae_assets.refusals import CHECK, refusal
from jsae_assets.runs.at_work import at_work, release_dead_runs
from jsae_assets.runs.executing import execute_here
from jsae_assets.runs.freshness import DOWNSTREAM, Freshness, Place
from jsae_assets.runs.plan import CELL_JOB, PlannedRun, gathers, planned_runs
from jsae_assets.sources import TrainedPair
from jsae_core.locks import holding
from jsae_core.pace import duration

CONSOLE = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
# what Dagster writes of each step that is left out because of a failure
NOT_EXECUTED = re.compile(r"Dependencies for step .* Not executing\.", re.DOTALL)
# errors that this project raises with a whole sentence; the names of others are part of what they say
WORDED = ("ValueError", "HubError", "WandbError", "RuntimeError", "FileNotFoundError")


@dg.logger({"log_level": str}, description="Only the assets' own messages, indented.")
def plain_console(context: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("jsae", context.logger_config["log_level"])
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("      %(message)s"))
    handler.addFilter(_shorten)
    logger.addHandler(handler)
    return logger


def _shorten(record: logging.LogRecord) -> bool:
    """A logging filter that keeps only the messages of assets and the causes of failed steps, with the step's name
    before each. Job and run, which Dagster puts before a message, are already in the line above. Dagster's own messages
    about steps are left out, so that the cause of a failure does not drown in those about all that is made from it."""
    meta = getattr(record, "dagster_meta", None) or {}
    event, message = meta.get("dagster_event"), meta.get("orig_message", record.getMessage())
    if event is not None:
        if not event.is_step_failure or _is_interruption(event.step_failure_data.error):
            return False
        message = f"failed: {_cause(event)}"
    elif NOT_EXECUTED.fullmatch(message):
        return False
    record.msg, record.args = f"{_step_name(meta.get('step_key') or 'run')}: {message}", ()
    return True


def _step_name(key: str) -> str:
    asset, is_check, _ = key.rpartition(f"_{CHECK}")
    return f"{asset.replace('__', '/')}, check {CHECK}" if is_check else key.replace("__", "/")


def _cause(failure: dg.DagsterEvent) -> str:
    """Return why a step failed, in the words of the asset, which name the file or entry; not of an error that caused
    its own."""
    data = failure.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error.cause or data.error
    message = error.message.strip()
    name, _, words = message.partition(": ")
    return words if words and name.rpartition(".")[2] in WORDED else message


def say(sentence: str) -> None:
    print(sentence, flush=True)


def freshness_of(catalog: Catalog, definitions: dg.Definitions, instance: dg.DagsterInstance) -> Freshness:
    return Freshness(catalog, definitions.resolve_asset_graph(), definitions.resources, instance)


def run_all(
    catalog: Catalog,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    is_selected: Callable[[Place], bool] = lambda place: True,
    is_named: Callable[[Place], bool] = lambda place: False,
    introduction: str = "",
) -> list[str]:
    """Make the selected places that are missing or out of date, and everything they are made from, and print the
    progress and the time left; before that, if anything is to be made, the introduction. Assets downstream of a failure
    are left out. A pair that was trained here and refused is trained again only if its recipe has changed, or if it is
    named.

    Returns:
        A message for each run that failed, and for each pair that stays refused.

    Raises:
        KeyboardInterrupt: a run was stopped (Ctrl-C, SIGTERM).
    """
    for sentence in release_dead_runs(instance):
        say(sentence)
    base = storage(os.environ.get("JSAE_STORAGE"), instance)
    if n_parts := clear_parts(base, below=True):
        say(f"Deleted {n_parts} half-written files of processes that were killed")
    if sizes := left_over(base, catalog, definitions.resolve_asset_graph()):
        say(message_about(sizes, base))
    report(catalog, instance)
    started = time.monotonic()
    planning = freshness_of(catalog, definitions, instance)
    planned = planned_runs(planning, is_selected)
    stay_refused = _all_refused(planning, planned, is_named)
    can_be_made = _can_be_made(planning, planned, stay_refused)
    if introduction and any(run.assets for run in planned):
        say(introduction)
    computed, seconds = 0, 0.0  # assets of cells, and their time; the time for tokens is mostly that of importing torch
    messages: list[str] = []
    unmade: set[Place] = set()
    for number, run in enumerate(_one_command_at_a_time(planned, instance), start=1):
        # asked again before each run: an input may have come out unchanged, or another command may have made assets
        freshness = freshness_of(catalog, definitions, instance)
        assets = [place.asset for place in freshness.out_of_date(run.places)]
        prefix = f"[{number}/{len(planned)}] {run.title}"
        places = [Place(key, run.partition) for key in assets]
        refused = _refused(freshness, places, is_named)
        for place in refused:
            messages.append(f"{place} {_why_not_again(place)}\n  The check: {refusal(instance, *_cell_of(place))}")
            say(messages[-1])
        blocked = _blocked(freshness, places, unmade.union(refused))
        unmade |= blocked.union(refused)
        assets = [place.asset for place in places if place not in unmade]
        if not assets:
            say(f"{prefix}: {'left out, because something it is made from failed' if places else 'up to date'}")
            continue
        began = time.monotonic()
        ahead = len(assets) + sum(len(can_be_made.intersection(later.places)) for later in planned[number:])
        left = f", about {duration(seconds / computed * ahead)} left" if computed else ""
        say(f"{prefix}: {len(assets)} to materialise{left}")
        run_id = str(uuid.uuid4())
        with at_work(instance, run_id, lambda sentence: say(f"      {sentence}")) as told_to_end:
            job = definitions.resolve_job_def(run.job)
            result = execute_here(job, instance, run.partition, assets, CONSOLE, run_id)
        if not result.success:
            made = {event.asset_key for event in result.get_asset_materialization_events()}
            failed_checks = {check.asset_key for check in result.get_asset_check_evaluations() if not check.passed}
            unmade |= {Place(key, run.partition) for key in assets if key not in made or key in failed_checks}
            can_be_made = _can_be_made(planning, planned, unmade | stay_refused)
            messages.append(_failure(run, result, {key.to_user_string() for key in assets if key not in made}))
        if told_to_end.is_set():
            say_failures(messages)
            raise KeyboardInterrupt
        if run.job.startswith(CELL_JOB) and result.success:
            computed, seconds = computed + len(assets), seconds + time.monotonic() - began
    if not messages:
        print(f"Done in {time.monotonic() - started:.0f} s.")
    return messages


def say_failures(messages: Sequence[str]) -> None:
    """Print what failed and why, to be the last that a command says."""
    if messages:
        say("\nNot everything could be made:\n\n" + "\n".join(messages))


def _one_command_at_a_time(runs: Iterable[PlannedRun], instance: dg.DagsterInstance) -> Iterator[PlannedRun]:
    """Yield each run while holding a lock for it, so that only one of several commands makes the same run; the others
    wait, and then find its assets up to date. The caller must finish a run before it asks for the next one."""
    folder = Path(instance.root_directory) / "turns"
    folder.mkdir(exist_ok=True)
    for run in runs:
        with holding(folder / f"{run.job} {run.partition}", f"makes {run.title}", say):
            yield run


def _blocked(freshness: Freshness, places: Sequence[Place], unmade: set[Place]) -> set[Place]:
    """Return the places that cannot be made, because something that they are made from could not. Assets that gather
    whatever is stored can always be made."""
    blocked: set[Place] = set()
    for place in places:  # upstream first
        if not gathers(freshness.graph, place.asset) and any(
            parent in unmade or parent in blocked for parent in freshness.parents(place)
        ):
            blocked.add(place)
    return blocked


def _can_be_made(freshness: Freshness, runs: Iterable[PlannedRun], unmade: set[Place]) -> set[Place]:
    """Return the places of these runs, first ones first, that can be made if those in `unmade` are not."""
    unmade, rest = set(unmade), set()
    for run in runs:
        unmade |= _blocked(freshness, run.places, unmade)
        rest |= set(run.places) - unmade
    return rest


def _all_refused(freshness: Freshness, runs: Iterable[PlannedRun], is_named: Callable[[Place], bool]) -> set[Place]:
    return {place for run in runs for place in _refused(freshness, run.places, is_named)}


def _refused(freshness: Freshness, places: Sequence[Place], is_named: Callable[[Place], bool]) -> list[Place]:
    """Return the pairs that would only be refused again, because they are trained here and their recipe has not changed
    since. Not those that are named; and not a pair from elsewhere, where there may be another by now."""
    return [
        place
        for place in places
        if place.asset.path[1:] == ["sae_pair"]
        and freshness.is_refused(place)
        and not is_named(place)
        and isinstance(freshness.catalog.pair(*_cell_of(place)), TrainedPair)
    ]


def _why_not_again(pair: Place) -> str:
    _, model, layer = _cell_of(pair)
    named = f"--model {model} --layer {layer} --asset {pair.asset.to_user_string()}"
    return (
        f"was refused by its check {CHECK} and its recipe has not changed since, so neither it nor what is made from "
        f"it is made: change the recipe. (`jsae run {named}` trains it again all the same.)"
    )


def _cell_of(pair: Place) -> tuple[str, str, int]:
    """Return the variant, model and layer of a pair."""
    return pair.asset.path[0], *split_cell(pair.partition)


def _was_interrupted(result: dg.JobExecutionResult) -> bool:
    """Whether the run ended because somebody stopped it (Ctrl-C, SIGTERM), in a step or while it waited for one."""
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    errors += [event.job_failure_data.error for event in result.all_events if event.is_job_failure]
    return any(map(_is_interruption, errors))


def _is_interruption(error: SerializableErrorInfo | None) -> bool:
    return error is not None and error.cls_name == "DagsterExecutionInterruptedError"


def _failure(run: PlannedRun, result: dg.JobExecutionResult, unmade: set[str]) -> str:
    """Return a message that says which assets of a run failed and why: the error of the asset, or the result of its
    check. `unmade` are those of the run's assets that were not made."""
    failed_checks = [check for check in result.get_asset_check_evaluations() if not check.passed]
    lines = [
        f"{check.asset_key.to_user_string()}, check {check.check_name}: {check.description}" for check in failed_checks
    ]
    failed = [
        event for event in result.get_step_failure_events() if not _is_interruption(event.step_failure_data.error)
    ]
    of_checks = {check.description for check in failed_checks}
    causes = {_step_name(event.step_key): cause for event in failed if (cause := _cause(event)) not in of_checks}
    lines += [f"{step}: {cause}" for step, cause in causes.items()]
    was_interrupted = _was_interrupted(result)
    if (further := len(unmade - causes.keys())) and not was_interrupted:
        lines.append(f"{further} more, made from it, {'were' if further > 1 else 'was'} left out")
    outcome = "failed"
    if not lines and was_interrupted:
        outcome = "ended"
        lines.append("it was stopped" + ("" if result.get_step_failure_events() else " while it waited"))
    details = "\n".join(f"  {line}" for line in lines)
    return (
        f"{run.title} {outcome}:\n{details}\n  The run is {result.run_id}; `jsae ui` shows it, with Dagster's details."
    )


def say_plan(
    freshness: Freshness, is_selected: Callable[[Place], bool], is_named: Callable[[Place], bool] = lambda place: False
) -> None:
    """Print which assets would be made, and why, and which pairs stay refused."""
    runs = [run for run in planned_runs(freshness, is_selected) if run.assets]
    refused = _all_refused(freshness, runs, is_named)
    to_make = _can_be_made(freshness, runs, refused)
    reasons = []
    for run in runs:
        print(f"{run.title}:")
        for key, reason in run.assets.items():
            place = Place(key, run.partition)
            if place in refused:
                print(f"  {key.to_user_string()} {_why_not_again(place)}")
            elif place in to_make:
                print(f"  {key.to_user_string()} {reason}")
                reasons.append(reason)
    if not runs:
        print("Everything is up to date.")
    elif any(reason.startswith(DOWNSTREAM) for reason in reasons):
        print(
            f"At most {len(reasons)} to materialise: what is made from something that comes out as it was is skipped."
        )
    else:
        print(f"{len(reasons)} to materialise.")
