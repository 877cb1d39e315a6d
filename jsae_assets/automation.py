"""Jobs, schedules and sensors."""

import dataclasses
import hashlib
import re
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.digests import SOURCE_DIGEST, out_of_groups
from jsae_assets.entries import CATALOG, change_events, report
from jsae_assets.partitions import cell_key
from jsae_assets.resources import downloads_folder
from jsae_assets.runs.at_work import release_dead_runs
from jsae_assets.runs.freshness import Freshness, Place, latest_metadata
from jsae_assets.runs.plan import (
    CELL_JOB,
    LAYERS_JOB,
    SWEEP_JOB,
    TOKENS_JOB,
    Partitioned,
    PlannedRun,
    gathers,
    jobs_of,
    model_and_layer,
    partitions_of,
    planned_runs,
)
from jsae_assets.sources import PairOnServer

DESCRIPTIONS = {
    TOKENS_JOB: "Tokenise a model's text.",
    CELL_JOB: "Every pair, measure and figure of one model at one layer",
    LAYERS_JOB: "The figures that compare a model's layers; they show the layers that are already measured.",
    SWEEP_JOB: "Fetch or train the runs of a sweep that are new, and draw its figures.",
}
PARTITION, RUN_KEY = "dagster/partition", "dagster/run_key"  # tags of runs
TICK_SECONDS = 20  # after which a tick requests no more runs and leaves the rest to the next; Dagster allows it 60
MOST_REPORTED = 500  # entries of the catalog that one tick reports to the instance
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def jobs(partitioned: Partitioned) -> list:
    """Return the jobs: for a model's tokens, for a cell (a model at a layer), for the comparison of a model's layers,
    for a sweep, and one for each asset without partitions."""
    return [
        dg.define_asset_job(name, dg.AssetSelection.assets(*keys), description=_description(name, keys))
        for name, keys in jobs_of(partitioned).items()
    ]


def _description(name: str, keys: Sequence[dg.AssetKey]) -> str | None:
    description = DESCRIPTIONS.get(re.sub(r"_\d+$", "", name))
    if not name.startswith(CELL_JOB):
        return description
    # if the variants have pairs at different cells, there is more than one such job, for different variants
    return f"{description}, for the variants that have pairs at these cells: {', '.join(sorted(_variants(keys)))}."


def _variants(keys: Sequence[dg.AssetKey]) -> set[str]:
    return {"/".join(key.path[:-1]) for key in keys}


