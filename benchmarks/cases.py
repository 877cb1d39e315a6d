"""The parts of the benchmark: each runs one measure of `jsae_core` and the original's procedure on the same inputs,
checks that the results agree, measures both times in alternation, and compares with the limit.

A part is a function of (shape, device, rates) that returns rows of plain values, which `report.py` shows. Not here: the
procedures (`original.py`), the limit (`cost.py`), the growth of time and memory (`growth.py`).

The amount of work in a round is chosen so that all parts at all shapes take about 50 minutes on two cores.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import cost, original
from benchmarks.agreement import Agreement, agree, relative
from benchmarks.cost import Cost
from benchmarks.machine import Rates
from benchmarks.shapes import (
    Shape,
    language_model,
    random_documents,
    random_inputs,
    random_mlp,
    random_pair,
)
from benchmarks.timing import alternating, peak_memory, per_unit, ratios, spread, usual_memory
from jsae_core import SAEPair, TrainingConfig, run_sandwich, train_pair
from jsae_core.jacobian import Sandwich
from jsae_core.measures import ablation_samples, function_shapes, jacobian_histogram, pair_quality
from jsae_core.memory import keep_freed_memory, usual_batch
from jsae_core.mlp import MLP
from jsae_core.sae import active_latents
from jsae_core.training import _initial_weights

Row = dict[str, Any]

ROUNDS = {"pythia-410m": 2}
DEFAULT_ROUNDS = 3
SLOW = "pythia-410m"  # the shape with less work per round, since a call of the original takes seconds there
CUDA_FACTOR = 16  # times as much work for `jsae_core` on CUDA, so that a round is long compared with its overhead
DENSE_SUMS_BYTES = 8 * 2**30  # the original computes its d_sae x d_sae matrix only up to this size

TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 5e-3  # of Jacobians from tables in bfloat16, which has eight binary digits
TIES = 1e-3  # the share of values that may differ because of rounding
CLASS_TIES = 1e-2  # the share of curves that may get another class, since a residual can lie very close to its bound
PROMPT_TOKENS = 64
TRAINING_BATCHES = (1024, 4096)
COMPARED_BATCH = TRAINING_BATCHES[0]  # with the other one the original takes too long
COEFFICIENTS = (1.0, 0.0)
COMPARED_STEPS = 3
WARM_UP_STEPS, TIMED_STEPS = 7, 5  # after about seven steps, a process has allocated all the memory that a step needs
FEWER_STEPS = 3, 2  # warm-up and timed steps at the shape SLOW, whose steps take seconds
REPORTS = 20  # by `train_pair`, evenly spread over its steps if there are at least as many


class Work(NamedTuple):
    """The number of documents or tokens in one round."""

    ours: int
    original: int


def _work(usual: Work, at_slow_shape: Work, shape: Shape, device: torch.device) -> Work:
    work = at_slow_shape if shape.name == SLOW else usual
    return Work(work.ours * (CUDA_FACTOR if device.type == "cuda" else 1), work.original)


def _rounds(shape: Shape) -> int:
    return ROUNDS.get(shape.name, DEFAULT_ROUNDS)


def histogram(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Histograms of |J| and of mean |J| over documents of MLP inputs, and the same with tables in bfloat16."""
    # many documents, since the original searches for NaN every 20 of them, and so that its last pass over all sums,
    # once per call, counts for as little as ours
    work = _work(Work(40, 40), Work(17, 2), shape, device)
    pair = random_pair(shape, device)
    documents = [random_inputs(shape, shape.document_tokens, device, seed) for seed in range(max(work))]
    batches = _batches(documents[: work.ours])
    sums_bytes = 8 * shape.d_sae**2
    with_means = sums_bytes <= DENSE_SUMS_BYTES
    _, memory = peak_memory(lambda: jacobian_histogram(pair, batches), device)

    few = documents[:2]
    theirs = original.histogram(pair, few, with_means)
    agreement = histograms_agree(jacobian_histogram(pair, _batches(few)), theirs)
    n_tokens = sum(map(len, batches))
    seconds = alternating(
        {
            "ours": per_unit(lambda: jacobian_histogram(pair, batches), n_tokens, device),
            "original": per_unit(
                lambda: original.histogram(pair, documents[: work.original], with_means),
                work.original * shape.document_tokens,
                device,
                usual_memory,
            ),
        },
        _rounds(shape),
    )
    note = "" if with_means else f"the original runs without sums of |J| ({sums_bytes / 1e9:.0f} GB), ours with them"
    row = _row("histogram", shape, "token", seconds, cost.histogram(shape), rates, memory, agreement, note=note)
    return [row, _histogram_of_rounded_tables(pair, batches, shape, device, rates)]


