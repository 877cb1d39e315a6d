"""The catalog: one validated YAML file that says which models, texts, variants, pairs and sweeps exist.

Here: the catalog's sections, their rules, and questions that other modules ask of a catalog. Not here: the building
blocks of sections (`sections.py`), the sources of pairs (`sources.py`), Dagster (`partitions.py` makes partitions from
a catalog). Nothing here imports torch, because the definitions must load fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

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

    @model_validator(mode="after")
    def _one_source(self):
        exactly_one(self, ("standard_library", "files", "dataset"))
        if self.revision and not self.dataset:
            raise ValueError("revision is for datasets only; files and the standard library have no revisions")
        return self

    def most_tokens(self) -> int | None:
        """Return an upper bound of the number of tokens: the number of bytes, since a token has at least one. Return
        None if the size is not known."""
        if self.standard_library:
            return sum(path.stat().st_size for path in standard_library_files(self.standard_library))
        return largest_text([str(place) for place in self.files]) if self.files else None


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

    @model_validator(mode="after")
    def _one_source(self):
        exactly_one(self, ("directory", "hub", "embedded"))
        if self.revision and self.hub is None:
            raise ValueError(f"revision is {self.revision!r}, but only a model from the hub has revisions")
        if self.hub is None and self.text is None:
            raise ValueError("text is missing; only a model from the hub may leave it out")
        return self


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

    @model_validator(mode="after")
    def _distinct_runs(self):
        configs = self.configs()  # raises ValueError if one is invalid
        repeated = [config for config, count in Counter(configs).items() if count > 1]
        if repeated:
            values = ", ".join(f"{name} {getattr(repeated[0], name)}" for name in ("jacobian_coefficient", *VARIED))
            raise ValueError(f"two runs would be the same: {values}. Each combination may be listed once")
        return self

    def configs(self) -> list[TrainingConfig]:
        """Return the training configuration of each run, in order."""
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
        return [dataclasses.replace(self.train.config, **dict(zip(lists, run, strict=True))) for run in combinations]

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

    @model_validator(mode="after")
    def _one_source(self):
        exactly_one(self, ("wandb", "local"))
        return self


class Catalog(Section):
    """A whole catalog, with its sections by name."""

    models: dict[Key, Model] = Field(min_length=1)
    text: dict[Key, Text] = {}
    variants: dict[VariantKey, Variant] = Field(min_length=1)
    pairs: list[AnyPair] = []
    sweeps: dict[Key, Sweep] = {}

    @model_validator(mode="after")
    def _consistent(self):
        sections = {name: getattr(self, name) for name in SECTIONS}
        if problems := [*_contradictions(sections | {"pairs": dict(enumerate(self.pairs))}, sections)]:
            raise ValueError("\n".join(problems))
        return self

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


SECTIONS = ("models", "text", "variants", "sweeps")  # those whose entries have names; pairs have numbers
ENTRIES: Mapping[str, Any] = {
    "models": Model,
    "text": Text,
    "variants": Variant,
    "pairs": AnyPair,
    "sweeps": Sweep,
}


def _contradictions(entries: Mapping[str, Mapping], names: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield a sentence for each entry that contradicts another one.

    Args:
        entries: the entries of each section that are valid by themselves, by name or number.
        names: the names of all entries of the sections that have names.
    """

    def unknown(place: str, name: str | None, section: str) -> Iterator[str]:
        if name is not None and name not in names[section]:
            known = ", ".join(map(str, names[section]))
            yield f"{place} is {name!r}, which is not in the catalog; the catalog has: {known}"

    variants, pairs = entries["variants"], entries["pairs"]
    for key, model in entries["models"].items():
        yield from unknown(f"models.{key}.text", model.text, "text")
    for key, variant in variants.items():
        for name in ("compared_with", "control_of"):
            other = getattr(variant, name)
            yield from unknown(f"variants.{key}.{name}", other, "variants")
            if other == key:
                yield f"variants.{key}.{name} is itself"
        if variant.control_of not in (None, key) and getattr(variants.get(variant.control_of), "control_of", None):
            yield f"variants.{key}.control_of is {variant.control_of!r}, which is itself a control"
    layers: dict[str, tuple[str, list[int]]] = {}
    recipes: dict[str, Recipe] = {}
    for key, sweep in entries["sweeps"].items():
        if sweep.local:
            yield from unknown(f"sweeps.{key}.local.model", sweep.local.model, "models")
            yield from unknown(f"sweeps.{key}.local.train.text", sweep.local.train.text, "text")
            layers[f"sweeps.{key}.local.layer"] = (sweep.local.model, [sweep.local.layer])
            recipes[f"sweeps.{key}.local.train"] = sweep.local.train
    entry_of_pair: dict[Hashable, int] = {}
    for number, pair in pairs.items():
        yield from unknown(f"pairs[{number}].variant", pair.variant, "variants")
        yield from unknown(f"pairs[{number}].model", pair.model, "models")
        yield from unknown(f"pairs[{number}].{pair.kind}.text", pair.text, "text")
        layers[f"pairs[{number}].layers"] = (pair.model, pair.layers)
        if isinstance(pair, TrainedPair):
            recipes[f"pairs[{number}].train"] = pair.train
        for layer, times in Counter(pair.layers).items():
            first = entry_of_pair.setdefault((pair.variant, pair.model, layer), number)
            if first != number or times > 1:
                yield (
                    f"pairs[{number}] and pairs[{first}] both name the pair {pair.variant} of {pair.model} at "
                    f"layer {layer}; expected it once"
                )
    yield from _missing_layers(entries["models"], layers)
    yield from _too_many_tokens(entries["text"], recipes)


