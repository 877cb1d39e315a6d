"""What a catalog may say, and what it is told where it may not."""

import copy
import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_type_hints

import dagster as dg
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import jsae_assets
from jsae_assets.catalog import LocalSweep, Model, Text
from jsae_assets.catalog_file import CATALOG_VARIABLE, CatalogError, load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.sources import ExplainedVariance, PairOnHub, PairOnServer, Recipe
from jsae_core.recipe import AntiBypass, AuxK, TrainingConfig
from tests.jsae_assets.conftest import TABLES

CATALOGS = sorted((Path(jsae_assets.__file__).parent / "catalogs").glob("*.yaml"))
CONFIG = {"d_sae": 8, "k": 4, "jacobian_coefficient": 1.0, "steps": 5, "batch_tokens": 2}
GOOD = {
    "models": {"m": {"directory": "lm", "text": "t"}, "hub": {"hub": "EleutherAI/pythia-70m-deduped"}},
    "text": {"t": {"files": ["*.txt"]}},
    "variants": {
        "a": {"label": "A", "colour": "#000000"},
        "b": {"label": "B", "colour": "#ffffff", "compared_with": "a"},
    },
    "pairs": [
        {"variant": "a", "model": "m", "layers": [0, 2], "train": {"text": "t", "tokens": 10, "config": CONFIG}},
        {"variant": "b", "model": "m", "layers": [0], "directory": "pairs/{layer}"},
        {"variant": "b", "model": "hub", "layers": [3, 4], "wandb": "who/what/layer{layer}:v0"},
    ],
    "sweeps": {},
}
LOCAL = {
    "model": "m",
    "layer": 1,
    "coefficients": [0.0, 1.0],
    "train": {"text": "t", "tokens": 10, "config": CONFIG},
}


def with_change(place: str, value) -> dict:
    """GOOD with one setting put in or replaced; "pairs.0.layers" leads to it."""
    entries = copy.deepcopy(GOOD)
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = entries
    for part in path:
        target = target[part]
    if isinstance(last, int) and last == len(target):
        target.append(value)
    else:
        target[last] = value
    return entries


def without(place: str) -> dict:
    entries = copy.deepcopy(GOOD)
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = entries
    for part in path:
        target = target[part]
    del target[last]
    return entries


def load(tmp_path: Path, entries) -> object:
    """The catalog in a folder where everything is that GOOD names."""
    model_files(tmp_path / "lm")
    for directory in (f"{name}/{layer}" for name in ("pairs", "other") for layer in range(3)):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
    (tmp_path / "some.txt").write_text("a dozen letters")
    path = tmp_path / "some-catalog.yaml"
    path.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    return load_catalog(path)


