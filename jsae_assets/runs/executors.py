"""The executors that JSAE_EXECUTOR names, besides Dagster's own in one process.

With `multiprocess`, each step of a run is a process. On a Ray cluster a run is one process, as by default, so that the
model and the pair are loaded once and stay loaded from one asset of a cell to the next; of a run with shards, each step
is a process on any worker.

Not here: which one is used (`definitions.py`), how a run comes to another machine (`ray_launcher.py`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.execution.plan.objects import StepRetryData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import StepDelegatingExecutor

if TYPE_CHECKING:
    from dagster._core.execution.context.system import IStepContext
    from dagster._core.execution.plan.state import KnownExecutionState
    from dagster._utils.error import SerializableErrorInfo

RETRIES = 2  # of a step whose process died
# What every step needs. The processes of a run's steps are forked from one that has imported it. So they are not
# children of the run's own process: whatever waited there for a child that was killed (psutil does) would keep from
# Dagster that it is gone, and the run would wait for it for ever. Not `jsae_core.sae_pair`: its sae_lens asks for a GPU
# while it is imported, after which CUDA refuses to work in forked processes.
PRELOADED = ["jsae_assets.definitions", "jsae_core.language_model", "transformers.modeling_utils"]
multiprocess_executor = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": PRELOADED}}}, name="multiprocess"
)
STEPS_ARE_JOBS = "STEPS_ARE_RAY_JOBS"  # set by the launcher in the process of a run with shards
OF_A_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray sets in the processes of its jobs
ASKED_OF_RAY = ("num_cpus", "num_gpus", "memory", "resources", "env_vars", "runtime_env")  # settings of the launcher


def _on_ray_worker(context: dg.InitExecutorContext) -> dg.Executor:
    """All steps in the process of the run, which is a job on a Ray cluster; those of a run with shards are jobs too.

    Raises:
        RuntimeError: the run was started elsewhere, where it would take a GPU that Ray gives to another.
    """
    if OF_A_RAY_JOB not in os.environ:
        raise RuntimeError(
            "JSAE_EXECUTOR is 'ray', but this run was not started by a Ray cluster: the instance launches runs with "
            f"{type(context.instance.run_launcher).__name__}. Give it the run_launcher of deploy/dagster.yaml, or "
            "unset JSAE_EXECUTOR"
        )
    if STEPS_ARE_JOBS in os.environ:
        return _each_a_job(context)
    return dg.in_process_executor.executor_creation_fn(context)


def _each_a_job(context: dg.InitExecutorContext) -> dg.Executor:
    """Each step is a job on the cluster, which asks for what the run launcher is set to ask for a run."""
    from dagster_ray.core.executor import RayStepHandler

    launcher: Any = context.instance.run_launcher
    handler = RayStepHandler(launcher.client, **{name: getattr(launcher, name) for name in ASKED_OF_RAY})
    return _DeadStepsAgain(handler, retries=RetryMode.ENABLED, should_verify_step=True)


class _DeadStepsAgain(StepDelegatingExecutor):
    """Dagster's executor of steps that are processes elsewhere. A step whose process died is begun again, also where
    one that raised an error is not."""

    def log_failure_or_retry_event_after_error(
        self, step_context: IStepContext, err_info: SerializableErrorInfo, known_state: KnownExecutionState
    ) -> dg.DagsterEvent:
        died = err_info.cls_name is None  # Dagster's own finding; what a step raised has the name of a class
        if died and known_state.get_retry_state().get_attempt_count(step_context.step.key) < RETRIES:
            return dg.DagsterEvent.step_retry_event(step_context, StepRetryData(error=err_info))
        return super().log_failure_or_retry_event_after_error(step_context, err_info, known_state)


ray_worker_executor = dg.ExecutorDefinition(
    name="ray",
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_on_ray_worker,
    description="All steps of a run in one process of a Ray cluster's worker; with shards, each on any worker",
)
