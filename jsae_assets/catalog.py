"""The catalog: one validated YAML file that says which models, texts, variants, pairs and sweeps exist.

Here: the catalog's sections, the rules of each entry, and questions that other modules ask of a catalog. Not here:
reading the file, and contradictions between entries (`catalog_file.py`), the building blocks of sections
(`sections.py`), the sources of pairs (`sources.py`), Dagster (`partitions.py` makes partitions from a catalog). Nothing
here imports torch, because the definitions must load fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from jsae_assets.sections import (
    LONGEST_TEXT,
    Colour,
    Files,
    HubName,
    Key,
    Label,
    Layer,
    ModelDirectory,
    Name,
    Section,
    Seed,
    VariantKey,
    exactly_one,
    given,
    hub_name,
    project_path,
)
from jsae_assets.sources import AnyPair, Pair, Recipe
from jsae_core import embedded_model
from jsae_core.model_files import layer_count
from jsae_core.recipe import TrainingConfig, problems
from jsae_core.text import standard_library_files
from jsae_core.text_files import largest_text


def _dataset(name: str) -> str:
    return name if os.path.isabs(name) else hub_name(name)


class Text(Section):
    """A source of documents: Python's standard library, local files or a Hugging Face dataset.

    `long_documents`: whether a document that is longer than the model's context is cut into several documents, or
    truncated to one. Standard errors take the pieces of one together.
    `revision`: a branch, tag or commit of the dataset.
    """

    standard_library: Literal["train", "held_out"] | None = None
    files: list[Files] | None = Field(default=None, min_length=1)
    dataset: Annotated[Name, AfterValidator(_dataset)] | None = None
    config: Name | None = None
    split: Name = "validation"
    column: Name = "text"
    revision: Name | None = None
    long_documents: Literal["cut", "truncate"] = "cut"

    def rules(self):
        return self._one_source, self._revision_of_a_dataset

    def _one_source(self) -> None:
        exactly_one(self, TEXT_SOURCES)

    def _revision_of_a_dataset(self) -> None:
        if self.revision and len(given(self, TEXT_SOURCES)) == 1 and not self.dataset:
            raise ValueError("revision is for datasets only; files and the standard library have no revisions")

    @property
    def most_tokens(self) -> int | None:
        """An upper bound of the number of tokens: the number of bytes, since a token has at least one. None if the size
        is not known."""
        if self.standard_library:
            return sum(path.stat().st_size for path in standard_library_files(self.standard_library))
        return largest_text([str(place) for place in self.files]) if self.files else None


TEXT_SOURCES = ("standard_library", "files", "dataset")
MODEL_SOURCES = ("directory", "hub", "embedded")

# the text on which the numbers of Farnik et al. (2025) were measured
C4 = Text(dataset="allenai/c4", config="en", split="validation", long_documents="truncate")
C4_IN_WORDS = "C4 validation"

MOST_SHARDS = 1000  # each is a step of every measure of every layer
NO_MATTER = {"shards"}  # settings of a model that change how something is computed, but not what


class Model(Section):
    """A language model, the text that its pairs are measured on, and how much of it each measure takes.

    The model is given by one of three settings: `directory`, in Hugging Face format; `hub`, a name on the Hugging Face
    hub, with a `revision` (branch, tag or commit) if not `main`; `embedded`, the model that ships with this package.

    `tokens` is how many tokens the measures take, BOS not counted. Only the quality of a pair, which needs six passes
    through the model, takes fewer: the first `quality_tokens` of them. The measures `ablation_samples` and
    `function_shapes` take as many elements of the Jacobians as the settings of the same names say. Connections of
    latents that were active together on fewer than `least_active` tokens are left out. `prompt` is the text whose
    Jacobians are shown as examples. `randomise_seed` is the seed of the model's twin with randomised weights; variants
    that are a `control_of` another are trained and measured on that twin. `jacobian_tables`: "bfloat16" rounds the
    tables from which Jacobians are computed (`SAEPair.table_dtype`).

    `shards`: into how many steps what is measured of its tokens is split. That changes no result, so nothing is
    measured anew where it is changed.
    """

    directory: ModelDirectory | None = None
    hub: HubName | None = None
    revision: Name | None = None
    embedded: Literal["stdlib-1m"] | None = None
    randomise_seed: Seed = 0
    text: str | None = None
    tokens: int = Field(default=100_000, ge=1)
    context_size: int | None = Field(default=None, ge=2)
    ablation_samples: int = Field(default=20_000, ge=1)
    function_shapes: int = Field(default=5_000, ge=1)
    least_active: int = Field(default=20, ge=1)
    quality_tokens: int = Field(default=20_000, ge=2)
    jacobian_tables: Literal["bfloat16"] | None = None
    shards: int = Field(default=1, ge=1, le=MOST_SHARDS)
    prompt: str = Field(default="The quick brown fox jumps over the lazy dog.", min_length=1, max_length=LONGEST_TEXT)

    @property
    def source(self) -> tuple[str | Path, str | None]:
        """The directory and None, or a hub model's name and revision. The revision is always given, because a name
        without one could be taken for a folder."""
        if self.hub:
            return self.hub, self.revision or "main"
        return embedded_model.FOLDER if self.embedded else Path(str(self.directory)), None

    @property
    def layer_count(self) -> int | None:
        """The number of layers; None for a model on the hub, since it is known only once the model is fetched."""
        return None if self.hub else layer_count(Path(self.source[0]))

    def reported_name(self, key: str) -> str:
        """Return the name under which papers report results of this model: the hub name without its organisation."""
        return (self.hub or key).split("/")[-1]

    def rules(self):
        return self._one_source, self._revision_on_the_hub, self._text_unless_on_the_hub

    def _one_source(self) -> None:
        exactly_one(self, MODEL_SOURCES)

    def _revision_on_the_hub(self) -> None:
        if self.revision and len(given(self, MODEL_SOURCES)) == 1 and self.hub is None:
            raise ValueError(f"revision is {self.revision!r}, but only a model from the hub has revisions")

    def _text_unless_on_the_hub(self) -> None:
        if self.text is None and len(given(self, MODEL_SOURCES)) == 1 and self.hub is None:
            raise ValueError("text is missing; only a model from the hub may leave it out")


# Settings of a model that concern one asset only. When such a setting changes, that asset and everything downstream of
# it is out of date, but the pairs, which take long to train, are not.
SETTING_OF = {
    "text": "tokens",
    "tokens": "tokens",
    "ablation_samples": "ablation_samples",
    "function_shapes": "function_shapes",
    "quality_tokens": "pair_quality",
    "least_active": "latent_connections",
    "prompt": "jacobian_examples",
}
TABLES = "jacobian_tables"  # the setting that concerns every asset for which Jacobians are computed


class Variant(Section):
    """A way of making pairs: its label and colour in figures, and the variant that the figures compare it with.

    `control_of`: the variant that is made in the same way, but on the language model as it is. This variant is made on
    the model's twin with randomised weights.
    """

    label: Label
    colour: Colour
    compared_with: str | None = None
    control_of: str | None = None


# the settings of a recipe that a local sweep can vary in addition to the coefficient λ
VARIED = ("k", "d_sae", "objective", "seed")


class LocalSweep(Section):
    """Pairs trained here at one layer of a model, by one recipe of which some settings vary: the coefficient λ and, if
    they are listed, k, d_sae, objective and seed.

    `combine`: "product" makes a run for each combination of the listed values; "zip" makes one run of the first values
    of all lists, one of the second values, and so on (a list with a single value gives it to every run). `weights`: the
    language model's weights, "trained" or "randomised".
    """

    model: str
    layer: Layer
    coefficients: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    k: list[int] | None = Field(default=None, min_length=1)
    d_sae: list[int] | None = Field(default=None, min_length=1)
    objective: list[str] | None = Field(default=None, min_length=1)
    seed: list[Seed] | None = Field(default=None, min_length=1)
    combine: Literal["product", "zip"] = "product"
    weights: Literal["trained", "randomised"] = "trained"
    train: Recipe

    def rules(self):
        return self._distinct_runs, self._possible_runs

    def _distinct_runs(self) -> None:
        runs = self._runs()
        repeated = [run for run, count in Counter(tuple(run.items()) for run in runs).items() if count > 1]
        if repeated:
            values = ", ".join(f"{name} {value}" for name, value in repeated[0])
            raise ValueError(f"two runs would be the same: {values}. Each combination may be listed once")

    def _possible_runs(self) -> None:
        recipe = vars(self.train.config)
        of_recipe = set(problems(recipe))  # they are told of the recipe itself
        found = dict.fromkeys(line for run in self._runs() for line in problems(recipe | run))
        if lines := [line for line in found if line not in of_recipe]:
            raise ValueError("\n".join(lines))

    def configs(self) -> list[TrainingConfig]:
        """Return the training configuration of each run, in order."""
        return [dataclasses.replace(self.train.config, **run) for run in self._runs()]

    def _runs(self) -> list[dict[str, Any]]:
        """Return the settings in which each run differs from the recipe, in order."""
        lists = {"jacobian_coefficient": self.coefficients} | self.varied
        combinations: Iterable[tuple]
        if self.combine == "zip":
            longest = max(map(len, lists.values()))
            uneven = {name: len(values) for name, values in lists.items() if len(values) not in (1, longest)}
            if uneven:
                raise ValueError(
                    f"combine is zip, but the lists differ in length: {longest} and {uneven}; expected lists of the "
                    "same length, or with a single entry"
                )
            combinations = zip(*(values * (longest // len(values)) for values in lists.values()), strict=True)
        else:
            combinations = itertools.product(*lists.values())
        return [dict(zip(lists, run, strict=True)) for run in combinations]

    @property
    def varied(self) -> dict[str, list]:
        """The lists of values that the sweep varies in addition to the coefficients, by setting."""
        return {name: values for name in VARIED if (values := getattr(self, name)) is not None}

    def recipe(self, config: TrainingConfig) -> Recipe:
        """Return the recipe of the run with this configuration."""
        return self.train.model_copy(update={"config": config})

    def makes_like(self, recipe: Recipe) -> bool:
        """Whether the sweep's runs differ from pairs of this recipe in λ alone."""
        config = dataclasses.replace(recipe.config, jacobian_coefficient=self.train.config.jacobian_coefficient)
        return not self.varied and self.train == recipe.model_copy(update={"config": config})