def _histogram_of_rounded_tables(
    pair: SAEPair, batches: Sequence[Tensor], shape: Shape, device: torch.device, rates: Rates
) -> Row:
    """Return the row of a float32 pair with tables in bfloat16. The original has no such tables, so its Jacobians are
    compared with those of the pair's own tables."""
    rounded = SAEPair(pair.config, pair.input_sae, pair.output_sae, pair.mlp, torch.bfloat16)
    _, memory = peak_memory(lambda: jacobian_histogram(rounded, batches), device)
    document = batches[0][: shape.document_tokens]
    J, rounded_J = (run_sandwich(each_pair, document).jacobian for each_pair in (pair, rounded))
    error = (rounded_J - J).norm() / J.norm()
    agreement = [agree("histogram, J of bfloat16 tables, relative", error, ROUNDED_TOLERANCE)]
    n_tokens = sum(map(len, batches))
    seconds = alternating(
        {"ours": per_unit(lambda: jacobian_histogram(rounded, batches), n_tokens, device)}, _rounds(shape)
    )
    limit, setting = cost.histogram(shape), "tables bfloat16"
    return _row("histogram", shape, "token", seconds, limit, rates, memory, agreement, setting=setting)


def histograms_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[Agreement]:
    """Check that the share of counts in another bin is small. Such counts are values that lie within rounding of a
    bin's edge."""
    agreement = []
    for name, counts in theirs.items():
        # without the first bin of the means: nearly all of it are pairs of latents that never occurred together
        start = 1 if name == "mean_jac_hist" else 0
        moved = (ours[name] - counts)[start:].abs().sum() / 2 / counts[start:].sum()
        agreement.append(agree(f"histogram, {name}, share in another bin", moved, TIES))
    return agreement


