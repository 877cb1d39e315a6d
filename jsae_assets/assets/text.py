"""`tokens`: the text each model is measured on, tokenised once, so that every measure sees the same tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from jsae_assets.assets.cell import OWNERS, Stopwatch, context_size
from jsae_assets.catalog import Catalog, Text
from jsae_assets.entries import DATA_VERSION, confirm, depends_on, made_from
from jsae_assets.io_managers import StoringIOManager, header
from jsae_assets.partitions import models
from jsae_assets.resources import POOL, Compute

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = dg.AssetKey("tokens")
CODE_VERSION = "1"


def documents(text: Text) -> Iterator[str]:
    """The documents of a catalog entry, in order."""
    from jsae_core import text as sources

    if text.standard_library:
        return sources.standard_library(text.standard_library)
    if text.files:
        return sources.local_files([str(place) for place in text.files], text.column)
    return sources.hugging_face_dataset(text.dataset, text.config, text.split, text.column)


def tokens_asset(catalog: Catalog) -> dg.AssetsDefinition:
    partitions = models(catalog)

    @dg.asset(
        name="tokens",
        partitions_def=partitions,
        deps=[depends_on({key: [_entry(key)] for key in partitions.get_partition_keys()})],
        description="Token ids of the text a model is measured on: documents in order, BOS first, cut to the context.",
        group_name="text",
        kinds={"huggingface", "safetensors"},
        owners=OWNERS,
        code_version=CODE_VERSION,
        pool=POOL,
        io_manager_key="tensors",
    )
    def tokens(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output]:
        confirm(context, catalog)
        made = tokenised(catalog, context.partition_key, compute)
        yield dg.Output(made.tensors, data_version=dg.DataVersion(made.digest), metadata=made.metadata)

    return tokens


def make_if_missing(
    context: dg.AssetExecutionContext,
    catalog: Catalog,
    model: str,
    compute: Compute,
    tensors: StoringIOManager,
) -> None:
    """Make a model's tokens within the run of a cell where nobody has made them, and report them as made.

    A run of a cell cannot hold the asset itself, whose partitions are others; and with the tokens, the model and the
    text are known to be there before a pair is trained for an hour.
    """
    stored = tensors.stored(TOKENS, model)
    if stored.exists():
        return
    context.log.info(f"the tokens of {model} are not there yet: making them first")
    made = tokenised(catalog, model, compute)
    tensors.store(
        made.tensors, stored, header(TOKENS, model, context.run.run_id, CODE_VERSION, made.metadata["source"])
    )
    context.log_event(
        dg.AssetMaterialization(
            TOKENS,
            partition=model,
            metadata=made.metadata | {"path": dg.MetadataValue.path(stored.relative)},
            tags={DATA_VERSION: made.digest, "dagster/code_version": CODE_VERSION}
            | made_from(context.instance, catalog, [_entry(model)]),
        )
    )


@dataclass(frozen=True)
class Tokenised:
    tensors: dict[str, "Tensor"]
    digest: str
    metadata: dict[str, Any]


def tokenised(catalog: Catalog, model_key: str, compute: Compute) -> Tokenised:
    """The tokens of a model's text, and what is said of them."""
    from jsae_core.tensor_files import content_digest
    from jsae_core.text import join_documents, tokenise

    watch = Stopwatch()
    model, text = catalog.models[model_key], catalog.model_text(model_key)
    language_model = compute.language_model(model.source)
    made = tokenise(documents(text), language_model.tokenizer, context_size(model, language_model), model.tokens)
    stored = join_documents(made)
    digest = content_digest(stored)
    metadata = {
        "tokens": sum(len(document) - 1 for document in made),
        "documents": len(made),
        "longest_document": max(len(document) for document in made),
        "source": text.model_dump_json(exclude_none=True),
        "source_digest": digest,
        "catalog_entry": catalog.digest(model_key, "tokens"),
        "seconds": watch.seconds,
        "first_document": dg.MetadataValue.md(f"```\n{language_model.tokenizer.decode(made[0][1:])[:500]}\n```"),
    }
    return Tokenised(stored, digest, metadata)


def _entry(model: str) -> str:
    """The catalog's entry that a model's tokens are made from."""
    return f"models/{model}/tokens"
