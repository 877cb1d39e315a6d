"""Measures how fast `jsae_core` is, compared with the procedure of the original code and with the limit of the machine.

    python -m benchmarks [PART ...] [--shape NAME ...] [--device cpu|cuda] [--output DIR]
    python -m benchmarks report
    python -m benchmarks.operators | precision | startup
    python -m benchmarks.training_options | review

Here: the parts that are measured (`cases`, `growth`), the shapes at which they are measured, the procedure that they
are compared with (`original`), the least work that they need (`cost`), the clock and the machine. Modules that run on
their own: time by operator (`operators`), the effect of lower precision (`precision`), the time before a run computes
(`startup`); and, for the demo's pairs, the effect of a recipe's options (`training_options`) and a check of the numbers
in a review (`review`). `jsae_core` imports nothing from here, and no test depends on a measured time.
"""
