"""What is measured on a pair: `<variant>/jacobian_histogram` and `<variant>/jacobian_examples`."""

from collections.abc import Iterator

import dagster as dg

from jsae_assets.assets.cell import (
    THRESHOLDS,
    TOKENS,
    Stopwatch,
    cell_asset,
    context_size,
    find_cell,
    load_pair,
    mlp_inputs,
    settings,
)
from jsae_assets.catalog import Catalog
from jsae_assets.io_managers import StoredTensors, text_tensor
from jsae_assets.resources import Compute

SAME_FOR_ALL = {"count_jac", "n_tokens"}  # whatever the norm: stored once


def jacobian_histogram_asset(catalog: Catalog, variant: str) -> dg.AssetsDefinition:
    @cell_asset(
        variant,
        "jacobian_histogram",
        "How large the Jacobian's elements are: histograms of |J| over all tokens, plain and divided by three norms, "
        "and of the mean |J| of each pair of latents.",
        code_version="1",
        kinds={"pytorch", "safetensors"},
        ins={"sae_pair": dg.AssetIn([variant, "sae_pair"]), "tokens": TOKENS},
    )
    def jacobian_histogram(
        context: dg.AssetExecutionContext, compute: Compute, sae_pair: StoredTensors, tokens: StoredTensors
    ) -> Iterator[dg.Output]:
        from jsae_core.measures import jacobian_histograms, share_above
        from jsae_core.measures.histogram import NORMS

        cell = find_cell(context, catalog, variant)
        if cell is None:
            return
        watch = Stopwatch()
        pair = load_pair(sae_pair, compute)
        stream = mlp_inputs(cell, tokens, compute)
        context.log.info(f"histograms of {stream.n_tokens:,} tokens, {variant}, {cell}")
        histograms = jacobian_histograms(pair, stream)
        plain = histograms[None]
        tensors = settings(pair) | plain
        for norm in NORMS:
            tensors |= {f"{norm}.{name}": histograms[norm][name] for name in histograms[norm].keys() - SAME_FOR_ALL}
        yield dg.Output(
            tensors,
            metadata={f"share_above_{threshold}": share_above(plain, threshold) for threshold in THRESHOLDS}
            | {
                "tokens": stream.n_tokens,
                "elements_above_range": int(plain["overflow"]),
                "source": f"{variant}/sae_pair and tokens",
                "catalog_entry": cell.catalog_digest,
                "device": compute.describe(),
                "seconds": watch.seconds,
            },
        )

    return jacobian_histogram


def jacobian_examples_asset(catalog: Catalog, variant: str) -> dg.AssetsDefinition:
    @cell_asset(
        variant,
        "jacobian_examples",
        "The Jacobian of every token of the model's prompt, with the latents it runs between.",
        code_version="1",
        kinds={"pytorch", "safetensors"},
        ins={"sae_pair": dg.AssetIn([variant, "sae_pair"])},
    )
    def jacobian_examples(
        context: dg.AssetExecutionContext, compute: Compute, sae_pair: StoredTensors
    ) -> Iterator[dg.Output]:
        from jsae_core import run_sandwich
        from jsae_core.text import tokenise

        cell = find_cell(context, catalog, variant)
        if cell is None:
            return
        watch = Stopwatch()
        pair = load_pair(sae_pair, compute)
        language_model = compute.language_model(cell.model.source)
        size = context_size(cell.model, language_model)
        (document,) = tokenise([cell.model.prompt], language_model.tokenizer, size)
        mlp_input, _ = language_model.mlp_activations(document, cell.layer)
        sandwich = run_sandwich(pair, mlp_input[1:])
        yield dg.Output(
            settings(pair)
            | {
                "jacobian": sandwich.jacobian,
                "input_latents": sandwich.input_latents,
                "output_latents": sandwich.output_latents,
                "input_activations": sandwich.input_activations,
                "output_activations": sandwich.output_activations,
                "token_ids": document[1:],
                "token_text": text_tensor([language_model.tokenizer.decode([token]) for token in document[1:]]),
            },
            metadata={
                "tokens": len(document) - 1,
                "prompt": cell.model.prompt,
                "share_above_0.01": (sandwich.jacobian.abs() > 0.01).float().mean().item(),
                "source": f"{variant}/sae_pair and the model's prompt",
                "catalog_entry": cell.catalog_digest,
                "device": compute.describe(),
                "seconds": watch.seconds,
            },
        )

    return jacobian_examples
