"""The run launcher of a Ray cluster, which deploy/dagster.yaml names. It is dagster-ray's, by which a run is one job on
a worker, except for runs that measure in shards.

Of those each step is such a job, so that shards are measured on several workers at once. The run itself only waits for
them: it asks for neither a GPU nor a processor, and Ray has it on the head.

Here: which runs these are, and starting them. Not here: how such a run executes its steps (`runs/executors.py`).
"""

from __future__ import annotations

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster_ray import RayRunLauncher

from jsae_assets.assets.measures import MEASURES
from jsae_assets.automation import PARTITION
from jsae_assets.catalog_file import load_catalog
from jsae_assets.partitions import SEPARATOR, split_cell
from jsae_assets.runs.executors import STEPS_ARE_JOBS

IN_SHARDS = {measure.name for measure in MEASURES if measure.reads_tokens}


class ShardsOnWorkers(RayRunLauncher):
    """dagster-ray's run launcher, with its settings: what it asks Ray for, each step of a run with shards asks for."""

    def launch_run(self, context: LaunchRunContext) -> None:
        self._stop_jobs_of(context.dagster_run.parent_run_id)
        if has_shards(context.dagster_run):
            self._for_runs_that_wait().launch_run(context)
        else:
            super().launch_run(context)

    def _stop_jobs_of(self, run_id: str | None) -> None:
        """Stop what is still at work of a run that is made again: its steps, where only its own process died."""
        for job in self.client.list_jobs() if run_id else []:
            if (job.metadata or {}).get("dagster/run-id") == run_id and not job.status.is_terminal():
                self.client.stop_job(job.submission_id)

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        if run.job_code_origin is None:  # `jsae run` executes it in its own process, of which Ray knows nothing
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return super().check_run_worker_health(run)

    def _for_runs_that_wait(self) -> RayRunLauncher:
        launcher = RayRunLauncher(
            self.address,
            metadata=self.metadata,
            headers=self.headers,
            cookies=self.cookies,
            env_vars=[*(self.env_vars or []), f"{STEPS_ARE_JOBS}=1"],
            runtime_env=self.runtime_env,
        )
        launcher.register_instance(self._instance)
        return launcher


def has_shards(run: dg.DagsterRun) -> bool:
    """Whether a run measures anything in shards, by the catalog as it is now."""
    partition = run.tags.get(PARTITION, "")
    if SEPARATOR not in partition:
        return False
    model = load_catalog().models.get(split_cell(partition)[0])
    names = None if run.asset_selection is None else {key.path[-1] for key in run.asset_selection}
    return model is not None and model.shards > 1 and (names is None or bool(names & IN_SHARDS))
