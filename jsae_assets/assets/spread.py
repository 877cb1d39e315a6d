"""An asset of cells whose work is split into steps that the engine can spread: one plans, one measures each shard of
the tokens, one merges them and gives the asset.

Steps exchange data through the storage alone: the result of a shard is its checkpoint, and nothing else goes from one
step to another. A step that failed is tried again by itself, and continues from its checkpoint. Here: the steps, and
the graph that they form. Not here: what a step computes (`measures.py`), where steps run (`definitions.py` names the
executor).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from jsae_assets.assets.cell import entries_of_cells, find_cell, of_cells, step_priority
from jsae_assets.assets.memory_settings import naming_settings
from jsae_assets.catalog import Catalog
from jsae_assets.devices import on_a_device_of_its_own
from jsae_assets.entries import CATALOG
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.resources import POOL, Compute

RETRIES = 2  # of a step whose process died, or which failed: it goes on where it was


def is_spread(catalog: Catalog, variant: str) -> bool:
    """Whether there are several shards at any cell of a variant."""
    return any(pair.variant == variant and catalog.models[pair.model].shards > 1 for pair in catalog.pairs)


def spread_asset(
    catalog: Catalog,
    variant: str,
    name: str,
    description: str,
    code_version: str,
    kinds: set[str],
    ins: Mapping[str, dg.AssetIn],
    io_manager_key: str,
    priority: int,
    also: Mapping[str, Sequence[str]],
    of_shard: Callable[..., Iterator[Any]],
    of_all: Callable[..., Iterator[dg.Output]],
) -> dg.AssetsDefinition:
    """`cell_asset` of a variant, in steps. At a cell with one shard the last step does everything.

    Args:
        of_shard: given the context, the shard's number, `compute`, `tensors` and what `ins` names, measures it.
        of_all: given the same but for the number, yields the asset's output.
    """
    own = f"{variant}__{name}__"  # no two steps of a job may have the name of another
    read: dict[str, dg.In] = {one: dg.In() for one in ins}
    nothing = dg.In(dg.Nothing)
    tags, retries = step_priority(priority), dg.RetryPolicy(max_retries=RETRIES)

    @dg.op(name=f"{own}plan", ins={CATALOG.path[-1]: nothing}, out=dg.DynamicOut(dg.Nothing), tags=tags)
    def plan(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput]:
        shards = find_cell(context, catalog, variant).model.shards
        for number in range(shards if shards > 1 else 0):
            yield dg.DynamicOutput(None, mapping_key=str(number))

    def measured(
        context: dg.OpExecutionContext, compute: Compute, tensors: dg.ResourceParam[StoringIOManager], **read: Any
    ) -> Iterator[Any]:
        yield from of_shard(context, int(context.get_mapping_key()), compute, tensors, **read)

    shard = _step(f"{own}shard", measured, read | {"planned": nothing}, dg.Out(dg.Nothing), tags, retries)
    merged = {CATALOG.path[-1]: nothing, "measured": nothing}
    merge = _step(f"{own}merge", of_all, read | merged, dg.Out(io_manager_key=io_manager_key), tags, None)
    entries = entries_of_cells(catalog, [variant], name, also=also)

    @dg.graph_asset(
        **of_cells(catalog, [variant], variant, name),
        description=description,
        code_version=code_version,
        kinds=kinds,
        ins={**ins, CATALOG.path[-1]: dg.AssetIn(CATALOG, partition_mapping=entries.partition_mapping)},
    )
    def spread(**given: Any) -> Any:
        entry = {CATALOG.path[-1]: given.pop(CATALOG.path[-1])}
        shards = plan.alias("plan")(**entry).map(lambda planned: shard.alias("shard")(planned=planned, **given))
        return merge.alias("merge")(measured=shards.collect(), **given, **entry)

    return spread


def _step(
    name: str,
    body: Callable[..., Iterator[Any]],
    ins: Mapping[str, dg.In],
    out: dg.Out,
    tags: Mapping[str, str],
    retries: dg.RetryPolicy | None,
) -> dg.OpDefinition:
    """A step that computes, in the pool."""
    step = dg.op(name=name, ins=dict(ins), out=out, tags=dict(tags), retry_policy=retries, pool=POOL)
    return step(naming_settings(on_a_device_of_its_own(body)))
