"""How often each measure, and a training step, has a GPU compute something, and how often the processor waits for it.

    python -m benchmarks.launches [--shape NAME] [PART ...]

It needs no GPU: on the pretended one of the tests everything runs as on an H100. An operator is counted as one launch
(some launch more kernels), as is a fused kernel, which is computed in the plain way. What a measure computes once,
however many tokens there are, is counted too. Not here: how long anything takes (`cases.py`, `operators.py`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tabulate import tabulate
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.cases import TRAINING_BATCHES
from benchmarks.shapes import SHAPES, Shape, language_model, random_documents, random_inputs, random_mlp, random_pair
from jsae_core import SAEPair, TrainingConfig, train_pair
from jsae_core.measures import (
    ablation_samples,
    function_shapes,
    jacobian_histogram,
    latent_accounting,
    latent_activity,
    latent_connections,
    pair_quality,
)
from jsae_core.memory import keep_freed_memory, usual_batch
from tests.pretended_gpu import PretendedGPU

STREAM_TOKENS = 16_384  # what an H100 is given at once
SLOW_TOKENS = 8_192  # of what takes minutes here; its pieces are as large as they get
CURVE_TOKENS = 512
SHOWN = 6  # operators


class Work(NamedTuple):
    """How much is done, of what, and the counts of it."""

    amount: int
    unit: str
    launches: Counter[str]
    waits: Counter[str]


Measure = Callable[[SAEPair, list[Tensor]], object]


def _of_stream(
    measure: Measure, unit: str = "tokens", n_tokens: int | None = None
) -> Callable[[Shape, PretendedGPU], Work]:
    """What a measure does on a stream; the tables are built before."""

    def counted(shape: Shape, gpu: PretendedGPU) -> Work:
        pair, x = random_pair(shape, gpu.device), random_inputs(shape, n_tokens or STREAM_TOKENS, gpu.device)
        pair.tables()
        amount = len(x) * (shape.k if unit == "samples" else 1)
        return _counted(gpu, amount, unit, lambda: measure(pair, list(x.split(usual_batch(gpu.device)))))

    return counted


def _function_shapes(shape: Shape, gpu: PretendedGPU) -> Work:
    """As many samples as are drawn of a few documents, by both rules."""
    pair, x = random_pair(shape, gpu.device), random_inputs(shape, CURVE_TOKENS, gpu.device)
    pair.tables()
    n = shape.k * len(x)
    return _counted(gpu, n, "samples", lambda: function_shapes(pair, [x], n, rules=("published", "relative")))


def _quality(shape: Shape, gpu: PretendedGPU) -> Work:
    """One batch, as large as an H100 is given it."""
    documents = random_documents(shape, STREAM_TOKENS // shape.document_tokens)
    with language_model(shape, gpu.device) as lm:
        pair = random_pair(shape, gpu.device, lm.mlp(shape.layer))
        pair.tables()
        return _counted(gpu, sum(map(len, documents)), "tokens", lambda: pair_quality(pair, lm, documents))


def _training(coefficient: float) -> Callable[[Shape, PretendedGPU], Work]:
    """The second step, and with it the report that ends training."""

    def counted(shape: Shape, gpu: PretendedGPU) -> Work:
        batch = TRAINING_BATCHES[-1]
        x, mlp = random_inputs(shape, batch, gpu.device), random_mlp(shape).to(gpu.device)
        config = TrainingConfig(shape.d_sae, shape.k, coefficient, steps=2, batch_tokens=batch)
        began: list[tuple[Counter[str], Counter[str]]] = []
        train_pair(x, mlp, config, report=lambda _: began.append((gpu.launches.copy(), gpu.waits.copy())))
        (launches, waits), (after, waits_after) = began
        return Work(1, "steps", after - launches, waits_after - waits)

    return counted


def _counted(gpu: PretendedGPU, amount: int, unit: str, compute: Callable[[], object]) -> Work:
    launches, waits = gpu.launches.copy(), gpu.waits.copy()
    compute()
    return Work(amount, unit, gpu.launches - launches, gpu.waits - waits)


PARTS: dict[str, Callable[[Shape, PretendedGPU], Work]] = {
    "histogram": _of_stream(jacobian_histogram),
    "ablation": _of_stream(lambda pair, x: ablation_samples(pair, x, ranks="diagonal"), "samples", SLOW_TOKENS),
    "function_shapes": _function_shapes,
    "quality": _quality,
    "accounting": _of_stream(latent_accounting, n_tokens=SLOW_TOKENS),
    "activity": _of_stream(latent_activity),
    "connections": _of_stream(latent_connections),
    "training, lambda 1": _training(1.0),
    "training, lambda 0": _training(0.0),
}


def counts(shape: Shape, parts: list[str]) -> dict[str, Work]:
    found = {}
    for part in parts:
        with PretendedGPU() as gpu:
            found[part] = PARTS[part](shape, gpu)
    return found


def as_text(found: dict[str, Work]) -> str:
    rows = []
    for part, work in found.items():
        each = 1 if work.unit == "steps" else 1e6 / work.amount
        unit = work.unit if work.unit == "steps" else f"million {work.unit}"
        most = ", ".join(f"{name.removeprefix('aten::')} {n}" for name, n in work.launches.most_common(SHOWN))
        n_launches, n_waits = work.launches.total(), work.waits.total()
        rows.append(
            (part, f"{work.amount:,} {work.unit}", n_launches, n_waits, f"{each * n_launches:,.0f}", unit, most)
        )
    headings = ("part", "of", "launches", "waits", "launches", "a", "most of them")
    return tabulate(rows, headings, tablefmt="plain", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {'; '.join(PARTS)}; all unless named")
    parser.add_argument("--shape", choices=SHAPES, default="pythia-70m")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; expected some of {'; '.join(PARTS)}")
    keep_freed_memory()
    disable_progress_bar()
    print(as_text(counts(SHAPES[options.shape], options.parts or list(PARTS))))


if __name__ == "__main__":
    main()
