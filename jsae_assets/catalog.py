"""The catalog: which models, texts, variants and pairs exist, as one validated YAML file.

Here: its sections, their rules and what can be asked of them. Not here: what sections are made of (`sections.py`),
where pairs come from (`sources.py`), Dagster (`partitions.py` makes partitions of it) or torch (loading the definitions
must stay fast).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from jsae_assets.problems import truth_values
from jsae_assets.sections import (
    FOLDER,
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
    hub_name,
    project_path,
)
from jsae_assets.sources import KINDS, AnyPair, Pair, Recipe, TrainedPair
from jsae_core import embedded_model
from jsae_core.model_files import layer_count
from jsae_core.recipe import TrainingConfig
from jsae_core.text import standard_library_files
from jsae_core.text_files import largest_text

CATALOGS = Path(__file__).parent / "catalogs"
DEFAULT_CATALOG = CATALOGS / "default.yaml"
CATALOG_VARIABLE = "JSAE_CATALOG"


class CatalogError(ValueError):
    """The catalog cannot be read, is malformed or contradicts itself. The message names file and entry."""


def _dataset(name: str) -> str:
    return name if os.path.isabs(name) else hub_name(name)


class Text(Section):
    """Where documents come from: Python's standard library, local files or a Hugging Face dataset.

    `long_documents`: a document that is longer than the model's context is cut into several, or truncated to one.
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

    @model_validator(mode="after")
    def _one_source(self):
        exactly_one(self, ("standard_library", "files", "dataset"))
        if self.revision and not self.dataset:
            raise ValueError("revision is that of a dataset; files and the standard library have none")
        return self

    def most_tokens(self) -> int | None:
        """How many tokens it can hold at the most, if none is shorter than a byte; None if sizes do not tell."""
        if self.standard_library:
            return sum(path.stat().st_size for path in standard_library_files(self.standard_library))
        return largest_text([str(place) for place in self.files]) if self.files else None


# as the reported numbers were measured
C4 = Text(dataset="allenai/c4", config="en", split="validation", long_documents="truncate")
C4_IN_WORDS = "C4 validation"


class Model(Section):
    """A language model: a directory in Hugging Face format, a name on the hub (with a `revision` if not `main`: a
    branch, tag or commit) or the one that ships with this package, its randomised twin, and how much is measured on
    which text.

    `tokens` is how many tokens every measure sees, BOS left out, but for the quality of a pair, which takes six passes
    through the model and sees the first `quality_tokens` of them. `ablation_samples` and `function_shapes` are how many
    elements of the Jacobians these look at. Connections of latents that were active together in fewer than
    `least_active` tokens are left out. `prompt` is what example Jacobians are drawn from. `randomise_seed` is that
    of the twin with randomised weights, on which the variants that are a `control_of` another are trained and measured.
    `jacobian_tables`: "bfloat16" rounds the rows that Jacobians are made of (`SAEPair.table_dtype`).
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
    prompt: str = Field(default="The quick brown fox jumps over the lazy dog.", min_length=1, max_length=LONGEST_TEXT)

    @property
    def source(self) -> tuple[str | Path, str | None]:
        """Where it is, and the revision of a hub model, without which its name could be taken for a folder."""
        if self.hub:
            return self.hub, self.revision or "main"
        return embedded_model.FOLDER if self.embedded else Path(str(self.directory)), None

    @property
    def layer_count(self) -> int | None:
        """How many layers it has; None if that is not known before it is fetched from the hub."""
        return None if self.hub else layer_count(Path(self.source[0]))

    def reported_name(self, key: str) -> str:
        """The name under which results of this model are reported: the hub's, without its organisation."""
        return (self.hub or key).split("/")[-1]

    @model_validator(mode="after")
    def _one_source(self):
        exactly_one(self, ("directory", "hub", "embedded"))
        if self.revision and self.hub is None:
            raise ValueError(f"revision is {self.revision!r}, but only a model from the hub has revisions")
        if self.hub is None and self.text is None:
            raise ValueError("text is missing; only a model from the hub may leave it out")
        return self


