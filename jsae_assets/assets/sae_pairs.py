"""`<variant>/sae_pair`: a pair from a directory, trained here, or from wandb, as the catalog says."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets.assets.cell import Cell, Stopwatch, cell_asset, context_size, find_cell
from jsae_assets.assets.text import documents
from jsae_assets.catalog import Catalog
from jsae_assets.resources import Compute

if TYPE_CHECKING:
    from jsae_core import SAEPair

SECONDS_BETWEEN_REPORTS = 5.0


def sae_pair_asset(catalog: Catalog, variant: str) -> dg.AssetsDefinition:
    @cell_asset(
        variant,
        "sae_pair",
        f"The {catalog.variants[variant].label} pair: a TopK SAE on the MLP's input, one on its output, and the MLP "
        "between them, in the published tensor names.",
        code_version="1",
        kinds={"pytorch", "safetensors"},
        ins={},
    )
    def sae_pair(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output]:
        from jsae_core.artifacts import directory_digest
        from jsae_core.tensor_files import content_digest

        cell = find_cell(context, catalog, variant)
        if cell is None:
            return
        watch = Stopwatch()
        digest = catalog.digest(cell.model_key, "sae_pair", cell.pair)
        context.log.info(f"{variant} pair of {cell} on {compute.describe()}")
        metadata = {}
        if cell.pair.wandb:
            raise NotImplementedError(
                f"the {variant} pair of {cell} comes from wandb ({cell.pair.at(cell.layer)}), and fetching from wandb "
                "is not built yet; download the artifact and name its folder as 'directory' in the catalog"
            )
        if cell.pair.directory:
            pair = _from_directory(cell, compute)
            metadata |= {
                "source": f"directory {cell.pair.at(cell.layer)}",
                "source_digest": directory_digest(cell.pair.at(cell.layer)),
            }
        else:
            pair = _trained(context, catalog, cell, compute)
            metadata |= {"source": f"trained on text {cell.pair.train.text}", "source_digest": digest}
        config = pair.config
        yield dg.Output(
            pair,
            data_version=dg.DataVersion(content_digest(pair.tensors())),
            metadata=metadata
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


def _from_directory(cell: Cell, compute: Compute) -> "SAEPair":
    from jsae_core import SAEPair

    path = cell.pair.at(cell.layer)
    pair = SAEPair.load(path, compute.torch_device(), cell.language_model(compute))
    if pair.config.layer != cell.layer:
        raise ValueError(f"{path}: holds a pair of layer {pair.config.layer}, but the catalog names it for {cell}")
    if pair.config.randomize_llm_weights != (cell.randomise_seed is not None):
        raise ValueError(
            f"{path}: randomize_llm_weights is {pair.config.randomize_llm_weights}, but the catalog names it for the "
            f"variant {cell.pair.variant}; only a variant with control_of is on the randomised language model"
        )
    return pair


def _trained(context: dg.AssetExecutionContext, catalog: Catalog, cell: Cell, compute: Compute) -> "SAEPair":
    from jsae_core import MLPInputs, train_pair
    from jsae_core.text import tokenise
    from jsae_core.training import TrainingProgress

    recipe = cell.pair.train
    language_model = cell.language_model(compute)
    size = context_size(cell.model, language_model)
    tokens = tokenise(documents(catalog.text[recipe.text]), language_model.tokenizer, size, recipe.tokens)

    watch = Stopwatch()
    said = 0.0

    def report(progress: TrainingProgress) -> None:
        nonlocal said
        if watch.seconds - said < SECONDS_BETWEEN_REPORTS and progress.step < progress.steps:
            return
        said = watch.seconds
        left = watch.seconds / progress.step * (progress.steps - progress.step)
        context.log.info(
            f"step {progress.step}/{progress.steps}: input {progress.input_loss:.4f}, output "
            f"{progress.output_loss:.4f}, mean |J| {progress.jacobian_loss:.5f}; about {left:.0f} s left"
        )

    return train_pair(
        MLPInputs(language_model, tokens, cell.layer, compute.batch_tokens),
        language_model.mlp(cell.layer),
        recipe.config,
        model_name=cell.model.hub or cell.model_key,
        layer=cell.layer,
        context_size=size,
        randomize_llm_weights=cell.randomise_seed is not None,
        report=report,
    )
