"""How fast the measures of `jsae_core` are: against the original's procedure, and against what the machine can do.

    python -m benchmarks [PART ...] [--shape NAME ...] [--device cpu|cuda] [--output DIR]
    python -m benchmarks report
    python -m benchmarks.operators | precision | startup
    python -m benchmarks.training_options | review

Here: the parts that are measured (`cases`, `growth`), the shapes they are measured at, the procedure they are compared
with (`original`), the work that cannot be avoided (`cost`), the clock and the machine; and what stands for itself:
where the time goes by operator, what fewer digits do, how long people wait at the start; and, of the demo's pairs, what
options of a recipe do, and whether a review's numbers come out. Nothing of it is imported by
`jsae_core`, and nothing the tests say depends on a time.
"""