# The one asset that each of these settings of a model concerns. A changed setting makes that asset outdated, and what
# is downstream of it, but not the pairs, which take long to train.
SETTING_OF = {
    "text": "tokens",
    "tokens": "tokens",
    "ablation_samples": "ablation_samples",
    "function_shapes": "function_shapes",
    "quality_tokens": "pair_quality",
    "least_active": "latent_connections",
    "prompt": "jacobian_examples",
}
TABLES = "jacobian_tables"  # the setting that concerns every asset that Jacobians are part of


class Variant(Section):
    """A way pairs were made, how it is drawn, and the variant its figures compare it with.

    `control_of`: the variant that was made the same way on the language model as it is; this one is on its twin with
    randomised weights.
    """

    label: Label
    colour: Colour
    compared_with: str | None = None
    control_of: str | None = None


# what a local sweep may vary beside its coefficient, by the recipe's names
VARIED = ("k", "d_sae", "objective", "seed")


class LocalSweep(Section):
    """Pairs trained here at one layer of a model, by a recipe that is the same for all but what the sweep varies: its
    coefficient and, where they are listed, k, d_sae, objective and seed.

    `combine`: the runs are all combinations of what is listed ("product"), or the first of each list, the second of
    each, and so on ("zip"; of a list with one entry, always that). `weights`: of the language model, as they were
    trained, or those of its randomised twin.
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

    @model_validator(mode="after")
    def _runs(self):
        configs = self.configs()  # each is checked by its making
        doubles = [config for config, count in Counter(configs).items() if count > 1]
        if doubles:
            what = ", ".join(f"{name} {getattr(doubles[0], name)}" for name in ("jacobian_coefficient", *VARIED))
            raise ValueError(f"two runs would be the same: {what}. Each combination may be listed once")
        return self

    def configs(self) -> list[TrainingConfig]:
        """That of each run, in order."""
        lists = {"jacobian_coefficient": self.coefficients} | self.varied
        combinations: Iterable[tuple]
        if self.combine == "zip":
            longest = max(map(len, lists.values()))
            uneven = {name: len(values) for name, values in lists.items() if len(values) not in (1, longest)}
            if uneven:
                raise ValueError(
                    f"combine is zip, but the lists differ in length: {longest} and {uneven}; expected lists of one "
                    "length, or of one entry"
                )
            combinations = zip(*(values * (longest // len(values)) for values in lists.values()), strict=True)
        else:
            combinations = itertools.product(*lists.values())
        return [dataclasses.replace(self.train.config, **dict(zip(lists, run, strict=True))) for run in combinations]

    @property
    def varied(self) -> dict[str, list]:
        """What is listed beside the coefficients."""
        return {name: values for name in VARIED if (values := getattr(self, name)) is not None}

    def recipe(self, config: TrainingConfig) -> Recipe:
        """The recipe of one run."""
        return self.train.model_copy(update={"config": config})

    def makes_like(self, recipe: Recipe) -> bool:
        """Whether its runs differ from pairs of this recipe in λ alone."""
        config = dataclasses.replace(recipe.config, jacobian_coefficient=self.train.config.jacobian_coefficient)
        return not self.varied and self.train == recipe.model_copy(update={"config": config})


class Sweep(Section):
    """A table of training runs: those of a wandb project (entity/project), or trained here."""

    wandb: Annotated[str, AfterValidator(project_path)] | None = None
    local: LocalSweep | None = None

    @model_validator(mode="after")
    def _one_source(self):
        exactly_one(self, ("wandb", "local"))
        return self


class Catalog(Section):
    models: dict[Key, Model] = Field(min_length=1)
    text: dict[Key, Text] = {}
    variants: dict[VariantKey, Variant] = Field(min_length=1)
    pairs: list[AnyPair] = []
    sweeps: dict[Key, Sweep] = {}

    @model_validator(mode="after")
    def _consistent(self):
        def known(place: str, name: str | None, section: dict) -> None:
            if name is not None and name not in section:
                raise ValueError(f"{place} is {name!r}, which is not in the catalog; there are: {', '.join(section)}")

        for key, model in self.models.items():
            known(f"models.{key}.text", model.text, self.text)
        for key, variant in self.variants.items():
            for name in ("compared_with", "control_of"):
                other = getattr(variant, name)
                known(f"variants.{key}.{name}", other, self.variants)
                if other == key:
                    raise ValueError(f"variants.{key}.{name} is itself")
            if variant.control_of and self.variants[variant.control_of].control_of:
                raise ValueError(f"variants.{key}.control_of is {variant.control_of!r}, which is itself a control")
        layers: dict[str, tuple[str, list[int]]] = {}
        recipes: dict[str, Recipe] = {}
        for key, sweep in self.sweeps.items():
            if sweep.local:
                known(f"sweeps.{key}.local.model", sweep.local.model, self.models)
                known(f"sweeps.{key}.local.train.text", sweep.local.train.text, self.text)
                layers[f"sweeps.{key}.local.layer"] = (sweep.local.model, [sweep.local.layer])
                recipes[f"sweeps.{key}.local.train"] = sweep.local.train
        held: dict[Hashable, int] = {}
        for number, pair in enumerate(self.pairs):
            known(f"pairs[{number}].variant", pair.variant, self.variants)
            known(f"pairs[{number}].model", pair.model, self.models)
            known(f"pairs[{number}].{pair.kind}.text", pair.text, self.text)
            layers[f"pairs[{number}].layers"] = (pair.model, pair.layers)
            if isinstance(pair, TrainedPair):
                recipes[f"pairs[{number}].train"] = pair.train
            for layer in pair.layers:
                first = held.setdefault((pair.variant, pair.model, layer), number)
                if first != number or pair.layers.count(layer) > 1:
                    raise ValueError(
                        f"pairs[{number}] and pairs[{first}] both hold {pair.variant} of {pair.model} at layer {layer}"
                    )
        self._check_layers(layers)
        self._check_amounts(recipes)
        return self

    def _check_layers(self, named: Mapping[str, tuple[str, list[int]]]) -> None:
        """`named`: a model and layers of it, by where the catalog names them."""
        counts = {model: self.models[model].layer_count for model in {model for model, _ in named.values()}}
        for place, (model, layers) in named.items():
            count = counts[model]
            if count is not None and max(layers) >= count:
                raise ValueError(
                    f"{place}: the model {model!r} has layers 0 to {count - 1}; there is no layer {max(layers)}"
                )

    def _check_amounts(self, recipes: Mapping[str, Recipe]) -> None:
        """`recipes`: by where the catalog has them."""
        most = {name: self.text[name].most_tokens() for name in {recipe.text for recipe in recipes.values()}}
        for place, recipe in recipes.items():
            held = most[recipe.text]
            if held is not None and recipe.tokens > held:
                raise ValueError(
                    f"{place}.tokens is {recipe.tokens:,}, but the text {recipe.text!r} has {held:,} bytes, and no "
                    "token is shorter than a byte (most are three or four long); add text, or train on fewer tokens"
                )

    def pair(self, variant: str, model: str, layer: int) -> Pair | None:
        """The entry that holds this pair, or None."""
        return self._by_layer.get((variant, model), {}).get(layer)

    @cached_property
    def _by_layer(self) -> dict[tuple[str, str], dict[int, Pair]]:
        """The entries of the pairs of each variant of each model, by their layers."""
        found: dict[tuple[str, str], dict[int, Pair]] = {}
        for pair in self.pairs:
            found.setdefault((pair.variant, pair.model), {}).update(dict.fromkeys(pair.layers, pair))
        return found

    def randomise_seed(self, variant: str, model: str) -> int | None:
        """The seed of the language model's randomised twin, for a variant that is a control; else None."""
        return self.models[model].randomise_seed if self.variants[variant].control_of else None

    def randomise_seed_of_sweep(self, sweep: LocalSweep) -> int | None:
        """The same for a sweep on the twin."""
        return self.models[sweep.model].randomise_seed if sweep.weights == "randomised" else None

    def digest(self, model: str, asset: str, pair: Pair | None = None) -> str:
        """Which catalog entries an asset was made from: a hash that changes when what concerns it does in the model,
        its text or the pair, but not when other layers join the pair's."""
        others = {TABLES} | {setting for setting, concerned in SETTING_OF.items() if concerned != asset}
        if pair is None or self.randomise_seed(pair.variant, model) is None:
            others.add("randomise_seed")
        entries = [self.models[model].canonical(others)]
        if asset == SETTING_OF["text"]:
            entries.append(self.model_text(model).canonical())
        if pair is not None:
            entries.append(pair.canonical({"layers"}))
            if pair.text:
                entries.append(self.text[pair.text].canonical())
        return _hash(entries)

    def sweep_digest(self, key: str) -> str:
        """As `digest`, of a sweep's table."""
        sweep = self.sweeps[key]
        entries = [sweep.canonical()]
        if sweep.local:
            entries.append(self.run_digest(sweep.local, sweep.local.configs()[0]))
        return _hash(entries)

    def run_digest(self, sweep: LocalSweep, config: TrainingConfig) -> str:
        """Which catalog entries a run of a local sweep is made from; other runs may join the sweep."""
        others = {setting for setting, concerned in SETTING_OF.items() if concerned not in ("tokens", "pair_quality")}
        others.add(TABLES)
        seed = self.randomise_seed_of_sweep(sweep)
        return _hash(
            [
                self.models[sweep.model].canonical(others | {"randomise_seed"}),
                self.model_text(sweep.model).canonical(),
                str(sweep.layer),
                sweep.recipe(config).canonical(),
                self.text[sweep.train.text].canonical(),
                *([] if seed is None else [f"randomise_seed {seed}"]),
            ]
        )

    def entries(self) -> dict[str, str]:
        """The digest of everything in the catalog that something is made from, by a name that says where it stands:
        `pairs/jsae/my-model:3`, `pairs/jsae/my-model` (all its layers), `models/my-model/tokens`, `variants/jsae`,
        `sweeps/mine`; `models/my-model/jacobian_tables` where these are not as usual."""
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
        """The names of the entries of those models whose Jacobians are not made of rows in the pair's own dtype: what
        was made before there was such a setting does not depend on one."""
        return {key: f"models/{key}/{TABLES}" for key, model in self.models.items() if model.jacobian_tables}

    def layers(self, model: str, variant: str | None = None) -> list[int]:
        """The layers of a model at which the catalog holds a pair (of this variant)."""
        variants = self.variants if variant is None else [variant]
        return sorted({layer for one in variants for layer in self._by_layer.get((one, model), {})})

    def model_text(self, model: str) -> Text:
        """What a model is measured on: its entry of the text section, or C4 for a hub model that names none."""
        name = self.models[model].text
        return C4 if name is None else self.text[name]


