"""The catalog: which models, texts, variants and pairs exist, as one validated YAML file.

Here: its sections, their rules and what can be asked of them. Not here: Dagster (`partitions.py` makes partitions of
it) or torch (loading the definitions must stay fast).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jsae_core.recipe import TrainingConfig

CATALOGS = Path(__file__).parent / "catalogs"
DEFAULT_CATALOG = CATALOGS / "default.yaml"
CATALOG_VARIABLE = "JSAE_CATALOG"
RESERVED = ("catalog", "figures", "sweep_runs", "tokens")


class CatalogError(ValueError):
    """The catalog cannot be read, is malformed or contradicts itself. The message names file and entry."""


def _partition_key(key: str) -> str:
    # Dagster accepts a|b and then silently loses it, commas break backfills, the rest would leave its folder
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key) or ".." in key:
        raise ValueError(
            f"{key!r} cannot be a name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            "without '..'"
        )
    return key


def _asset_prefix(key: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or key in RESERVED:
        raise ValueError(
            f"{key!r} cannot name a variant: expected small letters, digits and '_' (it prefixes assets), and none of "
            f"{', '.join(RESERVED)}, which are other assets"
        )
    return key


def _artifact_path(path: str) -> str:
    if not re.fullmatch(r"[^/\s]+/[^/\s]+/[^/:\s]+:[^/:\s]+", path):
        raise ValueError(f"{path!r} is no wandb artifact; expected entity/project/name:alias, such as e/p/pair:v0")
    return path


def _project_path(path: str) -> str:
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", path):
        raise ValueError(f"{path!r} is no wandb project; expected entity/project")
    return path


Artifact = Annotated[str, AfterValidator(_artifact_path)]
Project = Annotated[str, AfterValidator(_project_path)]
Key = Annotated[str, AfterValidator(_partition_key)]
VariantKey = Annotated[str, AfterValidator(_asset_prefix)]
Name = Annotated[str, Field(min_length=1)]  # of a directory, a file, or something on a hub


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _exactly_one(entry: Section, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(entry, name) is not None]
    if len(given) != 1:
        raise ValueError(f"expected exactly one of {', '.join(names)}; given: {', '.join(given) or 'none'}")


class Text(Section):
    """Where documents come from: Python's standard library, local files or a Hugging Face dataset."""

    standard_library: Literal["train", "held_out"] | None = None
    files: list[Name] | None = Field(default=None, min_length=1)
    dataset: Name | None = None
    config: str | None = None
    split: str = "validation"
    column: str = "text"

    @model_validator(mode="after")
    def _one_source(self):
        _exactly_one(self, ("standard_library", "files", "dataset"))
        return self


C4 = Text(dataset="allenai/c4", config="en", split="validation")


class Model(Section):
    """A language model: a directory in Hugging Face format or a name on the hub, its randomised twin, and how much is
    measured on which text.

    `tokens` is how many tokens every measure sees, BOS left out, but for the quality of a pair, which takes six passes
    through the model and sees the first `quality_tokens` of them. `ablation_samples` and `function_shapes` are how many
    elements of the Jacobians these look at. `prompt` is what example Jacobians are drawn from. `randomise_seed` is that
    of the twin with randomised weights, on which the variants that are a `control_of` another are trained and measured.
    """

    directory: Name | None = None
    hub: Name | None = None
    randomise_seed: int = Field(default=0, ge=0)
    text: str | None = None
    tokens: int = Field(default=100_000, ge=1)
    context_size: int | None = Field(default=None, ge=2)
    ablation_samples: int = Field(default=20_000, ge=1)
    function_shapes: int = Field(default=5_000, ge=1)
    quality_tokens: int = Field(default=20_000, ge=2)
    prompt: str = Field(default="The quick brown fox jumps over the lazy dog.", min_length=1)

    @property
    def source(self) -> str:
        return self.directory or self.hub

    def published_name(self, key: str) -> str:
        """The name under which results of this model are published: the hub's, without its organisation."""
        return (self.hub or key).split("/")[-1]

    @model_validator(mode="after")
    def _one_source(self):
        _exactly_one(self, ("directory", "hub"))
        if self.directory and self.text is None:
            raise ValueError("text is missing; a model from a directory names an entry of the text section")
        return self


