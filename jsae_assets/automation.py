"""Jobs, schedules and sensors."""

import re
from collections.abc import Iterator

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.freshness import latest_metadata
from jsae_assets.partitions import cell_key, cells, layers, models, partition_keys, sweeps
from jsae_assets.resources import wandb_folder

TOKENS_JOB, CELL_JOB, LAYERS_JOB = "tokenise_text", "measure_cell", "compare_layers"
SWEEP_JOB = "sync_sweep"


def jobs(catalog: Catalog) -> list:
    """What is made of a model before its layers, of one layer, and of a model once its layers are measured."""
    tokens = dg.AssetSelection.assets("tokens")
    of_sweeps = dg.AssetSelection.assets("sweep_runs").downstream() if catalog.sweeps else dg.AssetSelection.assets()
    over_layers = dg.AssetSelection.assets(
        *(["figures", key, "quality_by_layer"] for key, entry in catalog.variants.items() if entry.compared_with)
    )
    made = [
        dg.define_asset_job(TOKENS_JOB, tokens, description="Tokenise a model's text."),
        dg.define_asset_job(
            CELL_JOB,
            dg.AssetSelection.all() - tokens - over_layers - of_sweeps,
            description="Every pair, measure and figure of one model at one layer.",
        ),
    ]
    if compares_layers(catalog):
        made.append(
            dg.define_asset_job(
                LAYERS_JOB,
                over_layers,
                description="The figures of a model that compare its layers, as far as those are measured.",
            )
        )
    if catalog.sweeps:
        made.append(
            dg.define_asset_job(
                SWEEP_JOB, of_sweeps, description="Fetch or train a sweep's runs that are new, and draw its figures."
            )
        )
    return made


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


def compares_layers(catalog: Catalog) -> bool:
    """Whether any figure does, so that there is a job for them."""
    return any(entry.compared_with for entry in catalog.variants.values())


def partition_sensor(catalog: Catalog) -> dg.SensorDefinition:
    """Registers the catalog's keys, so that new entries show up after the code location is reloaded."""

    @dg.sensor(
        name="catalog_partitions",
        description="Adds the catalog's models, layers and sweeps to the partitions. Starts no run.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
    )
    def catalog_partitions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        keys = partition_keys(catalog)
        missing = {
            definition.name: [
                key for key in keys[definition.name] if not context.instance.has_dynamic_partition(definition.name, key)
            ]
            for definition in (models, layers, sweeps)
        }
        requests = [
            definition.build_add_request(missing[definition.name])
            for definition in (models, layers, sweeps)
            if missing[definition.name]
        ]
        if not requests:
            return dg.SkipReason("every model, layer and sweep of the catalog is registered")
        return dg.SensorResult(dynamic_partitions_requests=requests)

    return catalog_partitions


def alias_sensor(catalog: Catalog) -> list[dg.SensorDefinition]:
    """Pairs that are named by an alias (`:latest`) are made again, with all that is measured on them, once it moves."""
    named = [pair for pair in catalog.pairs if pair.wandb and not re.fullmatch(r"v\d+", pair.wandb.partition(":")[2])]
    if not named:
        return []

    @dg.sensor(
        name="moved_aliases",
        job_name=CELL_JOB,
        description="Looks whether a pair's wandb alias names another version than the one that was fetched.",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=3600,
    )
    def moved_aliases(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
        from jsae_core.artifacts import find_wandb_artifact

        graph = context.repository_def.asset_graph
        for pair in named:
            affected = dg.AssetSelection.assets([pair.variant, "sae_pair"]).downstream().resolve(graph)
            # the other variants' pairs stay; what compares layers is of another partitioning
            selection = [key for key in affected if graph.get(key).partitions_def == cells]
            for layer in pair.layers:
                partition = cell_key(pair.model, layer)
                fetched = latest_metadata(context.instance, dg.AssetKey([pair.variant, "sae_pair"]), partition)
                if fetched is None:
                    continue  # never asked for
                found = find_wandb_artifact(pair.at(layer), wandb_folder(context.instance))
                if found.digest != fetched["source_digest"]:
                    context.log.info(f"{pair.at(layer)} is {found.version} now")
                    yield dg.RunRequest(
                        run_key=f"{pair.variant} {partition} {found.digest}",
                        partition_key=partition,
                        asset_selection=selection,
                    )

    return [moved_aliases]
