"""`jsae`: the command line. Everything that it does can be done in the Dagster UI too; nothing is computed here.

    jsae run               make what is missing or out of date: everything, or only some models, layers and assets
    jsae demo              make everything and print a table of the results
    jsae suggest-lambda    run a short sweep at one layer, and suggest the largest λ that costs little
    jsae site              open the site: numbers, figures, an explorer of latents
    jsae ui                start the Dagster UI with its daemon, and serve the site, on this machine

Here: arguments, what each command prints, the table of results. Not here: planning runs (`runs/plan.py`), making what
is planned (`making.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import dagster as dg
from tabulate import tabulate
from upath import UPath

from jsae_assets import suggestion
from jsae_assets.catalog import Catalog
from jsae_assets.catalog_file import CATALOG_VARIABLE, DEFAULT_CATALOG, CatalogError, catalog_path, load_catalog
from jsae_assets.definitions import SettingError, build_definitions
from jsae_assets.files.storage import is_local, storage
from jsae_assets.home import HOME_VARIABLE, home
from jsae_assets.making import freshness_of, plain_console, run_all, say, say_failures, say_plan
from jsae_assets.number import Number
from jsae_assets.partitions import cell_key, cells
from jsae_assets.resources import POOL
from jsae_assets.runs.freshness import Place, latest_metadata
from jsae_assets.runs.plan import selection
from jsae_assets.settings import unread
from jsae_assets.site.serving import SITE_PAGE
from jsae_assets.ui import HOST, PORT, CannotStartError, run_ui
from jsae_core.names import advice
from jsae_core.terms import THRESHOLDS

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")  # if neither is set, a browser would open in the terminal
MADE, FAILED, BAD_ARGUMENTS = 0, 1, 2  # exit statuses
DEMO = (
    "This takes about five minutes on two idle CPU cores, less if some of it is made already. It ends with a table of "
    "the results and the path of the site, whose pages show them."
)
STOPPED = "Stopped. What was made is kept: the same command goes on from there."


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


def has_results(catalog: Catalog, instance: dg.DagsterInstance) -> bool:
    """Whether a pair or the table of a sweep is stored, without which the site has nothing to show."""
    places = [(dg.AssetKey("sweep_runs"), sweep) for sweep in catalog.sweeps]
    for variant in catalog.variants:
        key = dg.AssetKey([variant, "sae_pair"])
        places += [(key, cell) for cell in cells(catalog, [variant]).get_partition_keys()]
    return any(latest_metadata(instance, key, partition) for key, partition in places)


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
    if problem := definitions.resources["compute"].lacks():
        print(problem, file=sys.stderr)
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
            shows = "with all results and an explorer of latents" if has_results(catalog, instance) else "still empty"
            print(f"\nThe site, {shows}: {site_page(instance)}")
            print("`jsae site` opens that page, `jsae ui` the Dagster UI.")
        say_failures(failures)
    return FAILED if failures else MADE