def _batches(documents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    tokens = torch.cat(list(documents))
    return tokens.split(usual_batch(tokens.device))


def ablation(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Ablations on the diagonal of every token: the change of the i-th output latent when one unit of the i-th input
    latent is taken away."""
    work = _work(Work(512, 8), Work(128, 1), shape, device)
    pair = random_pair(shape, device)
    x = random_inputs(shape, work.ours, device)
    few = x[: work.original]

    def ours(x: Tensor):
        return ablation_samples(pair, [x], ranks="diagonal")

    _, memory = peak_memory(lambda: ours(x), device)
    frame, (predicted, changes) = ours(few), original.ablation(pair, few)
    agreement = [
        agree(f"ablation, {name}", torch.tensor(frame[name]) - theirs.cpu(), TOLERANCE, TIES)
        for name, theirs in (("jacobian", predicted), ("change", changes))
    ]
    seconds = alternating(
        {
            "ours": per_unit(lambda: ours(x), len(x) * shape.k, device),
            "original": per_unit(lambda: original.ablation(pair, few), len(few) * shape.k, device, usual_memory),
        },
        _rounds(shape),
    )
    limit = cost.ablation(shape)
    return [_row("ablation", shape, "sample", seconds, limit, rates, memory, agreement, limit_of="direct")]


def shapes_of_functions(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Curves and their classes, for k random elements of each token's Jacobian, as many as in the original."""
    work = _work(Work(64, 4), Work(10, 1), shape, device)
    pair = random_pair(shape, device)
    x = random_inputs(shape, work.ours, device)
    few = x[: work.original]

    def ours(x: Tensor, n_curves: int = 0):
        return function_shapes(pair, [x], shape.k * len(x), n_curves=n_curves)

    _, memory = peak_memory(lambda: ours(x), device)
    frame = ours(few, n_curves=shape.k * len(few))
    samples = list(frame[["token", "output_rank", "input_rank"]].itertuples(index=False, name=None))
    agreement = curves_agree(frame, original.function_shapes(pair, few, samples))
    seconds = alternating(
        {
            "ours": per_unit(lambda: ours(x), shape.k * len(x), device),
            "original": per_unit(
                lambda: original.function_shapes(pair, few, samples), len(samples), device, usual_memory
            ),
        },
        _rounds(shape),
    )
    limit = cost.function_shapes(shape)
    return [_row("function_shapes", shape, "sample", seconds, limit, rates, memory, agreement, limit_of="direct")]


def curves_agree(frame: pd.DataFrame, curves: Sequence[original.Curve]) -> list[Agreement]:
    """Check that both axes of all curves, and their classes, agree."""
    agreement = [
        agree(
            f"function_shapes, {name}",
            torch.from_numpy(np.stack(frame[name])) - torch.stack([getattr(curve, name) for curve in curves]).cpu(),
            TOLERANCE,
            TIES,
        )
        for name in ("input_values", "output_values")
    ]
    differs = torch.tensor([ours != curve.shape for ours, curve in zip(frame["shape"], curves, strict=True)])
    return [*agreement, agree("function_shapes, shape", differs, 0.0, CLASS_TIES)]


def quality(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """The losses of a language model with reconstructions spliced in, and the Jacobian's sparsity, over documents."""
    work = _work(Work(4, 4), Work(1, 1), shape, device)
    documents = random_documents(shape, max(work))
    few = documents[: work.original]
    with language_model(shape, device) as lm:
        pair = random_pair(shape, device, lm.mlp(shape.layer))

        def ours(documents: Sequence[Tensor]) -> dict[str, float]:
            return pair_quality(pair, lm, documents)

        _, memory = peak_memory(lambda: ours(documents[: work.ours]), device)
        hooked = original.hooked_model(lm)
        theirs = original.quality(pair, hooked, few)
        names = list(theirs)
        values = ours(few)
        difference = relative(torch.tensor([values[name] for name in names]), torch.tensor(list(theirs.values())))
        agreement = [
            agree(f"quality, {name}, relative", value, TOLERANCE) for name, value in zip(names, difference, strict=True)
        ]
        seconds = alternating(
            {
                "ours": per_unit(lambda: ours(documents[: work.ours]), work.ours * shape.document_tokens, device),
                "original": per_unit(
                    lambda: original.quality(pair, hooked, few),
                    work.original * shape.document_tokens,
                    device,
                    usual_memory,
                ),
            },
            _rounds(shape),
        )
    note = "ours also splices both reconstructions at once and measures their quality, which the original does not do"
    return [_row("quality", shape, "token", seconds, cost.quality(shape), rates, memory, agreement, note=note)]


def training(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Training steps at two batch sizes, with and without the penalty on the Jacobian."""
    mlp = random_mlp(shape).to(device)
    inputs = {batch: random_inputs(shape, batch, device) for batch in TRAINING_BATCHES}
    settings = [(batch, coefficient) for batch in TRAINING_BATCHES for coefficient in COEFFICIENTS]
    steps = {
        (batch, coefficient): partial(_step_seconds, inputs[batch], mlp, shape, coefficient)
        for batch, coefficient in settings
    }
    memory = {setting: peak_memory(step, device)[1] for setting, step in steps.items()}
    agreement, trainer = _training_agreement(inputs[COMPARED_BATCH], mlp, shape)
    measures: dict[Any, Callable[[], float]] = dict(steps)
    measures["original"] = per_unit(partial(trainer.step, inputs[COMPARED_BATCH]), 1, device, usual_memory)
    seconds = alternating(measures, _rounds(shape))
    rows = []
    for batch, coefficient in settings:
        compared = batch == COMPARED_BATCH
        active, note = None, "the original also computes the Jacobian at lambda 0" if compared else ""
        if coefficient:
            active = _active_latents(inputs[batch], mlp, shape)
            note = f"{sum(active):,} of {2 * shape.d_sae:,} latents are active"
        row = _row(
            "training",
            shape,
            "step",
            {"ours": seconds[batch, coefficient]} | ({"original": seconds["original"]} if compared else {}),
            cost.training_step(shape, batch, active),
            rates,
            memory[batch, coefficient],
            agreement if compared and coefficient else [],
            setting=f"batch {batch}, lambda {coefficient:g}",
            note=note,
        )
        if coefficient:
            row["over_traditional"] = ratios(seconds[batch, coefficient], seconds[batch, 0.0])._asdict()
        rows.append(row)
    return rows


def _active_latents(x: Tensor, mlp: MLP, shape: Shape) -> tuple[int, int]:
    """Return how many input and output latents are active in a batch, with weights like those at the start of
    training."""
    pair = random_pair(shape, x.device, mlp)
    return tuple(
        len(active_latents(sae, inputs)[1].unique())
        for sae, inputs in ((pair.input_sae, x), (pair.output_sae, mlp.respond(x).output))
    )


def _training_config(batch: int, shape: Shape, coefficient: float, steps: int) -> TrainingConfig:
    return TrainingConfig(shape.d_sae, shape.k, coefficient, steps=steps, batch_tokens=batch)


def steps_between_reports(device: torch.device) -> int:
    return 10 if device.type == "cuda" else 1


def _step_seconds(x: Tensor, mlp: MLP, shape: Shape, coefficient: float) -> float:
    """Return the median time of a step, from the times between two reports of `train_pair`. This leaves out the
    preparation before the first step and making the pair after the last. The device has finished a step when it is
    reported, since the report needs its losses."""
    keep_freed_memory()
    warm_up, timed = FEWER_STEPS if shape.name == SLOW else (WARM_UP_STEPS, TIMED_STEPS)
    steps = warm_up + timed
    if x.device.type == "cuda":  # a report after every step would make the device idle until the next step begins
        steps = REPORTS * steps_between_reports(x.device)
    clock: list[tuple[int, float]] = []
    config = _training_config(len(x), shape, coefficient, steps)
    train_pair(x, mlp, config, report=lambda progress: clock.append((progress.step, time.perf_counter())))
    reports = [(step, now) for step, now in clock if step >= warm_up]
    return statistics.median(
        (after - before) / (step - previous)
        for (previous, before), (step, after) in zip(reports, reports[1:], strict=False)
    )


def _training_agreement(x: Tensor, mlp: MLP, shape: Shape) -> tuple[list[Agreement], original.Trainer]:
    """Compare the losses of the first steps from the same weights on the same tokens. The losses after the first step
    show that the update agrees as well. (Comparing weights would show less: at first Adam changes each weight by the
    learning rate times the sign of its gradient, and rounding decides the sign of a gradient that is almost zero.)"""
    config = _training_config(len(x), shape, COEFFICIENTS[0], COMPARED_STEPS)
    ours: list[list[float]] = []
    train_pair(x, mlp, config, report=lambda p: ours.append([p.input_loss, p.output_loss, p.jacobian_loss]))
    generator = torch.Generator().manual_seed(config.seed)
    weights = [_initial_weights(shape.d_model, shape.d_sae, generator, mlp.W_in) for _ in ("input", "output")]
    trainer = original.Trainer(weights, mlp, config)
    theirs = [trainer.step(x) for _ in range(config.steps)]
    difference = relative(torch.tensor(ours), torch.tensor(theirs))
    return [agree(f"training, losses of {config.steps} steps, relative", difference, TOLERANCE)], trainer


def examples(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """The Jacobians of one short prompt."""
    pair = random_pair(shape, device)
    x = random_inputs(shape, min(PROMPT_TOKENS, shape.document_tokens), device)

    def ours() -> Sandwich:
        # a new pair without tables, as if an asset had just loaded it
        return run_sandwich(SAEPair(pair.config, pair.input_sae, pair.output_sae, pair.mlp), x)

    @torch.no_grad()
    def theirs() -> original.Sandwich:
        return original.sandwich(pair, x)

    result, memory = peak_memory(ours, device)
    difference = result.jacobian - theirs().jacobian
    agreement = [agree("examples, jacobian", difference, TOLERANCE, TIES)]
    seconds = alternating(
        {
            "ours": per_unit(ours, len(x), device),
            "original": per_unit(theirs, len(x), device, usual_memory),
        },
        _rounds(shape),
    )
    note = "the pair was just loaded; the limit leaves out building the table rows that the prompt needs"
    limit = cost.examples(shape, len(x))
    return [_row("examples", shape, "token", seconds, limit, rates, memory, agreement, note=note)]


def loading(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Loading a pair from an artifact's directory."""
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        random_pair(shape, torch.device("cpu")).save(directory)
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
        pair, memory = peak_memory(lambda: SAEPair.load(directory, device), device)
        theirs = original.load(Path(directory), device)
        difference = torch.tensor(
            [(tensor - theirs[name].cpu()).abs().max() for name, tensor in pair.tensors().items()]
        )
        agreement = [agree("loading, weights", difference, 0.0)]
        seconds = alternating(
            {
                "ours": per_unit(lambda: SAEPair.load(directory, device), 1, device),
                "original": per_unit(lambda: original.load(Path(directory), device), 1, device, usual_memory),
            },
            _rounds(shape),
        )
    return [_row("loading", shape, "pair", seconds, cost.loading(size), rates, memory, agreement)]


def _row(
    part: str,
    shape: Shape,
    unit: str,
    seconds: dict[str, list[float]],
    limit: Cost,
    rates: Rates,
    memory: int | None,
    agreement: list[Agreement],
    setting: str = "",
    limit_of: str = "",
    note: str = "",
) -> Row:
    """Return a row of results as plain values.

    Args:
        limit_of: the method that `limit` applies to, if another method can be faster than that limit.
    """
    row: Row = {
        "part": part,
        "shape": shape.name,
        "setting": setting,
        "unit": unit,
        "ours_seconds": spread(seconds["ours"])._asdict(),
        "peak_memory_bytes": memory,
        "limit": {
            "seconds": limit.seconds(rates),
            "flops": limit.flops,
            "bytes": limit.bytes,
            "bound": limit.bound(rates),
            "of": limit_of,
        },
        "share_of_limit": limit.seconds(rates) / statistics.median(seconds["ours"]),
        "agreement": [asdict(comparison) for comparison in agreement],
        "note": note,
    }
    if "original" in seconds:
        row["original_seconds"] = spread(seconds["original"])._asdict()
        row["ratio"] = ratios(seconds["original"], seconds["ours"])._asdict()
    return row
