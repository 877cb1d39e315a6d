"""Executes assets of a job in this process, as a run of the code location that `jsae ui` shows.

`execute_in_process` records no code location. The UI leaves runs without one out of its overview, and cannot start them
again. So the run is created here as Dagster's own daemon creates one, and then executed as by `execute_in_process`.

Not here: planning runs (`plan.py`), messages about them (`making.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths

WORKSPACE = Path(__file__).parents[1] / "workspace.yaml"


def execute_here(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    partition: str | None,
    assets: Sequence[dg.AssetKey],
    run_config: Mapping[str, Any],
    run_id: str,
) -> dg.JobExecutionResult:
    """Execute these assets of a job at a partition. Errors of steps are not raised; they are in the result."""
    selected = job.as_ephemeral_job(resource_defs={}, input_values={}, asset_selection=assets)
    partition_tags = job.get_tags_for_partition_key(partition, selected_asset_keys=assets) if partition else {}
    run = instance.create_run_for_job(
        job_def=selected,
        run_id=run_id,
        run_config=run_config,
        # the daemon must not start the run again after it was stopped: the user does so with the same command
        tags={**job.run_tags, **partition_tags, "dagster/max_retries": "0"},
        asset_selection=frozenset(assets),
        remote_job_origin=_origin(job.name),
    )
    return execute_run(InMemoryJob(selected), run, instance)


def _origin(job: str) -> RemoteJobOrigin:
    """Return the origin of a job, by which the UI finds the job in its code location."""
    (location,) = location_origins_from_yaml_paths([str(WORKSPACE)])
    return RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME).get_job_origin(job)
