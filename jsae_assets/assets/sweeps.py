"""The asset `sweep_runs`: the table of a sweep's training runs, which come from a wandb project or are trained here.

Here: training, measuring and storing the runs of a local sweep, and resuming it. Not here: the table itself
(`jsae_core.training_runs`) and syncing it with wandb (`jsae_core.sweeps`), its figures (`figures.py`).
"""

import dataclasses
import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from jsae_assets import groups
from jsae_assets.assets.cell import OWNERS, Stopwatch, context_size
from jsae_assets.assets.summary import summary
from jsae_assets.assets.text import documents
from jsae_assets.assets.training import trained_pair
from jsae_assets.catalog import Catalog, LocalSweep
from jsae_assets.devices import on_a_device_of_its_own
from jsae_assets.entries import confirm, depends_on
from jsae_assets.files.stored import WHOLE_DOCUMENTS, StoredTable, StoredTensors
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.partitions import sweeps
from jsae_assets.resources import POOL, Compute, downloads_folder, wandb_folder
from jsae_core.terms import AT_RECONSTRUCTION, EVALUATED_AT

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from jsae_core import MLPInputs, SAEPair
    from jsae_core.checkpoints import Checkpoint
    from jsae_core.recipe import TrainingConfig
    from jsae_core.training_runs import TrainingRun

ASSET = "sweep_runs"
# The version of the measures of a run. Raise it when they change, so that stored pairs are measured again.
MEASURES_VERSION = 4
# the schedule syncs every hour, so a warning appears after two missed ticks
FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=3))


def sweep_entries(catalog: Catalog) -> dg.AssetDep:
    """Return the dependence of a sweep's assets on the sweep's entry in the catalog."""
    return depends_on({key: [f"sweeps/{key}"] for key in catalog.sweeps})


