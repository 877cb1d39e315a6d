"""The job `publish_pair`: a stored pair of one (model, layer) becomes a run and an artifact in wandb.

Here: which pair, and what is said of it afterwards. Not here: talking to wandb (`jsae_core.artifacts`).
"""

import dataclasses
from typing import Any

import dagster as dg

from jsae_assets.assets.cell import cell_at
from jsae_assets.catalog import Catalog
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.partitions import cells
from jsae_assets.resources import wandb_folder
from jsae_assets.sources import LANGUAGE_MODEL_WEIGHTS


class Publication(dg.Config):
    """What the launchpad asks for."""

    variant: str
    project: str
    offline: bool = False


def publish_job(catalog: Catalog) -> dg.JobDefinition:
    @dg.op(name="publish", description="Logs a run and uploads the pair in the artifact format as its artifact.")
    def publish(
        context: dg.OpExecutionContext, config: Publication, tensors: dg.ResourceParam[StoringIOManager]
    ) -> None:
        from jsae_core import SAEPair
        from jsae_core.artifacts import artifact_name, publish_pair

        if config.variant not in catalog.variants:
            raise ValueError(
                f"variant is {config.variant!r}, which is not in the catalog; there are: {', '.join(catalog.variants)}"
            )
        key = dg.AssetKey([config.variant, "sae_pair"])
        pair = SAEPair.load(tensors.stored(key, context.partition_key).local)
        extra = dict(pair.config.extra)
        record = extra.pop(LANGUAGE_MODEL_WEIGHTS, None)  # how this installation finds them concerns nobody else
        pair.config = dataclasses.replace(pair.config, extra=extra)
        if pair.config.randomize_llm_weights and record is None:
            raise ValueError(
                f"the {config.variant} pair of {context.partition_key} is on a language model that was randomised "
                "here, from a seed; publishing such a model's weights with the pair is not built yet"
            )
        published = publish_pair(
            pair,
            config.project,
            artifact_name(pair.config),
            wandb_folder(context.instance),
            config.offline,
            cell_at(context, catalog, config.variant).language_model_weights(record) if record else None,
        )
        said: dict[str, Any] = {"artifact": published.artifact, "run": published.run_id}
        if published.url:
            said["url"] = dg.MetadataValue.url(published.url)
        if published.directory:
            said["to_upload"] = f"wandb sync {published.directory}"
        context.log.info(f"published as {published.artifact}" + (" (offline)" if config.offline else ""))
        context.log_event(dg.AssetObservation(key, partition=context.partition_key, metadata=said))

    @dg.job(
        name="publish_pair",
        partitions_def=cells(catalog, []),
        description="Upload a stored pair to wandb, or keep the run here for `wandb sync` (offline).",
    )
    def publish_pair_job():
        publish()

    return publish_pair_job