# The one asset that each of these settings of a model concerns. A changed setting makes that asset outdated, and what
# is downstream of it, but not the pairs, which take long to train.
SETTING_OF = {
    "text": "tokens",
    "tokens": "tokens",
    "ablation_samples": "ablation_samples",
    "function_shapes": "function_shapes",
    "quality_tokens": "pair_quality",
    "prompt": "jacobian_examples",
}


class Variant(Section):
    """A way pairs were made, how it is drawn, and the variant its figures compare it with.

    `control_of`: the variant that was made the same way on the language model as it is; this one is on its twin with
    randomised weights.
    """

    label: str
    colour: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")
    compared_with: str | None = None
    control_of: str | None = None


class Recipe(Section):
    """Train a pair here: `tokens` tokens of a text, and a `jsae_core.TrainingConfig`."""

    text: str
    tokens: int = Field(ge=1)
    config: TrainingConfig


class ExplainedVariance(Section):
    """The least share of variance that each SAE must explain on held-out tokens, or the pair is refused."""

    input: float = Field(default=0.5, le=1)
    output: float = Field(default=0.5, le=1)


class Pair(Section):
    """The pairs of one variant at some layers of one model, from one source. `{layer}` stands for the layer."""

    variant: str
    model: str
    layers: list[Annotated[int, Field(ge=0, strict=True)]] = Field(min_length=1)
    directory: Name | None = None
    train: Recipe | None = None
    wandb: Artifact | None = None
    least_explained_variance: ExplainedVariance = ExplainedVariance()

    @model_validator(mode="after")
    def _one_source(self):
        _exactly_one(self, ("directory", "train", "wandb"))
        for name in ("directory", "wandb"):
            template = getattr(self, name)
            if template and len(self.layers) > 1 and "{layer}" not in template:
                raise ValueError(f"{name} holds no '{{layer}}', so {len(self.layers)} layers would share one pair")
        return self

    def at(self, layer: int) -> str | None:
        """The directory or wandb path of one layer."""
        template = self.directory or self.wandb
        return template and template.replace("{layer}", str(layer))


class LocalSweep(Section):
    """Pairs trained here at one layer of a model, by a recipe that is the same for all but its coefficient."""

    model: str
    layer: int = Field(ge=0)
    coefficients: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    train: Recipe

    @model_validator(mode="after")
    def _different(self):
        if len(set(self.coefficients)) < len(self.coefficients):
            raise ValueError(f"coefficients holds a number twice: {self.coefficients}")
        return self

    def recipe(self, coefficient: float) -> Recipe:
        """The recipe of one run."""
        config = dataclasses.replace(self.train.config, jacobian_coefficient=coefficient)
        return self.train.model_copy(update={"config": config})


class Sweep(Section):
    """A table of training runs: those of a wandb project (entity/project), or trained here."""

    wandb: Project | None = None
    local: LocalSweep | None = None

    @model_validator(mode="after")
    def _one_source(self):
        _exactly_one(self, ("wandb", "local"))
        return self