def sweep_runs_asset(catalog: Catalog) -> dg.AssetsDefinition:
    """Return the asset `sweep_runs`, with a partition for each sweep."""

    @dg.asset(
        name=ASSET,
        partitions_def=sweeps(catalog),
        deps=[sweep_entries(catalog)],
        description="One row for each training run, with its configuration and all metrics. The runs come from a wandb "
        "project or are trained here.",
        group_name=groups.SWEEPS,
        kinds={"wandb", "parquet"},
        owners=OWNERS,
        code_version="4",
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
            table, metadata = _local_sweep(
                catalog, key, sweep.local, tensors, compute, downloads_folder(context.instance), context.log.info
            )
        else:
            stored = tables.stored(dg.AssetKey(ASSET), key)
            table, metadata = _wandb_sweep(sweep.wandb, stored, context)
        yield dg.Output(
            table,
            data_version=dg.DataVersion(hashlib.sha256(table.to_csv().encode()).hexdigest()),
            metadata=_headlines(key, table)
            | metadata
            | {
                "runs": len(table),
                "finished": int((table["state"] == "finished").sum()),
                "odd": odd(table),
                "seconds": watch.seconds,
            },
        )

    return sweep_runs


def _headlines(key: str, table: "DataFrame") -> dict[str, dg.MetadataValue]:
    """Return the summary of a sweep: the ranges of the most important numbers over the finished runs."""
    finished = table[table["state"] == "finished"]
    rows = {"finished runs": f"{len(finished):,} of {len(table):,}"}
    for name, words, form in (
        ("jacobian_coefficient", "λ", "{:g}"),
        ("above_0.01", "elements with |J| of 0.01 or more", "{:.1%}"),
        ("ce_score", "cross-entropy score", "{:.2f}"),
        ("accounted_share", "accounted share", "{:.0%}"),
    ):
        if name in finished and finished[name].notna().any():
            numbers = finished[name].dropna().astype(float)
            rows[words] = f"{form.format(numbers.min())} to {form.format(numbers.max())}"
    return summary(f"The sweep {key}", rows)


def odd(table: "DataFrame") -> str:
    """Return the names of the runs that the figures leave out because one of their numbers is impossible, each with
    that number; "none" if there are none."""
    from jsae_core.figures import odd_runs

    return ", ".join(f"{table['name'][row]} ({reason})" for row, reason in odd_runs(table).items()) or "none"


def _wandb_sweep(path: str, stored: StoredTable, context: dg.AssetExecutionContext) -> tuple["DataFrame", dict]:
    from jsae_core.sweeps import sync_runs

    synced = sync_runs(path, stored.frame if stored.exists() else None, wandb_folder(context.instance))
    return synced.table, {
        "source": f"wandb {path}",
        "changed": synced.changed,
        "deleted_upstream": ", ".join(synced.deleted) or "none",
        "unfinished": ", ".join(synced.unfinished) or "none",
    }


def _local_sweep(
    catalog: Catalog,
    key: str,
    sweep: LocalSweep,
    tensors: StoringIOManager,
    compute: Compute,
    downloads: Path,
    say: Callable[[str], None],
) -> tuple["DataFrame", dict]:
    """Train and measure the runs of a local sweep, and return their table and the metadata of the materialisation. Each
    run's pair is stored as soon as it is measured, so that an interrupted sweep resumes with the next run."""
    from jsae_assets.files.checkpoints import checkpoint_of
    from jsae_core.training_runs import runs_table

    configs = sweep.configs()
    runs: list[tuple[str, TrainingConfig, Any]] = []
    trained = 0
    for number, config in enumerate(configs, start=1):
        run_id = catalog.run_digest(sweep, config)
        stored = tensors.stored(dg.AssetKey([ASSET, key]), run_id)
        if not stored.exists() or stored.damage():
            say(f"run {number} of {len(configs)}: {_run_title(sweep, config)}")
            place = dg.AssetKey([ASSET, key])
            checkpoint = checkpoint_of(tensors.base, place, run_id, run_id, compute.checkpoint_seconds, say)
            pair = _train(catalog, sweep, config, checkpoint, compute, downloads, say)
            _store(pair, _measured(catalog, sweep, pair, compute, say), datetime.now(UTC).isoformat(), tensors, stored)
            checkpoint.remove()
            trained += 1
        elif (run := json.loads(stored.header["run"])).get("measures") != MEASURES_VERSION:
            say(f"run {number} of {len(configs)}: {_run_title(sweep, config)}, measuring it again")
            pair = compute.pair(stored)
            _store(pair, _measured(catalog, sweep, pair, compute, say), run["created_at"], tensors, stored)
            stored = tensors.stored(dg.AssetKey([ASSET, key]), run_id)
        runs.append((run_id, config, stored))
    similarities = _similarities([(config, stored) for _, config, stored in runs])
    rows = [_stored_run(sweep, *run, similarity) for run, similarity in zip(runs, similarities, strict=True)]
    return runs_table(rows), {
        "source": f"trained here, {ASSET}/{key}",
        "trained": trained,
        "device": compute.describe(),
    }


def _run_title(sweep: LocalSweep, config: "TrainingConfig") -> str:
    """Return a run's values of the settings that the sweep varies, in words."""
    values = [f"λ {config.jacobian_coefficient:g}", *(f"{name} {getattr(config, name)}" for name in sweep.varied)]
    return ", ".join(values + (["randomised weights"] if sweep.weights == "randomised" else []))


def _train(
    catalog: Catalog,
    sweep: LocalSweep,
    config: "TrainingConfig",
    checkpoint: "Checkpoint",
    compute: Compute,
    downloads: Path,
    say: Callable[[str], None],
) -> "SAEPair":
    model, recipe = catalog.models[sweep.model], sweep.recipe(config)
    text, seed = catalog.text[recipe.text], catalog.randomise_seed_of_sweep(sweep)
    pair = trained_pair(sweep.model, model, sweep.layer, seed, recipe, text, compute, checkpoint, downloads, say)
    return pair.to(compute.torch_dtype())


def _measured(
    catalog: Catalog, sweep: LocalSweep, pair: "SAEPair", compute: Compute, say: Callable[[str], None]
) -> dict[str, float]:
    """Measure the pair of a run on the held-out text, and return the numbers by name. If other numbers are to be
    measured, raise `MEASURES_VERSION`."""
    from jsae_core.measures import jacobian_measures, latent_accounting, pair_quality
    from jsae_core.measures.moments import flat
    from jsae_core.text import first_tokens

    held_out = HeldOut(catalog, sweep, compute)

    def numbers() -> dict[str, float]:
        inputs = held_out.mlp_inputs()
        at_input, at_reconstruction = (flat(jacobian_measures(pair, inputs, at)) for at in EVALUATED_AT)
        accounting = latent_accounting(pair, inputs, kept=())
        first = first_tokens(held_out.documents, catalog.models[sweep.model].quality_tokens)
        sources = held_out.sources[: len(first)]
        return (
            pair_quality(pair, held_out.language_model, first, compute.tokens_at_once, sources=sources)
            | at_input  # replaces pair_quality's numbers about the Jacobian, which are of fewer tokens
            | {_at_reconstruction(name): number for name, number in at_reconstruction.items()}
            | {name: accounting[name] for name in ("accounted_share", "accounted_share_se")}
            | {"n_tokens_jacobian": accounting["n_tokens"]}
            | {WHOLE_DOCUMENTS: len(set(sources))}
        )

    return compute.fitting(numbers, say)


def _at_reconstruction(name: str) -> str:
    """Return the column name of a number about the Jacobian, or of its standard error, when the Jacobian is taken at
    the input SAE's reconstruction."""
    return f"{name.removesuffix('_se')}{AT_RECONSTRUCTION}" + ("_se" if name.endswith("_se") else "")


def _store(
    pair: "SAEPair", numbers: dict[str, float], created_at: str, tensors: StoringIOManager, stored: StoredTensors
) -> None:
    run = {"created_at": created_at, "quality": numbers, "measures": MEASURES_VERSION}
    tensors.store(pair, stored, {"run": json.dumps(run)})


def _similarities(runs: list[tuple["TrainingConfig", StoredTensors]]) -> list[dict[str, float]]:
    """Return for each run, and for both its SAEs, the mean similarity of its latents to those of the runs that differ
    from it only in the seed. The dict of a run is empty if there is no such run, or if there are too many latents."""
    from jsae_core.similarity import latent_similarity

    similarities: list[dict[str, list[float]]] = [{} for _ in runs]
    for (i, (config, pair)), (j, (other_config, other_pair)) in itertools.combinations(enumerate(runs), 2):
        if dataclasses.replace(config, seed=0) != dataclasses.replace(other_config, seed=0):
            continue
        for side, name in (("input", "_W_dec"), ("output", "_W_dec_out")):
            similarity = latent_similarity(pair[name], other_pair[name])
            if similarity is not None:
                for run in (i, j):
                    similarities[run].setdefault(f"seed_similarity_{side}", []).append(similarity)
    return [{name: statistics.fmean(values) for name, values in of_run.items()} for of_run in similarities]


class HeldOut:
    """The language model and the held-out text on which the pairs of a local sweep are measured. They are the same as
    for the model's other pairs.

    Attributes:
        documents: 1-d token tensors, BOS first.
        sources: the number of the whole document that each is from.
    """

    def __init__(self, catalog: Catalog, sweep: LocalSweep, compute: Compute):
        self._catalog, self._sweep, self._compute = catalog, sweep, compute
        source, seed = catalog.models[sweep.model].source, catalog.randomise_seed_of_sweep(sweep)
        self.language_model = compute.language_model(source, seed)
        self.documents: list[Tensor]
        self.sources: list[int]
        self.documents, self.sources = compute.cached("held-out documents", sweep.model, self._tokenised)

    def mlp_inputs(self) -> "MLPInputs":
        """Return the inputs of the MLP over `documents`, at the sweep's layer."""
        key = ("held out", self._sweep.model)
        return self._compute.mlp_inputs(
            self.language_model, self._sweep.layer, key, lambda: self.documents, self.sources
        )

    def _tokenised(self) -> "tuple[list[Tensor], list[int]]":
        from jsae_core.text import numbered_tokens_of

        model, text = self._catalog.models[self._sweep.model], self._catalog.model_text(self._sweep.model)
        size, tokenizer = context_size(model, self.language_model), self.language_model.tokenizer
        source = documents(text, self._compute.say)
        numbered = list(numbered_tokens_of(source, tokenizer, size, model.tokens, text.long_documents))
        return [document for _, document in numbered], [number for number, _ in numbered]


def _stored_run(
    sweep: LocalSweep, run_id: str, config: "TrainingConfig", stored: StoredTensors, similarity: dict[str, float]
) -> "TrainingRun":
    from jsae_core.training_runs import local_run

    run, cfg = json.loads(stored.header["run"]), json.loads(stored.header["cfg"])
    name = f"{sweep.model} layer {sweep.layer} {_run_title(sweep, config)}"
    numbers = run["quality"] | similarity
    return local_run(run_id, name, sweep.model, sweep.layer, cfg, numbers, run["created_at"], stored.relative)
