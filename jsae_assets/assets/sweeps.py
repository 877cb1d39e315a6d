"""`sweep_runs`: the table of a sweep's training runs, from a wandb project or trained here.

Here: where the runs come from, which are still to be trained, what was stored before. Not here: the table itself and
syncing it (`jsae_core.sweeps`), its figures (`figures.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets.assets.cell import OWNERS, Stopwatch, context_size
from jsae_assets.assets.text import documents
from jsae_assets.assets.training import trained_pair
from jsae_assets.catalog import Catalog, LocalSweep
from jsae_assets.devices import on_a_device_of_its_own
from jsae_assets.entries import confirm, depends_on
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.partitions import sweeps
from jsae_assets.resources import POOL, Compute, wandb_folder
from jsae_assets.storage import staged
from jsae_assets.stored import StoredTable, StoredTensors

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from jsae_core.sweeps import TrainingRun

ASSET = "sweep_runs"
# the schedule syncs every hour; two missed ticks are worth a warning
FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=3))


def sweep_entries(catalog: Catalog) -> dg.AssetDep:
    """The catalog's entry of each sweep, on which all that is of the sweep depends."""
    return depends_on({key: [f"sweeps/{key}"] for key in catalog.sweeps})


def sweep_runs_asset(catalog: Catalog) -> dg.AssetsDefinition:
    """The table of every sweep."""

    @dg.asset(
        name=ASSET,
        partitions_def=sweeps(catalog),
        deps=[sweep_entries(catalog)],
        description="A row a training run: configuration and every metric, from a wandb project or trained here.",
        group_name="sweeps",
        kinds={"wandb", "parquet"},
        owners=OWNERS,
        code_version="2",
        pool=POOL,
        io_manager_key="tables",
        freshness_policy=FRESH if any(sweep.wandb for sweep in catalog.sweeps.values()) else None,
    )
    @on_a_device_of_its_own
    def sweep_runs(
        context: dg.AssetExecutionContext,
        compute: Compute,
        tables: dg.ResourceParam[StoringIOManager],
        tensors: dg.ResourceParam[StoringIOManager],
    ) -> Iterator[dg.Output]:
        key = context.partition_key
        confirm(context, catalog)
        sweep = catalog.sweeps[key]
        watch = Stopwatch()
        if sweep.local:
            table, metadata = _trained_here(catalog, key, sweep.local, tensors, compute, context.log.info)
        else:
            stored = tables.stored(dg.AssetKey(ASSET), key)
            table, metadata = _synced(sweep.wandb, stored, context)
        yield dg.Output(
            table,
            data_version=dg.DataVersion(hashlib.sha256(table.to_csv().encode()).hexdigest()),
            metadata=metadata
            | {
                "runs": len(table),
                "finished": int((table["state"] == "finished").sum()),
                "odd": odd(table),
                "seconds": watch.seconds,
            },
        )

    return sweep_runs


def odd(table: "DataFrame") -> str:
    """What is said of the runs that the figures leave out because their numbers cannot be."""
    from jsae_core.figures import odd_runs

    return ", ".join(f"{table['name'][place]} ({why})" for place, why in odd_runs(table).items()) or "none"


def _synced(path: str, stored: StoredTable, context: dg.AssetExecutionContext) -> tuple["DataFrame", dict]:
    from jsae_core.sweeps import sync_runs

    synced = sync_runs(path, stored.frame if stored.exists() else None, wandb_folder(context.instance))
    return synced.table, {
        "source": f"wandb {path}",
        "changed": synced.changed,
        "deleted_upstream": ", ".join(synced.deleted) or "none",
        "unfinished": ", ".join(synced.unfinished) or "none",
    }


def _trained_here(
    catalog: Catalog,
    key: str,
    sweep: LocalSweep,
    tensors: StoringIOManager,
    compute: Compute,
    say: Callable[[str], None],
) -> tuple["DataFrame", dict]:
    """Each run's pair is stored as soon as it is measured, so that a sweep goes on where it was interrupted."""
    from jsae_core.sweeps import runs_table

    runs, trained = [], 0
    for number, coefficient in enumerate(sweep.coefficients, start=1):
        run_id = catalog.run_digest(sweep, coefficient)
        stored = tensors.stored(dg.AssetKey([ASSET, key]), run_id)
        if not stored.exists():
            say(f"run {number} of {len(sweep.coefficients)}: coefficient {coefficient:g}")
            _train_run(catalog, sweep, coefficient, stored, compute, say)
            trained += 1
        runs.append(_stored_run(sweep, coefficient, run_id, stored))
    return runs_table(runs), {
        "source": f"trained here, {ASSET}/{key}",
        "trained": trained,
        "device": compute.describe(),
    }


def _train_run(
    catalog: Catalog,
    sweep: LocalSweep,
    coefficient: float,
    stored: StoredTensors,
    compute: Compute,
    say: Callable[[str], None],
) -> None:
    from jsae_core.measures import pair_quality
    from jsae_core.tensor_files import write_tensors

    model, recipe = catalog.models[sweep.model], sweep.recipe(coefficient)
    text = catalog.text[recipe.text]
    pair = trained_pair(sweep.model, model, sweep.layer, None, recipe, text, compute, say)
    pair = pair.to(compute.torch_dtype())
    held_out = compute.cached("held-out documents", sweep.model, lambda: _documents(catalog, sweep.model, compute))
    quality = pair_quality(pair, compute.language_model(model.source), held_out, compute.batch_tokens)
    run = {"created_at": datetime.now(UTC).isoformat(), "quality": quality}
    header = {"cfg": json.dumps(pair.config.to_artifact()), "run": json.dumps(run)}
    with staged(stored.path) as local:
        write_tensors(pair.tensors(), local, header)


def _documents(catalog: Catalog, model_key: str, compute: Compute) -> list["Tensor"]:
    """What the quality of the model's other pairs is measured on."""
    from jsae_core.text import tokenise

    model = catalog.models[model_key]
    language_model = compute.language_model(model.source)
    size = context_size(model, language_model)
    text = catalog.model_text(model_key)
    n_tokens = min(model.tokens, model.quality_tokens)
    return tokenise(documents(text), language_model.tokenizer, size, n_tokens, text.long_documents)


def _stored_run(sweep: LocalSweep, coefficient: float, run_id: str, stored: StoredTensors) -> "TrainingRun":
    from jsae_core.sweeps import local_run

    run, config = json.loads(stored.header["run"]), json.loads(stored.header["cfg"])
    name = f"{sweep.model} layer {sweep.layer} λ {coefficient:g}"
    return local_run(run_id, name, sweep.model, sweep.layer, config, run["quality"], run["created_at"], stored.relative)
