"""The executors that JSAE_EXECUTOR names, besides Dagster's own in one process.

With `multiprocess`, each step of a run is a process. On a Ray cluster a run is one process, as by default, so that the
model and the pair are loaded once and stay loaded from one asset of a cell to the next.

Not here: which one is used (`definitions.py`), how a run comes to another machine (by the run
launcher of dagster-ray, which deploy/dagster.yaml names).
"""

from __future__ import annotations

import os

import dagster as dg

# What every step needs. The processes of a run's steps are forked from one that has imported it.
PRELOADED = ["jsae_assets.definitions", "jsae_core.language_model", "jsae_core.sae_pair", "transformers.modeling_utils"]
multiprocess_executor = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": PRELOADED}}}, name="multiprocess"
)
OF_A_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray sets in the processes of its jobs


def _on_ray_worker(context: dg.InitExecutorContext) -> dg.Executor:
    """All steps in the process of the run, which is a job on a Ray cluster.

    Raises:
        RuntimeError: the run was started elsewhere, where it would take a GPU that Ray gives to another.
    """
    if OF_A_RAY_JOB not in os.environ:
        raise RuntimeError(
            "JSAE_EXECUTOR is 'ray', but this run was not started by a Ray cluster: the instance launches runs with "
            f"{type(context.instance.run_launcher).__name__}. Give it the run_launcher of deploy/dagster.yaml, or "
            "unset JSAE_EXECUTOR"
        )
    return dg.in_process_executor.executor_creation_fn(context)


ray_worker_executor = dg.ExecutorDefinition(
    name="ray",
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_on_ray_worker,
    description="All steps of a run in one process of a Ray cluster's worker",
)
