"""Reading a catalog from its YAML file, and reporting everything that is wrong with it at once, each problem with its
line.

Here: which file is read, its YAML, contradictions between entries. Not here: the sections and the rules of each entry
(`catalog.py`, `sources.py`), the wording of pydantic's errors (`problems.py`).
Nothing here imports torch, because the definitions must load fast.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from jsae_assets.catalog import MODEL_SOURCES, TEXT_SOURCES, Catalog, Model, Sweep, Text, Variant
from jsae_assets.problems import TruthValue, in_part
from jsae_assets.sections import FOLDER, given
from jsae_assets.sources import KINDS, UNCLEAR, AnyPair, Recipe, TrainedPair
from jsae_core.names import advice, nearest

CATALOGS = Path(__file__).parent / "catalogs"
DEFAULT_CATALOG = CATALOGS / "default.yaml"
CATALOG_VARIABLE = "JSAE_CATALOG"

Location = tuple[Any, ...]  # of a setting: the keys and numbers that lead to it
Problem = tuple[Location, str]  # where it is, and a sentence that says so too

SECTIONS = ("models", "text", "variants", "sweeps")  # those whose entries have names; pairs have numbers
ENTRIES: Mapping[str, Any] = {
    "models": Model,
    "text": Text,
    "variants": Variant,
    "pairs": AnyPair,
    "sweeps": Sweep,
}
# parts that pydantic adds to the place of an error: that it concerns a key, and the kind of a pair's source
OMITTED = ("[key]", *(f"[{kind}]" for kind in (*KINDS, UNCLEAR)))


class CatalogError(ValueError):
    """The catalog cannot be read, is malformed or contradicts itself. The message names file and entry."""


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
    loader = _Loader(text)
    try:
        document = loader.get_single_node()
        entries = None if document is None else loader.construct_document(document)
    except RecursionError as error:
        raise CatalogError(f"{path}: is nested too deeply to be read") from error
    except yaml.YAMLError as error:
        problem = str(error).replace('in "<unicode string>", ', "at ")
        raise CatalogError(f"{path}: is not valid YAML: {problem}") from error
    if loader.repeated:  # what the others say is lost, so nothing else is known
        raise CatalogError("\n".join(f"{path}:{line}: {problem}" for line, problem in loader.repeated))
    if not isinstance(entries, dict):
        found = "is empty" if entries is None else "holds no sections"
        raise CatalogError(f"{path}: {found}; expected the sections models, text, variants, pairs and, if any, sweeps")
    context = {FOLDER: path.resolve().parent}
    catalog = None
    problems_found: list[Problem] = []
    try:
        catalog = TypeAdapter(Catalog).validate_python(entries, context=context)
        known, names = _entries(catalog), {name: getattr(catalog, name) for name in SECTIONS}
    except ValidationError as error:
        problems_found += _problems(error)
        known, names = _known_entries(entries, context), _names(entries)
    problems_found += _contradictions(known, names)
    if problems_found:
        placed = [(_line(document, place) or 0, problem) for place, problem in problems_found]
        lines = sorted(placed, key=lambda item: item[0])
        each_once = dict.fromkeys(
            f"{path}:{line}: {problem}" if line else f"{path}: {problem}" for line, problem in lines
        )
        raise CatalogError("\n".join(each_once))
    return catalog


def _contradictions(
    entries: Mapping[str, Mapping[Any, Any]], names: Mapping[str, Collection[str] | None]
) -> Iterator[Problem]:
    """Yield a problem for each entry that contradicts another one, as far as both are known.

    Args:
        entries: the entries of each section by name or number; of malformed ones what is known of them.
        names: the names of all entries of the sections that have names; None for a section that is malformed itself.
    """

    def unknown(place: Location, name: str | None, section: str, impossible: Collection[str] = ()) -> Iterator[Problem]:
        known = names[section]
        if name is not None and known is not None and name not in known:
            possible = [key for key in known if key not in impossible and _may_be_named(section, key)]
            advised = advice(name, possible) if possible or not known else f"no name in {section} could stand here"
            yield place, f"{_written(place)} is {name!r}, which is not in the catalog; {advised}"

    place: Location
    variants = entries["variants"]
    for key, model in entries["models"].items():
        yield from unknown(("models", key, "text"), _known(model, "text"), "text")
    controls = [key for key, variant in variants.items() if _known(variant, "control_of")]
    for key, variant in variants.items():
        for setting, impossible in (("compared_with", [key]), ("control_of", [key, *controls])):
            place, other = ("variants", key, setting), _known(variant, setting)
            yield from unknown(place, other, "variants", impossible)
            if other is not None and other == key:
                yield place, f"{_written(place)} is itself; expected another variant, or leave it out"
        other = _known(variant, "control_of")
        if other not in (None, key) and _known(variants.get(other), "control_of"):
            place = ("variants", key, "control_of")
            yield place, f"{_written(place)} is {other!r}, which is itself a control; expected a variant that is none"
    labelled: dict[str, str] = {}
    for key, variant in variants.items():
        place, label = ("variants", key, "label"), _known(variant, "label")
        if label is not None and (other := labelled.setdefault(label.strip(), key)) != key:
            yield place, f"{_written(place)} is {label!r}, as that of {other}; expected another, since figures show it"
    layers: dict[Location, tuple[str, list[int]]] = {}
    recipes: dict[Location, Recipe] = {}
    for key, sweep in entries["sweeps"].items():
        place, local = ("sweeps", key, "local"), _known(sweep, "local")
        yield from unknown((*place, "model"), _known(local, "model"), "models")
        layers[*place, "layer"] = _known(local, "model"), [_known(local, "layer")]
        recipes[*place, "train"] = _known(local, "train")
    entry_of_pair: dict[Hashable, int] = {}
    for number, pair in entries["pairs"].items():
        place = ("pairs", number)
        variant, model, its_layers = (_known(pair, setting) for setting in ("variant", "model", "layers"))
        yield from unknown((*place, "variant"), variant, "variants")
        yield from unknown((*place, "model"), model, "models")
        layers[*place, "layers"] = model, its_layers or [None]
        if isinstance(pair, TrainedPair):
            recipes[*place, "train"] = _known(pair, "train")
        for layer, times in Counter(its_layers or ()).items():
            first = entry_of_pair.setdefault((variant, model, layer), number)
            if None not in (variant, model) and (first != number or times > 1):
                yield (
                    place,
                    f"pairs[{number}] and pairs[{first}] both name the pair {variant} of {model} at layer {layer}; "
                    "expected it once",
                )
    for place, recipe in recipes.items():
        yield from unknown((*place, "text"), _known(recipe, "text"), "text")
    yield from _missing_layers(entries["models"], layers)
    yield from _too_many_tokens(entries["text"], recipes)


@functools.cache  # a catalog may name what it does not have thousands of times
def _may_be_named(section: str, key: str) -> bool:
    """Whether an entry of a section may have this name."""
    kind, _ = get_args(Catalog.model_fields[section].annotation)
    try:
        TypeAdapter(kind).validate_python(key)
    except ValidationError:
        return False
    return True


def _known(entry: Any, *path: str) -> Any:
    """Return a setting of an entry, or of an entry in it; None if it is not known."""
    for name in path:
        entry = getattr(entry, name, None)
    return entry


def _missing_layers(
    models: Mapping[str, Model], layers_by_place: Mapping[Location, tuple[str | None, list[int | None]]]
) -> Iterator[Problem]:
    """Yield a problem for each place in the catalog that names a layer that its model does not have. `layers_by_place`
    gives a model and layers of it for each place that names layers."""
    counts = {
        key: _known(models[key], "layer_count")
        for key in {key for key, _ in layers_by_place.values()} & models.keys()
        if len(given(models[key], MODEL_SOURCES)) == 1
    }
    for place, (model, layers) in layers_by_place.items():
        count = counts.get(model)
        if count is not None and None not in layers and max(layers) >= count:
            text = f"the model {model!r} has layers 0 to {count - 1}; there is no layer {max(layers)}"
            yield place, f"{_written(place)}: {text}"


def _too_many_tokens(texts: Mapping[str, Text], recipes: Mapping[Location, Recipe | None]) -> Iterator[Problem]:
    """Yield a problem for each recipe that needs more tokens than its text can have. `recipes` are by their places in
    the catalog."""
    names = {_known(recipe, "text") for recipe in recipes.values()} & texts.keys()
    bounds = {name: _known(texts[name], "most_tokens") for name in names if len(given(texts[name], TEXT_SOURCES)) == 1}
    for place, recipe in recipes.items():
        text, tokens = _known(recipe, "text"), _known(recipe, "tokens")
        bound = bounds.get(text)
        if None not in (bound, tokens) and tokens > bound:
            yield (
                (*place, "tokens"),
                f"{_written(place)}.tokens is {tokens:,}, but the text {text!r} has {bound:,} bytes, and a token has "
                "at least one byte (most have three or four); add text, or train on fewer tokens",
            )


def _problems(error: ValidationError) -> Iterator[Problem]:
    """Yield each of pydantic's errors: the place in the catalog, and what is wrong there."""
    for item in error.errors(include_url=False):
        place = tuple(part for part in item["loc"] if part not in OMITTED)
        message = item["msg"].removeprefix("Value error, ")
        yield place, f"{_written(place)}: {message}" if place else message