def _hash(entries: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]


def load_catalog(path: str | Path | None = None) -> Catalog:
    """Read and check a catalog; without a path the one that JSAE_CATALOG names, else the default.

    Relative directories and files in it are relative to the catalog's own folder.

    Raises:
        CatalogError: there is no such file, or it is malformed or contradictory.
    """
    named = path or os.environ.get(CATALOG_VARIABLE)
    path = Path(named).expanduser() if named else DEFAULT_CATALOG
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        origin = (
            "" if not named else f" ({CATALOG_VARIABLE} names it)" if named == os.environ.get(CATALOG_VARIABLE) else ""
        )
        raise CatalogError(f"{path}{origin}: the catalog cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: is no UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        entries = yaml.load(text, Loader=_UniqueKeyLoader)
    except RecursionError as error:
        raise CatalogError(f"{path}: is nested too deep to be read") from error
    except yaml.YAMLError as error:
        raise CatalogError(f"{path}: is no valid YAML: {error}") from error
    if not isinstance(entries, dict):
        raise CatalogError(f"{path}: expected sections models, text, variants, pairs and sweeps")
    if problems := [*truth_values(entries)]:
        raise CatalogError("\n".join(f"{path}: {problem}" for problem in problems))
    try:
        return TypeAdapter(Catalog).validate_python(entries, context={FOLDER: path.resolve().parent})
    except ValidationError as error:
        raise CatalogError("\n".join(f"{path}: {problem}" for problem in _problems(error))) from error


# what pydantic adds to an entry's place: that a key is meant, and which kind of source was recognised
OMITTED = ("[key]", *(f"[{kind}]" for kind in KINDS))


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        parts = [part for part in item["loc"] if part not in OMITTED]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
        message = item["msg"].removeprefix("Value error, ")
        problems.append(f"{place.lstrip('.')}: {message}" if place else message)
    return problems


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; a catalog with two is a mistake."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)  # as it is written: merges (<<) are not filled in yet
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node
