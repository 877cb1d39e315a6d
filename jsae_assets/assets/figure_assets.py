"""The assets of figures, `figures/...`: of variants beside those that they are compared with, of models, and of sweeps.

Here: which results each figure is given, and its subtitle. Not here: which figures there are (`figures.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from jsae_assets import groups
from jsae_assets.assets.cell import OWNERS, cell_asset, find_cell
from jsae_assets.assets.figures import (
    CELL_FIGURES,
    CONTROL_FIGURES,
    LAYER_FIGURES,
    SWEEP_CONTROL_FIGURES,
    SWEEP_FIGURES,
    Figure,
    Results,
)
from jsae_assets.assets.markdown import as_text
from jsae_assets.assets.sweeps import ASSET as SWEEP_RUNS
from jsae_assets.assets.sweeps import odd, sweep_entries
from jsae_assets.catalog import TABLES, Catalog
from jsae_assets.entries import confirm, depends_on
from jsae_assets.files.stored import WHOLE_DOCUMENTS, StoredTable
from jsae_assets.number import on_errors
from jsae_assets.partitions import cell_key, cells, models, of_all_layers, sweeps
from jsae_assets.sources import TrainedPair
from jsae_core.terms import FEW_DOCUMENTS

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from pandas import DataFrame

    from jsae_core.figures import Variant

SETTINGS = {"d_sae": "d_sae", "k": "k", "jacobian_coefficient": "λ"}  # a pair's settings, and their names in a subtitle


def figure_assets(catalog: Catalog) -> list[dg.AssetsDefinition]:
    """The figures of every variant that is compared with another, if a model or a cell holds both."""
    assets = []
    for variant, entry in catalog.variants.items():
        compared = [entry.compared_with, variant]
        if entry.compared_with is None or not models(catalog, compared).get_partition_keys():
            continue
        assets += [_layer_figure(catalog, figure, variant, compared) for figure in LAYER_FIGURES]
        if cells(catalog, compared).get_partition_keys():
            assets += [_cell_figure(catalog, figure, variant, compared) for figure in CELL_FIGURES]
        shown = _with_controls(catalog, variant)
        if shown and cells(catalog, shown).get_partition_keys():
            remarks = _on_equal_quality(catalog, variant, shown)
            assets += [_cell_figure(catalog, figure, variant, shown, remarks) for figure in CONTROL_FIGURES]
    return assets


def sweep_figure_assets(catalog: Catalog) -> list[dg.AssetsDefinition]:
    """The figures of every sweep, and those that compare a variant at equal quality with a sweep of controls."""
    assets = [_sweep_figure(catalog, figure) for figure in SWEEP_FIGURES]
    for variant, entry in catalog.variants.items():
        shown = _with_controls(catalog, variant) if entry.compared_with else []
        if served := control_sweeps(catalog, shown):
            assets += [_control_figure(catalog, figure, variant, shown, served) for figure in SWEEP_CONTROL_FIGURES]
    return assets


def control_sweeps(catalog: Catalog, variants: Sequence[str]) -> dict[str, str]:
    """The sweeps on the randomised model whose runs differ only in λ from the pairs that all of these variants hold at
    the sweep's cell: by sweep, the cell."""
    served = {}
    for key, sweep in catalog.sweeps.items():
        local = sweep.local
        if local is None or local.weights != "randomised" or not variants:
            continue
        pairs = [catalog.pair(variant, local.model, local.layer) for variant in variants]
        if all(isinstance(pair, TrainedPair) and local.makes_like(pair.train) for pair in pairs):
            served[key] = cell_key(local.model, local.layer)
    return served


def _with_controls(catalog: Catalog, variant: str) -> list[str]:
    """The variant that this one is compared with, itself, and the controls of both; empty if one is missing."""
    compared = [catalog.variants[variant].compared_with, variant]
    shown = [*compared, *(_control(catalog, key) for key in compared)]
    return shown if all(shown) else []


def _control(catalog: Catalog, variant: str) -> str | None:
    """The variant that is this one's control, if there is one."""
    return next((key for key, entry in catalog.variants.items() if entry.control_of == variant), None)


