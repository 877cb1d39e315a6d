"""The parts of the benchmark: each runs one measure of `jsae_core` and the original's procedure on the same inputs,
checks that they agree, times them in turn, and compares with the limit.

A part is a function of (shape, device, rates) and gives rows of plain values, which `report.py` shows. Not here: the
procedures (`original.py`), the limit (`cost.py`), how cost grows (`growth.py`).

How much work a round does is chosen so that all parts at all shapes take about 50 minutes on two cores.
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
from benchmarks.timing import in_turn, peak_memory, per_unit, ratios, spread, usual_memory
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
SMALL = "pythia-410m"  # the shape that gets less work, since a call of the original takes seconds there
ON_CUDA = 16  # times the work of ours: a round must outlast what starts and ends it
DENSE_SUMS_BYTES = 8 * 2**30  # up to which the original is given its d_sae x d_sae matrix

TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 5e-3  # of Jacobians whose rows have the eight binary digits of bfloat16
TIES = 1e-3  # share of values that rounding may decide
CLASS_TIES = 1e-2  # of classes of curves: a residual may lie as near to its bound
PROMPT_TOKENS = 64
TRAINING_BATCHES = (1024, 4096)
COMPARED_BATCH = TRAINING_BATCHES[0]  # the original takes too long at the other
COEFFICIENTS = (1.0, 0.0)
COMPARED_STEPS = 3
WARM_UP_STEPS, TIMED_STEPS = 7, 5  # a process has all the memory that a step takes after about seven
FEWER_STEPS = 3, 2  # of the shape that gets less work, whose steps take seconds


class Work(NamedTuple):
    """Documents or tokens in one round."""

    ours: int
    original: int


def _work(usual: Work, less: Work, shape: Shape, device: torch.device) -> Work:
    work = less if shape.name == SMALL else usual
    return Work(work.ours * (ON_CUDA if device.type == "cuda" else 1), work.original)


def _rounds(shape: Shape) -> int:
    return ROUNDS.get(shape.name, DEFAULT_ROUNDS)


def histogram(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Histograms of |J| and of mean |J| over documents of MLP inputs; and the same of rounded tables."""
    # the original looks for NaN every 20 documents, and its last pass over all sums is to weigh as little as ours
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
    seconds = in_turn(
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
    note = "" if with_means else f"the original without its sums of |J| ({sums_bytes / 1e9:.0f} GB), ours with them"
    row = _row("histogram", shape, "token", seconds, cost.histogram(shape), rates, memory, agreement, note=note)
    return [row, _histogram_of_rounded_tables(pair, batches, shape, device, rates)]


def _histogram_of_rounded_tables(
    pair: SAEPair, batches: Sequence[Tensor], shape: Shape, device: torch.device, rates: Rates
) -> Row:
    """Beside a float32 pair, which the original does not have; Jacobians compared with the pair's own."""
    rounded = SAEPair(pair.config, pair.input_sae, pair.output_sae, pair.mlp, torch.bfloat16)
    _, memory = peak_memory(lambda: jacobian_histogram(rounded, batches), device)
    J, ours = (run_sandwich(one, batches[0][: shape.document_tokens]).jacobian for one in (pair, rounded))
    error = (ours - J).norm() / J.norm()
    agreement = [agree("histogram, J of bfloat16 tables, relative", error, ROUNDED_TOLERANCE)]
    n_tokens = sum(map(len, batches))
    seconds = in_turn(
        {"ours": per_unit(lambda: jacobian_histogram(rounded, batches), n_tokens, device)}, _rounds(shape)
    )
    limit, setting = cost.histogram(shape), "tables bfloat16"
    return _row("histogram", shape, "token", seconds, limit, rates, memory, agreement, setting=setting)


def histograms_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[Agreement]:
    """Of what is counted, the share that lies in another bin: |J| within rounding of a bin's edge."""
    agreement = []
    for name, counts in theirs.items():
        # a mean of zero, which nearly all are, is nothing that was measured
        start = 1 if name == "mean_jac_hist" else 0
        moved = (ours[name] - counts)[start:].abs().sum() / 2 / counts[start:].sum()
        agreement.append(agree(f"histogram, {name}, share in another bin", moved, TIES))
    return agreement


def _batches(documents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    tokens = torch.cat(list(documents))
    return tokens.split(usual_batch(tokens.device))


def ablation(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """The diagonal of every token: one unit of the i-th input latent less, the change of the i-th output latent."""
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
    seconds = in_turn(
        {
            "ours": per_unit(lambda: ours(x), len(x) * shape.k, device),
            "original": per_unit(lambda: original.ablation(pair, few), len(few) * shape.k, device, usual_memory),
        },
        _rounds(shape),
    )
    limit = cost.ablation(shape)
    return [_row("ablation", shape, "sample", seconds, limit, rates, memory, agreement, limit_of="direct")]


def shapes_of_functions(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Curves of k random elements a token, as many as the original draws, and their classes."""
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
    seconds = in_turn(
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
    """Both axes of all curves, and their classes."""
    agreement = [
        agree(
            f"function_shapes, {name}",
            torch.from_numpy(np.stack(frame[name])) - torch.stack([getattr(curve, name) for curve in curves]).cpu(),
            TOLERANCE,
            TIES,
        )
        for name in ("input_values", "output_values")
    ]
    other = torch.tensor([ours != curve.shape for ours, curve in zip(frame["shape"], curves, strict=True)])
    return [*agreement, agree("function_shapes, shape", other, 0.0, CLASS_TIES)]


def quality(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """What a language model loses with reconstructions spliced in, and sparsity, over documents of tokens."""
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
        seconds = in_turn(
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
    note = "ours with both reconstructions at once and the reconstruction's quality, which the original does not give"
    return [_row("quality", shape, "token", seconds, cost.quality(shape), rates, memory, agreement, note=note)]


def training(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """Steps at two batch sizes, with and without the Jacobian's penalty."""
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
    seconds = in_turn(measures, _rounds(shape))
    rows = []
    for batch, coefficient in settings:
        compared = batch == COMPARED_BATCH
        active, note = None, "the original computes the Jacobian at lambda 0 too" if compared else ""
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
    """How many input and output latents are active in a batch, at weights like those that training begins with."""
    pair = random_pair(shape, x.device, mlp)
    return tuple(
        len(active_latents(sae, inputs)[1].unique())
        for sae, inputs in ((pair.input_sae, x), (pair.output_sae, mlp.respond(x).output))
    )


def _training_config(batch: int, shape: Shape, coefficient: float, steps: int) -> TrainingConfig:
    return TrainingConfig(shape.d_sae, shape.k, coefficient, steps=steps, batch_tokens=batch)


def _step_seconds(x: Tensor, mlp: MLP, shape: Shape, coefficient: float) -> float:
    """Between reports, which come after every step where there are few: neither what training begins with nor the pair
    it ends with is part of a step. A report's losses wait for the device."""
    keep_freed_memory()
    clock: list[float] = []
    warm_up, timed = FEWER_STEPS if shape.name == SMALL else (WARM_UP_STEPS, TIMED_STEPS)
    config = _training_config(len(x), shape, coefficient, warm_up + timed)
    train_pair(x, mlp, config, report=lambda progress: clock.append(time.perf_counter()))
    if len(clock) != config.steps:
        raise RuntimeError(f"train_pair reported {len(clock)} times in {config.steps} steps; expected every step")
    clock = clock[warm_up - 1 :]
    return statistics.median(after - before for before, after in zip(clock, clock[1:], strict=False))


def _training_agreement(x: Tensor, mlp: MLP, shape: Shape) -> tuple[list[Agreement], original.Trainer]:
    """Losses of every step from the same weights on the same tokens: those after the first say that the step itself
    agrees. (Weights would say less: at first Adam moves each by the learning rate and the sign of its gradient, which
    rounding decides where it is nearly zero.)"""
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
    """The Jacobians of one prompt."""
    pair = random_pair(shape, device)
    x = random_inputs(shape, min(PROMPT_TOKENS, shape.document_tokens), device)

    def ours() -> Sandwich:
        # as it is when an asset has just loaded it: its tables are not built
        return run_sandwich(SAEPair(pair.config, pair.input_sae, pair.output_sae, pair.mlp), x)

    @torch.no_grad()
    def theirs() -> original.Sandwich:
        return original.sandwich(pair, x)

    result, memory = peak_memory(ours, device)
    difference = result.jacobian - theirs().jacobian
    agreement = [agree("examples, jacobian", difference, TOLERANCE, TIES)]
    seconds = in_turn(
        {
            "ours": per_unit(ours, len(x), device),
            "original": per_unit(theirs, len(x), device, usual_memory),
        },
        _rounds(shape),
    )
    note = "of a pair that was just loaded; the limit leaves out the table rows that are built for the prompt"
    limit = cost.examples(shape, len(x))
    return [_row("examples", shape, "token", seconds, limit, rates, memory, agreement, note=note)]


def loading(shape: Shape, device: torch.device, rates: Rates) -> list[Row]:
    """A pair from an artifact's directory."""
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        random_pair(shape, torch.device("cpu")).save(directory)
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
        pair, memory = peak_memory(lambda: SAEPair.load(directory, device), device)
        theirs = original.load(Path(directory), device)
        difference = torch.tensor(
            [(tensor - theirs[name].cpu()).abs().max() for name, tensor in pair.tensors().items()]
        )
        agreement = [agree("loading, weights", difference, 0.0)]
        seconds = in_turn(
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
    """Plain values. `limit_of` says that it is the limit of one way of doing it, which another way may pass."""
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
        "agreement": [asdict(one) for one in agreement],
        "note": note,
    }
    if "original" in seconds:
        row["original_seconds"] = spread(seconds["original"])._asdict()
        row["ratio"] = ratios(seconds["original"], seconds["ours"])._asdict()
    return row