def _written(place: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _line(node: yaml.Node, place: Location) -> int | None:
    """Return the line of the catalog in which a place is, or else the entry that it would belong to; None if it is in
    none."""
    line = None
    for part in place:
        within = []
        if isinstance(node, yaml.MappingNode):
            # the last one counts: what is merged from elsewhere (<<) comes before what overrides it
            within = [(key, value) for key, value in node.value if key.value == str(part)][-1:]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            within = [(value, value) for value in node.value[part : part + 1]]
        if not within:
            return line
        ((key, node),) = within
        line = key.start_mark.line + 1
    return line


def _entries(catalog: Catalog) -> dict[str, Mapping[Any, Any]]:
    return {name: getattr(catalog, name) for name in SECTIONS} | {"pairs": dict(enumerate(catalog.pairs))}


def _known_entries(entries: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Mapping[Any, Any]]:
    """Return what is known of each entry of a catalog that is malformed somewhere, by section and name or number."""
    pairs = entries.get("pairs")
    raw = {name: section if isinstance(section := entries.get(name), dict) else {} for name in SECTIONS}
    raw["pairs"] = dict(enumerate(pairs)) if isinstance(pairs, list) else {}
    known: dict[str, Mapping[Any, Any]] = {}
    for name, section in raw.items():
        kind = TypeAdapter(ENTRIES[name])
        known[name] = {key: in_part(kind, entry, context) for key, entry in section.items()}
    return known


def _names(entries: Mapping[str, Any]) -> dict[str, Collection[str] | None]:
    """Return the names in each section of a catalog that is malformed somewhere; None where they are not known."""
    names: dict[str, Collection[str] | None] = {}
    unknown = entries.keys() - Catalog.model_fields.keys()
    misspelt = {meant for name in unknown for meant in nearest(name, Catalog.model_fields)}
    for name in SECTIONS:
        section = entries.get(name)
        if isinstance(section, dict):
            names[name] = [key for key in section if isinstance(key, str)]
        else:
            may_be_left_out = name not in misspelt and not Catalog.model_fields[name].is_required()
            names[name] = [] if name not in entries and may_be_left_out else None
    return names


class _Loader(yaml.SafeLoader):
    """A YAML loader that notes keys that stand twice, of which PyYAML keeps the last one without a word, and that reads
    truth values as `TruthValue`. Dates, and numbers that mean something else than they seem to, it leaves as text.

    Attributes:
        repeated: line and problem of each such key.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.repeated: list[tuple[int, str]] = []

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)  # merge keys (<<) are not resolved yet, so they add no keys
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                first = seen.get((key.tag, key.value))
                if first is not None:
                    problem = f"the key {key.value!r} stands twice, here and in line {first}; expected it once"
                    self.repeated.append((line, problem))
                seen.setdefault((key.tag, key.value), line)
        return node


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    # YAML 1.1 reads 010 as 8, and 1:30 as 90; as text they are refused where a number is expected
    seems_other = re.fullmatch(r"[-+]?0[0-9_]+|.*:.*", node.value)
    return node.value if seems_other else loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:bool", lambda loader, node: TruthValue(node.value))
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)
