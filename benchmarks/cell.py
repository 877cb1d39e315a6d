"""A whole cell, end to end: every pair, measure and figure of one layer of the default catalog, through Dagster.

    python -m benchmarks.cell [--layer LAYER] [--device auto|cpu|cuda]

It works in a home of its own, which is deleted. Not here: the parts of the benchmark that measure one thing at a time
(`cases.py`), starting Dagster's processes (`startup.py`).
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
from jsae_assets.catalog import Catalog, load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import report
from jsae_assets.partitions import cell_key
from jsae_assets.plan import CELL_JOB, TOKENS_JOB
from jsae_assets.resources import Compute
from jsae_core import LanguageModel

MODEL, LAYER = "stdlib-1m", 1  # where the default catalog holds all four variants


@dataclass
class Steps:
    """What each step of a run took.

    Attributes:
        seconds, processor: wall clock and this process's processor time, in order.
        to_mlp, to_end: tokens that the model was given, to stop at the MLP of the layer or to run all blocks.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)
    to_mlp: Counter[str] = field(default_factory=Counter)
    to_end: Counter[str] = field(default_factory=Counter)
    _running: str = ""
    _began: tuple[float, float] = (0.0, 0.0)

    def note(self, event: dg.DagsterEvent) -> None:
        """Takes notice of a step that begins or ends."""
        now = time.perf_counter(), time.process_time()
        name = (event.step_key or "").replace("__", "/")
        if event.event_type == dg.DagsterEventType.STEP_START:
            self._running, self._began = name, now
        elif event.event_type in (dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE):
            self.seconds[name], self.processor[name] = now[0] - self._began[0], now[1] - self._began[1]
            self._running = ""

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the tokens that any language model is given."""
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
    """Materialise the tokens of a model and then, timed, one cell. Raises what a failing step raises."""
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
    jobs = [job for job in definitions.resolve_all_job_defs() if job.name.startswith(CELL_JOB)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shutil.copy(HOME / "dagster.yaml", home)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            report(catalog, instance)
            definitions.resolve_job_def(TOKENS_JOB).execute_in_process(instance=instance, partition_key=model)
            with steps.counting():
                for job in jobs:
                    if cell in job.partitions_def.get_partition_keys():
                        config = {"loggers": {"watching": {"config": {}}}}
                        job.execute_in_process(instance=instance, partition_key=cell, run_config=config)
    return steps


def as_text(steps: Steps) -> str:
    """A line a step, and what all of them add up to."""
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cell", description=__doc__.split("\n\n")[0])
    parser.add_argument("--layer", type=int, default=LAYER)
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:N")
    options = parser.parse_args()
    disable_progress_bar()
    print(as_text(measured_cell(load_catalog(), MODEL, options.layer, options.device)))


if __name__ == "__main__":
    main()
