"""Training a pair as the catalog's recipes say, for `sae_pair` and for local sweeps.

Here: a recipe's text becomes MLP inputs, progress becomes log lines. Not here: training itself (`jsae_core.training`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from jsae_assets.assets.cell import Stopwatch, context_size
from jsae_assets.assets.text import documents
from jsae_assets.catalog import Model, Recipe, Text
from jsae_assets.resources import Compute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from jsae_core import LanguageModel, SAEPair
    from jsae_core.recipe import TrainingConfig
    from jsae_core.training import TrainingProgress

SECONDS_BETWEEN_REPORTS = 5.0


def trained_pair(
    model_key: str,
    model: Model,
    layer: int,
    randomise_seed: int | None,
    recipe: Recipe,
    text: Text,
    compute: Compute,
    say: Callable[[str], None],
) -> SAEPair:
    """The pair that a recipe makes at a layer of a model, or of its randomised twin."""
    from jsae_core import train_pair

    language_model = compute.language_model(model.source, randomise_seed)
    size = context_size(model, language_model)
    inputs = functools.partial(_inputs, language_model, layer, recipe, text, size, compute.batch_tokens)
    if recipe.tokens <= recipe.config.buffer_tokens:
        # the training buffer would hold all of them anyway; the other pairs of this layer are trained on the same ones
        key = (model.source, randomise_seed, layer, text.model_dump_json(), recipe.tokens, size)
        stream: Iterable[Tensor] = compute.cached("training inputs", key, lambda: _joined(inputs()))
    else:
        stream = inputs()
    return train_pair(
        stream,
        language_model.mlp(layer),
        recipe.config,
        model_name=model.hub or model_key,
        layer=layer,
        context_size=size,
        randomize_llm_weights=randomise_seed is not None,
        report=_reporter(say, recipe.config),
    )


def _inputs(
    language_model: LanguageModel, layer: int, recipe: Recipe, text: Text, size: int, batch_tokens: int
) -> Iterable[Tensor]:
    from jsae_core import MLPInputs
    from jsae_core.text import tokenise

    tokens = tokenise(documents(text), language_model.tokenizer, size, recipe.tokens, text.long_documents)
    n_tokens = sum(len(document) - 1 for document in tokens)
    if n_tokens < recipe.tokens:
        raise ValueError(
            f"the text {recipe.text!r} holds {n_tokens:,} tokens, but the recipe trains on {recipe.tokens:,}; add "
            f"text, or set the recipe's `tokens` to {n_tokens} at most"
        )
    return MLPInputs(language_model, tokens, layer, batch_tokens)


def _joined(stream: Iterable[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(stream))


def _reporter(say: Callable[[str], None], config: TrainingConfig) -> Callable[[TrainingProgress], None]:
    watch = Stopwatch()
    said = 0.0

    def report(progress: TrainingProgress) -> None:
        nonlocal said
        if watch.seconds - said < SECONDS_BETWEEN_REPORTS and progress.step < progress.steps:
            return
        said = watch.seconds
        left = watch.seconds / progress.step * (progress.steps - progress.step)
        losses = {"input": progress.input_loss, "output": progress.output_loss}
        if config.jacobian_coefficient:  # else the Jacobian is not computed
            losses["mean |J|" if config.objective == "l1" else config.objective] = progress.jacobian_loss
        said_of_losses = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        say(f"step {progress.step}/{progress.steps}: {said_of_losses}; about {left:.0f} s left")

    return report
