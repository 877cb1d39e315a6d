"""Builds the Dagster definitions from a catalog. Importing this module does not import torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import dagster as dg
from pydantic import ValidationError

from jsae_assets import automation
from jsae_assets.assets.figure_assets import figure_assets, sweep_figure_assets
from jsae_assets.assets.measure_assets import measure_assets
from jsae_assets.assets.sae_pairs import sae_pair_asset
from jsae_assets.assets.site import site_asset
from jsae_assets.assets.sweeps import sweep_runs_asset
from jsae_assets.assets.text import tokens_asset
from jsae_assets.catalog import Catalog
from jsae_assets.catalog_file import load_catalog
from jsae_assets.checks import faithful_check
from jsae_assets.entries import catalog_spec
from jsae_assets.files.storage import named_storage
from jsae_assets.io_managers import FigureStore, PagesStore, ParquetStore, SafetensorsStore
from jsae_assets.problems import sentence
from jsae_assets.publishing import publish_job
from jsae_assets.resources import Compute
from jsae_assets.runs.at_work import known_at_work
from jsae_assets.runs.executors import multiprocess_executor, ray_worker_executor
from jsae_assets.site.serving import URL
from jsae_core.names import advice


def build_definitions(
    catalog: Catalog,
    *,
    executor: dg.ExecutorDefinition | None = None,
    assets: Sequence[dg.AssetsDefinition] = (),
    asset_checks: Sequence[dg.AssetChecksDefinition] = (),
    jobs: Sequence[Any] = (),
    sensors: Sequence[dg.SensorDefinition] = (),
    resources: Mapping[str, Any] | None = None,
    loggers: Mapping[str, dg.LoggerDefinition] | None = None,
) -> dg.Definitions:
    """Return the definitions of a catalog: assets, checks, jobs, schedules, sensors and resources.

    Args:
        executor: by default the one that the environment names.
        assets, asset_checks, jobs, sensors: each replaces the catalog's own one with its key or name, or is added.
        resources: these also replace or extend the default ones ("compute", "tensors", "tables", "figures", "pages").
        loggers: as for `dagster.Definitions`.
    """
    own_resources, its_executor = _each_made(default_resources, lambda: executor or default_executor())
    # a variant without pairs would have no partitions
    variants = [variant for variant in catalog.variants if any(pair.variant == variant for pair in catalog.pairs)]
    shown = [
        tokens_asset(catalog),
        *(sae_pair_asset(catalog, variant) for variant in variants),
        *(asset for variant in variants for asset in measure_assets(catalog, variant)),
        *figure_assets(catalog),
        *([sweep_runs_asset(catalog), *sweep_figure_assets(catalog)] if catalog.sweeps else []),
    ]
    all_assets = _replaced(
        [*shown, site_asset(catalog, shown)],
        assets,
        lambda asset: asset.key,
    )
    all_jobs = _replaced(
        automation.jobs({key: asset.partitions_def for asset in all_assets for key in asset.keys}),
        jobs,
        lambda job: job.name,
    )
    all_resources = own_resources | dict(resources or {})
    return dg.Definitions(
        assets=[catalog_spec(catalog), *all_assets],
        asset_checks=_replaced(
            [faithful_check(catalog, variant) for variant in variants],
            asset_checks,
            lambda definition: frozenset(definition.check_keys),
        ),
        jobs=[*all_jobs, *([publish_job(catalog)] if catalog.pairs else [])],
        schedules=automation.schedules(catalog),
        sensors=_replaced(
            [
                automation.entries_sensor(catalog),
                automation.automatic_sensor(catalog, all_jobs, all_resources),
                *automation.alias_sensor(catalog, all_jobs),
                automation.dead_runs_sensor(),
            ],
            sensors,
            lambda sensor: sensor.name,
        ),
        executor=known_at_work(its_executor),
        resources=all_resources,
        loggers=loggers,
    )


def _replaced(own: Sequence, others: Sequence, name_of: Callable[[Any], Hashable]) -> list:
    """Return `own`, in its order, with those replaced that have the name of one in `others`, and then the rest of
    `others`."""
    by_name = {name_of(definition): definition for definition in (*own, *others)}
    return list(by_name.values())


class SettingError(ValueError):
    """Environment variables of this project have invalid values. The message has a line for each, which names it."""


def _each_made(*makers: Callable[[], Any]) -> list:
    """Return what these functions return. If some raise SettingError, raise one with the lines of all of them."""
    made, problems = [], []
    for make in makers:
        try:
            made.append(make())
        except SettingError as error:
            problems.append(str(error))
    if problems:
        raise SettingError("\n".join(problems))
    return made


def default_executor() -> dg.ExecutorDefinition:
    """Return the executor that JSAE_EXECUTOR names: in_process (the default), multiprocess or ray.

    Raises:
        SettingError: it names another executor, or one whose packages are not installed.
    """
    executors = {
        "in_process": dg.in_process_executor,
        "multiprocess": multiprocess_executor,
        "ray": ray_worker_executor,
    }
    name = os.environ.get("JSAE_EXECUTOR") or "in_process"
    if name not in executors:
        raise SettingError(f"JSAE_EXECUTOR is {name!r}; {advice(name, executors)}")
    if name == "ray" and find_spec("dagster_ray") is None:
        raise SettingError("JSAE_EXECUTOR is 'ray', which needs more packages: pip install 'jsae[ray]'")
    return executors[name]


def default_resources() -> dict[str, Any]:
    """Return the resources with the settings of the environment: JSAE_DEVICE, JSAE_DTYPE, JSAE_BATCH_TOKENS,
    JSAE_MEMORY_GIB, JSAE_CHECKPOINT_SECONDS, JSAE_WANDB_PROJECT, JSAE_STORAGE, JSAE_STORAGE_URL.

    Raises:
        SettingError: one of the first seven has an invalid value.
    """
    compute, base_path = _each_made(_compute, _base_path)
    location = {"base_path": base_path, "url": os.environ.get("JSAE_STORAGE_URL") or URL}
    return {
        "compute": compute,
        "tensors": SafetensorsStore(**location),
        "tables": ParquetStore(**location),
        "figures": FigureStore(**location),
        "pages": PagesStore(**location),
    }


def _compute() -> Compute:
    settings: dict[str, Any] = {
        field: os.environ.get(f"JSAE_{field.upper()}")
        for field in ("device", "dtype", "batch_tokens", "memory_gib", "checkpoint_seconds", "wandb_project")
    }
    try:
        return Compute(**{field: value for field, value in settings.items() if value})
    except ValidationError as error:
        problems = [(str(item["loc"][0]), sentence(item)) for item in error.errors(include_url=False)]
        raise SettingError("\n".join(f"JSAE_{field.upper()}: {problem}" for field, problem in problems)) from error


def _base_path() -> str | None:
    base_path = os.environ.get("JSAE_STORAGE")
    try:
        if base_path:
            named_storage(base_path)
    except ValueError as error:
        raise SettingError(f"JSAE_STORAGE: {error}") from error
    return base_path


@dg.definitions
def defs() -> dg.Definitions:
    return build_definitions(load_catalog())
