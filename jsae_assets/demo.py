"""`make demo`: materialise the whole catalog into the instance that DAGSTER_HOME names, and say what was measured.

Here: what is to run, progress while it runs, the closing table. Everything it does can be done in the Dagster UI;
nothing is computed here.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from jsae_assets.assets.cell import THRESHOLDS
from jsae_assets.automation import CELL_JOB, LAYERS_JOB, SWEEP_JOB, TOKENS_JOB, compares_layers
from jsae_assets.catalog import Catalog, CatalogError, load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.freshness import latest_metadata, outdated_assets
from jsae_assets.partitions import cell_key, cells, models, register, sweeps
from jsae_assets.text_table import as_text

CONSOLE = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}


@dg.logger({"log_level": str}, description="Only what the assets say, indented below the run they belong to.")
def plain_console(context: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("demo", context.logger_config["log_level"])
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("      %(message)s"))
    handler.addFilter(_shorten)
    logger.addHandler(handler)
    return logger


def _shorten(record: logging.LogRecord) -> logging.LogRecord:
    """Dagster puts job, run and step before each message; here the run is named above it."""
    meta = getattr(record, "dagster_meta", None) or {}
    step = str(meta.get("step_key") or "").replace("__", "/")
    record.msg, record.args = f"{step}: {meta.get('orig_message', record.getMessage())}", ()
    return record


@dataclass(frozen=True)
class Run:
    """One Dagster run: a job at one partition, restricted to what is outdated there."""

    job: str
    partition: str
    title: str
    assets: list[dg.AssetKey]


def planned_runs(catalog: Catalog, definitions: dg.Definitions, instance: dg.DagsterInstance) -> Iterator[Run]:
    """For each model its tokens, every cell the catalog holds, and what compares its layers. A run is planned when the
    one before it is done."""

    def run(job: str, partition: str, title: str, layers: Sequence[int]) -> Run:
        upstream = {models: [model], cells: [cell_key(model, layer) for layer in layers]}
        digests = dict(_digests(catalog, definitions, job, model, layers))
        return Run(job, partition, title, outdated_assets(definitions, instance, job, partition, upstream, digests))

    for model in catalog.models:
        yield run(TOKENS_JOB, model, f"{model}: tokens", [])
        for layer in catalog.layers(model):
            yield run(CELL_JOB, cell_key(model, layer), f"{model}, layer {layer}", [layer])
        if compares_layers(catalog):
            yield run(LAYERS_JOB, model, f"{model}: layers compared", catalog.layers(model))
    for sweep in catalog.sweeps:
        digests = dict.fromkeys(_assets(definitions, SWEEP_JOB), catalog.sweep_digest(sweep))
        outdated = outdated_assets(definitions, instance, SWEEP_JOB, sweep, {sweeps: [sweep]}, digests)
        yield Run(SWEEP_JOB, sweep, f"sweep {sweep}", outdated)


def _digests(
    catalog: Catalog, definitions: dg.Definitions, job: str, model: str, layers: Sequence[int]
) -> Iterator[tuple[dg.AssetKey, str]]:
    """The digest that each asset of a job must carry; assets that the catalog does not hold there are left out."""
    graph = definitions.resolve_asset_graph()
    for key in _assets(definitions, job):
        if key.path[0] == "figures":
            variants = sorted({parent.path[0] for parent in graph.get(key).parent_keys})
            if all(any(catalog.pair(variant, model, layer) for layer in layers) for variant in variants):
                yield key, catalog.figure_digest(model, layers, variants)
        elif job == TOKENS_JOB:
            yield key, catalog.digest(model, key.path[-1])
        else:
            pair = catalog.pair(key.path[0], model, layers[0])
            if pair is not None:
                yield key, catalog.digest(model, key.path[-1], pair)


def _assets(definitions: dg.Definitions, job: str) -> Iterable[dg.AssetKey]:
    return definitions.resolve_job_def(job).asset_layer.selected_asset_keys


def run_all(catalog: Catalog, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    """Run what is outdated, saying what, how far and how long still."""
    started = time.monotonic()
    expected = [len(run.assets) for run in planned_runs(catalog, definitions, instance)]
    computed, seconds = 0, 0.0  # of cells alone: the tokens' time is mostly that of importing torch
    for number, run in enumerate(planned_runs(catalog, definitions, instance), start=1):
        if not run.assets:
            print(f"[{number}/{len(expected)}] {run.title}: up to date", flush=True)
            continue
        began = time.monotonic()
        ahead = len(run.assets) + sum(expected[number:])
        left = f", about {seconds / computed * ahead:.0f} s left" if computed else ""
        print(f"[{number}/{len(expected)}] {run.title}: {len(run.assets)} to materialise{left}", flush=True)
        result = definitions.resolve_job_def(run.job).execute_in_process(
            instance=instance,
            partition_key=run.partition,
            asset_selection=run.assets,
            run_config=CONSOLE,
            raise_on_error=False,
        )
        if not result.success:
            failures = [event for event in result.all_events if event.is_step_failure]
            messages = "\n".join(f"  {event.step_key}: {_cause(event)}" for event in failures)
            sys.exit(f"{run.title} failed:\n{messages}\nThe run is {result.run_id}; `make ui` shows it.")
        if run.job == CELL_JOB:
            computed, seconds = computed + len(run.assets), seconds + time.monotonic() - began
    print(f"Done in {time.monotonic() - started:.0f} s.\n")


def _cause(event: dg.DagsterEvent) -> str:
    """The error that the asset raised, which names the file or entry; not what it was raised from in turn."""
    error = event.step_failure_data.error
    return (error.cause or error).message.strip()


def summary(catalog: Catalog, instance: dg.DagsterInstance) -> str:
    """A line for each pair: what the figures show in full."""
    columns = {
        **{f"|J|>{threshold:g}": ("jacobian_histogram", f"share_above_{threshold}") for threshold in THRESHOLDS},
        "linear": ("function_shapes", "share_linear"),
        "explained: input": ("pair_quality", "explained_variance_input"),
        "output": ("pair_quality", "explained_variance_output"),
        "KL score": ("pair_quality", "kl_score_pair"),
    }
    rows = [["model", "layer", "variant", *columns]]
    for model in catalog.models:
        for layer in catalog.layers(model):
            for key, variant in catalog.variants.items():
                measured = {
                    measure: latest_metadata(instance, dg.AssetKey([key, measure]), cell_key(model, layer))
                    for measure, _ in columns.values()
                }
                if all(measured.values()):
                    numbers = [measured[measure][name] for measure, name in columns.values()]
                    rows.append([model, str(layer), variant.label, *(f"{number:.1%}" for number in numbers)])
    return as_text(rows)


def figure_pages(catalog: Catalog, instance: dg.DagsterInstance) -> list[str]:
    """The pages of the figures, with what stands in their paths for variant, figure, layer, model and sweep."""
    patterns = set()
    for model in catalog.models:
        for layer in catalog.layers(model):
            for variant in catalog.variants:
                key = dg.AssetKey(["figures", variant, "jacobian_histogram"])
                metadata = latest_metadata(instance, key, cell_key(model, layer))
                if metadata is not None:
                    patterns.add(f"{Path(metadata['page']).parents[2]}/<figure>/<layer>/<model>.html")
    for sweep in catalog.sweeps:
        metadata = latest_metadata(instance, dg.AssetKey(["figures", "sweep_runs", "tradeoff"]), sweep)
        if metadata is not None:
            patterns.add(f"{Path(metadata['page']).parents[1]}/<figure>/<sweep>.html")
    return sorted(patterns)


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"  # transformers' bars would cut through the lines below
    try:
        catalog = load_catalog()
    except CatalogError as error:
        sys.exit(str(error))
    definitions = build_definitions(catalog, loggers={"console": plain_console})
    with dg.DagsterInstance.get() as instance:
        register(catalog, instance)
        run_all(catalog, definitions, instance)
        print(summary(catalog, instance))
        print("\nFigures:", *figure_pages(catalog, instance), sep="\n  ")
    print("The same in the Dagster UI: make ui")


if __name__ == "__main__":
    main()
