"""Jobs and sensors. Schedules for sweeps belong here as well."""

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.partitions import layers, models, partition_keys

CELL_JOB, TOKENS_JOB = "measure_cell", "tokenise_text"


def jobs(catalog: Catalog) -> list:
    """One job for each partitioning: everything of a (model, layer), and the tokens of a model."""
    return [
        dg.define_asset_job(TOKENS_JOB, dg.AssetSelection.assets("tokens"), description="Tokenise a model's text."),
        dg.define_asset_job(
            CELL_JOB,
            dg.AssetSelection.all() - dg.AssetSelection.assets("tokens"),
            description="Every pair, measure and figure of one model at one layer.",
        ),
    ]


def partition_sensor(catalog: Catalog) -> dg.SensorDefinition:
    """Registers the catalog's models and layers, so that new entries show up after the code location is reloaded."""

    @dg.sensor(
        name="catalog_partitions",
        description="Adds the catalog's models and layers to the partitions. Starts no run.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
    )
    def catalog_partitions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        keys = partition_keys(catalog)
        missing = {
            definition.name: [
                key for key in keys[definition.name] if not context.instance.has_dynamic_partition(definition.name, key)
            ]
            for definition in (models, layers)
        }
        requests = [
            definition.build_add_request(missing[definition.name])
            for definition in (models, layers)
            if missing[definition.name]
        ]
        if not requests:
            return dg.SkipReason("every model and layer of the catalog is registered")
        return dg.SensorResult(dynamic_partitions_requests=requests)

    return catalog_partitions
