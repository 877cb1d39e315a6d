"""Training a pair as the catalog's recipes say, for `sae_pair` and for local sweeps.

Here: a recipe's text becomes MLP inputs, progress becomes log lines, and a run in wandb where one is asked for. Not
here: training itself (`jsae_core.training`).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsae_assets.assets.cell import context_size
from jsae_assets.assets.text import documents
from jsae_assets.catalog import Model, Recipe, Text
from jsae_assets.resources import Compute
from jsae_core.pace import Pace
from jsae_core.text_files import matching_files

if TYPE_CHECKING:
    from torch import Tensor

    from jsae_core import LanguageModel, SAEPair
    from jsae_core.checkpoints import Checkpoint
    from jsae_core.recipe import TrainingConfig
    from jsae_core.training import TrainingProgress


def trained_pair(
    model_key: str,
    model: Model,
    layer: int,
    randomise_seed: int | None,
    recipe: Recipe,
    text: Text,
    compute: Compute,
    checkpoint: Checkpoint,
    downloads: Path,
    say: Callable[[str], None],
) -> SAEPair:
    """The pair that a recipe makes at a layer of a model, or of its randomised twin.

    Args:
        checkpoint: training goes on from it; to be removed once the pair is stored.
        downloads: the folder in which wandb's client keeps its files, if losses are logged there.
        say: told how far training is.
    """
    import torch

    from jsae_core import MLPInputs, train_pair

    language_model = compute.language_model(model.source, randomise_seed)
    size = context_size(model, language_model)
    tokens = _Tokens(recipe, text, language_model, size, say)
    if recipe.tokens <= recipe.config.buffer_tokens:
        # the training buffer would hold all of them anyway; the other pairs of this layer are trained on the same ones
        key = (model.source, randomise_seed, layer, text.model_dump_json(), recipe.tokens, size)
        stream: Iterable[Tensor] = compute.cached(
            "training inputs",
            key,
            lambda: torch.cat(list(MLPInputs(language_model, list(tokens), layer, compute.most_tokens_at_once))),
        )
    else:
        stream = MLPInputs(language_model, tokens, layer, compute.most_tokens_at_once)
        checkpoint = checkpoint.of(_version(text), str(compute.most_tokens_at_once))
    name = model.hub or model_key
    say_progress = _reporter(say, recipe.config)
    with _logged_in_wandb(compute, downloads, name, layer, recipe.config) as logged:

        def report(progress: TrainingProgress) -> None:
            say_progress(progress)
            logged(progress)

        return train_pair(
            stream,
            language_model.mlp(layer),
            recipe.config,
            model_name=name,
            layer=layer,
            context_size=size,
            randomize_llm_weights=randomise_seed is not None,
            report=report,
            checkpoint=checkpoint,
        )


@dataclass(frozen=True)
class _Tokens(Iterable["Tensor"]):
    """The token documents that a recipe trains on, made as they are read, so that no more of them is held than is used
    at once; every read begins anew.

    Raises:
        ValueError: at its end: the text holds fewer tokens than the recipe asks for.
    """

    recipe: Recipe
    text: Text
    language_model: LanguageModel
    context_size: int
    say: Callable[[str], None]

    def __iter__(self) -> Iterator[Tensor]:
        from jsae_core.text import tokens_of

        wanted, n_tokens = self.recipe.tokens, 0
        tokenizer, long_documents = self.language_model.tokenizer, self.text.long_documents
        source = documents(self.text, self.say)
        for document in tokens_of(source, tokenizer, self.context_size, wanted, long_documents):
            n_tokens += len(document) - 1
            yield document
        if n_tokens < wanted:
            raise ValueError(
                f"the text {self.recipe.text!r} holds {n_tokens:,} tokens, but the recipe trains on {wanted:,}; add "
                f"text, or set the recipe's `tokens` to {n_tokens} at most"
            )


def _version(text: Text) -> str:
    """Which state of a text this is, as far as can be told without reading it: another one may hold other tokens."""
    if text.files:
        files = [path.stat() for path in matching_files([str(place) for place in text.files])]
        return json.dumps([[file.st_size, file.st_mtime_ns] for file in files])
    return platform.python_version() if text.standard_library else documents(text, print).revision or ""


def _reporter(say: Callable[[str], None], config: TrainingConfig) -> Callable[[TrainingProgress], None]:
    """Says how far training is, how fast, what the losses are and how long it still takes."""
    pace, first = Pace(config.steps), True

    def report(progress: TrainingProgress) -> None:
        nonlocal first
        if first:
            pace.before = progress.spared
        if pace.due() or progress.step == progress.steps:
            say(said(progress))
        if first:  # until then, activations for the buffer were computed too
            pace.begin(progress.step)
            first = False

    def said(progress: TrainingProgress) -> str:
        losses = {"input": progress.input_loss, "output": progress.output_loss}
        if config.jacobian_coefficient:  # else the Jacobian is not computed
            losses["mean |J|" if config.objective == "l1" else config.objective] = progress.jacobian_loss
        said_of_losses = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        return (
            f"step {progress.step:,}/{progress.steps:,}, {progress.step * config.batch_tokens:,} tokens, "
            f"{pace.rate(progress.step) * config.batch_tokens:,.0f} tokens/s: {said_of_losses}; "
            f"{pace.left(progress.step)}"
        )

    return report


@contextmanager
def _logged_in_wandb(
    compute: Compute, downloads: Path, model_name: str, layer: int, config: TrainingConfig
) -> Iterator[Callable[[TrainingProgress], None]]:
    """What logs the progress of training as a run of the project that is asked for; where none is, it does nothing."""
    from jsae_core.wandb_client import logged_run

    if not compute.wandb_project:
        yield lambda progress: None
        return
    name = f"{model_name} layer {layer} λ {config.jacobian_coefficient:g}"
    settings = {"model_name": model_name, "layer": layer, **asdict(config)}
    offline = os.environ.get("WANDB_MODE") == "offline"
    with logged_run(compute.wandb_project, name, "training", settings, downloads / "wandb", offline) as run:

        def log(progress: TrainingProgress) -> None:
            losses = {"input_loss": progress.input_loss, "output_loss": progress.output_loss}
            losses["jacobian_loss"] = progress.jacobian_loss
            run.log(losses | {"tokens": progress.step * config.batch_tokens}, step=progress.step)

        yield log
