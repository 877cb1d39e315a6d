"""`jsae`: the command line. Everything that it does can be done in the Dagster UI too; nothing is computed here.

    jsae run               make what is missing or out of date: everything, or only some models, layers and assets
    jsae demo              make everything and print a table of the results
    jsae suggest-lambda    run a short sweep at one layer, and suggest the largest λ that costs little
    jsae site              open the site: numbers, figures, an explorer of latents
    jsae ui                start the Dagster UI with its daemon, and serve the site, on this machine

Here: arguments, messages about progress and failures, the table of results. Not here: planning runs (`runs/plan.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
import sys
import time
import uuid
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import dagster as dg
from dagster._utils.error import SerializableErrorInfo
from tabulate import tabulate
from upath import UPath

from jsae_assets import suggestion
from jsae_assets.catalog import CATALOG_VARIABLE, DEFAULT_CATALOG, Catalog, CatalogError, catalog_path, load_catalog
from jsae_assets.definitions import SettingError, build_definitions
from jsae_assets.entries import report
from jsae_assets.files.left_over import left_over, message_about
from jsae_assets.files.storage import clear_parts, is_local, storage
from jsae_assets.home import HOME_VARIABLE, home
from jsae_assets.number import Number
from jsae_assets.partitions import cell_key, cells, split_cell
from jsae_assets.refusals import CHECK, refusal
from jsae_assets.resources import POOL
from jsae_assets.runs.at_work import at_work, release_dead_runs
from jsae_assets.runs.executing import execute_here
from jsae_assets.runs.freshness import DOWNSTREAM, Freshness, Place, latest_metadata
from jsae_assets.runs.plan import CELL_JOB, PlannedRun, gathers, planned_runs, selection
from jsae_assets.settings import unread
from jsae_assets.site.serving import SITE_PAGE
from jsae_assets.sources import TrainedPair
from jsae_assets.ui import HOST, PORT, CannotStartError, run_ui
from jsae_core.locks import holding
from jsae_core.names import advice
from jsae_core.pace import duration
from jsae_core.terms import THRESHOLDS

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")  # if neither is set, a browser would open in the terminal
CONSOLE = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
# what Dagster writes of each step that is left out because of a failure
NOT_EXECUTED = re.compile(r"Dependencies for step .* Not executing\.", re.DOTALL)
# errors that this project raises with a whole sentence; the names of others are part of what they say
WORDED = ("ValueError", "HubError", "WandbError", "RuntimeError", "FileNotFoundError")
MADE, FAILED, BAD_ARGUMENTS = 0, 1, 2  # exit statuses
DEMO = (
    "This takes about five minutes on two idle CPU cores, less if some of it is made already. It ends with a table of "
    "the results and the path of the site, whose pages show them."
)
STOPPED = "Stopped. What was made is kept: the same command goes on from there."


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
        ahead = len(assets) + len(_can_be_made(planning, planned[number:], unmade | stay_refused))
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


def summary(catalog: Catalog, instance: dg.DagsterInstance) -> str:
    """Return a table of results with a line for each pair."""
    columns = {
        **{f"|J|≥{threshold:g}": ("jacobian_histogram", f"share_above_{threshold}") for threshold in THRESHOLDS},
        "accounted": ("latent_accounting", "accounted_share"),
        "linear": ("function_shapes", "share_linear"),
        "explained: input": ("pair_quality", "explained_variance_input"),
        "output": ("pair_quality", "explained_variance_output"),
        "KL score": ("pair_quality", "kl_score_pair"),
    }
    rows = []
    for model in catalog.models:
        for layer in catalog.layers(model):
            for key, variant in catalog.variants.items():
                measured = {
                    measure: latest_metadata(instance, dg.AssetKey([key, measure]), cell_key(model, layer))
                    for measure, _ in columns.values()
                }
                if all(measured.values()):
                    numbers = [measured[measure][name] for measure, name in columns.values()]
                    rows.append(
                        [model, str(layer), variant.label, *(str(Number(number, percent=True)) for number in numbers)]
                    )
    return tabulate(rows, ["model", "layer", "variant", *columns], tablefmt="plain", disable_numparse=True)


def figure_pages(catalog: Catalog, instance: dg.DagsterInstance) -> list[str]:
    """Return patterns of the paths of the figures' pages, with placeholders such as <figure> and <layer>."""
    base = storage(os.environ.get("JSAE_STORAGE"), instance)
    patterns = set()
    for variant in catalog.variants:
        key = dg.AssetKey(["figures", variant, "jacobian_histogram"])
        if any(latest_metadata(instance, key, cell) for cell in cells(catalog, [variant]).get_partition_keys()):
            patterns.add(f"{base}/figures/{variant}/<figure>/<layer>/<model>.html")
    key = dg.AssetKey(["figures", "sweep_runs", "tradeoff"])
    if any(latest_metadata(instance, key, sweep) for sweep in catalog.sweeps):
        patterns.add(f"{base}/figures/sweep_runs/<figure>/<sweep>.html")
    return sorted(patterns)