class Catalog(Section):
    models: dict[Key, Model] = Field(min_length=1)
    text: dict[Key, Text] = {}
    variants: dict[VariantKey, Variant] = Field(min_length=1)
    pairs: list[Pair] = []
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
        for key, sweep in self.sweeps.items():
            if sweep.local:
                known(f"sweeps.{key}.local.model", sweep.local.model, self.models)
                known(f"sweeps.{key}.local.train.text", sweep.local.train.text, self.text)
        held: dict[Hashable, int] = {}
        for number, pair in enumerate(self.pairs):
            known(f"pairs[{number}].variant", pair.variant, self.variants)
            known(f"pairs[{number}].model", pair.model, self.models)
            if pair.train:
                known(f"pairs[{number}].train.text", pair.train.text, self.text)
            for layer in pair.layers:
                first = held.setdefault((pair.variant, pair.model, layer), number)
                if first != number or pair.layers.count(layer) > 1:
                    raise ValueError(
                        f"pairs[{number}] and pairs[{first}] both hold {pair.variant} of {pair.model} at layer {layer}"
                    )
        return self

    def pair(self, variant: str, model: str, layer: int) -> Pair | None:
        """The entry that holds this pair, or None."""
        return next((p for p in self.pairs if p.variant == variant and p.model == model and layer in p.layers), None)

    def randomise_seed(self, variant: str, model: str) -> int | None:
        """The seed of the language model's randomised twin, for a variant that is a control; else None."""
        return self.models[model].randomise_seed if self.variants[variant].control_of else None

    def digest(self, model: str, asset: str, pair: Pair | None = None) -> str:
        """Which catalog entries an asset was made from: a hash that changes when what concerns it does in the model,
        its text or the pair, but not when other layers join the pair's."""
        others = {setting for setting, concerned in SETTING_OF.items() if concerned != asset}
        if pair is None or self.randomise_seed(pair.variant, model) is None:
            others.add("randomise_seed")
        entries = [self.models[model].model_dump_json(exclude=others)]
        if asset == SETTING_OF["text"]:
            entries.append(self.model_text(model).model_dump_json())
        if pair is not None:
            entries.append(pair.model_dump_json(exclude={"layers"}))
            if pair.train:
                entries.append(self.text[pair.train.text].model_dump_json())
        return _hash(entries)

    def sweep_digest(self, key: str) -> str:
        """As `digest`, of a sweep's table."""
        sweep = self.sweeps[key]
        entries = [sweep.model_dump_json()]
        if sweep.local:
            entries.append(self.run_digest(sweep.local, sweep.local.coefficients[0]))
        return _hash(entries)

    def run_digest(self, sweep: LocalSweep, coefficient: float) -> str:
        """Which catalog entries a run of a local sweep is made from; other coefficients may join the sweep."""
        others = {setting for setting, concerned in SETTING_OF.items() if concerned not in ("tokens", "pair_quality")}
        return _hash(
            [
                self.models[sweep.model].model_dump_json(exclude=others | {"randomise_seed"}),
                self.model_text(sweep.model).model_dump_json(),
                str(sweep.layer),
                sweep.recipe(coefficient).model_dump_json(),
                self.text[sweep.train.text].model_dump_json(),
            ]
        )

    def figure_digest(self, model: str, layers: Sequence[int], variants: Sequence[str]) -> str:
        """As `digest`, of a figure: it changes with its variants' pairs at these layers and with how they are drawn."""
        entries = [self.variants[variant].model_dump_json() for variant in sorted(variants)]
        for layer in layers:
            held = [self.pair(variant, model, layer) for variant in sorted(variants)]
            entries += [f"{layer} {pair.model_dump_json(exclude={'layers'})}" for pair in held if pair]
        return _hash(entries)

    def entries(self) -> dict[str, str]:
        """The digest of everything in the catalog that something is made from, by a name that says where it stands:
        `pairs/jsae/my-model:3`, `pairs/jsae/my-model` (all its layers), `models/my-model/tokens`, `variants/jsae`,
        `sweeps/mine`."""
        settings = {
            f"models/{key}/{asset}": self.digest(key, asset)
            for key in self.models
            for asset in dict.fromkeys(SETTING_OF.values())
        }
        styles = {f"variants/{key}": _hash([variant.model_dump_json()]) for key, variant in self.variants.items()}
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
        return settings | styles | pairs | of_all_layers | sweeps

    def layers(self, model: str, variant: str | None = None) -> list[int]:
        """The layers of a model at which the catalog holds a pair (of this variant)."""
        return sorted(
            {
                layer
                for pair in self.pairs
                if pair.model == model and variant in (None, pair.variant)
                for layer in pair.layers
            }
        )

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
    path = Path(named) if named else DEFAULT_CATALOG
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
    except yaml.YAMLError as error:
        raise CatalogError(f"{path}: is no valid YAML: {error}") from error
    if not isinstance(entries, dict):
        raise CatalogError(f"{path}: expected sections models, text, variants, pairs and sweeps")
    try:
        catalog = TypeAdapter(Catalog).validate_python(entries)
    except ValidationError as error:
        raise CatalogError("\n".join(f"{path}: {problem}" for problem in _problems(error))) from error
    return _resolved(catalog, path.resolve().parent)


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"] if part != "[key]")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "there is no such setting"
        problems.append(f"{place.lstrip('.')}: {message}" if place else message)
    return problems


def _resolved(catalog: Catalog, folder: Path) -> Catalog:
    def absolute(name: str | None) -> str | None:
        return name and str((folder / Path(name).expanduser()).resolve())

    return catalog.model_copy(
        update={
            "models": {
                key: model.model_copy(update={"directory": absolute(model.directory)})
                for key, model in catalog.models.items()
            },
            "text": {
                key: text.model_copy(update={"files": text.files and [absolute(name) for name in text.files]})
                for key, text in catalog.text.items()
            },
            "pairs": [pair.model_copy(update={"directory": absolute(pair.directory)}) for pair in catalog.pairs],
        }
    )


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
