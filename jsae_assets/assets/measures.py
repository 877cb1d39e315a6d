"""What is measured on a pair: `<variant>/jacobian_histogram`, `jacobian_examples`, `ablation_samples`,
`function_shapes` and `pair_quality`.

Here: what each asset asks of the core, and what it says of itself. Not here: measuring (`jsae_core.measures`).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from jsae_assets.assets.cell import (
    THRESHOLDS,
    Cell,
    Stopwatch,
    cell_asset,
    context_size,
    find_cell,
    load_pair,
    mlp_inputs,
    settings,
    tokens_of,
)
from jsae_assets.catalog import Catalog
from jsae_assets.io_managers import StoredTensors, text_tensor
from jsae_assets.resources import Compute

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from jsae_core import SAEPair

    # what the asset stores and what it says of it, from the pair and, by name, the other assets that it reads
    Measure = Callable[..., tuple[Any, dict[str, Any]]]

SAME_FOR_ALL = {"count_jac", "n_tokens"}  # whatever the norm: stored once
KEPT_CURVES = 300  # drawn in figures; the rest of the curves is classified only


def measure_assets(catalog: Catalog, variant: str) -> list[dg.AssetsDefinition]:
    """Everything that is measured on the pairs of a variant."""

    asset = functools.partial(_measure_asset, catalog, variant)

    return [
        asset(
            "jacobian_histogram",
            "How large the Jacobian's elements are: histograms of |J| over all tokens, plain and divided by three "
            "norms, and of the mean |J| of each pair of latents.",
            _jacobian_histogram,
            stored_as="tensors",
        ),
        asset(
            "jacobian_examples",
            "The Jacobian of every token of the model's prompt, with the latents it runs between.",
            _jacobian_examples,
            stored_as="tensors",
            reads_tokens=False,
        ),
        asset(
            "ablation_samples",
            "What happens to an output latent when one unit of an input latent is taken away, beside what the "
            "Jacobian predicts: a row a sample.",
            _ablation_samples,
        ),
        asset(
            "function_shapes",
            "Output latents as functions of single input latents: linear, jumprelu or other, a row a sample, and "
            f"the curves of the {KEPT_CURVES} samples drawn first.",
            _function_shapes,
        ),
        asset(
            "pair_quality",
            "What the language model loses when reconstructions are spliced in, how well both SAEs reconstruct, and "
            "how sparse the Jacobian is: one row, means over tokens with their standard errors.",
            _pair_quality,
        ),
    ]


def _measure_asset(
    catalog: Catalog,
    variant: str,
    name: str,
    description: str,
    measure: "Measure",
    stored_as: str = "tables",
    reads_tokens: bool = True,
) -> dg.AssetsDefinition:
    @cell_asset(
        catalog,
        [variant],
        variant,
        name,
        description,
        code_version="1",
        kinds={"pytorch", {"tensors": "safetensors", "tables": "parquet"}[stored_as]},
        ins={"sae_pair": dg.AssetIn([variant, "sae_pair"])}
        | ({"tokens": tokens_of(catalog, variant)} if reads_tokens else {}),
        io_manager_key=stored_as,
    )
    def measured(
        context: dg.AssetExecutionContext, compute: Compute, sae_pair: StoredTensors, **others: StoredTensors
    ) -> Iterator[dg.Output]:
        cell = find_cell(context, catalog, variant)
        watch = Stopwatch()
        context.log.info(f"{name.replace('_', ' ')}, {variant}, {cell}")
        value, metadata = measure(cell, compute, load_pair(sae_pair, compute), **others)
        yield dg.Output(
            value,
            metadata=metadata
            | {
                "source": " and ".join([f"{variant}/sae_pair", "tokens" if reads_tokens else "the model's prompt"]),
                "catalog_entry": catalog.digest(cell.model_key, name, cell.pair),
                "device": compute.describe(),
                "seconds": watch.seconds,
            },
        )

    return measured


def _jacobian_histogram(
    cell: Cell, compute: Compute, pair: "SAEPair", tokens: StoredTensors
) -> tuple[dict[str, "Tensor"], dict[str, float]]:
    from jsae_core.measures import jacobian_histograms, share_above
    from jsae_core.measures.histogram import NORMS

    stream = mlp_inputs(cell, pair, tokens, compute)
    budget = None if compute.memory_gib is None else round(compute.memory_gib * 2**30)
    histograms = jacobian_histograms(pair, stream, memory_bytes=budget)
    plain = histograms[None]
    tensors = _as_tensors(settings(pair)) | plain
    for norm in NORMS:
        tensors |= {f"{norm}.{name}": histograms[norm][name] for name in histograms[norm].keys() - SAME_FOR_ALL}
    return tensors, {
        **{f"share_above_{threshold}": share_above(plain, threshold) for threshold in THRESHOLDS},
        "tokens": stream.n_tokens,
        "elements_above_range": int(plain["overflow"]),
    }


def _jacobian_examples(
    cell: Cell, compute: Compute, pair: "SAEPair"
) -> tuple[dict[str, "Tensor"], dict[str, float | str]]:
    from jsae_core import run_sandwich
    from jsae_core.text import tokenise

    language_model = cell.language_model(compute, pair)
    (document,) = tokenise([cell.model.prompt], language_model.tokenizer, context_size(cell.model, language_model))
    mlp_input, _ = language_model.mlp_activations(document, cell.layer)
    sandwich = run_sandwich(pair, mlp_input[1:])
    return _as_tensors(settings(pair)) | {
        "jacobian": sandwich.jacobian,
        "input_latents": sandwich.input_latents,
        "output_latents": sandwich.output_latents,
        "input_activations": sandwich.input_activations,
        "output_activations": sandwich.output_activations,
        "token_ids": document[1:],
        "token_text": text_tensor([language_model.tokenizer.decode([token]) for token in document[1:]]),
    }, {
        "tokens": len(document) - 1,
        "prompt": cell.model.prompt,
        "share_above_0.01": (sandwich.jacobian.abs() > 0.01).float().mean().item(),
    }


def _ablation_samples(
    cell: Cell, compute: Compute, pair: "SAEPair", tokens: StoredTensors
) -> tuple["DataFrame", dict[str, float]]:
    from jsae_core.measures import ablation_samples, ablation_summary

    stream = mlp_inputs(cell, pair, tokens, compute)
    with _explained(cell, "ablation_samples"):
        samples = ablation_samples(pair, stream, cell.model.ablation_samples)
    samples.attrs = settings(pair) | {"n_tokens": stream.n_tokens}
    return samples, ablation_summary(samples)


def _function_shapes(
    cell: Cell, compute: Compute, pair: "SAEPair", tokens: StoredTensors
) -> tuple["DataFrame", dict[str, float]]:
    from jsae_core.measures import function_shapes
    from jsae_core.measures.linearity import SHAPES

    stream = mlp_inputs(cell, pair, tokens, compute)
    with _explained(cell, "function_shapes"):
        shapes = function_shapes(pair, stream, cell.model.function_shapes, n_curves=KEPT_CURVES)
    shapes.attrs = settings(pair) | {"n_tokens": stream.n_tokens}
    return shapes, {
        **{f"share_{shape}": float((shapes["shape"] == shape).mean()) for shape in SHAPES},
        "share_flat": float(shapes["flat"].mean()),
        "samples": len(shapes),
    }


def _pair_quality(
    cell: Cell, compute: Compute, pair: "SAEPair", tokens: StoredTensors
) -> tuple["DataFrame", dict[str, float]]:
    import pandas as pd

    from jsae_core.measures import pair_quality
    from jsae_core.text import first_tokens, split_documents

    documents = first_tokens(split_documents(tokens), cell.model.quality_tokens)
    quality = pair_quality(pair, cell.language_model(compute, pair), documents, compute.batch_tokens)
    named = {"model": cell.model_key, "layer": cell.layer, "variant": cell.pair.variant}
    row = pd.DataFrame([named | settings(pair) | quality])
    row.attrs = settings(pair) | {"n_tokens": int(quality["n_tokens"])}
    return row, {name: value for name, value in quality.items() if not name.endswith("_se")}


@contextlib.contextmanager
def _explained(cell: Cell, setting: str) -> Iterator[None]:
    """Says where to change the number of samples if the tokens do not hold as many."""
    try:
        yield
    except ValueError as error:
        if "n_samples" not in str(error):
            raise
        raise ValueError(
            f"models.{cell.model_key}.{setting} in the catalog is too large for {cell}: {error}"
        ) from error


def _as_tensors(numbers: Mapping[str, float]) -> dict[str, "Tensor"]:
    import torch

    return {
        name: torch.tensor(number, dtype=torch.int64 if isinstance(number, int) else torch.float64)
        for name, number in numbers.items()
    }
