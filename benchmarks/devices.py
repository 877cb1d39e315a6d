"""Whether a device gives what the CPU gives: every measure, on the held-out text of the embedded model, in float32.

    python -m benchmarks.devices [--device cuda] [--tokens N] [--steps N]

The pair is trained on the CPU first, for a few steps, so that its Jacobians and latents are those of a trained pair.
The first steps of the same training on the device are compared too. Not here: how fast either is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.machine import chosen_device, described_device
from benchmarks.shapes import SHAPES
from jsae_core import MLPInputs, SAEPair, TrainingConfig, load_language_model, run_sandwich, train_pair
from jsae_core.language_model import LanguageModel
from jsae_core.measures import ablation_samples, function_curves, latent_accounting, pair_quality
from jsae_core.measures.histogram import jacobian_histograms
from jsae_core.text import first_tokens, standard_library, tokenise

LAYER, CONTEXT, COEFFICIENT = 1, 256, 1.0
TOLERANCE = 1e-4  # relative
TIES = (
    1e-3  # share of what is compared that rounding may decide: a latent at the edge of the TopK, |J| at that of a bin
)
SMALLEST = 1e-3  # of a figure: what is smaller is compared with this (of some, only rounding is left)
COMPARED_STEPS, CURVES = 10, 64
CPU = torch.device("cpu")


class Difference(NamedTuple):
    """Between the CPU's result and the device's.

    Attributes:
        relative: norm of the difference over the norm of the CPU's, of what rounding did not decide.
        decided: share of what is compared that rounding decided.
    """

    what: str
    relative: float
    decided: float = 0.0

    @property
    def agrees(self) -> bool:
        return self.relative <= TOLERANCE and self.decided <= TIES


def differences(device: torch.device, n_tokens: int, steps: int) -> Iterator[Difference]:
    """Measure by measure."""
    directory = SHAPES["embedded"].directory
    models = {place: load_language_model(directory, place) for place in (CPU, device)}
    documents = first_tokens(
        tokenise(standard_library("held_out"), models[CPU].tokenizer, CONTEXT, max_tokens=4 * n_tokens), n_tokens
    )
    streams = {place: MLPInputs(model, documents, LAYER) for place, model in models.items()}
    inputs = {place: torch.cat(list(stream)) for place, stream in streams.items()}
    yield _relative("MLP inputs", inputs[CPU], inputs[device])

    pair, losses = _trained(models[CPU], inputs[CPU], steps)
    _, losses_there = _trained(models[device], inputs[CPU].to(device), steps)
    yield _relative(
        f"losses of the first {COMPARED_STEPS} training steps", *(_first(one) for one in (losses, losses_there))
    )
    pairs = {CPU: pair, device: SAEPair.from_tensors(pair.tensors(), pair.config).to(device)}
    x = {place: inputs[CPU].to(place) for place in pairs}

    def on_both(measure: Callable) -> tuple:
        return tuple(measure(place) for place in (CPU, device))

    here, there = on_both(lambda place: run_sandwich(pairs[place], x[place]))
    same = _same_latents(here, there)
    for side in ("input", "output"):
        others = getattr(here, f"{side}_latents") != getattr(there, f"{side}_latents").cpu()
        yield Difference(f"{side} latents, by rank", 0.0, others.double().mean().item())
    yield _relative("Jacobians", here.jacobian[same], there.jacobian.cpu()[same])
    yield _relative("MLP outputs", here.mlp_output, there.mlp_output)

    of_cpu, of_device = on_both(lambda place: jacobian_histograms(pairs[place], x[place].split(1000)))
    for norm, result in of_cpu.items():
        for name in ("hist", "mean_jac_hist", "count_jac"):
            # nearly all pairs of latents never meet: their zeros are nothing that was measured
            start = 1 if name == "mean_jac_hist" else 0
            counts, others = result[name][start:], of_device[norm][name][start:]
            moved = (counts - others).abs().sum() / 2 / counts.sum()
            yield Difference(f"histogram, {norm or 'plain'}, {name}", 0.0, moved.item())

    frames = on_both(lambda place: ablation_samples(pairs[place], [x[place]], 10_000))
    for name in ("jacobian", "change"):
        yield _columns("ablation", name, *frames)
    tokens = torch.nonzero(same)[:CURVES, 0]
    ranks = torch.arange(len(tokens)) % pair.config.k
    curves = on_both(
        lambda place: function_curves(
            pairs[place], x[place][tokens.to(place)], ranks.to(place), ranks.flip(0).to(place)
        )
    )
    yield _relative("function curves", *(output for _, output in curves), ties=TIES)
    yield _figures("latent accounting", *on_both(lambda place: latent_accounting(pairs[place], [x[place]])))
    yield _figures("quality", *on_both(lambda place: pair_quality(pairs[place], models[place], documents)))


def _trained(lm: LanguageModel, x: Tensor, steps: int) -> tuple[SAEPair, list[list[float]]]:
    """The pair, and the three losses of every twentieth of the steps; the first of them one by one."""
    shape = SHAPES["embedded"]
    losses: list[list[float]] = []
    recipe = {"d_sae": shape.d_sae, "k": shape.k, "jacobian_coefficient": COEFFICIENT, "batch_tokens": 512}
    for n in (COMPARED_STEPS, steps):
        pair = train_pair(
            x,
            lm.mlp(LAYER),
            TrainingConfig(**recipe, steps=n),
            layer=LAYER,
            report=lambda p: losses.append([p.input_loss, p.output_loss, p.jacobian_loss]),
        )
    return pair, losses


def _first(losses: list[list[float]]) -> Tensor:
    return torch.tensor(losses[:COMPARED_STEPS])


def _same_latents(here, there) -> Tensor:
    """Of which tokens all latents are the same, in the same order."""
    return (here.input_latents == there.input_latents.cpu()).all(1) & (
        here.output_latents == there.output_latents.cpu()
    ).all(1)


def _relative(what: str, here: Tensor, there: Tensor, ties: float = 0.0) -> Difference:
    """With `ties`, values that are off by more than the tolerance are taken for decided by rounding."""
    here, there = here.double(), there.cpu().double()
    apart = (there - here).abs() > TOLERANCE * here.abs().mean()
    if not ties or apart.double().mean() > ties:
        return Difference(what, ((there - here).norm() / here.norm()).item())
    return Difference(what, ((there - here)[~apart].norm() / here.norm()).item(), apart.double().mean().item())


def _columns(measure: str, name: str, here, there) -> Difference:
    """Of two tables, the rows that are between the same latents."""
    same = np.ones(len(here), dtype=bool)
    for column in ("output_latent", "input_latent"):
        same &= (here[column] == there[column]).to_numpy()
    values = (torch.from_numpy(frame[name].to_numpy()[same].copy()) for frame in (here, there))
    one = _relative(f"{measure}, {name}", *values, ties=TIES)
    return one._replace(decided=one.decided + float(1 - same.mean()))


def _figures(what: str, here: dict[str, float], there: dict[str, float]) -> Difference:
    """The largest relative difference of any figure of a row, standard errors left out; named."""
    named = {
        name: abs(there[name] - value) / max(abs(value), SMALLEST)
        for name, value in here.items()
        if not name.endswith("_se")
    }
    worst = max(named, key=named.__getitem__)
    return Difference(f"{what}, {len(named)} figures, most in {worst}", named[worst])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cuda, cuda:N, mps")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100, help="that the pair is trained for")
    options = parser.parse_args(arguments)
    disable_progress_bar()
    device = chosen_device(options.device)
    found = list(differences(device, options.tokens, options.steps))
    rows = [(one.what, f"{one.relative:.1g}", f"{100 * one.decided:.2g}%", "" if one.agrees else "no") for one in found]
    print(f"{described_device(device)} against the CPU, {options.tokens:,} held-out tokens")
    print(
        tabulate(rows, ("what", "relative", "decided by rounding", "agrees"), tablefmt="plain", disable_numparse=True)
    )
    return 0 if all(one.agrees for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
