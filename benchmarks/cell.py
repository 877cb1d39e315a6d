"""Measures the time of a whole cell: all pairs, measures and figures of a layer of the default catalog, in Dagster.

    python -m benchmarks.cell [--layer LAYER] [--device auto|cpu|cuda]

It uses a temporary instance. Not here: benchmarks of single measures (`cases.py`), the start of Dagster's processes
(`startup.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import dagster as dg
from tabulate import tabulate
from transformers.utils.logging import disable_progress_bar

from benchmarks.startup import HOME
from jsae_assets.catalog import Catalog
from jsae_assets.catalog_file import load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import report
from jsae_assets.partitions import cell_key
from jsae_assets.resources import Compute
from jsae_assets.runs.plan import CELL_JOB, TOKENS_JOB
from jsae_core import LanguageModel

MODEL, LAYER = "stdlib-1m", 1  # here the default catalog has pairs of all four variants


@dataclass
class Steps:
    """The time and the tokens of each step of a run, by the step's name.

    Attributes:
        seconds: wall-clock time, in the order of the steps.
        processor: processor time of this process, in seconds.
        to_mlp: the number of tokens for which the model ran up to the MLP of the layer.
        to_end: the number of tokens for which the model ran all blocks.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)
    to_mlp: Counter[str] = field(default_factory=Counter)
    to_end: Counter[str] = field(default_factory=Counter)
    _running: str = ""
    _began: tuple[float, float] = (0.0, 0.0)

    def note(self, event: dg.DagsterEvent) -> None:
        """Record the time if the event says that a step begins or ends."""
        now = time.perf_counter(), time.process_time()
        name = (event.step_key or "").replace("__", "/")
        if event.event_type == dg.DagsterEventType.STEP_START:
            self._running, self._began = name, now
        elif event.event_type in (dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE):
            self.seconds[name], self.processor[name] = now[0] - self._began[0], now[1] - self._began[1]
            self._running = ""

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Context manager that counts the tokens which any language model processes."""
        with contextlib.ExitStack() as stack:
            for name, counter in (("mlp_activations", self.to_mlp), ("clean_pass", self.to_end)):
                stack.enter_context(mock.patch.object(LanguageModel, name, self._counted(name, counter)))
            yield

    def _counted(self, name: str, counter: Counter[str]):
        method = getattr(LanguageModel, name)

        def counted(language_model, tokens, *arguments, **options):
            counter[self._running] += tokens.numel()
            return method(language_model, tokens, *arguments, **options)

        return counted


def measured_cell(catalog: Catalog, model: str, layer: int, device: str) -> Steps:
    """Materialise the tokens of a model, then measure the steps of one cell. An error of a step is raised."""
    steps = Steps()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event = getattr(record, "dagster_meta", {}).get("dagster_event")
            if event is not None:
                steps.note(event)

    @dg.logger({})
    def watching(_) -> logging.Logger:
        logger = logging.Logger("steps")
        logger.addHandler(Handler())
        return logger

    definitions = build_definitions(
        catalog, resources={"compute": Compute(device=device)}, loggers={"watching": watching}
    )
    cell = cell_key(model, layer)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shutil.copy(HOME / "dagster.yaml", home)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            report(catalog, instance)
            definitions.resolve_job_def(TOKENS_JOB).execute_in_process(instance=instance, partition_key=model)
            with steps.counting():
                for job in cell_jobs(definitions, cell):
                    config = {"loggers": {"watching": {"config": {}}}}
                    job.execute_in_process(instance=instance, partition_key=cell, run_config=config)
    return steps


def cell_jobs(definitions: dg.Definitions, cell: str) -> list[dg.JobDefinition]:
    """Return the jobs that make a cell, in order."""
    jobs = [job for job in definitions.resolve_all_job_defs() if job.name.startswith(CELL_JOB)]
    return [job for job in jobs if cell in job.partitions_def.get_partition_keys()]


def as_text(steps: Steps) -> str:
    """Return a table with a line for each step and a line with the totals."""
    total = sum(steps.seconds.values())
    rows = [
        (
            name,
            f"{seconds:.2f}",
            f"{seconds / total:.1%}",
            f"{steps.processor[name]:.2f}",
            f"{steps.to_mlp[name]:,}",
            f"{steps.to_end[name]:,}",
        )
        for name, seconds in steps.seconds.items()
    ]
    sums = (f"{sum(steps.processor.values()):.2f}", f"{steps.to_mlp.total():,}", f"{steps.to_end.total():,}")
    return tabulate(
        [*rows, ("all", f"{total:.2f}", "", *sums)],
        ("step", "seconds", "share", "processor", "tokens to the MLP", "tokens to the end"),
        tablefmt="plain",
        disable_numparse=True,
        colalign=("left", *["right"] * 5),
    )


def layer_and_device(program: str, description: str) -> tuple[int, str]:
    """Return what the command line of a benchmark of a cell asks for."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--layer", type=int, default=LAYER)
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is a device), cpu, cuda, cuda:N")
    options = parser.parse_args()
    return options.layer, options.device


def main() -> None:
    layer, device = layer_and_device("benchmarks.cell", __doc__.split("\n\n")[0])
    disable_progress_bar()
    print(as_text(measured_cell(load_catalog(), MODEL, layer, device)))


if __name__ == "__main__":
    main()
