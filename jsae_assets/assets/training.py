"""Trains a pair by a recipe of the catalog, for `sae_pair` and for local sweeps.

Here: turning a recipe's text into MLP inputs, logging the progress, and logging losses in wandb if a project is set.
Not here: training itself (`jsae_core.training`).
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
from jsae_assets.catalog import Model, Text
from jsae_assets.resources import Compute
from jsae_assets.sources import Recipe
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
    """Train a pair by a recipe at a layer of a model, or of its twin with randomised weights, and return it.

    Args:
        model_key: the model's name in the catalog.
        randomise_seed: the seed of the twin with randomised weights; None for the model itself.
        text: the recipe's text.
        checkpoint: where training resumes, and keeps its state. The caller removes it once the pair is stored.
        downloads: the folder for downloaded files; wandb's client keeps its files below it.
        say: logs the progress.
    """
    import torch

    from jsae_core import MLPInputs, train_pair

    language_model = compute.language_model(model.source, randomise_seed)
    size = context_size(model, language_model)
    tokens = _Tokens(recipe, text, language_model, size, say)
    if recipe.tokens <= recipe.config.buffer_tokens:
        # all of them fit into the training buffer, so they are kept for the other pairs that are trained at this layer
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
    with _logging_to_wandb(compute, downloads, name, layer, recipe.config) as log_to_wandb:

        def report(progress: TrainingProgress) -> None:
            say_progress(progress)
            log_to_wandb(progress)

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
    """The documents of tokens that a recipe trains on. They are tokenised while they are read, so that only the current
    document is in memory; each iteration starts again at the first document.

    Raises:
        ValueError: at the end of an iteration, if the text has fewer tokens than the recipe asks for.
    """

    recipe: Recipe
    text: Text
    language_model: LanguageModel
    context_size: int
    say: Callable[[str], None]

    def __iter__(self) -> Iterator[Tensor]:
        from jsae_core.text import tokens_of

        needed, n_tokens = self.recipe.tokens, 0
        tokenizer, long_documents = self.language_model.tokenizer, self.text.long_documents
        source = documents(self.text, self.say)
        for document in tokens_of(source, tokenizer, self.context_size, needed, long_documents):
            n_tokens += len(document) - 1
            yield document
        if n_tokens < needed:
            raise ValueError(
                f"the text {self.recipe.text!r} holds {n_tokens:,} tokens, but the recipe trains on {needed:,}; add "
                f"text, or set the recipe's `tokens` to {n_tokens} at most"
            )


def _version(text: Text) -> str:
    """Return an identifier of a text's current state, as far as it can be told without reading the text. If it differs
    from that of a checkpoint, the tokens may differ too."""
    if text.files:
        files = [path.stat() for path in matching_files([str(place) for place in text.files])]
        return json.dumps([[file.st_size, file.st_mtime_ns] for file in files])
    return platform.python_version() if text.standard_library else documents(text, print).revision or ""


def _reporter(say: Callable[[str], None], config: TrainingConfig) -> Callable[[TrainingProgress], None]:
    """Return a function that logs the progress of training: step, speed, losses and the time left."""
    pace, first = Pace(config.steps), True

    def report(progress: TrainingProgress) -> None:
        nonlocal first
        if first:
            pace.before = progress.spared
        if pace.due() or progress.step == progress.steps:
            say(sentence(progress))
        if first:  # the time before the first report includes filling the buffer with activations
            pace.begin(progress.step)
            first = False

    def sentence(progress: TrainingProgress) -> str:
        losses = {"input": progress.input_loss, "output": progress.output_loss}
        if config.jacobian_coefficient:  # else the Jacobian is not computed
            losses["mean |J|" if config.objective == "l1" else config.objective] = progress.jacobian_loss
        losses_text = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        return (
            f"step {progress.step:,}/{progress.steps:,}, {progress.step * config.batch_tokens:,} tokens, "
            f"{pace.rate(progress.step) * config.batch_tokens:,.0f} tokens/s: {losses_text}; "
            f"{pace.left(progress.step)}"
        )

    return report


@contextmanager
def _logging_to_wandb(
    compute: Compute, downloads: Path, model_name: str, layer: int, config: TrainingConfig
) -> Iterator[Callable[[TrainingProgress], None]]:
    """Context manager that gives a function which logs the progress of training as a run in the wandb project of the
    settings. If no project is set, the function does nothing."""
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
