"""The asset `tokens`: the text that a model is measured on, tokenised once, so that all measures share its tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from jsae_assets import groups
from jsae_assets.assets.cell import OWNERS, Stopwatch, context_size
from jsae_assets.assets.markdown import as_code
from jsae_assets.assets.summary import summary
from jsae_assets.catalog import Catalog, Text
from jsae_assets.devices import on_a_device_of_its_own
from jsae_assets.digests import SOURCE_DIGEST, in_groups
from jsae_assets.entries import DATA_VERSION, confirm, depends_on, input_tags
from jsae_assets.files.stored import SETTINGS, WHOLE_DOCUMENTS
from jsae_assets.io_managers import StoringIOManager, header
from jsae_assets.number import on_errors
from jsae_assets.partitions import models
from jsae_assets.resources import POOL, Compute

if TYPE_CHECKING:
    from torch import Tensor

    from jsae_core.text import Documents

TOKENS = dg.AssetKey("tokens")
CODE_VERSION = "2"
SHOWN_CHARACTERS = 500


def documents(text: Text, say: Callable[[str], None]) -> "Documents":
    """Return the documents of a text of the catalog, in order. `say` logs where they are read from, if that is not on
    this machine."""
    from jsae_core import text as sources

    if text.standard_library:
        return sources.standard_library(text.standard_library)
    if text.files:
        return sources.local_files([str(place) for place in text.files], text.column)
    return sources.hugging_face_dataset(text.dataset, text.config, text.split, text.column, text.revision, say)


def tokens_asset(catalog: Catalog) -> dg.AssetsDefinition:
    """Return the asset `tokens`, with a partition for each model."""
    partitions = models(catalog)

    @dg.asset(
        name="tokens",
        partitions_def=partitions,
        deps=[depends_on({key: [_entry(key)] for key in partitions.get_partition_keys()})],
        description="The token ids of the text that a model is measured on: documents in order, each beginning with "
        "BOS and no longer than the model's context.",
        group_name=groups.TEXT,
        kinds={"huggingface", "safetensors"},
        owners=OWNERS,
        code_version=CODE_VERSION,
        pool=POOL,
        io_manager_key="tensors",
    )
    @on_a_device_of_its_own
    def tokens(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output]:
        confirm(context, catalog)
        made = tokenised(catalog, context.partition_key, compute, context.log.warning)
        yield dg.Output(made.tensors, data_version=dg.DataVersion(made.digest), metadata=made.metadata)

    return tokens


def make_if_missing(
    context: dg.AssetExecutionContext,
    catalog: Catalog,
    model: str,
    compute: Compute,
    tensors: StoringIOManager,
) -> None:
    """Make a model's tokens within the run of a cell if they are not stored yet, and report their materialisation.

    The run cannot contain the asset `tokens` itself, because that has other partitions. Making the tokens first also
    shows that the model and the text can be read before a pair is trained for an hour.
    """
    stored = tensors.stored(TOKENS, model)
    if stored.exists():
        return
    context.log.info(f"the tokens of {model} are not there yet: making them first")
    made = tokenised(catalog, model, compute, context.log.warning)
    file_metadata = tensors.store(
        made.tensors,
        stored,
        header(TOKENS, model, context.run.run_id, CODE_VERSION, made.metadata["source"], made.metadata.get(SETTINGS)),
    )
    context.log_event(
        dg.AssetMaterialization(
            TOKENS,
            partition=model,
            metadata=made.metadata | file_metadata,
            tags={DATA_VERSION: made.digest, "dagster/code_version": CODE_VERSION}
            | input_tags(context.instance, catalog, [_entry(model)]),
        )
    )


@dataclass(frozen=True)
class Tokenised:
    """The tokens of a model's text as stored tensors, their digest, and the metadata of their materialisation."""

    tensors: dict[str, "Tensor"]
    digest: str
    metadata: dict[str, Any]


def tokenised(catalog: Catalog, model_key: str, compute: Compute, warn: Callable[[str], None]) -> Tokenised:
    """Tokenise a model's text. `warn` gets a message if the text has too few tokens, or rows without text."""
    from jsae_core.tensor_files import content_digest
    from jsae_core.text import join_documents, numbered_tokens_of

    watch = Stopwatch()
    model, text = catalog.models[model_key], catalog.model_text(model_key)
    language_model = compute.language_model(model.source)
    source, size = documents(text, compute.say), context_size(model, language_model)
    numbered = list(numbered_tokens_of(source, language_model.tokenizer, size, model.tokens, text.long_documents))
    made, sources = [document for _, document in numbered], [number for number, _ in numbered]
    n_whole = len(set(sources))
    n_tokens = sum(len(document) - 1 for document in made)
    if n_tokens < model.tokens:
        warn(
            f"The text has {n_tokens:,} tokens, fewer than the {model.tokens:,} that the catalog asks for, so every "
            f"measure of {model_key} uses only these. Add text, or lower the model's `tokens`"
        )
    if remark := on_errors(n_whole):
        warn(
            f"The tokens of {model_key} are of so few documents that standard errors are hardly known ({remark}). Take "
            "more tokens, or a text of more documents"
        )
    if source.missing:
        warn(f"{source.missing:,} rows have no text (null or absent) and were left out")
    stored = join_documents(made, sources)
    digest = content_digest(stored)
    longest = max(len(document) for document in made)
    headlines = {
        "tokens": f"{n_tokens:,}",
        "documents": f"{len(made):,}" + f", cut from {n_whole:,}" * (n_whole < len(made)),
        "longest document": f"{longest:,} tokens",
        "text": model.text or text.recorded(),
    }
    revisions = {"dataset_revision": source.revision, "language_model_revision": language_model.revision}
    metadata = {
        **summary(f"The text that {model_key} is measured on", headlines),
        "tokens": n_tokens,
        "tokens_asked_for": model.tokens,
        "documents": len(made),
        "longest_document": longest,
        "rows_without_text": source.missing,
        "source": text.recorded(),
        "seconds": watch.seconds,
        "first_document": dg.MetadataValue.md(as_code(language_model.tokenizer.decode(made[0][1:])[:SHOWN_CHARACTERS])),
        SOURCE_DIGEST: in_groups(digest),
        **{name: revision for name, revision in revisions.items() if revision},
        # in the file's header too
        SETTINGS: {"n_tokens": n_tokens, "documents": len(made), WHOLE_DOCUMENTS: n_whole},
    }
    return Tokenised(stored, digest, metadata)


def _entry(model: str) -> str:
    """Return the name of the catalog's entry that a model's tokens are made from."""
    return f"models/{model}/tokens"
