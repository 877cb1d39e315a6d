"""What fewer digits do to what is measured: the latents and Jacobians of trained pairs, against float64.

    python -m benchmarks.precision

The language model and the pair compute in the precision, as with JSAE_DTYPE; last, in float32 with tables of bfloat16,
as with a model's setting `jacobian_tables`. Pairs and tokens are those that `make demo` has stored. Not here: what
fewer digits do to speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.shapes import SHAPES
from benchmarks.startup import HOME
from jsae_core import MLPInputs, SAEPair, load_language_model, run_sandwich
from jsae_core.jacobian import Sandwich
from jsae_core.text import split_documents

MODEL, LAYER, VARIANTS = "stdlib-1m", 1, ("traditional", "jsae")
STORED = HOME / "storage"
EXACT = torch.float64
COARSER = ((torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.bfloat16))  # of the pair, of its tables
THRESHOLD = 0.01
HEADINGS = ("pair", "precision", "other inputs", "other outputs", "error of J, relative", f"|J| above {THRESHOLD}")


class Difference(NamedTuple):
    """Between two precisions of the same tokens.

    Attributes:
        inputs, outputs: shares of the TopK's latents that are others.
        error: root mean square of the difference of J between latents that both have, over that of J.
    """

    inputs: float
    outputs: float
    error: float


def sandwiches(
    path: Path, documents: list[Tensor], dtype: torch.dtype, table_dtype: torch.dtype | None = None
) -> Sandwich:
    """Of all tokens, everything but the latents in float64."""
    language_model = load_language_model(SHAPES["embedded"].directory, dtype=dtype)
    stream = MLPInputs(language_model, documents, LAYER)
    pair = SAEPair.load(path, table_dtype=table_dtype).to(dtype)
    whole = run_sandwich(pair, torch.cat(list(stream)))
    return Sandwich(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in vars(whole).values()))


def difference(exact: Sandwich, coarser: Sandwich) -> Difference:
    """Of two sandwiches of the same n tokens, latents matched by their numbers: their ranks may differ."""
    inputs, shared_inputs = _places(exact.input_latents, coarser.input_latents)
    outputs, shared_outputs = _places(exact.output_latents, coarser.output_latents)
    token = torch.arange(len(inputs))[:, None, None]
    aligned = coarser.jacobian[token, outputs[:, :, None], inputs[:, None]]
    shared = shared_outputs[:, :, None] & shared_inputs[:, None]
    J = exact.jacobian[shared]
    error = (aligned[shared] - J).square().mean().sqrt() / J.square().mean().sqrt()
    return Difference(*(1 - mask.double().mean().item() for mask in (shared_inputs, shared_outputs)), error.item())


def _places(latents: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of the latents [n, k] stands among the others [n, k], and whether it does."""
    same = latents[:, :, None] == others[:, None]
    return same.int().argmax(dim=2), same.any(dim=2)


def _share_above(sandwich: Sandwich) -> str:
    return f"{100 * (sandwich.jacobian.abs() > THRESHOLD).double().mean().item():.2f}%"


def main() -> None:
    tokens = STORED / "tokens" / f"{MODEL}.safetensors"
    paths = {variant: STORED / variant / "sae_pair" / str(LAYER) / f"{MODEL}.safetensors" for variant in VARIANTS}
    for path in (tokens, *paths.values()):
        if not path.exists():
            raise SystemExit(f"{path} is missing: run make demo first, which stores trained pairs and their tokens")
    disable_progress_bar()
    documents = split_documents(load_file(tokens))
    rows = []
    for variant, path in paths.items():
        exact = sandwiches(path, documents, EXACT)
        rows.append((variant, _name(EXACT), "", "", "", _share_above(exact)))
        for dtype, table_dtype in COARSER:
            coarser = sandwiches(path, documents, dtype, table_dtype)
            between = difference(exact, coarser)
            shares = (f"{100 * share:.2g}%" for share in (between.inputs, between.outputs))
            precision = _name(dtype) + (f", tables {_name(table_dtype)}" if table_dtype else "")
            rows.append((variant, precision, *shares, f"{between.error:.1g}", _share_above(coarser)))
    print(f"{len(exact.input_latents):,} tokens of {MODEL}, layer {LAYER}")
    print(tabulate(rows, HEADINGS, tablefmt="plain", disable_numparse=True))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