def limit_pool(devices: int) -> None:
    """Let as many steps compute at once as there are devices, but at least one."""
    with dg.DagsterInstance.get() as instance:
        instance.event_log_storage.set_concurrency_slots(POOL, max(1, devices))


def site_page(instance: dg.DagsterInstance) -> UPath:
    """Return the path of the site's start page, which need not exist."""
    return storage(os.environ.get("JSAE_STORAGE"), instance) / SITE_PAGE


def open_site(instance: dg.DagsterInstance) -> int:
    """Print the path of the site, and open it in a browser if there is a screen. Return the exit status."""
    try:
        page = site_page(instance)
    except ValueError as error:
        print(f"JSAE_STORAGE: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    if not page.exists():
        print(f"There is no site at {page} yet. Make it with `jsae run --asset site`.", file=sys.stderr)
        return FAILED
    print(page)
    has_screen = sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in SCREENS)
    if is_local(page) and has_screen:
        webbrowser.open(Path(page.path).resolve().as_uri())
    return MADE


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="jsae",
        description="Train, measure and show the Jacobian sparse autoencoders (JSAEs) that a catalog describes. A "
        "catalog is a YAML file that the environment variable JSAE_CATALOG names; the default is that of the demo.",
    )
    parser.add_argument("--version", action="version", version=f"jsae {version('jsae')}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo",
        help="make everything in the catalog, and print a table of the results",
        description="Make everything in the catalog that is missing or out of date, and print a table of the results.",
    )
    run = commands.add_parser(
        "run",
        help="make what is missing or out of date",
        description="Make what is missing or out of date: everything in the catalog, or only the models, layers and "
        "assets named by options, together with whatever they are made from. Options can be repeated.",
        epilog="Exit status: 0 if everything was made or was up to date, 1 if something failed, 2 for bad arguments.",
    )
    run.add_argument("--model", action="append", default=[], help="make only assets of this model of the catalog")
    run.add_argument("--layer", action="append", default=[], type=int, help="make only assets of this layer")
    run.add_argument(
        "--asset",
        action="append",
        default=[],
        help="make only this asset: of one variant (jsae/pair_quality) or of all variants (pair_quality)",
    )
    run.add_argument("--dry-run", action="store_true", help="only print what would be made, and why")
    suggest = commands.add_parser(
        "suggest-lambda",
        help="suggest a λ to begin with for a layer of a model, from a short sweep",
        description="Train short pairs by the catalog's recipe for a model with several values of λ (the weight of the "
        "penalty on the Jacobian), measure them, and suggest the largest λ that keeps most of the explained variance. "
        "If it is stopped, the same command continues where it was.",
        epilog="Exit status: 0 if it suggests a λ, 1 if it cannot or if something failed, 2 for bad arguments.",
    )
    suggest.add_argument("model", help="a model of the catalog")
    suggest.add_argument("layer", type=int, help="a layer of the model, counted from 0")
    suggest.add_argument(
        "--coefficients",
        nargs="+",
        type=_number(0, math.inf, "a λ, at least 0"),
        default=[],
        metavar="λ",
        help="values of λ to try, besides 0; default: 1/3, 1, 3 and 10 times the rule of thumb, 0.5 k² / d_model",
    )
    suggest.add_argument(
        "--steps",
        type=_number(1, math.inf, "a number of steps", int),
        default=suggestion.STEPS,
        help="steps of each training, at most those of the recipe (default: %(default)s)",
    )
    suggest.add_argument(
        "--keep",
        type=_number(0, 1, "a share, between 0 and 1"),
        default=suggestion.SHARE_KEPT,
        metavar="SHARE",
        help="the share of the variance explained at λ = 0 that both SAEs must still explain (default: %(default)s)",
    )
    commands.add_parser(
        "site",
        help="print the path of the site and open it in a browser",
        description="Print the path of the site, which shows all stored results, and open it in a browser. "
        "`jsae run --asset site` makes the site.",
    )
    ui = commands.add_parser(
        "ui",
        help="start the Dagster UI and its daemon",
        description="Start the Dagster UI and its daemon, and serve the site, unless they run already. Further options "
        "are passed on to `dagster dev`.",
    )
    ui.add_argument("--host", default=HOST, help="the address to listen at (default: %(default)s, this machine alone)")
    ui.add_argument("--port", "-p", type=int, default=PORT, help="the port to listen at (default: %(default)s)")
    options, further = parser.parse_known_args(argv)
    if further and options.command != "ui":
        files = [name for name in further if name.endswith((".yaml", ".yml")) or Path(name).is_file()]
        named = [f". An environment variable names a catalog: {CATALOG_VARIABLE}={name}" for name in files[:1]]
        parser.error(f"unknown options: {' '.join(further)}{''.join(named)}")
    options.further = further
    return options