def schedules(catalog: Catalog) -> list[dg.ScheduleDefinition]:
    """Return the schedule that syncs every wandb sweep once an hour, if the catalog has any."""
    wandb_sweeps = [key for key, sweep in catalog.sweeps.items() if sweep.wandb]
    if not wandb_sweeps:
        return []

    @dg.schedule(
        name="sync_sweeps",
        job_name=SWEEP_JOB,
        cron_schedule="0 * * * *",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Syncs every sweep that comes from wandb. A sweep without news takes one small request.",
    )
    def sync_sweeps(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        tick = context.scheduled_execution_time.isoformat()
        return [dg.RunRequest(run_key=f"{key} {tick}", partition_key=key) for key in wandb_sweeps]

    return [sync_sweeps]


def entries_sensor(catalog: Catalog) -> dg.SensorDefinition:
    """Return the sensor that reports changes of the catalog to the instance, after the code location was reloaded."""

    @dg.sensor(
        name="catalog_entries",
        description="Reports to Dagster which entries of the catalog are new or have changed, so that it knows which "
        "assets are out of date. Starts no run.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
    )
    def catalog_entries(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        events = change_events(catalog, context.instance, at_most=MOST_REPORTED)
        if not events:
            return dg.SkipReason("no entry of the catalog is new or has changed")
        return dg.SensorResult(asset_events=events)

    return catalog_entries


def automatic_sensor(catalog: Catalog, asset_jobs: Sequence, resources: Mapping[str, Any]) -> dg.SensorDefinition:
    """Return the sensor that, when it is switched on, makes everything that is missing or out of date."""

    @dg.sensor(
        name="keep_up_to_date",
        jobs=asset_jobs,
        description="Makes what is missing or out of date, as `jsae run` would, tokens first. A failed asset is tried "
        "at most once more, until something that it is made from has changed.",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=30,
    )
    def keep_up_to_date(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
        end = time.monotonic() + TICK_SECONDS
        under_way = {run.tags.get(PARTITION) for run in context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))}
        for model in _models_from(context.cursor, catalog):
            context.update_cursor(model)  # the next tick begins at this model if this tick's time runs out
            freshness = Freshness(catalog, context.repository_def.asset_graph, resources, context.instance)
            for key, run in _runs_to_request(model, freshness, under_way).items():
                # Dagster records an asset as made from the entries that it knows, so it has to know them first
                report(catalog, context.instance, _entries_read(run, freshness))
                yield dg.RunRequest(
                    run_key=key, job_name=run.job, partition_key=run.partition, asset_selection=list(run.assets)
                )
                under_way.add(run.partition)
                if time.monotonic() > end:
                    return
            if time.monotonic() > end:
                context.update_cursor(_models_from(model, catalog)[1])
                return

    return keep_up_to_date


def _models_from(first: str | None, catalog: Catalog) -> list[str]:
    """Return all models, and "" for assets that belong to no model, beginning with `first` (or with the first model of
    the catalog) and going round."""
    models = [*catalog.models, ""]
    start = models.index(first) if first in models else 0
    return models[start:] + models[:start]


def _runs_to_request(model: str, freshness: Freshness, under_way: Container[str | None]) -> dict[str, PlannedRun]:
    """Return the runs of a model that can begin now and were not requested before, by their run keys."""
    candidates = {}
    for planned in planned_runs(
        freshness, lambda place: model_and_layer(place, freshness.catalog)[0] == (model or None)
    ):
        run = _without_refused(planned, freshness)
        if run.assets and run.partition not in under_way and _can_begin(run, freshness, under_way):
            candidates[_run_key(run, freshness)] = run
    runs = freshness.instance.get_runs(dg.RunsFilter(tags={RUN_KEY: list(candidates)})) if candidates else []
    requested_before = {run.tags[RUN_KEY] for run in runs}
    return {key: run for key, run in candidates.items() if key not in requested_before}


def _without_refused(run: PlannedRun, freshness: Freshness) -> PlannedRun:
    """Return the run without the assets that failed their check, which would come out the same again, and without
    everything made from them."""
    left_out: set[Place] = set()
    for place in run.places:  # upstream first
        if freshness.is_refused(place) or left_out & set(freshness.parents(place)):
            left_out.add(place)
    others = {key: reason for key, reason in run.assets.items() if Place(key, run.partition) not in left_out}
    return dataclasses.replace(run, assets=others)


def _can_begin(run: PlannedRun, freshness: Freshness, under_way: Container[str | None]) -> bool:
    """Whether everything that the run reads, and does not make itself, is up to date. A run of assets that gather what
    is stored can begin if no other run is under way that could change what they read."""
    if _gathers(run, freshness):
        return not under_way
    made = set(run.places)
    read = {parent for place in run.places for parent in freshness.parents(place)}
    return not freshness.out_of_date(place for place in read - made if place.asset != CATALOG)


def _gathers(run: PlannedRun, freshness: Freshness) -> bool:
    return all(gathers(freshness.graph, key) for key in run.assets)


def _entries_read(run: PlannedRun, freshness: Freshness) -> list[str]:
    """Return the names of the catalog's entries that a run's assets are made from."""
    read = {parent for place in run.places for parent in freshness.parents(place)}
    return sorted(str(place.partition) for place in read if place.asset == CATALOG)


def _run_key(run: PlannedRun, freshness: Freshness) -> str:
    """Return a key that stays the same as long as nothing has changed, so that a failed run is not requested again and
    again."""
    state = [run.job, str(run.partition)]
    if _gathers(run, freshness):  # it may stay out of date because its inputs do, so the key depends on these alone
        inputs = [parent for place in run.places for parent in freshness.parents(place) if parent.asset != CATALOG]
        ids = [str(made and made.storage_id) for made in map(freshness.latest, inputs)]
        return hashlib.sha256("\n".join([*state, *ids]).encode()).hexdigest()
    for place in run.places:
        made = freshness.latest(place)
        versions = sorted(f"{key} {version}" for key, version in freshness.versions_read(place).items())
        code_version = freshness.graph.get(place.asset).code_version
        state += [str(place), str(made and made.storage_id), str(code_version), *versions]
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


def dead_runs_sensor() -> dg.SensorDefinition:
    """Return the sensor that cleans up after runs that were killed together with the process that started them, which
    Dagster's daemon does not notice."""

    @dg.sensor(
        name="dead_runs",
        description="Marks runs whose process is gone as failed, and frees their slots. Starts no run.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
    )
    def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason("; ".join(release_dead_runs(context.instance)) or "no run has died")

    return dead_runs


def alias_sensor(catalog: Catalog, asset_jobs: Sequence) -> list[dg.SensorDefinition]:
    """Return the sensor that fetches pairs named by an alias (`:latest`) or a branch again, and measures them again,
    once that name points to another version. There is none if the catalog has no such pairs."""
    pairs_that_move = [pair for pair in catalog.pairs if isinstance(pair, PairOnServer) and pair.moves]
    if not pairs_that_move:
        return []

    @dg.sensor(
        name="moved_aliases",
        jobs=[job for job in asset_jobs if job.name.startswith(CELL_JOB)],
        description="Checks whether the alias or branch of a pair now names another version than the stored one; if "
        "so, fetches the pair again and measures it.",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=3600,
    )
    def moved_aliases(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
        graph = context.repository_def.asset_graph
        for pair in pairs_that_move:
            key = dg.AssetKey([pair.variant, "sae_pair"])
            # without assets that compare layers: their partitions are models, not cells
            selection = [
                downstream
                for downstream in dg.AssetSelection.assets(key).downstream().resolve(graph)
                if graph.get(downstream).partitions_def == graph.get(key).partitions_def
            ]
            job = next(name for name, keys in jobs_of(partitions_of(graph)).items() if key in keys)
            for layer in pair.layers:
                partition = cell_key(pair.model, layer)
                fetched = latest_metadata(context.instance, key, partition)
                if fetched is None:
                    continue  # this pair was never materialised
                found = pair.find(layer, downloads_folder(context.instance))
                if found.digest != out_of_groups(fetched[SOURCE_DIGEST]):
                    context.log.info(f"the {pair.variant} pair of {pair.model} at layer {layer} is now {found.path}")
                    yield dg.RunRequest(
                        run_key=f"{pair.variant} {partition} {found.digest}",
                        job_name=job,
                        partition_key=partition,
                        asset_selection=selection,
                    )

    return [moved_aliases]
