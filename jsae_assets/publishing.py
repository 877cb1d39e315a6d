"""The job `publish_pair`: uploads the stored pair of one (model, layer) to wandb, as a run and its artifact.

Here: choosing the pair, and recording the upload. Not here: the upload itself (`jsae_core.artifacts`).
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
from jsae_core.names import advice


class Publication(dg.Config):
    """The settings to fill in on the job's Launchpad page."""

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
            known = advice(config.variant, catalog.variants)
            raise ValueError(f"variant is {config.variant!r}, which is not in the catalog; {known}")
        key = dg.AssetKey([config.variant, "sae_pair"])
        pair = SAEPair.load(tensors.stored(key, context.partition_key).local)
        extra = dict(pair.config.extra)
        record = extra.pop(LANGUAGE_MODEL_WEIGHTS, None)  # not published: it is for finding the weights here
        pair.config = dataclasses.replace(pair.config, extra=extra)
        if pair.config.randomize_llm_weights and record is None:
            raise ValueError(
                f"the {config.variant} pair of {context.partition_key} belongs to a language model that was randomised "
                "here, from a seed; publishing a pair together with the weights of such a model is not built yet"
            )
        published = publish_pair(
            pair,
            config.project,
            artifact_name(pair.config),
            wandb_folder(context.instance),
            config.offline,
            cell_at(context, catalog, config.variant).language_model_weights(record) if record else None,
        )
        metadata: dict[str, Any] = {"artifact": published.artifact, "run": published.run_id}
        if published.url:
            metadata["url"] = dg.MetadataValue.url(published.url)
        if published.directory:
            metadata["to_upload"] = f"wandb sync {published.directory}"
        context.log.info(f"published as {published.artifact}" + (" (offline)" if config.offline else ""))
        context.log_event(dg.AssetObservation(key, partition=context.partition_key, metadata=metadata))

    @dg.job(
        name="publish_pair",
        partitions_def=cells(catalog, []),
        description="Upload a stored pair to wandb; with `offline`, keep the run on this machine for `wandb sync`.",
    )
    def publish_pair_job():
        publish()

    return publish_pair_job
