"""`<variant>/sae_pair`: a pair from a directory, trained here, or from wandb, as the catalog says."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets.assets.cell import LANGUAGE_MODEL_WEIGHTS, Cell, Stopwatch, cell_asset, find_cell
from jsae_assets.assets.text import make_if_missing
from jsae_assets.assets.training import trained_pair
from jsae_assets.catalog import Catalog
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.resources import Compute, wandb_folder

if TYPE_CHECKING:
    from jsae_core import SAEPair


def sae_pair_asset(catalog: Catalog, variant: str) -> dg.AssetsDefinition:
    @cell_asset(
        catalog,
        [variant],
        variant,
        "sae_pair",
        f"The {catalog.variants[variant].label} pair: a TopK SAE on the MLP's input, one on its output, and the MLP "
        "between them, in the published tensor names.",
        code_version="1",
        kinds={"pytorch", "safetensors"},
        ins={},
    )
    def sae_pair(
        context: dg.AssetExecutionContext, compute: Compute, tensors: dg.ResourceParam[StoringIOManager]
    ) -> Iterator[dg.Output]:
        from jsae_core.artifacts import directory_digest, fetch_wandb_artifact
        from jsae_core.tensor_files import content_digest

        cell = find_cell(context, catalog, variant)
        make_if_missing(context, catalog, cell.model_key, compute, tensors)
        watch = Stopwatch()
        digest = catalog.digest(cell.model_key, "sae_pair", cell.pair)
        context.log.info(f"{variant} pair of {cell} on {compute.describe()}")
        if cell.pair.train:
            pair = trained_pair(
                cell.model_key,
                cell.model,
                cell.layer,
                cell.randomise_seed,
                cell.pair.train,
                catalog.text[cell.pair.train.text],
                compute,
                context.log.info,
            )
            source = {"source": f"trained on text {cell.pair.train.text}", "source_digest": digest}
            version = content_digest(pair.tensors())
        elif cell.pair.directory:
            directory = Path(cell.pair.at(cell.layer))
            pair = _from_directory(cell, directory, compute)
            source = {"source": f"directory {directory}", "source_digest": directory_digest(directory)}
            version = content_digest(pair.tensors())
        else:
            fetched = fetch_wandb_artifact(cell.pair.at(cell.layer), wandb_folder(context.instance))
            pair = _from_directory(cell, fetched.directory, compute)
            source = {
                "source": f"wandb {fetched.path}",
                "source_digest": fetched.digest,
                "artifact_version": fetched.version,
            }
            version = f"{fetched.version} {fetched.digest}"
        config = pair.config
        yield dg.Output(
            pair,
            data_version=dg.DataVersion(version),
            metadata=source
            | {
                "d_sae": config.d_sae,
                "k": config.k,
                "jacobian_coefficient": config.jacobian_coefficient,
                "model_name": config.model_name,
                "mlp_activation": config.mlp_activation,
                "input_convention": config.input_convention,
                "randomised_language_model": config.randomize_llm_weights,
                "catalog_entry": digest,
                "device": compute.describe(),
                "seconds": watch.seconds,
            },
        )

    return sae_pair


def _from_directory(cell: Cell, directory: Path, compute: Compute) -> "SAEPair":
    from jsae_core import SAEPair
    from jsae_core.pair_format import LANGUAGE_MODEL_FILE

    weights = directory / LANGUAGE_MODEL_FILE
    if weights.is_file():
        language_model = compute.language_model(cell.model.source, randomised_weights=str(weights))
    else:
        language_model = cell.language_model(compute)
    pair = SAEPair.load(directory, compute.torch_device(), language_model)
    if pair.config.layer != cell.layer:
        raise ValueError(f"{directory}: holds a pair of layer {pair.config.layer}, but the catalog names it for {cell}")
    if pair.config.randomize_llm_weights != (cell.randomise_seed is not None):
        raise ValueError(
            f"{directory}: randomize_llm_weights is {pair.config.randomize_llm_weights}, but the catalog names it for "
            f"the variant {cell.pair.variant}; only a variant with control_of is on the randomised language model"
        )
    if weights.is_file():
        extra = {**pair.config.extra, LANGUAGE_MODEL_WEIGHTS: str(weights)}
        pair.config = dataclasses.replace(pair.config, extra=extra)
    return pair