class Sweep(Section):
    """A table of training runs, which come from a wandb project (entity/project) or are trained here."""

    wandb: Annotated[str, AfterValidator(project_path)] | None = None
    local: LocalSweep | None = None

    def rules(self):
        return (lambda: exactly_one(self, ("wandb", "local")),)


class Catalog(Section):
    """A whole catalog, with its sections by name."""

    models: dict[Key, Model] = Field(min_length=1)
    text: dict[Key, Text] = {}
    variants: dict[VariantKey, Variant] = Field(min_length=1)
    pairs: list[AnyPair] = []
    sweeps: dict[Key, Sweep] = {}

    def pair(self, variant: str, model: str, layer: int) -> Pair | None:
        """Return the entry of this pair, or None if the catalog does not have it."""
        return self._by_layer.get((variant, model), {}).get(layer)

    @cached_property
    def _by_layer(self) -> dict[tuple[str, str], dict[int, Pair]]:
        """The entries of pairs, by (variant, model) and then by layer."""
        entries: dict[tuple[str, str], dict[int, Pair]] = {}
        for pair in self.pairs:
            entries.setdefault((pair.variant, pair.model), {}).update(dict.fromkeys(pair.layers, pair))
        return entries

    def randomise_seed(self, variant: str, model: str) -> int | None:
        """Return the seed of the model's twin with randomised weights if the variant is a control, else None."""
        return self.models[model].randomise_seed if self.variants[variant].control_of else None

    def randomise_seed_of_sweep(self, sweep: LocalSweep) -> int | None:
        """Return the seed of the model's twin with randomised weights if the sweep uses it, else None."""
        return self.models[sweep.model].randomise_seed if sweep.weights == "randomised" else None

    def digest(self, model: str, asset: str, pair: Pair | None = None) -> str:
        """Return a hash of the entries that an asset is made from. It changes with those settings of the model, its
        text or the pair that concern the asset, but not when the pair's entry gets further layers."""
        excluded = {TABLES} | NO_MATTER | {setting for setting, concerned in SETTING_OF.items() if concerned != asset}
        if pair is None or self.randomise_seed(pair.variant, model) is None:
            excluded.add("randomise_seed")
        entries = [self.models[model].canonical(excluded)]
        if asset == SETTING_OF["text"]:
            entries.append(self.model_text(model).canonical())
        if pair is not None:
            entries.append(pair.canonical({"layers"}))
            if pair.text:
                entries.append(self.text[pair.text].canonical())
        return _hash(entries)

    def sweep_digest(self, key: str) -> str:
        """Return a hash of the entries that a sweep's table is made from."""
        sweep = self.sweeps[key]
        entries = [sweep.canonical()]
        if sweep.local:
            entries.append(self.run_digest(sweep.local, sweep.local.configs()[0]))
        return _hash(entries)

    def run_digest(self, sweep: LocalSweep, config: TrainingConfig) -> str:
        """Return a hash of the entries that a run of a local sweep is made from. It does not change when the sweep gets
        further runs."""
        excluded = {setting for setting, concerned in SETTING_OF.items() if concerned not in ("tokens", "pair_quality")}
        excluded |= {TABLES} | NO_MATTER
        seed = self.randomise_seed_of_sweep(sweep)
        return _hash(
            [
                self.models[sweep.model].canonical(excluded | {"randomise_seed"}),
                self.model_text(sweep.model).canonical(),
                str(sweep.layer),
                sweep.recipe(config).canonical(),
                self.text[sweep.train.text].canonical(),
                *([] if seed is None else [f"randomise_seed {seed}"]),
            ]
        )

    def entries(self) -> dict[str, str]:
        """Return the digest of every entry that assets are made from, by a name that says where it stands in the
        catalog: `pairs/jsae/my-model:3`, `pairs/jsae/my-model` (all layers of the model), `models/my-model/tokens`,
        `variants/jsae`, `sweeps/mine`; and `models/my-model/jacobian_tables` if that setting is not the default."""
        settings = {
            f"models/{key}/{asset}": self.digest(key, asset)
            for key in self.models
            for asset in dict.fromkeys(SETTING_OF.values())
        }
        styles = {f"variants/{key}": _hash([variant.canonical()]) for key, variant in self.variants.items()}
        pairs = {
            f"pairs/{pair.variant}/{pair.model}:{layer}": self.digest(pair.model, "sae_pair", pair)
            for pair in self.pairs
            for layer in pair.layers
        }
        of_all_layers = {
            f"pairs/{variant}/{model}": _hash([pairs[f"pairs/{variant}/{model}:{layer}"] for layer in layers])
            for variant in self.variants
            for model in self.models
            if (layers := self.layers(model, variant))
        }
        sweeps = {f"sweeps/{key}": self.sweep_digest(key) for key in self.sweeps}
        tables = {entry: _hash([str(self.models[key].jacobian_tables)]) for key, entry in self.table_entries().items()}
        return settings | tables | styles | pairs | of_all_layers | sweeps

    def table_entries(self) -> dict[str, str]:
        """Return the names of the entries for `jacobian_tables`, by model. Models with the default have no such entry,
        so that their assets from before this setting existed stay up to date."""
        return {key: f"models/{key}/{TABLES}" for key, model in self.models.items() if model.jacobian_tables}

    def layers(self, model: str, variant: str | None = None) -> list[int]:
        """Return the layers of a model at which the catalog has a pair, of any variant or of this one."""
        variants = self.variants if variant is None else [variant]
        return sorted({layer for name in variants for layer in self._by_layer.get((name, model), {})})

    def model_text(self, model: str) -> Text:
        """Return the text on which a model is measured: the entry that it names, or C4 for a hub model without one."""
        name = self.models[model].text
        return C4 if name is None else self.text[name]


def _hash(entries: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]