def _missing_layers(models: Mapping[str, Model], layers_by_place: Mapping[str, tuple[str, list[int]]]) -> Iterator[str]:
    """Yield a sentence for each place in the catalog that names a layer that its model does not have.
    `layers_by_place` gives a model and layers of it for each place that names layers."""
    counts = {key: models[key].layer_count for key in {key for key, _ in layers_by_place.values()} & models.keys()}
    for place, (model, layers) in layers_by_place.items():
        count = counts.get(model)
        if count is not None and max(layers) >= count:
            yield f"{place}: the model {model!r} has layers 0 to {count - 1}; there is no layer {max(layers)}"


def _too_many_tokens(texts: Mapping[str, Text], recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Yield a sentence for each recipe that needs more tokens than its text can have. `recipes` are by their places in
    the catalog."""
    names = {recipe.text for recipe in recipes.values()} & texts.keys()
    bounds = {name: texts[name].most_tokens() for name in names}
    for place, recipe in recipes.items():
        bound = bounds.get(recipe.text)
        if bound is not None and recipe.tokens > bound:
            yield (
                f"{place}.tokens is {recipe.tokens:,}, but the text {recipe.text!r} has {bound:,} bytes, and a "
                "token has at least one byte (most have three or four); add text, or train on fewer tokens"
            )


def _hash(entries: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]


def catalog_path() -> Path:
    """Return the path of the catalog that JSAE_CATALOG names, else of the default catalog."""
    named = os.environ.get(CATALOG_VARIABLE)
    return Path(named).expanduser() if named else DEFAULT_CATALOG


def load_catalog(path: str | Path | None = None) -> Catalog:
    """Read and check a catalog: the file at `path`, else the one that JSAE_CATALOG names, else the default catalog.

    Relative directories and files in it are relative to the catalog's own folder.

    Raises:
        CatalogError: the file cannot be read, is malformed or contradicts itself.
    """
    chosen = path or os.environ.get(CATALOG_VARIABLE)
    path = Path(path).expanduser() if path else catalog_path()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        origin = f" ({CATALOG_VARIABLE} names it)" if chosen and chosen == os.environ.get(CATALOG_VARIABLE) else ""
        raise CatalogError(f"{path}{origin}: the catalog cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        entries = yaml.load(text, Loader=_UniqueKeyLoader)
    except RecursionError as error:
        raise CatalogError(f"{path}: is nested too deeply to be read") from error
    except yaml.YAMLError as error:
        problem = str(error).replace('in "<unicode string>", ', "at ")
        raise CatalogError(f"{path}: is not valid YAML: {problem}") from error
    if not isinstance(entries, dict):
        found = "is empty" if entries is None else "holds no sections"
        raise CatalogError(f"{path}: {found}; expected the sections models, text, variants, pairs and, if any, sweeps")
    if problems := [*truth_values(entries)]:
        raise CatalogError("\n".join(f"{path}: {problem}" for problem in problems))
    context = {FOLDER: path.resolve().parent}
    try:
        return TypeAdapter(Catalog).validate_python(entries, context=context)
    except ValidationError as error:
        each_once = dict.fromkeys((*_problems(error), *_further_problems(entries, context)))
        raise CatalogError("\n".join(f"{path}: {problem}" for problem in each_once)) from error


# parts that pydantic adds to the place of an error: that it concerns a key, and the kind of a pair's source
OMITTED = ("[key]", *(f"[{kind}]" for kind in KINDS))


def _problems(error: ValidationError) -> list[str]:
    """Return a line for each of pydantic's errors: the place in the catalog and what is wrong there."""
    problems = []
    for item in error.errors(include_url=False):
        parts = [part for part in item["loc"] if part not in OMITTED]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
        message = item["msg"].removeprefix("Value error, ")
        problems += [f"{place.lstrip('.')}: {message}"] if place else message.splitlines()
    return problems


def _further_problems(entries: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each entry that contradicts another one, of those entries that are valid by themselves.
    Pydantic compares entries only if all of them are valid."""
    raw = {name: section if isinstance(section := entries.get(name), dict) else {} for name in SECTIONS}
    pairs = entries.get("pairs")
    numbered = dict(enumerate(pairs)) if isinstance(pairs, list) else {}
    valid: dict[str, dict] = {}
    for name, section in (raw | {"pairs": numbered}).items():
        kind, valid[name] = TypeAdapter(ENTRIES[name]), {}
        for key, entry in section.items():
            with contextlib.suppress(ValidationError):
                valid[name][key] = kind.validate_python(entry, context=context)
    yield from _contradictions(valid, raw)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key that stands twice. PyYAML would silently keep the last one."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)  # merge keys (<<) are not resolved yet, so they add no keys
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node
