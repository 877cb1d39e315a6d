"""Measures the platform with a large catalog: 20 models, 48 layers and 6 variants (5,760 pairs, and some 80,000
partitions of assets).

    python -m benchmarks.scale [--models 20] [--layers 48] [--made]
    python -m benchmarks.scale --event-log HOME

The first form measures the time to load the definitions, of a tick of the sensors `keep_up_to_date` and
`catalog_entries`, and of the plan that `jsae run --dry-run` makes, in a fresh instance on SQLite. With `--made`, it
measures again with all partitions recorded as materialised (recording them takes a while). Nothing is computed. The
second form prints how many bytes each run of a cell wrote to the event log of an existing instance. Not here: the time
of measures (`cases.py`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import yaml

from jsae_assets.catalog import Catalog
from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import CATALOG, DATA_VERSION, READ_VERSION, change_events
from jsae_assets.partitions import partition_keys
from jsae_assets.runs.freshness import Freshness, Place
from jsae_assets.runs.plan import planned_runs

COMPARISONS = 3  # each adds a traditional and a JSAE variant
RECIPE = {"d_sae": 64, "k": 8, "jacobian_coefficient": 0.0, "steps": 40, "batch_tokens": 256, "learning_rate": 0.005}


def write_catalog(folder: Path, models: int, layers: int) -> Path:
    """Write a catalog of this size into a folder, and return its path."""
    variants: dict[str, dict[str, str]] = {}
    for number in range(COMPARISONS):
        variants[f"traditional_{number}"] = {"label": f"Traditional {number}", "colour": "#0072B2"}
        variants[f"jsae_{number}"] = {
            "label": f"JSAE {number}",
            "colour": "#D55E00",
            "compared_with": f"traditional_{number}",
        }
    train = {"text": "text", "tokens": 3000, "config": RECIPE}
    names = [f"model-{number}" for number in range(models)]
    catalog = {
        "models": {name: {"hub": f"somebody/{name}", "text": "text"} for name in names},
        "text": {"text": {"standard_library": "train"}},
        "variants": variants,
        "pairs": [
            {"variant": variant, "model": name, "layers": list(range(layers)), "train": train}
            for name in names
            for variant in variants
        ],
    }
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump(catalog, sort_keys=False), encoding="utf-8")
    return path


@contextmanager
def timed(what: str) -> Iterator[None]:
    began, processor_began = time.perf_counter(), time.process_time()
    yield
    seconds, processor_seconds = time.perf_counter() - began, time.process_time() - processor_began
    print(f"{what}: {seconds:.2f} s, of which {processor_seconds:.2f} s computing", flush=True)


class Installation:
    """The definitions of a large catalog, and an instance to use them with."""

    def __init__(self, path: Path, instance: dg.DagsterInstance):
        self.instance = instance
        with timed("reading the catalog"):
            self.catalog: Catalog = load_catalog(path)
        with timed("building the definitions"):
            self.definitions = build_definitions(self.catalog)
            self.repository = self.definitions.get_repository_def()
        self.graph = self.definitions.resolve_asset_graph()
        self.places = [
            Place(key, partition)
            for key in self.graph.toposorted_asset_keys
            if key in self.graph.materializable_asset_keys
            for partition in partition_keys(self.graph.get(key).partitions_def)
        ]
        print(f"{len(self.places):,} partitions of assets, {len(self.catalog.entries()):,} entries of the catalog")

    def freshness(self) -> Freshness:
        return Freshness(self.catalog, self.graph, self.definitions.resources, self.instance)

    def dry_run(self) -> None:
        with timed("the plan of jsae run --dry-run"):
            runs = planned_runs(self.freshness())
        print(f"  {sum(len(run.assets) for run in runs):,} to materialise in {len(runs):,} runs")

    def tick(self, sensor: str, cursor: str | None = None) -> str | None:
        context = dg.build_sensor_context(self.instance, cursor=cursor, repository_def=self.repository)
        with timed(f"a tick of {sensor}"):
            result = self.definitions.resolve_sensor_def(sensor).evaluate_tick(context)
        n_runs, n_events = len(result.run_requests), len(result.asset_events)
        print(f"  {n_runs} runs requested, {n_events} events, cursor {result.cursor!r}")
        return result.cursor

    def record_all_as_made(self) -> None:
        """Record a materialisation of each place, upstream first, and make an empty file for it."""
        freshness = self.freshness()
        for event in change_events(self.catalog, self.instance):
            self.instance.report_runless_asset_event(event)
        for place in self.places:
            node = self.graph.get(place.asset)
            freshness._latest |= {parent: None for parent in freshness.parents(place) if parent.asset != CATALOG}
            versions = {
                f"{READ_VERSION}/{key.to_user_string()}": version
                for key, version in freshness.versions_read(place).items()
            }
            tags = {DATA_VERSION: "", "dagster/code_version": node.code_version} | versions
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(place.asset, partition=place.partition, tags=tags)
            )
            store = self.definitions.resources[node.assets_def.get_io_manager_key_for_asset_key(place.asset)]
            path = store.manager_of(self.instance).stored(place.asset, place.partition).path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for key in self.graph.asset_check_keys:
            for partition in partition_keys(self.graph.get(key.asset_key).partitions_def):
                self.instance.report_runless_asset_event(
                    dg.AssetCheckEvaluation(key.asset_key, key.name, passed=True, metadata={}, partition=partition)
                )


def print_event_log_sizes(home: Path) -> None:
    """Print how many bytes each successful run wrote to the event log."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])):
            events = [dg.serialize_value(event) for event in instance.all_logs(run.run_id)]
            made = sum('"ASSET_MATERIALIZATION"' in event for event in events)
            print(
                f"{run.tags.get('dagster/partition')}: {made} assets made, {len(events)} events, "
                f"{sum(map(len, events)):,} bytes"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--made", action="store_true", help="also measure with all partitions materialised")
    parser.add_argument(
        "--event-log", type=Path, metavar="HOME", help="print the sizes of runs in the event log of HOME"
    )
    options = parser.parse_args()
    if options.event_log:
        return print_event_log_sizes(options.event_log)
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as instance:
        path = write_catalog(Path(folder), options.models, options.layers)
        large = Installation(path, instance)
        large.dry_run()
        large.tick("keep_up_to_date")
        large.tick("catalog_entries")
        if options.made:
            large.record_all_as_made()
            large.dry_run()
            cursor = None
            while True:
                cursor = large.tick("keep_up_to_date", cursor)
                if cursor in (None, "", next(iter(large.catalog.models))):
                    break


if __name__ == "__main__":
    main()
