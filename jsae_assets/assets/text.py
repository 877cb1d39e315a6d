"""`tokens`: the text each model is measured on, tokenised once, so that every measure sees the same tokens."""

from collections.abc import Iterator

import dagster as dg

from jsae_assets.assets.cell import OWNERS, Stopwatch, context_size
from jsae_assets.catalog import Catalog, Text
from jsae_assets.entries import confirm, depends_on
from jsae_assets.partitions import models
from jsae_assets.resources import POOL, Compute

TOKENS = dg.AssetKey("tokens")


def documents(text: Text) -> Iterator[str]:
    """The documents of a catalog entry, in order."""
    from jsae_core import text as sources

    if text.standard_library:
        return sources.standard_library(text.standard_library)
    if text.files:
        return sources.local_files(text.files, text.column)
    return sources.hugging_face_dataset(text.dataset, text.config, text.split, text.column)


def tokens_asset(catalog: Catalog) -> dg.AssetsDefinition:
    partitions = models(catalog)

    @dg.asset(
        name="tokens",
        partitions_def=partitions,
        deps=[depends_on({key: [f"models/{key}/tokens"] for key in partitions.get_partition_keys()})],
        description="Token ids of the text a model is measured on: documents in order, BOS first, cut to the context.",
        group_name="text",
        kinds={"huggingface", "safetensors"},
        owners=OWNERS,
        code_version="1",
        pool=POOL,
        io_manager_key="tensors",
    )
    def tokens(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output]:
        from jsae_core.tensor_files import content_digest
        from jsae_core.text import join_documents, tokenise

        confirm(context, catalog)
        model = catalog.models[context.partition_key]
        watch = Stopwatch()
        language_model = compute.language_model(model.source)
        text = catalog.model_text(context.partition_key)
        tokenised = tokenise(
            documents(text), language_model.tokenizer, context_size(model, language_model), model.tokens
        )
        stored = join_documents(tokenised)
        digest = content_digest(stored)
        yield dg.Output(
            stored,
            data_version=dg.DataVersion(digest),
            metadata={
                "tokens": sum(len(document) - 1 for document in tokenised),
                "documents": len(tokenised),
                "longest_document": max(len(document) for document in tokenised),
                "source": text.model_dump_json(exclude_none=True),
                "source_digest": digest,
                "catalog_entry": catalog.digest(context.partition_key, "tokens"),
                "seconds": watch.seconds,
                "first_document": dg.MetadataValue.md(
                    f"```\n{language_model.tokenizer.decode(tokenised[0][1:])[:500]}\n```"
                ),
            },
        )

    return tokens