def model_files(directory: Path, **config) -> Path:
    """A directory that looks like a language model's, of three layers, as long as nobody reads its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or {"num_hidden_layers": 3}), encoding="utf-8")
    (directory / "model.safetensors").touch()
    return directory


def refusal(tmp_path: Path, entries) -> str:
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, entries)
    assert str(tmp_path / "some-catalog.yaml") in str(caught.value)
    return str(caught.value)


def test_the_catalog_that_the_refusals_below_are_changed_from_is_good(tmp_path):
    catalog = load(tmp_path, GOOD)
    assert catalog.layers("m") == [0, 2]
    assert catalog.layers("m", "b") == [0]
    assert catalog.pair("b", "m", 0).address(0) == str(tmp_path / "pairs" / "0")
    assert catalog.pair("b", "hub", 4).address(4) == "who/what/layer4:v0"
    assert catalog.pair("b", "m", 2) is None


@pytest.mark.parametrize("path", CATALOGS, ids=lambda path: path.name)
def test_every_shipped_catalog_loads_and_holds_pairs_of_both_lineages(path):
    catalog = load_catalog(path)
    assert {pair.variant for pair in catalog.pairs} >= {"traditional", "jsae"}


def test_a_catalog_for_the_embedded_model_and_one_for_the_paper_s_pairs_are_shipped():
    assert {path.name for path in CATALOGS} == {"default.yaml", "pythia.yaml"}


MALFORMED = {
    # what is changed: (where, to what), the entry that the message names, what it says besides
    "a section that does not exist": (
        "modles",
        {},
        "modles",
        "there is no such setting; did you mean models?",
    ),
    "an unknown setting of a model": ("models.m.layer", 3, "models.m.layer", "expected one of directory, hub, "),
    "an unknown setting of a text": ("text.t.file", "x", "text.t.file", "did you mean files?"),
    "an unknown setting of a variant": (
        "variants.a.color",
        "#000000",
        "variants.a.color",
        "did you mean colour?",
    ),
    "an unknown setting of a pair": (
        "pairs.0.layer",
        1,
        "pairs[0].layer",
        "did you mean layers?",
    ),
    "an unknown setting of a recipe": (
        "pairs.0.train.config.dsae",
        8,
        "pairs[0].train.config.dsae",
        "there is no such setting; did you mean d_sae?",
    ),
    "an unknown setting of a term of the loss": (
        "pairs.0.train.config.auxk",
        {"weight": 1},
        "pairs[0].train.config.auxk.weight",
        "there is no such setting; expected one of coefficient, k, dead_after_tokens",
    ),
    "a label that is empty": ("variants.a.label", "", "variants.a.label", "is empty, expected at least 1 character"),
    "a label longer than a figure": ("variants.a.label", "x" * 101, "variants.a.label", "at most 100 characters"),
    "a column without a name": ("text.t.column", "", "text.t.column", "is empty, expected at least 1 character"),
    "a prompt as long as a book": (
        "models.m.prompt",
        "x" * 1001,
        "models.m.prompt",
        f"begins with '{'x' * 100}' and has 1,001 characters, expected at most 1000 characters",
    ),
    "an unknown split of the library": ("text.t", {"standard_library": "test"}, "text.t.standard_library", "'train'"),
    "a colour by its name": ("variants.a.colour", "red", "variants.a.colour", "'red', expected a colour of six hex"),
    "a colour that YAML took for a comment": (
        "variants.a.colour",
        None,
        "variants.a.colour",
        "in quotes, because YAML",
    ),
    "no tokens to measure": ("models.m.tokens", 0, "models.m.tokens", "is 0, expected at least 1"),
    "no shards": ("models.m.shards", 0, "models.m.shards", "is 0, expected at least 1"),
    "more shards than anybody wants": ("models.m.shards", 10**6, "models.m.shards", "expected at most 1000"),
    "a context without room for a token": ("models.m.context_size", 1, "models.m.context_size", "2"),
    "an empty prompt": ("models.m.prompt", "", "models.m.prompt", "at least 1 character"),
    "a number that is a word": ("models.m.tokens", "many", "models.m.tokens", "is 'many', expected a whole number"),
    "a negative layer": ("pairs.0.layers", [-1], "pairs[0].layers[0]", "0"),
    "a layer that is a truth value": ("pairs.0.layers", [True], "pairs[0].layers[0]", "is true, a truth value"),
    "a size that is a truth value": (
        "pairs.0.train.config.k",
        True,
        "pairs[0].train.config.k",
        "is true, a truth value",
    ),
    "a number for a name": ("models.7", {"hub": "x/y"}, "models[7]", "is 7, expected text"),
    "a model that is nothing": ("models.m", None, "models.m", "is empty, expected settings, each as `name: value`"),
    "no layers": ("pairs.0.layers", [], "pairs[0].layers", "at least 1"),
    "one layer that is no list": ("pairs.0.layers", 3, "pairs[0].layers", "is 3, expected a list, such as [3]"),
    "one file that is no list": ("text.t.files", "*.txt", "text.t.files", 'expected a list, such as ["*.txt"]'),
    "a variance above all of it": (
        "pairs.0.least_explained_variance",
        {"input": 1.5},
        "pairs[0].least_explained_variance.input",
        "1",
    ),
    "an empty section": ("models", {}, "models", "at least 1"),
    "a section that is a list": ("variants", ["a"], "variants", "is a list, expected settings, each as `name: value`"),
    "an empty directory": ("models.m.directory", "", "models.m.directory", "at least 1 character"),
    "a directory at an address": (
        "models.m.directory",
        "s3://b/m",
        "models.m.directory",
        "is an address, expected a path",
    ),
    "files at an address": (
        "text.t.files",
        ["https://x.org/a.txt"],
        "text.t.files[0]",
        "is an address, expected a path",
    ),
    "an empty list of files": ("text.t.files", [], "text.t.files", "at least 1"),
    "an empty directory of a pair": ("pairs.1.directory", "", "pairs[1].directory", "at least 1 character"),
}
CONTRADICTORY = {
    "a text that does not exist": ("models.m.text", "x", "models.m.text", "not in the catalog; expected one of t"),
    "a model from a directory without a text": ("models.m", {"directory": "lm"}, "models.m", "text is missing"),
    "a pair of no variant": ("pairs.0.variant", "c", "pairs[0].variant", "expected one of a, b"),
    "a pair of no model": ("pairs.0.model", "x", "pairs[0].model", "expected one of m, hub"),
    "a recipe with no text": ("pairs.0.train.text", "x", "pairs[0].train.text", "expected one of t"),
    "a comparison with no variant": (
        "variants.b.compared_with",
        "c",
        "variants.b.compared_with",
        "which is not in the catalog; expected one of a",
    ),
    "two variants with the same label": (
        "variants.b.label",
        "A",
        "variants.b.label",
        "is 'A', as that of a; expected another",
    ),
    "a comparison with itself": ("variants.b.compared_with", "b", "variants.b.compared_with", "itself"),
    "two sources of a model": ("models.m.hub", "x/y", "models.m", "exactly one of directory, hub, embedded"),
    "no source of a model": ("models.m", {"text": "t"}, "models.m", "exactly one of directory, hub, embedded"),
    "two sources of a text": ("text.t.dataset", "x", "text.t", "exactly one of standard_library, files, dataset"),
    "no source of a text": ("text.t", {}, "text.t", "exactly one of standard_library, files, dataset"),
    "two sources of a pair": (
        "pairs.0.wandb",
        "a/b/{layer}:v0",
        "pairs[0]",
        "exactly one of directory, train, wandb, hub",
    ),
    "no source of a pair": (
        "pairs.0",
        {"variant": "a", "model": "m", "layers": [0]},
        "pairs[0]",
        "exactly one of directory, train, wandb, hub",
    ),
    "layers that share a directory": (
        "pairs.1",
        {"variant": "b", "model": "m", "layers": [0, 1], "directory": "x"},
        "pairs[1]",
        "{layer}",
    ),
    "an artifact without an alias": (
        "pairs.2.wandb",
        "a/b/{layer}",
        "pairs[2].wandb",
        "expected entity/project/name:alias",
    ),
    "a sweep that is no project": ("sweeps.s", {"wandb": "a/b/c"}, "sweeps.s.wandb", "expected entity/project"),
    "a sweep without a source": ("sweeps.s", {}, "sweeps.s", "expected exactly one of wandb, local"),
    "a sweep of an unknown model": (
        "sweeps.s",
        {"local": LOCAL | {"model": "nothing"}},
        "sweeps.s.local.model",
        "'nothing', which is not in the catalog",
    ),
    "a sweep with a coefficient twice": (
        "sweeps.s",
        {"local": LOCAL | {"coefficients": [1.0, 2.0, 1.0]}},
        "sweeps.s.local",
        "two runs would be the same: jacobian_coefficient 1.0",
    ),
    "a sweep of a k beyond its d_sae": ("sweeps.s", {"local": LOCAL | {"k": [1, 999]}}, "sweeps.s.local", "k is 999"),
    "a sweep at a layer that is text": (
        "sweeps.s",
        {"local": LOCAL | {"layer": "01"}},
        "sweeps.s.local.layer",
        "is '01', expected a whole number",
    ),
    "a sweep of an unknown objective": (
        "sweeps.s",
        {"local": LOCAL | {"objective": ["l1", "l7"]}},
        "sweeps.s.local",
        "objective is 'l7'",
    ),
    "a sweep of pairs of lists that differ in length": (
        "sweeps.s",
        {"local": LOCAL | {"coefficients": [0.0, 1.0, 2.0], "seed": [0, 1], "combine": "zip"}},
        "sweeps.s.local",
        "the lists differ in length: 3 and {'seed': 2}",
    ),
    "a sweep without coefficients": (
        "sweeps.s",
        {"local": LOCAL | {"coefficients": []}},
        "sweeps.s.local.coefficients",
        "is empty, expected at least 1",
    ),
    "layers that share an artifact": ("pairs.2.wandb", "a/b/c:v0", "pairs[2]", "{layer}"),
    "the same pair in two entries": (
        "pairs.3",
        {"variant": "b", "model": "m", "layers": [1, 0], "wandb": "a/b/{layer}:v0"},
        "pairs[3] and pairs[1]",
        "b of m at layer 0",
    ),
    "the same layer twice in an entry": ("pairs.0.layers", [2, 2], "pairs[0]", "a of m at layer 2"),
    "another placeholder in a directory": (
        "pairs.1.directory",
        "pairs/{lay}",
        "pairs[1]",
        "contains {lay}, but the only",
    ),
    "another placeholder in an artifact": ("pairs.2.wandb", "a/b/{layer}{x}:v0", "pairs[2]", "placeholder is {layer}"),
    "a layer that the model has not": (
        "pairs.0.layers",
        [2, 3],
        "pairs[0].layers",
        "'m' has layers 0 to 2; there is no",
    ),
    "a sweep at a layer that the model has not": (
        "sweeps.s",
        {"local": LOCAL | {"layer": 3}},
        "sweeps.s.local.layer",
        "layers 0 to 2; there is no layer 3",
    ),
    "more training than the text can hold": (
        "pairs.0.train.tokens",
        1000,
        "pairs[0].train.tokens",
        "is 1,000, but the text 't' has 16 bytes",
    ),
    "a sweep that trains on more than the text can hold": (
        "sweeps.s",
        {"local": LOCAL | {"train": LOCAL["train"] | {"tokens": 1000}}},
        "sweeps.s.local.train.tokens",
        "but the text 't' has 16 bytes",
    ),
    "batches larger than the text that is trained on": (
        "pairs.0.train.config.batch_tokens",
        11,
        "pairs[0].train",
        "tokens is 10, but batch_tokens is 11: a batch would contain tokens several times",
    ),
    "a k above d_sae": ("pairs.0.train.config.k", 9, "pairs[0].train.config", "k is 9, larger than d_sae, 8"),
    "no steps": ("pairs.0.train.config.steps", 0, "pairs[0].train.config", "steps is 0, expected at least 1"),
    "a negative coefficient": (
        "pairs.0.train.config.jacobian_coefficient",
        -1,
        "pairs[0].train.config",
        "jacobian_coefficient",
    ),
    "a coefficient that is no number": (
        "pairs.0.train.config.jacobian_coefficient",
        float("nan"),
        "pairs[0].train.config",
        "finite",
    ),
}


@pytest.mark.parametrize(
    "name", ["a b", "a/b/c", "-a/b", "a/b..c", "https://huggingface.co/a/b", "a/" + "b" * 200, "ä/b"]
)
@pytest.mark.parametrize(
    ("place", "settings"),
    [
        ("models.m", {"text": "t"}),
        ("text.t", {}),
        ("pairs.2", {"variant": "b", "model": "hub", "layers": [3]}),
    ],
)
def test_a_name_that_the_hub_cannot_have_is_refused_when_the_catalog_is_loaded(tmp_path, place, settings, name):
    message = refusal(tmp_path, with_change(place, settings | {"dataset" if place == "text.t" else "hub": name}))
    assert place.replace(".2", "[2]") in message
    assert f"{name!r} cannot be a name on the Hugging Face hub; expected organisation/name" in message


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        (None, "model.safetensors", "holds no config.json"),
        ("[]", "model.safetensors", "config.json: expected a JSON object"),
        ("{", "model.safetensors", "config.json: cannot be read as JSON"),
        ("{}", "pytorch_model.bin", "holds no model.safetensors"),
    ],
)
def test_a_directory_that_holds_no_model_is_refused_with_its_entry(tmp_path, config, weights, expected):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / weights).touch()
    if config is not None:
        (tmp_path / "other" / "config.json").write_text(config, encoding="utf-8")
    message = refusal(tmp_path, with_change("models.m.directory", "other"))
    assert f"models.m.directory: {tmp_path / 'other'}" in message and expected in message


def test_the_embedded_model_s_layers_are_known_and_those_of_a_model_on_the_hub_are_not(tmp_path):
    embedded = with_change("models.m", {"embedded": "stdlib-1m", "text": "t"})
    load(tmp_path, embedded)
    embedded["pairs"][0]["layers"] = [0, 3]
    assert "pairs[0].layers: the model 'm' has layers 0 to 2" in refusal(tmp_path, embedded)
    load(tmp_path, with_change("pairs.2.layers", [3, 400]))


def test_a_text_that_may_hold_more_than_its_files_sizes_tell_is_not_judged_by_them(tmp_path):
    (tmp_path / "some.txt.gz").touch()
    entries = with_change("pairs.0.train.tokens", 1000)
    entries["text"]["t"] = {"files": ["some.txt.gz"]}
    load(tmp_path, entries)
    entries["text"]["t"] = {"dataset": "who/what"}
    load(tmp_path, entries)
    entries["text"]["t"] = {"standard_library": "train"}
    load(tmp_path, entries)
    entries["pairs"][0]["train"]["tokens"] = 10**9
    assert "pairs[0].train.tokens is 1,000,000,000, but the text 't' has" in refusal(tmp_path, entries)


@pytest.mark.parametrize(
    ("place", "value", "entry", "expected"),
    [*MALFORMED.values(), *CONTRADICTORY.values()],
    ids=[*MALFORMED, *CONTRADICTORY],
)
def test_a_bad_entry_is_refused_by_naming_file_entry_and_what_was_expected(tmp_path, place, value, entry, expected):
    message = refusal(tmp_path, with_change(place, value))
    assert entry in message
    assert expected in message


def with_every_whole_number() -> dict:
    """GOOD, with each setting written out that is a whole number."""
    entries = copy.deepcopy(GOOD)
    sizes = ("ablation_samples", "function_shapes", "least_active", "quality_tokens", "context_size", "randomise_seed")
    entries["models"]["m"] |= {"tokens": 100, "shards": 2} | dict.fromkeys(sizes, 10)
    further = {"auxk": {"k": 1, "dead_after_tokens": 3}, "seed": 1, "buffer_tokens": 20, "gradient_accumulation": 1}
    entries["pairs"][0]["train"]["config"] = CONFIG | further
    entries["sweeps"]["s"] = {"local": copy.deepcopy(LOCAL) | {"k": [4], "d_sae": [8], "seed": [0]}}
    return entries


def whole_numbers(entries, place: str = "") -> list[tuple[str, int]]:
    if isinstance(entries, int):
        return [(place, entries)]
    inner = entries.items() if isinstance(entries, dict) else enumerate(entries) if isinstance(entries, list) else []
    return [found for name, entry in inner for found in whole_numbers(entry, f"{place}.{name}".lstrip("."))]


def test_each_setting_that_is_a_whole_number_is_among_those_that_are_tried_below():
    def whole(kind: type) -> set[str]:
        hints = get_type_hints(kind, include_extras=False)
        return {name for name, hint in hints.items() if int in (hint, *get_args(hint)) and hint != float | int}

    tried = {place.split(".")[-1] if not place[-1].isdigit() else place.split(".")[-2] for place, _ in WHOLE_NUMBERS}
    for kind in (Model, Recipe, TrainingConfig, AuxK, AntiBypass, LocalSweep):
        assert whole(kind) <= tried, kind


WHOLE_NUMBERS = whole_numbers(with_every_whole_number())


@pytest.mark.parametrize(("place", "number"), WHOLE_NUMBERS, ids=[place for place, _ in WHOLE_NUMBERS])
@pytest.mark.parametrize("written", [float, str])
def test_a_whole_number_with_a_point_or_in_quotes_is_refused_wherever_one_is_expected(tmp_path, place, number, written):
    entries = with_every_whole_number()
    load(tmp_path, entries)
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = entries
    for part in path:
        target = target[part]
    target[last] = written(number)
    message = refusal(tmp_path, entries)
    assert re.sub(r"\.(\d+)", r"[\1]", place) + f": is {written(number)!r}, expected a whole number" in message


@pytest.mark.parametrize(
    ("place", "entry"),
    [
        ("models", "models"),
        ("variants", "variants"),
        ("variants.a.colour", "variants.a.colour"),
        ("pairs.0.layers", "pairs[0].layers"),
        ("pairs.0.train.tokens", "pairs[0].train.tokens"),
        ("pairs.0.train.config.d_sae", "pairs[0].train.config.d_sae"),
    ],
)
def test_what_is_missing_is_named(tmp_path, place, entry):
    message = refusal(tmp_path, without(place))
    assert f"{entry}: " in message
    assert "required" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: &m {a: *m}\nvariants: {}\n", "models.a"),
        ("models: " + "[" * 9999, "nested too deep"),
        # each of twenty levels holds the one before it nine times
        ("a: &a0 [x]\n" + "".join(f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 21)), "models"),
    ],
    ids=["holds itself", "too deep", "too large"],
)
def test_what_cannot_be_gone_through_to_its_end_is_refused(tmp_path, text, said):
    assert said in refusal(tmp_path, text)


def test_a_sweep_of_many_runs_is_read(tmp_path):
    coefficients = [n / 1000 for n in range(5_000)]  # comparing each with each would take minutes
    catalog = load(tmp_path, with_change("sweeps.s", {"local": LOCAL | {"coefficients": coefficients}}))
    assert len(catalog.sweeps["s"].local.configs()) == 5_000


def test_a_name_that_yaml_reads_as_a_truth_value_is_refused_by_its_place(tmp_path):
    message = refusal(tmp_path, yaml.safe_dump(GOOD).replace("\nvariants:\n", "\nvariants:\n  no: {label: yes}\n"))
    assert "variants.no: the name is no, a truth value" in message and "write text in quotes" in message
    assert "variants.no.label: is yes, a truth value" in message


@pytest.mark.parametrize("number", ["010", "+07", "0_1", "1:30"])
def test_a_number_that_yaml_takes_for_another_is_refused_as_it_is_written(tmp_path, number):
    text = yaml.safe_dump(with_change("models.m.tokens", 100))
    message = refusal(tmp_path, text.replace("tokens: 100\n", f"tokens: {number}\n"))
    assert f"models.m.tokens: is '{number}', expected a whole number" in message


def test_numbers_in_other_notations_that_cannot_be_mistaken_are_read(tmp_path):
    text = yaml.safe_dump(with_change("models.m.tokens", 100))
    for number in ("1_000", "0x3e8", "+1000"):
        assert load(tmp_path, text.replace("tokens: 100\n", f"tokens: {number}\n")).models["m"].tokens == 1000


def test_a_date_is_text_where_text_is_expected(tmp_path):
    changed = with_change("models.m", {"hub": "x/y", "revision": "REVISION", "text": "t"})
    catalog = load(tmp_path, yaml.safe_dump(changed).replace("REVISION", "2026-11-28"))
    assert catalog.models["m"].revision == "2026-11-28"


def test_an_empty_name_is_one_problem(tmp_path):
    message = refusal(
        tmp_path,
        yaml.safe_dump(GOOD).replace("\nvariants:\n", "\nvariants:\n  null: {label: Nothing, colour: '#000000'}\n"),
    )
    assert "is empty, expected text" in message and "is itself" not in message


# Each is a problem by itself, and none has to do with another
PROBLEMS = {
    "models.m.tokens": 10.0,
    "models.m.contxt_size": 7,
    "models.hub.directory": "lm",
    "text.t.colum": "body",
    "text.t.revision": "main",
    "variants.a.colour": "red",
    "variants.b.compared_with": "c",
    "pairs.0.variant": "c",
    "pairs.0.layers": [2, 3],
    "pairs.0.train.tokens": 1000,
    "pairs.0.train.config.k": "four",
    "pairs.0.train.config.steps": 0,
    "pairs.0.train.config.seed": True,
    "pairs.0.train.config.gradient_accumulation": 3,
    "pairs.1.directory": "gone/{layer}",
    "pairs.1.least_explaned_variance": {},
    "pairs.2.model": "mm",
    "pairs.2.hub": "a/b",
    "sweeps.s": {"local": LOCAL | {"layer": 3, "coefficients": [1.0, 1.0], "k": [4, 999]}},
    "swep": {},
}


@given(places=st.sets(st.sampled_from(sorted(PROBLEMS)), min_size=1))
def test_all_problems_of_a_catalog_are_told_in_one_round_none_twice_and_none_that_only_follows(tmp_path, places):
    def told(changes: Iterable[str]) -> list[str]:
        entries = copy.deepcopy(GOOD)
        for place in changes:
            *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
            target = entries
            for part in path:
                target = target[part]
            target[last] = PROBLEMS[place]
        return [re.sub(r"^(.*?):\d+: ", r"\1: ", line) for line in refusal(tmp_path, entries).splitlines()]

    one_by_one = [line for place in places for line in told([place])]
    assert sorted(told(places)) == sorted(one_by_one)


@pytest.mark.parametrize(
    ("place", "misspelt"),
    [
        ("models", "modles"),
        ("variants", "varients"),
        ("text", "texts"),
        ("models.m.directory", "directroy"),
        ("models.m.text", "txt"),
        ("text.t.files", "file"),
        ("variants.a.label", "lable"),
        ("pairs.0.train", "trian"),
        ("pairs.0.layers", "layer"),
        ("pairs.0.train.text", "texts"),
        ("pairs.0.train.config", "confg"),
        ("pairs.0.train.config.d_sae", "dsae"),
        ("pairs.0.train.config.anti_bypass.weight", "wieght"),
    ],
)
def test_a_misspelt_setting_is_told_once_with_the_one_that_was_meant(tmp_path, place, misspelt):
    entries = with_change("pairs.0.train.config.anti_bypass", {"weight": 1.0})
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = entries
    for part in path:
        target = target[part]
    target[misspelt] = target.pop(last)
    (line,) = refusal(tmp_path, entries).splitlines()
    assert line.endswith(f"{misspelt}: there is no such setting; did you mean {last}?")


def test_a_name_that_was_misspelt_is_told_the_one_that_was_meant(tmp_path):
    entries = with_change("variants.b.compared_with", "A")
    entries["pairs"][2]["model"] = "hbu"
    entries["pairs"][0]["train"]["config"] = CONFIG | {"objective": "tahn"}
    lines = refusal(tmp_path, entries).splitlines()
    assert [line.split("; ")[-1] for line in lines] == [f"did you mean {name}?" for name in ("a", "tanh", "hub")]


def test_no_name_is_suggested_that_would_be_refused(tmp_path):
    entries = with_change("models.my model!", GOOD["models"]["m"])
    entries["pairs"][0]["model"] = "my-model"
    entries["variants"]["b"] |= {"compared_with": "B", "control_of": "bb"}
    said = refusal(tmp_path, entries)
    assert "'my model!' cannot be a name" in said
    advised = {line.split(" is ")[0].split(": ")[1]: line.split("; ")[-1] for line in said.splitlines() if "; " in line}
    assert advised == {
        "pairs[0].model": "expected one of m, hub",
        "variants.b.compared_with": "expected one of a",
        "variants.b.control_of": "expected one of a",
    }


def test_a_problem_begins_with_file_and_line_and_the_first_line_of_the_file_is_told_first(tmp_path):
    text = yaml.safe_dump(with_change("variants.b.colour", "red"), sort_keys=False)
    text = text.replace("  - 2\n", "  - 2\n  - 3\n").replace("    text: t\n", "    text: u\n", 1)
    places = ["models.m.text is 'u'", "variants.b.colour: ", "pairs[0].layers: "]
    found = [line.split(": ", 1) for line in refusal(tmp_path, text).splitlines()]
    assert [problem.startswith(place) for (_, problem), place in zip(found, places, strict=True)] == [True] * 3
    starts = [text.splitlines()[int(start.rpartition(":")[2]) - 1].strip() for start, _ in found]
    assert starts == ["text: u", "colour: red", "layers:"]


def test_a_setting_that_is_merged_from_elsewhere_has_the_line_where_it_is_written(tmp_path):
    text = yaml.safe_dump(GOOD | {"variants": {}}, sort_keys=False)
    merged = "variants:\n  a: &a\n    label: A\n    colour: red\n  b: {<<: *a, label: B}\n"
    lines = refusal(tmp_path, text.replace("variants: {}\n", merged)).splitlines()
    written = (tmp_path / "some-catalog.yaml").read_text().splitlines().index("    colour: red") + 1
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{tmp_path / 'some-catalog.yaml'}:{written}", f"variants.{variant}.colour"] for variant in "ab"
    ]


@pytest.mark.parametrize("malformed", [True, False], ids=["with a malformed entry", "with none"])
def test_every_contradiction_is_told_at_once_with_what_is_malformed_and_each_once(tmp_path, malformed):
    entries = copy.deepcopy(GOOD)
    pair = entries["pairs"][0]
    wrong = [{"variant": "x"}, {"model": "n"}, {"train": pair["train"] | {"text": "u"}}]
    entries["pairs"] = [pair | change | {"layers": [n]} for n, change in enumerate(wrong)]
    entries["variants"]["a"]["compared_with"] = "y"
    expected = [
        "variants.a.compared_with is 'y', which is not in the catalog",
        "pairs[0].variant is 'x', which is not in the catalog",
        "pairs[1].model is 'n', which is not in the catalog",
        "pairs[2].train.text is 'u', which is not in the catalog",
    ]
    if malformed:
        entries["pairs"].insert(0, pair | {"layers": "all"})
        expected = [re.sub(r"\d(?=])", lambda n: str(int(n[0]) + 1), line) for line in expected]
        expected.insert(1, "pairs[0].layers")  # in the order of the file
    lines = refusal(tmp_path, entries).splitlines()
    assert len(lines) == len(expected)
    assert all(problem in line for problem, line in zip(expected, lines, strict=True))


def test_an_entry_that_names_a_malformed_one_is_not_said_to_name_none(tmp_path):
    (line,) = refusal(tmp_path, with_change("models.m.tokens", 0)).splitlines()
    assert "models.m.tokens" in line


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (yaml.safe_dump(GOOD) + "models: {n: {hub: x}}", "models"),
        (yaml.safe_dump(GOOD).replace("models:\n", "models:\n  m: {hub: x}\n"), "m"),
        (yaml.safe_dump(GOOD).replace("      k: 4\n", "      k: 4\n      k: 5\n"), "k"),
    ],
    ids=["a section", "a model", "a setting"],
)
def test_a_key_that_stands_twice_is_refused_though_yaml_would_keep_the_last(tmp_path, text, key):
    message = refusal(tmp_path, text)
    assert f"{key!r} stands twice" in message
    assert "line" in message


def test_every_key_that_stands_twice_is_told_at_once(tmp_path):
    lines = refusal(tmp_path, "models: {a: {}, a: {}}\ntext: {}\ntext: {}\n").splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "the key 'a' stands twice, here and in line 1; expected it once",
        "the key 'text' stands twice, here and in line 2; expected it once",
    ]


def test_a_recipe_merged_from_another_may_override_it_also_where_it_is_merged_again(tmp_path):
    catalog = load(
        tmp_path,
        """
        models: {m: {directory: lm, text: t}}
        variants: {a: {label: A, colour: "#000000"}, b: {label: B, colour: "#000000"}}
        text: {t: {standard_library: train}}
        pairs:
          - variant: a
            model: m
            layers: [0]
            train: &train
              text: t
              tokens: 10
              config: &one {d_sae: 8, k: 4, jacobian_coefficient: 0, steps: 5, batch_tokens: 2}
          - &deep
            variant: a
            model: m
            layers: [1]
            train: {<<: *train, config: &two {<<: *one, k: 3}}
          - {<<: *deep, variant: b, train: {<<: *train, config: {<<: *two, steps: 6}}}
        """,
    )
    assert [(pair.train.config.k, pair.train.config.steps) for pair in catalog.pairs] == [(4, 5), (3, 5), (3, 6)]


def test_a_merge_of_what_lies_deeper_and_is_itself_merged_is_no_repeated_key(tmp_path):
    catalog = load(
        tmp_path,
        """
        models: {m: {hub: x}}
        text: {t: {dataset: x}}
        variants: {a: &v {label: A, colour: "#000000"}, b: {<<: *v, label: B}}
        sweeps:
          first:
            local: &local
              {model: m, layer: 0, coefficients: [1], train: &train {text: t, tokens: 5, config: &config
                {d_sae: 8, k: 4, jacobian_coefficient: 0, steps: 5, batch_tokens: 2}}}
          second: {local: {<<: *local, train: &deep {<<: *train, config: {<<: *config, k: 3}}}}
          third: {local: {<<: *local, train: {<<: *deep}}}
        """,
    )
    assert [sweep.local.train.config.k for sweep in catalog.sweeps.values()] == [4, 3, 3]


BAD_KEYS = [
    "",
    "a|b",
    "a,b",
    "a/b",
    "a\\b",
    "..",
    "a..b",
    ".hidden",
    "-a",
    "a b",
    " a",
    "a\n",
    "a\tb",
    "a\0b",
    "a\x7f",
    "ä",
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=repr)
@pytest.mark.parametrize("section", ["models", "text", "sweeps", "variants"])
def test_a_key_that_would_break_partitions_or_paths_is_refused_by_name(tmp_path, section, key):
    entries = {
        "models": {key: {"hub": "x"}},
        "text": {key: {"standard_library": "train"}},
        "sweeps": {key: {}},
        "variants": {key: {"label": "x", "colour": "#000000"}},
    }
    message = refusal(tmp_path, GOOD | {section: entries[section]})
    assert section in message
    assert repr(key) in message
    assert "expected" in message


@pytest.mark.parametrize("key", ["Jsae", "a.b", "a-b", "1a", "figures"])
def test_a_variant_needs_a_name_that_can_prefix_assets(tmp_path, key):
    assert repr(key) in refusal(tmp_path, GOOD | {"variants": {key: {"label": "x", "colour": "#000000"}}})


safe_characters = st.sampled_from("abzAZ059._-")
harmful = st.one_of(
    st.sampled_from("|,/\\:*?\"'<>%#"),
    st.characters(exclude_categories=["Cs"]).filter(lambda c: unicodedata.category(c)[0] in "CZ"),
)


@given(head=st.sampled_from("abzAZ059"), tail=st.text(safe_characters, max_size=30))
def test_every_name_of_letters_digits_dots_dashes_and_underscores_is_a_key(tmp_path, head, tail):
    key = head + tail.replace("..", "._")
    entries = GOOD | {"models": GOOD["models"] | {key: {"hub": "x"}}}
    assert key in load(tmp_path, entries).models


@given(head=st.text(safe_characters, max_size=5), character=harmful, tail=st.text(safe_characters, max_size=5))
def test_no_key_holds_a_separator_a_space_or_a_control_character(tmp_path, head, character, tail):
    key = head + character + tail
    message = refusal(tmp_path, GOOD | {"models": GOOD["models"] | {key: {"hub": "x"}}})
    assert repr(key) in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"models: [", "not valid YAML"),
        (b"models: {a: !!python/object:os.system {}}", "not valid YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "is empty; expected the sections models, text, variants, pairs and, if any, sweeps"),
        (b"- models", "holds no sections; expected the sections models, text, variants, pairs and, if any, sweeps"),
        (b"models", "holds no sections; expected the sections models, text, variants, pairs and, if any, sweeps"),
    ],
)
def test_a_file_that_is_no_catalog_is_refused_by_name(tmp_path, content, expected):
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=expected) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)


def test_a_catalog_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CatalogError, match="nowhere.yaml.*cannot be read: No such file"):
        load_catalog(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_catalog(tmp_path):
    with pytest.raises(CatalogError, match="cannot be read: Is a directory"):
        load_catalog(tmp_path)


def test_the_environment_names_another_catalog(tmp_path, monkeypatch):
    load(tmp_path, GOOD)
    path = (tmp_path / "some-catalog.yaml").rename(tmp_path / "mine.yaml")
    monkeypatch.setenv(CATALOG_VARIABLE, str(path))
    assert set(load_catalog().models) == {"m", "hub"}


def test_a_missing_catalog_that_the_environment_names_is_told_with_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(CATALOG_VARIABLE, str(tmp_path / "gone.yaml"))
    with pytest.raises(CatalogError, match=f"gone.yaml.*{CATALOG_VARIABLE}"):
        load_catalog()


@pytest.mark.parametrize("value", [None, ""])
def test_without_another_named_the_default_catalog_is_read(monkeypatch, value):
    monkeypatch.delenv(CATALOG_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(CATALOG_VARIABLE, value)
    (default,) = [path for path in CATALOGS if path.name == "default.yaml"]
    assert load_catalog() == load_catalog(default)


def test_relative_paths_start_at_the_catalogs_folder_whatever_the_working_directory(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "catalogs").mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    model_files(tmp_path / "lm")
    catalog = load(tmp_path / "catalogs", with_change("models.m.directory", "../lm"))
    assert catalog.models["m"].source == (tmp_path / "lm", None)
    assert [str(place) for place in catalog.text["t"].files] == [str(tmp_path / "catalogs" / "*.txt")]
    assert catalog.pair("b", "m", 0).address(0) == str(tmp_path / "catalogs" / "pairs" / "0")


def test_absolute_paths_and_hub_names_stay_as_they_are(tmp_path):
    catalog = load(tmp_path, with_change("models.m.directory", str(tmp_path / "lm")))
    assert catalog.models["m"].source == (tmp_path / "lm", None)
    assert catalog.models["hub"].source == ("EleutherAI/pythia-70m-deduped", "main")


@pytest.mark.parametrize(
    ("place", "value", "entry"),
    [
        ("models.m.directory", "gone", "models.m.directory"),
        ("models.m.directory", "some.txt", "models.m.directory"),
        ("text.t.files", ["some.txt", "gone.txt"], "text.t.files[1]"),
        ("text.t.files", ["*.jsonl"], "text.t.files[0]"),
        ("pairs.1.directory", "gone/{layer}", "pairs[1]: directory of layer 0"),
        ("pairs.1.layers", [0, 7], "pairs[1]: directory of layer 7"),
    ],
)
def test_what_is_not_there_is_an_error_of_the_catalog_with_its_entry_and_place(tmp_path, place, value, entry):
    message = refusal(tmp_path, with_change(place, value))
    assert entry in message
    assert any(words in message for words in ("does not exist", "is not a directory", "nothing matches"))
    assert str(tmp_path) in message.split(entry)[1]


def test_a_tilde_is_the_home_of_whoever_runs_this(tmp_path, monkeypatch):
    home = tmp_path / "home"
    model_files(home / "models" / "lm")
    monkeypatch.setenv("HOME", str(home))
    catalog = load(tmp_path, with_change("models.m.directory", "~/models/lm"))
    assert catalog.models["m"].source == (home / "models" / "lm", None)
    (tmp_path / "some-catalog.yaml").rename(home / "mine.yaml")
    load(home, with_change("models.m.directory", "models/lm"))
    assert load_catalog("~/some-catalog.yaml").models["m"].source == (home / "models" / "lm", None)
    assert "no_such_user" in refusal(tmp_path, with_change("models.m.directory", "~no_such_user/lm"))


def test_a_copy_of_the_default_catalog_works_in_any_folder(tmp_path):
    (default,) = [path for path in CATALOGS if path.name == "default.yaml"]
    copy_of_it = load(tmp_path, default.read_text(encoding="utf-8"))
    assert copy_of_it == load_catalog(default)
    assert copy_of_it.entries() == load_catalog(default).entries()
    assert (Path(copy_of_it.models["stdlib-1m"].source[0]) / "config.json").is_file()


def test_a_model_that_ships_with_the_package_has_a_name_and_needs_a_text(tmp_path):
    assert "'stdlib-1m'" in refusal(tmp_path, with_change("models.m", {"embedded": "gpt2", "text": "t"}))
    assert "text is missing" in refusal(tmp_path, with_change("models.m", {"embedded": "stdlib-1m"}))


def test_digests_stay_when_a_catalog_is_moved_with_what_lies_beside_it(tmp_path):
    (tmp_path / "here").mkdir()
    entries = with_change("models.m.directory", "./lm")
    before = load(tmp_path / "here", entries)
    (tmp_path / "here").rename(tmp_path / "there")
    after = load_catalog(tmp_path / "there" / "some-catalog.yaml")
    assert after.models["m"].source == (tmp_path / "there" / "lm", None) != before.models["m"].source
    assert after.entries() == before.entries()


def test_a_place_beside_the_catalog_is_the_same_entry_however_it_is_written(tmp_path):
    written = ["lm", "./lm", "../" + tmp_path.name + "/lm", str(tmp_path / "lm")]
    made = [load(tmp_path, with_change("models.m.directory", name)).entries() for name in written]
    assert all(others == made[0] for others in made[1:])
    model_files(tmp_path / "other lm")
    assert load(tmp_path, with_change("models.m.directory", "other lm")).entries() != made[0]


DEFAULTS = {
    # Digests leave out what has its default value. So whoever changes one of these changes, without a word, what
    # every catalog that leaves it out asks for: raise the code versions of the assets that read it as well.
    Model: {
        "directory": None,
        "hub": None,
        "embedded": None,
        "randomise_seed": 0,
        "text": None,
        "tokens": 100_000,
        "context_size": None,
        "ablation_samples": 20_000,
        "function_shapes": 5_000,
        "quality_tokens": 20_000,
        "jacobian_tables": None,
        "shards": 1,
        "prompt": "The quick brown fox jumps over the lazy dog.",
    },
    Text: {
        "revision": None,
        "long_documents": "cut",
        "standard_library": None,
        "files": None,
        "dataset": None,
        "config": None,
        "split": "validation",
        "column": "text",
    },
    PairOnHub: {"revision": "main", "subfolder": None},
    ExplainedVariance: {"input": 0.5, "output": 0.5},
    TrainingConfig: {
        "batch_tokens": 4096,
        "learning_rate": 5e-4,
        "learning_rate_warm_up": 0.01,
        "learning_rate_decay": 0.2,
        "jacobian_warm_up": 0.05,
        "gradient_clip": 1.0,
        "seed": 0,
        "buffer_tokens": 2**19,
    },
}


@pytest.mark.parametrize("section", DEFAULTS, ids=lambda section: section.__name__)
def test_no_default_changes_unnoticed(section):
    if section is TrainingConfig:
        held = {field.name: field.default for field in dataclasses.fields(section)}
    else:
        held = {name: field.default for name, field in section.model_fields.items()}
    assert {name: held.get(name) for name in DEFAULTS[section]} == DEFAULTS[section]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((f"models.m.{name}", value) for name, value in DEFAULTS[Model].items() if value is not None),
        *((f"text.t.{name}", value) for name, value in DEFAULTS[Text].items() if value is not None),
        # but for batch_tokens, since a batch of that size is larger than the text here
        *((f"pairs.0.train.config.{name}", value) for name, value in list(DEFAULTS[TrainingConfig].items())[1:]),
        ("pairs.0.least_explained_variance", {"input": 0.5, "output": 0.5}),
        ("pairs.0.directory", None),
    ],
)
def test_a_setting_that_is_written_out_with_its_default_value_changes_no_digest(tmp_path, place, value):
    assert load(tmp_path, with_change(place, value)).entries() == load(tmp_path, GOOD).entries()


def test_a_hub_model_that_names_no_text_is_measured_on_c4(tmp_path):
    catalog = load(tmp_path, GOOD)
    assert catalog.model_text("hub").dataset == "allenai/c4"
    assert [str(place) for place in catalog.model_text("m").files] == [str(tmp_path / "*.txt")]


@pytest.mark.parametrize(
    ("place", "value", "changes"),
    [
        ("models.m.context_size", 7, True),
        ("text.t.column", "body", True),
        ("pairs.0.train.config.k", 3, True),
        ("pairs.0.least_explained_variance", {"input": 0.1}, True),
        ("models.m.tokens", 7, False),
        ("models.m.ablation_samples", 7, False),
        ("models.m.randomise_seed", 7, False),
        ("pairs.0.layers", [0, 1, 2], False),
        ("pairs.1.directory", "other/{layer}", False),
        ("variants.a.label", "Other", False),
    ],
)
def test_the_digest_of_a_pair_changes_with_what_it_is_made_from_and_nothing_else(tmp_path, place, value, changes):
    before, after = load(tmp_path, GOOD), load(tmp_path, with_change(place, value))
    digests = [catalog.digest("m", "sae_pair", catalog.pair("a", "m", 0)) for catalog in (before, after)]
    assert (digests[0] != digests[1]) is changes


@pytest.mark.parametrize(
    ("setting", "value", "asset"),
    [
        ("tokens", 7, "tokens"),
        ("ablation_samples", 7, "ablation_samples"),
        ("function_shapes", 7, "function_shapes"),
        ("quality_tokens", 7, "pair_quality"),
        ("prompt", "x", "jacobian_examples"),
    ],
)
def test_a_setting_changes_the_digest_of_the_asset_it_concerns_alone(tmp_path, setting, value, asset):
    before, after = load(tmp_path, GOOD), load(tmp_path, with_change(f"models.m.{setting}", value))
    assets = ["tokens", "sae_pair", "jacobian_histogram", "jacobian_examples", *TABLES]
    changed = [
        name
        for name in assets
        if len({catalog.digest("m", name, catalog.pair("a", "m", 0)) for catalog in (before, after)}) == 2
    ]
    assert changed == [asset]


def test_the_digest_of_the_tokens_changes_with_the_models_text(tmp_path):
    before, after = load(tmp_path, GOOD), load(tmp_path, with_change("text.t.column", "body"))
    assert before.digest("m", "tokens") != after.digest("m", "tokens")


@pytest.mark.parametrize(
    ("place", "value", "changed"),
    [
        ("variants.a.label", "Other", {"variants/a"}),
        ("variants.b.colour", "#123456", {"variants/b"}),
        ("pairs.0.train.config.k", 3, {"pairs/a/m:0", "pairs/a/m:2", "pairs/a/m"}),
        ("pairs.1.directory", "other/{layer}", {"pairs/b/m:0", "pairs/b/m"}),
        ("pairs.0.layers", [0, 1, 2], {"pairs/a/m", "pairs/a/m:1"}),
        ("models.m.tokens", 7, {"models/m/tokens"}),
        ("models.m.quality_tokens", 7, {"models/m/pair_quality"}),
        ("models.m.jacobian_tables", "bfloat16", {"models/m/jacobian_tables"}),
        ("models.m.shards", 7, set()),
    ],
)
def test_an_edit_changes_the_entries_that_hold_it_and_no_others(tmp_path, place, value, changed):
    before, after = (load(tmp_path, catalog).entries() for catalog in (GOOD, with_change(place, value)))
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == changed


def with_control(**changes) -> dict:
    entries = copy.deepcopy(GOOD)
    entries["variants"]["c"] = {"label": "Control", "colour": "#000000", "control_of": "a"} | changes
    return entries


def test_a_control_is_on_the_twin_and_its_digest_changes_with_the_twins_seed(tmp_path):
    entries = with_control()
    entries["pairs"].append(entries["pairs"][0] | {"variant": "c"})
    before = load(tmp_path, entries)
    assert before.randomise_seed("c", "m") == 0 and before.randomise_seed("a", "m") is None
    entries["models"]["m"]["randomise_seed"] = 5
    after = load(tmp_path, entries)
    assert after.randomise_seed("c", "m") == 5
    digests = [
        [catalog.digest("m", "sae_pair", catalog.pair(variant, "m", 0)) for catalog in (before, after)]
        for variant in ("a", "c")
    ]
    assert digests[0][0] == digests[0][1] and digests[1][0] != digests[1][1]


@pytest.mark.parametrize(
    ("control_of", "expected"),
    [("nothing", "variants.c.control_of is 'nothing', which is not in the catalog"), ("c", "control_of is itself")],
)
def test_a_control_of_what_is_no_variant_is_refused(tmp_path, control_of, expected):
    with pytest.raises(CatalogError, match=expected):
        load(tmp_path, with_control(control_of=control_of))


def test_a_control_of_a_control_is_refused(tmp_path):
    entries = with_control()
    entries["variants"]["d"] = {"label": "D", "colour": "#000000", "control_of": "c"}
    with pytest.raises(CatalogError, match="variants.d.control_of is 'c', which is itself a control"):
        load(tmp_path, entries)


# Bounds and names

SHARES = ("learning_rate_warm_up", "learning_rate_decay", "jacobian_warm_up")


@given(name=st.sampled_from(SHARES), share=st.floats(allow_nan=True) | st.integers())
def test_a_share_of_the_steps_is_between_0_and_1_or_refused_with_its_unit(tmp_path, name, share):
    entries = with_change(f"pairs.0.train.config.{name}", share)
    if 0 <= share <= 1:
        assert getattr(load(tmp_path, entries).pairs[0].train.config, name) == share
    else:
        message = refusal(tmp_path, entries)
        assert f"pairs[0].train.config: {name} is" in message and "share of all steps, between 0 and 1" in message


@given(st.floats(allow_nan=True))
def test_a_gradient_is_clipped_to_a_norm_above_0(tmp_path, norm):
    entries = with_change("pairs.0.train.config.gradient_clip", norm)
    if norm > 0:
        assert load(tmp_path, entries).pairs[0].train.config.gradient_clip == norm
    else:
        assert "gradient_clip is" in refusal(tmp_path, entries)


@given(st.integers(min_value=-(2**70), max_value=2**70) | st.sampled_from([-1, 0, 2**63 - 1, 2**63, 10**30]))
def test_a_seed_is_accepted_if_torch_and_numpy_take_it_else_refused(tmp_path, seed):
    recipe = with_change("pairs.0.train.config.seed", seed)
    twin = with_change("models.m.randomise_seed", seed)
    if 0 <= seed < 2**63:
        torch.Generator().manual_seed(load(tmp_path, recipe).pairs[0].train.config.seed)
        np.random.default_rng(load(tmp_path, twin).models["m"].randomise_seed)
    else:
        assert "seed is" in refusal(tmp_path, recipe)
        assert "models.m.randomise_seed" in refusal(tmp_path, twin)


@pytest.mark.parametrize("section", ["models", "variants", "sweeps"])
def test_a_key_is_at_most_as_long_as_a_file_may_be_named(tmp_path, section):
    def keyed(length: int) -> dict:
        entries = copy.deepcopy(GOOD)
        value = {"models": {"hub": "x/y"}, "variants": {"label": "X", "colour": "#000000"}, "sweeps": {"wandb": "a/b"}}
        entries[section]["x" * length] = value[section]
        return entries

    load(tmp_path, keyed(100))
    message = refusal(tmp_path, keyed(300))
    assert f"{section}.xxx" in message and "has 300 characters; expected at most 100" in message


@pytest.mark.parametrize(
    "variant", ["input", "output", "meta", "lambda", "context", "config", "type", "dict", "class", "none", "compute"]
)
def test_a_variant_may_have_a_name_that_dagster_keeps_from_its_own(tmp_path, variant):
    entries = copy.deepcopy(GOOD)
    entries["variants"] = {
        variant: {"label": "A", "colour": "#000000"},
        "b": {"label": "B", "colour": "#ffffff", "compared_with": variant},
    }
    entries["pairs"][0]["variant"] = variant
    graph = build_definitions(load(tmp_path, entries)).resolve_asset_graph()
    assert dg.AssetKey([variant, "sae_pair"]) in graph.get(dg.AssetKey([variant, "jacobian_histogram"])).parent_keys
    assert dg.AssetKey(["figures", "b", "quality_by_layer"]) in graph.get_all_asset_keys()


@pytest.mark.parametrize("other", ["tokens", "figures", "sweep_runs", "catalog", "site"])
def test_a_variant_is_not_named_as_another_asset_is(tmp_path, other):
    message = refusal(tmp_path, with_change(f"variants.{other}", {"label": "X", "colour": "#000000"}))
    assert f"variants.{other}" in message and "which are other folders of the storage" in message


def test_a_wandb_project_may_hold_spaces(tmp_path):
    entries = with_change("pairs.2.wandb", "my-team/my sparse project/layer{layer}:v0")
    entries["sweeps"] = {"s": {"wandb": "my-team/my sparse project"}}
    catalog = load(tmp_path, entries)
    assert catalog.pairs[2].address(3) == "my-team/my sparse project/layer3:v0"
    for name in ("lab/ project", "lab/project ", "la b/project", "lab/a#b", "lab/a?b", "lab/a%b", "lab/a:b"):
        assert "is not a wandb project" in refusal(tmp_path, with_change("sweeps.s", {"wandb": name}))


# The hub as a source of pairs


def on_hub(**settings) -> dict:
    return with_change("pairs.2", {"variant": "b", "model": "hub", "layers": [3, 4], "hub": "lab/pairs"} | settings)


def test_a_pair_on_the_hub_is_named_by_repository_revision_and_folder(tmp_path):
    catalog = load(tmp_path, on_hub(revision="v1", subfolder="layer{layer}"))
    assert catalog.pair("b", "hub", 4).address(4) == "lab/pairs v1 layer4"
    assert load(tmp_path, on_hub(hub="lab/pair-{layer}")).pair("b", "hub", 4).address(4).startswith("lab/pair-4 main")


@pytest.mark.parametrize(
    ("settings", "place", "expected"),
    [
        ({}, "pairs[2]", "hub contains no '{layer}', so 2 layers would share one pair"),
        ({"hub": "pairs"}, "pairs[2].hub", "organisation/name"),
        ({"subfolder": "../{layer}"}, "pairs[2].subfolder", "folder of the repository"),
        ({"subfolder": "/{layer}"}, "pairs[2].subfolder", "folder of the repository"),
        ({"revision": ""}, "pairs[2].revision", "at least 1 character"),
        ({"wandb": "a/b/{layer}:v0"}, "pairs[2]", "given: wandb, hub"),
    ],
)
def test_a_pair_on_the_hub_that_makes_no_sense_is_refused(tmp_path, settings, place, expected):
    message = refusal(tmp_path, on_hub(**settings))
    assert f"{place}: " in message and expected in message


def test_the_settings_of_one_kind_of_source_are_none_of_another(tmp_path):
    assert "pairs[2].revision: there is no such setting" in refusal(tmp_path, with_change("pairs.2.revision", "main"))


def test_a_pair_moves_if_it_is_named_by_an_alias_or_a_branch(tmp_path):
    moves = {
        "v12": with_change("pairs.2.wandb", "a/b/{layer}:v12"),
        "latest": with_change("pairs.2.wandb", "a/b/{layer}:latest"),
        "main": on_hub(subfolder="{layer}"),
        "a commit": on_hub(subfolder="{layer}", revision="0" * 40),
    }
    assert {name: load(tmp_path, entries).pairs[2].moves for name, entries in moves.items()} == {
        "v12": False,
        "latest": True,
        "main": True,
        "a commit": False,
    }


def test_a_pair_that_is_trained_or_in_a_directory_cannot_move(tmp_path):
    on_server = {pair.kind for pair in load(tmp_path, GOOD).pairs if isinstance(pair, PairOnServer)}
    assert on_server == {"wandb"}
