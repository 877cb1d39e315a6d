"""The assets `<variant>/sae_pair`: pairs from the sources that the catalog names (`jsae_assets.sources`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets.assets.cell import Cell, Stopwatch, cell_asset, find_cell, turn
from jsae_assets.assets.markdown import as_text
from jsae_assets.assets.summary import summary
from jsae_assets.assets.text import make_if_missing
from jsae_assets.assets.training import trained_pair
from jsae_assets.catalog import Catalog
from jsae_assets.digests import SOURCE_DIGEST, in_groups
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.resources import Compute
from jsae_assets.sources import Recipe

if TYPE_CHECKING:
    from jsae_core import SAEPair
    from jsae_core.checkpoints import Checkpoint


def sae_pair_asset(catalog: Catalog, variant: str) -> dg.AssetsDefinition:
    """Return the asset of a variant's pairs, with a partition for each cell."""

    @cell_asset(
        catalog,
        [variant],
        variant,
        "sae_pair",
        f"The {as_text(catalog.variants[variant].label)} pair: a TopK SAE on the MLP's input, one on its output, and "
        "the MLP between them, under the artifact format's tensor names.",
        code_version="2",
        kinds={"pytorch", "safetensors"},
        ins={},
        priority=turn(catalog, variant),
    )
    def sae_pair(
        context: dg.AssetExecutionContext, compute: Compute, tensors: dg.ResourceParam[StoringIOManager]
    ) -> Iterator[dg.Output]:
        from jsae_assets.files.checkpoints import checkpoint_of

        cell = find_cell(context, catalog, variant)
        make_if_missing(context, catalog, cell.model_key, compute, tensors)
        watch = Stopwatch()
        digest = catalog.digest(cell.model_key, "sae_pair", cell.pair)
        context.log.info(f"{variant} pair of {cell} on {compute.describe()}")
        key, partition, seconds = context.asset_key, context.partition_key, compute.checkpoint_seconds
        checkpoint = checkpoint_of(tensors.base, key, partition, digest, seconds, context.log.info)
        produced = cell.pair.produce(Maker(catalog, cell, compute, digest, checkpoint))
        config = produced.pair.config
        yield dg.Output(
            produced.pair,
            data_version=dg.DataVersion(produced.version),
            metadata={
                **summary(
                    f"The pair of {cell}",
                    {
                        "latents of each SAE": f"{config.d_sae:,}",
                        "active at once (k)": f"{config.k:,}",
                        "weight of the Jacobian (λ)": f"{config.jacobian_coefficient:g}",
                        "activation of the MLP": str(config.mlp_activation),
                        "where it comes from": str(produced.record["source"]),
                    },
                ),
                "d_sae": config.d_sae,
                "k": config.k,
                "jacobian_coefficient": config.jacobian_coefficient,
                "model_name": config.model_name,
                "mlp_activation": config.mlp_activation,
                "input_convention": config.input_convention,
                "randomised_language_model": config.randomize_llm_weights,
                "device": compute.describe(),
                "seconds": watch.seconds,
                **produced.record,
                SOURCE_DIGEST: in_groups(produced.record[SOURCE_DIGEST]),
            },
        )
        checkpoint.remove()  # the pair is stored

    return sae_pair


@dataclass(frozen=True)
class Maker:
    """The `Workshop` that the source of a cell's pair is given: it trains or loads the pair."""

    catalog: Catalog
    cell: Cell
    compute: Compute
    entry_digest: str
    checkpoint: "Checkpoint"

    @property
    def layer(self) -> int:
        return self.cell.layer

    @property
    def downloads(self) -> Path:
        return self.cell.downloads

    @property
    def say(self) -> Callable[[str], None]:
        return self.cell.say

    def train(self, recipe: Recipe) -> "SAEPair":
        cell, text = self.cell, self.catalog.text[recipe.text]
        cell_of_model = (cell.model_key, cell.model, cell.layer, cell.randomise_seed)
        return trained_pair(*cell_of_model, recipe, text, self.compute, self.checkpoint, self.downloads, self.say)

    def load(self, directory: Path) -> "SAEPair":
        from jsae_core import SAEPair
        from jsae_core.pair_format import LANGUAGE_MODEL_FILE

        cell, weights = self.cell, directory / LANGUAGE_MODEL_FILE
        if weights.is_file():
            language_model = self.compute.language_model(cell.model.source, randomised_weights=str(weights))
        else:
            language_model = cell.language_model(self.compute)
        pair = SAEPair.load(directory, self.compute.torch_device(), language_model)
        if pair.config.layer != cell.layer:
            raise ValueError(
                f"{directory}: contains a pair of layer {pair.config.layer}, but the catalog names it for {cell}"
            )
        if pair.config.randomize_llm_weights != (cell.randomise_seed is not None):
            raise ValueError(
                f"{directory}: randomize_llm_weights is {pair.config.randomize_llm_weights}, but the catalog names it "
                f"for the variant {cell.pair.variant}; only variants with control_of use the language model with "
                "randomised weights"
            )
        return pair
