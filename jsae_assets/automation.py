"""Jobs and sensors. Schedules for sweeps belong here as well."""

import dagster as dg

from jsae_assets.catalog import Catalog
from jsae_assets.partitions import layers, models, partition_keys

TOKENS_JOB, CELL_JOB, LAYERS_JOB = "tokenise_text", "measure_cell", "compare_layers"


def jobs(catalog: Catalog) -> list:
    """What is made of a model before its layers, of one layer, and of a model once its layers are measured."""
    tokens = dg.AssetSelection.assets("tokens")
    over_layers = dg.AssetSelection.assets(
        *(["figures", key, "quality_by_layer"] for key, entry in catalog.variants.items() if entry.compared_with)
    )
    made = [
        dg.define_asset_job(TOKENS_JOB, tokens, description="Tokenise a model's text."),
        dg.define_asset_job(
            CELL_JOB,
            dg.AssetSelection.all() - tokens - over_layers,
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
    return made


def compares_layers(catalog: Catalog) -> bool:
    """Whether any figure does, so that there is a job for them."""
    return any(entry.compared_with for entry in catalog.variants.values())


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
