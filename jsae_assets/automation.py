"""Jobs, schedules and sensors."""

import dataclasses
import hashlib
import re
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from jsae_assets.at_work import release_dead_runs
from jsae_assets.catalog import Catalog
from jsae_assets.entries import CATALOG, news, report
from jsae_assets.freshness import Freshness, Place, latest_metadata
from jsae_assets.partitions import cell_key
from jsae_assets.plan import (
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
from jsae_assets.resources import downloads_folder
from jsae_assets.sources import PairOnServer

DESCRIPTIONS = {
    TOKENS_JOB: "Tokenise a model's text.",
    CELL_JOB: "Every pair, measure and figure of one model at one layer",
    LAYERS_JOB: "The figures of a model that compare its layers, as far as those are measured.",
    SWEEP_JOB: "Fetch or train a sweep's runs that are new, and draw its figures.",
}
PARTITION, RUN_KEY = "dagster/partition", "dagster/run_key"  # tags of runs
TICK_SECONDS = 20  # after which a tick asks for no more, and the next one goes on; Dagster stops one after 60
MOST_TOLD = 500  # entries of a catalog that a tick tells the instance of
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def jobs(partitioned: Partitioned) -> list:
    """What is made of a model before its layers, of one layer, of a model once its layers are measured, of a sweep."""
    return [
        dg.define_asset_job(name, dg.AssetSelection.assets(*keys), description=_description(name, keys))
        for name, keys in jobs_of(partitioned).items()
    ]


def _description(name: str, keys: Sequence[dg.AssetKey]) -> str | None:
    description = DESCRIPTIONS.get(re.sub(r"_\d+$", "", name))
    if not name.startswith(CELL_JOB):
        return description
    # where variants hold different cells, each job makes its share
    return f"{description}, of those that exist at these cells: {', '.join(sorted(_variants(keys)))}."


def _variants(keys: Sequence[dg.AssetKey]) -> set[str]:
    return {"/".join(key.path[:-1]) for key in keys}


def schedules(catalog: Catalog) -> list[dg.ScheduleDefinition]:
    """Every wandb sweep is synced once an hour, once the schedule is switched on."""
    synced = [key for key, sweep in catalog.sweeps.items() if sweep.wandb]
    if not synced:
        return []

    @dg.schedule(
        name="sync_sweeps",
        job_name=SWEEP_JOB,
        cron_schedule="0 * * * *",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Syncs every sweep that comes from wandb. Where nothing is new that takes one small request each.",
    )
    def sync_sweeps(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        tick = context.scheduled_execution_time.isoformat()
        return [dg.RunRequest(run_key=f"{key} {tick}", partition_key=key) for key in synced]

    return [sync_sweeps]


def entries_sensor(catalog: Catalog) -> dg.SensorDefinition:
    """Tells the instance what changed in the catalog, once the code location is loaded again."""

    @dg.sensor(
        name="catalog_entries",
        description="Tells Dagster which entries of the catalog are new or have changed, so that it knows what is out "
        "of date. Starts no run.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
    )
    def catalog_entries(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        events = news(catalog, context.instance, at_most=MOST_TOLD)
        if not events:
            return dg.SkipReason("no entry of the catalog is new or has changed")
        return dg.SensorResult(asset_events=events)

    return catalog_entries


def automatic_sensor(catalog: Catalog, asset_jobs: Sequence, resources: Mapping[str, Any]) -> dg.SensorDefinition:
    """The switch for automation: what is missing or out of date is made."""

    @dg.sensor(
        name="keep_up_to_date",
        jobs=asset_jobs,
        description="Makes what is missing or out of date, as `jsae run` would: tokens first, each once. What failed "
        "is tried once more at most, and again once something that it is made from has changed.",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=30,
    )
    def keep_up_to_date(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
        end = time.monotonic() + TICK_SECONDS
        under_way = {run.tags.get(PARTITION) for run in context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))}
        for model in _models_from(context.cursor, catalog):
            context.update_cursor(model)  # the next tick begins here if this one must end
            freshness = Freshness(catalog, context.repository_def.asset_graph, resources, context.instance)
            for key, run in _to_be_asked_for(model, freshness, under_way).items():
                # not to ask for what would be made from entries that nobody knows yet
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
    """All models, and "" for what is of no model: from the first on, or from one of them, and round."""
    models = [*catalog.models, ""]
    start = models.index(first) if first in models else 0
    return models[start:] + models[:start]


def _to_be_asked_for(model: str, freshness: Freshness, under_way: Container[str | None]) -> dict[str, PlannedRun]:
    """The runs of a model that can begin now and were not asked for before, by their keys."""
    candidates = {}
    for planned in planned_runs(
        freshness, lambda place: model_and_layer(place, freshness.catalog)[0] == (model or None)
    ):
        run = _without_refused(planned, freshness)
        if run.assets and run.partition not in under_way and _can_begin(run, freshness, under_way):
            candidates[_run_key(run, freshness)] = run
    runs = freshness.instance.get_runs(dg.RunsFilter(tags={RUN_KEY: list(candidates)})) if candidates else []
    asked = {run.tags[RUN_KEY] for run in runs}
    return {key: run for key, run in candidates.items() if key not in asked}


def _without_refused(run: PlannedRun, freshness: Freshness) -> PlannedRun:
    """The run without what failed its check, which would be the same again, and what is made from that."""
    left_out: set[Place] = set()
    for place in run.places:  # upstream first
        if freshness.is_refused(place) or left_out & set(freshness.parents(place)):
            left_out.add(place)
    kept = {key: reason for key, reason in run.assets.items() if Place(key, run.partition) not in left_out}
    return dataclasses.replace(run, assets=kept)


def _can_begin(run: PlannedRun, freshness: Freshness, under_way: Container[str | None]) -> bool:
    """Whether all that the run reads and does not make itself is up to date; of what is made of whatever is there,
    whether nothing is under way that would change it."""
    if _gathers(run, freshness):
        return not under_way
    made = set(run.places)
    read = {parent for place in run.places for parent in freshness.parents(place)}
    return not freshness.out_of_date(place for place in read - made if place.asset != CATALOG)


def _gathers(run: PlannedRun, freshness: Freshness) -> bool:
    return all(gathers(freshness.graph, key) for key in run.assets)


def _entries_read(run: PlannedRun, freshness: Freshness) -> list[str]:
    """The catalog's entries that a run is made from."""
    read = {parent for place in run.places for parent in freshness.parents(place)}
    return sorted(str(place.partition) for place in read if place.asset == CATALOG)


def _run_key(run: PlannedRun, freshness: Freshness) -> str:
    """The same for as long as nothing has changed, so that a run that failed is not asked for again and again."""
    state = [run.job, str(run.partition)]
    if _gathers(run, freshness):  # it may stay out of date, as what it is made of does
        made_of = [parent for place in run.places for parent in freshness.parents(place) if parent.asset != CATALOG]
        ids = [str(made and made.storage_id) for made in map(freshness.latest, made_of)]
        return hashlib.sha256("\n".join([*state, *ids]).encode()).hexdigest()
    for place in run.places:
        made = freshness.latest(place)
        versions = sorted(f"{key} {version}" for key, version in freshness.versions_read(place).items())
        code_version = freshness.graph.get(place.asset).code_version
        state += [str(place), str(made and made.storage_id), str(code_version), *versions]
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


def dead_runs_sensor() -> dg.SensorDefinition:
    """Clears up after runs that were killed: where what started them was killed as well, the daemon does not notice."""

    @dg.sensor(
        name="dead_runs",
        description="Marks runs as failed whose process is gone, and frees their slots. Starts no run.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
    )
    def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason("; ".join(release_dead_runs(context.instance)) or "no run has died")

    return dead_runs


def alias_sensor(catalog: Catalog, asset_jobs: Sequence) -> list[dg.SensorDefinition]:
    """Pairs that are named by an alias (`:latest`) or a branch are made again, with all that is measured on them, once
    it moves."""
    named = [pair for pair in catalog.pairs if isinstance(pair, PairOnServer) and pair.moves]
    if not named:
        return []

    @dg.sensor(
        name="moved_aliases",
        jobs=[job for job in asset_jobs if job.name.startswith(CELL_JOB)],
        description="Looks whether a pair's alias or branch names another version than the one that was fetched.",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=3600,
    )
    def moved_aliases(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
        graph = context.repository_def.asset_graph
        for pair in named:
            key = dg.AssetKey([pair.variant, "sae_pair"])
            # the other variants' pairs stay; what compares layers is of another partitioning
            selection = [
                affected
                for affected in dg.AssetSelection.assets(key).downstream().resolve(graph)
                if graph.get(affected).partitions_def == graph.get(key).partitions_def
            ]
            job = next(name for name, keys in jobs_of(partitions_of(graph)).items() if key in keys)
            for layer in pair.layers:
                partition = cell_key(pair.model, layer)
                fetched = latest_metadata(context.instance, key, partition)
                if fetched is None:
                    continue  # never asked for
                found = pair.find(layer, downloads_folder(context.instance))
                if found.digest != fetched["source_digest"]:
                    context.log.info(f"{pair.variant} of {pair.model} at layer {layer} is {found.path} now")
                    yield dg.RunRequest(
                        run_key=f"{pair.variant} {partition} {found.digest}",
                        job_name=job,
                        partition_key=partition,
                        asset_selection=selection,
                    )

    return [moved_aliases]
