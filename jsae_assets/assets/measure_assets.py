"""The assets of measures: for every variant one for each declaration, measured as a whole or in shards.

Here: what a measure is given, its checkpoint, the metadata of its result. Not here: what is measured and stored
(`measures.py`), how shards are spread over steps (`spread.py`).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from jsae_assets.assets.cell import Cell, Stopwatch, cell_asset, cell_at, find_cell, tokens_of, turn
from jsae_assets.assets.measures import MEASURES, Measure
from jsae_assets.assets.spread import is_spread, spread_asset
from jsae_assets.assets.subject import Subject
from jsae_assets.assets.summary import headlines
from jsae_assets.catalog import TABLES, Catalog
from jsae_assets.files.stored import WHOLE_DOCUMENTS, StoredTensors
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.partitions import cell_key
from jsae_assets.resources import Compute
from jsae_core.terms import EVALUATED_AT

if TYPE_CHECKING:
    from jsae_core.checkpoints import Checkpoint


def measure_assets(catalog: Catalog, variant: str) -> list[dg.AssetsDefinition]:
    """The assets of everything that is measured on the pairs of a variant."""
    return [_measure_asset(catalog, variant, measure) for measure in MEASURES]


def _measure_asset(catalog: Catalog, variant: str, measure: Measure) -> dg.AssetsDefinition:
    declaration: dict[str, Any] = {
        "description": measure.description,
        "code_version": measure.code_version,
        "kinds": {"pytorch", {"tensors": "safetensors", "tables": "parquet"}[measure.stored_as]},
        "ins": {"sae_pair": dg.AssetIn([variant, "sae_pair"])}
        | ({"tokens": tokens_of(catalog, variant)} if measure.reads_tokens else {}),
        "io_manager_key": measure.stored_as,
        "priority": turn(catalog, variant),
        "also": _table_entries(catalog, variant) if measure.of_jacobians else {},
    }

    def subject_of(
        context: dg.OpExecutionContext | dg.AssetExecutionContext,
        cell: Cell,
        compute: Compute,
        tensors: StoringIOManager,
        sae_pair: StoredTensors,
        others: Mapping[str, StoredTensors],
    ) -> "tuple[Subject, Checkpoint]":
        from jsae_assets.files.checkpoints import checkpoint_of

        key, partition = dg.AssetKey([variant, measure.name]), context.partition_key
        # the core adds everything else that a result depends on
        seconds, say = compute.checkpoint_seconds, context.log.info
        checkpoint = checkpoint_of(tensors.base, key, partition, measure.code_version, seconds, say)
        pair = compute.pair(sae_pair, cell.model.jacobian_tables)
        return Subject(cell, compute, pair, checkpoint=checkpoint, **others), checkpoint

    def of_shard(
        context: dg.OpExecutionContext,
        number: int,
        compute: Compute,
        tensors: StoringIOManager,
        sae_pair: StoredTensors,
        **others: StoredTensors,
    ) -> Iterator[Any]:
        cell = cell_at(context, catalog, variant)
        context.log.info(
            f"{measure.name.replace('_', ' ')}, {variant}, {cell}, shard {number + 1} of {cell.model.shards}"
        )
        subject, _ = subject_of(context, cell, compute, tensors, sae_pair, others)
        measure.of_shard(subject, number)
        yield dg.Output(None)

    def measured(
        context: dg.AssetExecutionContext,
        compute: Compute,
        tensors: dg.ResourceParam[StoringIOManager],
        sae_pair: StoredTensors,
        **others: StoredTensors,
    ) -> Iterator[dg.Output]:
        cell = find_cell(context, catalog, variant)
        watch = Stopwatch()
        context.log.info(f"{measure.name.replace('_', ' ')}, {variant}, {cell}")
        subject, checkpoint = subject_of(context, cell, compute, tensors, sae_pair, others)
        result = compute.fitting(lambda: measure.of_all(subject), context.log.warning)
        yield dg.Output(
            result.value,
            metadata={
                **headlines(f"{cell}, on {result.n_tokens:,} tokens", measure.headlines, result.said),
                **result.said,
                "settings": {
                    **subject.labels,
                    "n_tokens": result.n_tokens,
                    **({} if result.n_documents is None else {WHOLE_DOCUMENTS: result.n_documents}),
                    "jacobian_at": EVALUATED_AT[0],
                    **(
                        {TABLES: cell.model.jacobian_tables}
                        if measure.of_jacobians and subject.pair.table_dtype
                        else {}
                    ),
                },
                "source": f"{variant}/sae_pair and " + ("tokens" if measure.reads_tokens else "the model's prompt"),
                "device": compute.describe(),
                "seconds": watch.seconds,
            },
        )
        checkpoint.remove()  # the result is stored

    if measure.reads_tokens and is_spread(catalog, variant):
        return spread_asset(catalog, variant, measure.name, **declaration, of_shard=of_shard, of_all=measured)
    return cell_asset(catalog, [variant], variant, measure.name, **declaration)(measured)


def _table_entries(catalog: Catalog, variant: str) -> dict[str, list[str]]:
    """By cell, the catalog's entry on the dtype of the tables behind its Jacobians, unless it is the pair's own."""
    return {
        cell_key(model, layer): [entry]
        for model, entry in catalog.table_entries().items()
        for layer in catalog.layers(model, variant)
    }
