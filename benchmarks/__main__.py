"""Runs parts of the benchmark at shapes, and writes the results to files: the command line of the benchmark.

    python -m benchmarks [PART ...] [--shape NAME ...] [--device auto|cpu|cuda] [--quick] [--output DIR]
    python -m benchmarks report [--output DIR]

Not here: what is measured (`parts.py`), how it is shown (`report.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

from benchmarks import operators, report
from benchmarks.machine import chosen_device
from benchmarks.parts import PARTS, measured_apart, measured_quickly
from benchmarks.results import RESULTS, Results
from benchmarks.shapes import DEFAULT_SHAPES, SHAPES

REPORT = "report"
# the reasons why parts are left out at a shape, unless the shape is named on the command line
LEFT_OUT = {("growth", shape): "one shape is enough" for shape in DEFAULT_SHAPES if shape != "pythia-70m"}

LEFT_OUT_IF_QUICK = {"growth": "it measures many sizes"}


def main(arguments: list[str] | None = None) -> int:
    """Measure, or only write the report. Return the exit status: 1 if a part failed."""
    options = _options(arguments)
    if options.parts == [REPORT]:
        report.write_pages(options.output)
        return 0
    finished: list[Results] = []
    failed = []
    for part in options.parts or PARTS:
        for shape in options.shape or DEFAULT_SHAPES:
            reason = None if options.shape else LEFT_OUT.get((part, shape))
            if options.quick and not options.parts:
                reason = LEFT_OUT_IF_QUICK.get(part, reason)
            if reason:
                print(f"{part}, {shape}: left out: {reason}", flush=True)
                continue
            start = time.perf_counter()
            try:
                measure = measured_quickly if options.quick else measured_apart
                results = measure(part, shape, options.device)
            except Exception as error:  # the other parts still run, whatever the error is
                failed.append(f"{part}, {shape}: {type(error).__name__}: {error}")
                traceback.print_exception(error)
                continue
            results.merged_into(options.output)
            finished.append(results)
            print(f"{part}, {shape} ({time.perf_counter() - start:.0f} s)\n{report.as_text(results)}\n", flush=True)
    if len(finished) > 1:
        device, rows = finished[0].device, [row for results in finished for row in results.rows]
        print(device, report.as_text(Results(device, rows)), sep="\n")
    if options.quick:
        for shape in options.shape or DEFAULT_SHAPES:
            operators.profile_all(SHAPES[shape], chosen_device(options.device))
    if failed:
        print("failed:", *failed, sep="\n  ")
    return 1 if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all), or {REPORT} alone"
    )
    parser.add_argument("--shape", action="append", choices=SHAPES, help="can be repeated; default: all but tiny")
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is a device), cpu, cuda, cuda:N")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run one round of each part, in this process; then profile a histogram, quality and training by operator",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the JSON files with results")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown and options.parts != [REPORT]:
        parser.error(f"there is no part {unknown[0]!r}; expected {', '.join(PARTS)}, or {REPORT} alone")
    return options


if __name__ == "__main__":
    sys.exit(main())