def _on_equal_quality(catalog: Catalog, owner: str, variants: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """By cell, the subtitle's remark on whether and where the controls are compared at equal quality, and the sweeps in
    it."""
    served: dict[str, list[str]] = {cell: [] for cell in cells(catalog, variants).get_partition_keys()}
    for key, cell in control_sweeps(catalog, variants).items():
        served[cell].append(key)
    names = ", ".join(f"{owner}_{figure.name}" for figure in SWEEP_CONTROL_FIGURES)
    there = " · at equal explained variance: figure {} of sweep {}"
    nowhere = " · not at equal explained variance: that takes a sweep by the same recipe on the randomised model"
    return {
        cell: (there.format(names, ", ".join(keys)) if keys else nowhere, [f"sweeps/{key}" for key in keys])
        for cell, keys in served.items()
    }


def _cell_figure(
    catalog: Catalog,
    figure: Figure,
    owner: str,
    variants: Sequence[str],
    remarks: Mapping[str, tuple[str, list[str]]] | None = None,
) -> dg.AssetsDefinition:
    """`figures/<owner>/...` at one (model, layer), from the results of these variants there.

    Args:
        remarks: by cell, a further remark for the subtitle, and the catalog's entries that it depends on.
    """
    labels, remarks = _labels(catalog, variants), remarks or {}

    @cell_asset(
        catalog,
        variants,
        f"figures/{owner}",
        figure.name,
        f"{figure.description}: {as_text(labels)}.",
        code_version=figure.code_version,
        kinds={"plotly"},
        ins={
            f"{variant}__{measure}": dg.AssetIn([variant, measure]) for variant in variants for measure in figure.reads
        },
        io_manager_key="figures",
        group=groups.FIGURES,
        pool=None,
        also={cell: entries for cell, (_, entries) in remarks.items()},
    )
    def drawn(context: dg.AssetExecutionContext, **inputs) -> Iterator[dg.Output]:
        cell = find_cell(context, catalog, variants[0])
        remark, _ = remarks.get(context.partition_key, ("", []))
        results, settings = {}, {}
        for variant in variants:
            stored = {measure: inputs[f"{variant}__{measure}"] for measure in figure.reads}
            settings[variant] = [stored[figure.reads[0]].settings]
            reported = cell.reported(variant, settings[variant][0]["jacobian_coefficient"])
            results[_style(catalog, variant)] = Results(stored, reported)
        picture = figure.draw(results, _subtitle(catalog, str(cell), figure.tokens, settings) + remark)
        yield _output(picture, str(cell), source=f"{' and '.join(figure.reads)} of {labels}")

    return drawn


def _layer_figure(catalog: Catalog, figure: Figure, owner: str, variants: Sequence[str]) -> dg.AssetsDefinition:
    """`figures/<owner>/...` of one model, from the rows of a measure of these variants at all its layers."""
    labels, partitions = _labels(catalog, variants), models(catalog, variants)
    (measure,) = figure.reads

    entries = {
        model: [entry for key in variants for entry in (f"variants/{key}", f"pairs/{key}/{model}")]
        for model in partitions.get_partition_keys()
    }
    # a variant may have a name that Dagster does not allow for arguments (input, meta, lambda)
    ins = {
        f"{key}__{measure}": dg.AssetIn([key, measure], partition_mapping=of_all_layers(catalog, key, variants))
        for key in variants
    }

    @_figure_asset(figure, [owner, figure.name], partitions, depends_on(entries), as_text(labels), ins)
    def drawn(context: dg.AssetExecutionContext, **inputs) -> Iterator[dg.Output]:
        import pandas as pd

        confirm(context, catalog)
        model = context.partition_key
        frames: dict[Variant, DataFrame] = {}
        for key in variants:
            layers = catalog.layers(model, key)
            tables = inputs[f"{key}__{measure}"]
            tables = tables.values() if isinstance(tables, dict) else [tables]  # of a single layer it is no dict
            rows = [table.frame for table in tables if table.exists()]
            missing = sorted(set(layers) - {row["layer"].item() for row in rows})
            if missing:
                context.log.warning(f"{key}/{measure} of {model} is not there yet at layers {missing}")
            if not rows:
                raise FileNotFoundError(f"no layer of {model} has {key}/{measure} yet; materialise it first")
            frames[_style(catalog, key)] = pd.concat(rows).sort_values("layer")
        settings = {key: frame.to_dict("records") for key, frame in zip(variants, frames.values(), strict=True)}
        layers = sorted({row["layer"] for rows in settings.values() for row in rows})
        picture = figure.draw(frames, _subtitle(catalog, model, figure.tokens, settings))
        yield _output(picture, model, source=f"{measure} of {labels}", layers=", ".join(map(str, layers)))

    return drawn


def _sweep_figure(catalog: Catalog, figure: Figure) -> dg.AssetsDefinition:
    path, ins = [SWEEP_RUNS, figure.name], {"runs": dg.AssetIn(SWEEP_RUNS)}

    @_figure_asset(figure, path, sweeps(catalog), sweep_entries(catalog), "a dot a finished run", ins)
    def drawn(context: dg.AssetExecutionContext, runs: StoredTable) -> Iterator[dg.Output]:
        key = context.partition_key
        confirm(context, catalog)
        picture = figure.draw(runs.frame, _sweep_subtitle(key, runs.frame))
        yield _output(picture, f"Sweep {key}", source=f"{SWEEP_RUNS} of {key}", odd_runs_left_out=odd(runs.frame))

    return drawn


def _figure_asset(
    figure: Figure,
    path: Sequence[str],
    partitions: dg.PartitionsDefinition,
    entries: dg.AssetDep,
    description: str,
    ins: Mapping[str, dg.AssetIn],
) -> Callable[..., dg.AssetsDefinition]:
    """`dagster.asset` with what the figures of models and sweeps have in common."""
    return dg.asset(
        key=["figures", *path],
        partitions_def=partitions,
        deps=[entries],
        description=f"{figure.description}: {description}.",
        group_name=groups.FIGURES,
        kinds={"plotly"},
        owners=OWNERS,
        code_version=figure.code_version,
        io_manager_key="figures",
        ins=ins,
    )


def _output(picture: "go.Figure", subject: str, **metadata: str) -> dg.Output:
    """The output of a figure. Its metadata begins with the sentence that answers its title, about this subject."""
    from jsae_core.figures.style import ANSWER

    return dg.Output(picture, metadata={ANSWER: f"{subject}: {picture.layout.meta[ANSWER]}", **metadata})


def _control_figure(
    catalog: Catalog, figure: Figure, owner: str, variants: Sequence[str], served: Mapping[str, str]
) -> dg.AssetsDefinition:
    """A figure of a sweep of controls, beside the results of these variants at its cell."""
    partitions = dg.StaticPartitionsDefinition(list(served))
    at_cells = dg.StaticPartitionMapping(
        {cell: [key for key, place in served.items() if place == cell] for cell in served.values()}
    )
    of_sweep = dg.StaticPartitionMapping({key: [key] for key in served})
    entries = {
        key: [
            f"sweeps/{key}",
            *(entry for variant in variants for entry in (f"variants/{variant}", f"pairs/{variant}/{cell}")),
        ]
        for key, cell in served.items()
    }
    labels = _labels(catalog, variants)
    ins = {"runs": dg.AssetIn(SWEEP_RUNS, partition_mapping=of_sweep)} | {
        f"{variant}__{measure}": dg.AssetIn([variant, measure], partition_mapping=at_cells)
        for variant in variants
        for measure in figure.reads
    }

    @_figure_asset(
        figure, [SWEEP_RUNS, f"{owner}_{figure.name}"], partitions, depends_on(entries), as_text(labels), ins
    )
    def drawn(context: dg.AssetExecutionContext, runs: StoredTable, **inputs) -> Iterator[dg.Output]:
        confirm(context, catalog)
        results = {
            _style(catalog, variant): Results(
                {measure: inputs[f"{variant}__{measure}"] for measure in figure.reads}, reported={}
            )
            for variant in variants
        }
        key = context.partition_key
        picture = figure.draw((results, runs.frame), _sweep_subtitle(key, runs.frame))
        source = f"{SWEEP_RUNS} of {key}; {' and '.join(figure.reads)} of {labels}"
        yield _output(picture, f"Sweep {key}", source=source)

    return drawn


def _labels(catalog: Catalog, variants: Sequence[str]) -> str:
    return " beside ".join(catalog.variants[variant].label for variant in variants)


def _style(catalog: Catalog, variant: str) -> "Variant":
    from jsae_core.figures import Variant

    entry = catalog.variants[variant]
    return Variant(entry.label, entry.colour)


def _subtitle(catalog: Catalog, where: str, tokens: str, settings: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Model, layer, tokens and settings of all partitions of all variants, with the variants' names if they differ. A
    control that is equal to its variant in this is not named."""
    controls = {key: entry.control_of for key, entry in catalog.variants.items()}

    def setting(name: str) -> str:
        values: dict[str, str] = {}
        for variant, partitions in settings.items():
            low, high = min(s[name] for s in partitions), max(s[name] for s in partitions)
            values[variant] = f"{low:,g}" if low == high else f"{low:,g} to {high:,g}"
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        differing = {key: value for key, value in values.items() if value != values.get(controls[key] or "")}
        return ", ".join(f"{value} ({catalog.variants[key].label})" for key, value in differing.items())

    named = ", ".join(f"{label} {setting(name)}" for name, label in SETTINGS.items())
    n_tokens = int(next(iter(settings.values()))[0]["n_tokens"])
    rounded = any(one.get(TABLES) for partitions in settings.values() for one in partitions)
    remarks = [on_errors(_fewest([one for partitions in settings.values() for one in partitions]))]
    remarks += ["Jacobians of bfloat16 tables"] if rounded else []
    return ", ".join([where, tokens.format(n_tokens), named, *filter(None, remarks)])


def _fewest(results: Sequence[Mapping[str, float]]) -> int:
    """The fewest documents that any of the results was measured on, of those below FEW_DOCUMENTS; else that number.
    Results that were stored before they said so, are taken to rest on enough."""
    few = [n for one in results if (n := one.get(WHOLE_DOCUMENTS, FEW_DOCUMENTS)) < FEW_DOCUMENTS]
    return int(min(few, default=FEW_DOCUMENTS))


def _sweep_subtitle(key: str, runs: "DataFrame") -> str:
    """The sweep's name, and the settings that all its runs share."""
    settings = {"model": "{}", "layer": "layer {:g}", "d_sae": "d_sae {:,g}", "k": "k {:g}"}
    settings |= {"n_tokens_jacobian": "{:,g} tokens", "n_tokens": "scores of {:,g}"}
    said = [
        form.format(runs[name].iloc[0])
        for name, form in settings.items()
        if name in runs and runs[name].notna().all() and runs[name].nunique() == 1
    ]
    said += filter(None, [on_errors(_fewest(runs.to_dict("records")))])
    said += ["randomised weights"] if runs["randomize_llm_weights"].all() else []
    return ", ".join([f"sweep {key}", *said])
