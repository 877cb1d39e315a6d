"""The assembly: a catalog becomes Dagster definitions. Importing this imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import dagster as dg

from jsae_assets import automation
from jsae_assets.assets.figures import figure_assets
from jsae_assets.assets.measures import measure_assets
from jsae_assets.assets.sae_pairs import sae_pair_asset
from jsae_assets.assets.sweeps import sweep_assets
from jsae_assets.assets.text import tokens_asset
from jsae_assets.catalog import Catalog, load_catalog
from jsae_assets.checks import faithful_check
from jsae_assets.io_managers import FigureStore, ParquetStore, SafetensorsStore
from jsae_assets.publishing import publish_job
from jsae_assets.resources import Compute


def build_definitions(
    catalog: Catalog, resource_overrides: Mapping[str, Any] | None = None, **others: Any
) -> dg.Definitions:
    """Everything the catalog makes: assets, checks, jobs, sensors, resources.

    Args:
        resource_overrides: by key ("compute", "tensors", "tables", "figures").
        others: further arguments of `dagster.Definitions` ("loggers").
    """
    return dg.Definitions(
        assets=[
            tokens_asset(catalog),
            *(sae_pair_asset(catalog, variant) for variant in catalog.variants),
            *(asset for variant in catalog.variants for asset in measure_assets(catalog, variant)),
            *figure_assets(catalog),
            *(sweep_assets(catalog) if catalog.sweeps else []),
        ],
        asset_checks=[faithful_check(catalog, variant) for variant in catalog.variants],
        jobs=[*automation.jobs(catalog), publish_job(catalog)],
        schedules=automation.schedules(catalog),
        sensors=[automation.partition_sensor(catalog), *automation.alias_sensor(catalog)],
        # one process a run: torch and the model are loaded once, not once a step
        executor=dg.in_process_executor,
        resources=default_resources() | dict(resource_overrides or {}),
        **others,
    )


def default_resources() -> dict[str, Any]:
    """The resources, with what the environment says: JSAE_DEVICE, JSAE_DTYPE, JSAE_BATCH_TOKENS,
    JSAE_MEMORY_GIB, JSAE_STORAGE."""
    named = {
        field: os.environ.get(f"JSAE_{field.upper()}") for field in ("device", "dtype", "batch_tokens", "memory_gib")
    }
    base_path = os.environ.get("JSAE_STORAGE")
    return {
        "compute": Compute(**{field: value for field, value in named.items() if value}),
        "tensors": SafetensorsStore(base_path=base_path),
        "tables": ParquetStore(base_path=base_path),
        "figures": FigureStore(base_path=base_path),
    }


@dg.definitions
def defs() -> dg.Definitions:
    return build_definitions(load_catalog())
