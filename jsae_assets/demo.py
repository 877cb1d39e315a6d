"""`make demo`: materialise the whole catalog into the instance that DAGSTER_HOME names, and say what was measured.

Here: what is to run, progress while it runs, the closing table. Everything it does can be done in the Dagster UI;
nothing is computed here.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from jsae_assets.assets.cell import THRESHOLDS
from jsae_assets.automation import CELL_JOB, TOKENS_JOB
from jsae_assets.catalog import Catalog, CatalogError, load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.freshness import latest_check, latest_metadata, outdated_assets
from jsae_assets.partitions import cell_key, register

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
    """Every cell the catalog holds, its model's tokens first. A run is planned when the one before it is done."""
    for model in catalog.models:
        tokens = dg.AssetKey("tokens")
        outdated = outdated_assets(definitions, instance, TOKENS_JOB, model, model, {tokens: catalog.digest(model)})
        yield Run(TOKENS_JOB, model, f"{model}: tokens", outdated)
        for layer in catalog.layers(model):
            partition = cell_key(model, layer)
            digests = dict(_cell_digests(catalog, definitions, model, layer))
            outdated = outdated_assets(definitions, instance, CELL_JOB, model, partition, digests)
            yield Run(CELL_JOB, partition, f"{model}, layer {layer}", outdated)


def _cell_digests(
    catalog: Catalog, definitions: dg.Definitions, model: str, layer: int
) -> Iterator[tuple[dg.AssetKey, str]]:
    """The digest that each asset of a cell must carry; assets that the catalog does not hold there are left out."""
    for key in definitions.resolve_job_def(CELL_JOB).asset_layer.selected_asset_keys:
        variant = key.path[1] if key.path[0] == "figures" else key.path[0]
        compared = catalog.variants[variant].compared_with if key.path[0] == "figures" else variant
        pair = catalog.pair(variant, model, layer)
        if pair is not None and catalog.pair(compared, model, layer) is not None:
            yield key, catalog.digest(model, pair)


def run_all(catalog: Catalog, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    """Run what is outdated, saying what, how far and how long still."""
    total = sum(1 + len(catalog.layers(model)) for model in catalog.models)
    started = time.monotonic()
    computed, seconds = 0, 0.0  # of cells alone: the tokens' time is mostly that of importing torch
    for number, run in enumerate(planned_runs(catalog, definitions, instance), start=1):
        if not run.assets:
            print(f"[{number}/{total}] {run.title}: up to date", flush=True)
            continue
        began = time.monotonic()
        ahead = len(run.assets) * (total - number + 1)  # the runs still to be planned are taken to be as large
        left = f", about {seconds / computed * ahead:.0f} s left" if computed else ""
        print(f"[{number}/{total}] {run.title}: {len(run.assets)} to materialise{left}", flush=True)
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
    rows = [
        ["model", "layer", "variant"]
        + [f"|J|>{threshold:g}" for threshold in THRESHOLDS]
        + ["variance explained: input", "output"]
    ]
    for model in catalog.models:
        for layer in catalog.layers(model):
            for key, variant in catalog.variants.items():
                partition = cell_key(model, layer)
                histogram = latest_metadata(instance, dg.AssetKey([key, "jacobian_histogram"]), partition)
                check = latest_check(instance, dg.AssetCheckKey(dg.AssetKey([key, "sae_pair"]), "faithful"), partition)
                if histogram is None or check is None:
                    continue
                shares = [histogram[f"share_above_{threshold}"] for threshold in THRESHOLDS]
                explained = [check.metadata[f"explained_variance_{side}"].value for side in ("input", "output")]
                rows.append([model, str(layer), variant.label] + [f"{share:.1%}" for share in shares + explained])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def figure_pages(catalog: Catalog, instance: dg.DagsterInstance) -> list[Path]:
    """The folder of each figure asset's pages."""
    folders = set()
    for model in catalog.models:
        for layer in catalog.layers(model):
            for variant in catalog.variants:
                key = dg.AssetKey(["figures", variant, "jacobian_histogram"])
                metadata = latest_metadata(instance, key, cell_key(model, layer))
                if metadata is not None:
                    folders.add(Path(metadata["page"]).parents[2])
    return sorted(folders)


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
        for folder in figure_pages(catalog, instance):
            print(f"\nFigures: {folder}/<figure>/<layer>/<model>.html")
    print("The same in the Dagster UI: make ui")


if __name__ == "__main__":
    main()