def _number(least: float, most: float, expected: str, kind: type = float) -> Callable[[str], float]:
    """Return a parser for a number given on the command line, which refuses values that are not from `least` to `most`,
    or not finite."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (number := kind(text)) <= most and number < math.inf:
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")

    return read


def suggest(
    options: argparse.Namespace, catalog: Catalog, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> int:
    """Make a short sweep, print its table, and suggest a λ. Return the exit status."""
    if options.model not in catalog.models:
        print(f"the catalog has no model {options.model!r}; {advice(options.model, catalog.models)}", file=sys.stderr)
        return BAD_ARGUMENTS
    compute = definitions.resources["compute"]
    try:
        language_model = compute.language_model(catalog.models[options.model].source)
        sweep = suggestion.short_sweep(
            catalog, options.model, options.layer, language_model, options.coefficients, options.steps
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_ARGUMENTS
    definitions = build_definitions(sweep.catalog, loggers={"console": plain_console})
    table, figure = dg.AssetKey("sweep_runs"), dg.AssetKey(["figures", "sweep_runs", "tradeoff"])
    places = (Place(table, sweep.key), Place(figure, sweep.key))
    if failures := run_all(sweep.catalog, definitions, instance, lambda place: place in places):
        say_failures(failures)
        return FAILED
    stores = {name: definitions.resources[name].manager_of(instance) for name in ("tables", "tensors", "figures")}
    runs = stores["tables"].stored(table, sweep.key).frame
    faults = suggestion.faults_of(sweep, runs, stores["tensors"].stored, compute)
    print(f"\n{suggestion.table(runs, faults)}\n")
    print(f"As a figure: {stores['figures'].stored(figure, sweep.key).path.with_suffix('.html')}\n")
    try:
        coefficient = suggestion.suggested(sweep, runs, faults, options.keep)
    except suggestion.NothingToSuggest as error:
        print(error)
        return FAILED
    print(suggestion.advice(sweep, runs, faults, coefficient, options.keep))
    return MADE


def unknown(options: argparse.Namespace, catalog: Catalog, definitions: dg.Definitions) -> str | None:
    """Return a message if an option of `jsae run` names something that the catalog does not have, else None."""
    layers = sorted({layer for model in options.model or catalog.models for layer in catalog.layers(model)})
    assets = [spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs()]
    for name, given, known in (
        ("model", options.model, list(catalog.models)),
        ("layer", options.layer, layers),
        ("asset", options.asset, {*assets, *(asset.split("/")[-1] for asset in assets)}),
    ):
        for value in given:
            if value not in known:
                return f"--{name} {value}: the catalog has no such {name}; {advice(value, sorted(map(str, known)))}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    for sentence in unread(os.environ):
        print(sentence, file=sys.stderr)
    os.environ["TQDM_DISABLE"] = "1"  # the progress bars of transformers would break up the printed lines
    try:
        home()
    except OSError as error:
        print(f"{HOME_VARIABLE}: the folder of the instance cannot be made or used ({error})", file=sys.stderr)
        return BAD_ARGUMENTS
    if options.command == "site":
        with dg.DagsterInstance.get() as instance:
            return open_site(instance)
    try:
        catalog = load_catalog()
        definitions = build_definitions(catalog, loggers={"console": plain_console})
    except (CatalogError, SettingError) as error:
        print(error, file=sys.stderr)
        return BAD_ARGUMENTS
    is_default = catalog_path() == DEFAULT_CATALOG
    say(f"Catalog: {catalog_path()}" + f", that of the demo ({CATALOG_VARIABLE} names another)" * is_default)
    if options.command == "ui":
        limit_pool(definitions.resources["compute"].cuda_devices())
        with dg.DagsterInstance.get() as instance:
            base = storage(os.environ.get("JSAE_STORAGE"), instance)
        try:
            return run_ui(Path(os.environ[HOME_VARIABLE]), base, options.host, options.port, options.further)
        except CannotStartError as error:
            print(error, file=sys.stderr)
            return FAILED
    is_selected, is_named = selection([], [], [], catalog), lambda place: False
    if options.command == "run":
        if problem := unknown(options, catalog, definitions):
            print(problem, file=sys.stderr)
            return BAD_ARGUMENTS
        is_selected = selection(options.model, options.layer, options.asset, catalog)
        if options.asset:
            is_named = is_selected
    with dg.DagsterInstance.get() as instance:
        place = storage(os.environ.get("JSAE_STORAGE"), instance)
        try:
            if is_local(place):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"JSAE_STORAGE: the folder {place} cannot be made or used ({error})", file=sys.stderr)
            return BAD_ARGUMENTS
        if options.command == "run" and options.dry_run:
            say_plan(freshness_of(catalog, definitions, instance), is_selected, is_named)
            return MADE
        try:
            if options.command == "suggest-lambda":
                return suggest(options, catalog, definitions, instance)
            introduction = DEMO if options.command == "demo" and is_default else ""
            failures = run_all(catalog, definitions, instance, is_selected, is_named, introduction)
        except KeyboardInterrupt:
            print(STOPPED)
            return FAILED
        if options.command == "demo":
            print("\n" + summary(catalog, instance))
            print("\nFigures:", *figure_pages(catalog, instance), sep="\n  ")
        if site_page(instance).exists():
            print(f"\nThe site, with all results and an explorer of latents: {site_page(instance)}")
            print("`jsae site` opens that page, `jsae ui` the Dagster UI.")
        say_failures(failures)
    return FAILED if failures else MADE
