"""What README, CONTRIBUTING and docs/ say can be done: every command, setting, link, catalog and example in them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbclient
import nbformat
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

from jsae_assets.catalog_file import load_catalog
from jsae_assets.command import arguments
from jsae_assets.publishing import Publication
from tests.documentation import PAGES, ROOT, anchors, blocks, commands, links, words

COMMANDS = [command for page in PAGES for command in commands(page)]
BLOCKS = [block for page in PAGES for block in blocks(page)]
YAML = [block for block in BLOCKS if block.language == "yaml"]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
PLACEHOLDER = {"...": None}  # what YAML makes of {...}
LANGUAGES = {"sh", "text", "python", "yaml"}


def test_every_block_of_code_says_what_it_is():
    assert {block.language for block in BLOCKS} <= LANGUAGES


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_shell_blocks_are_valid_shell(block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_exists_and_takes_these_arguments(command):
    settings, name, given = _split(words(command.text))
    assert settings <= _settings(), f"{command}: nothing reads these settings"
    if name:
        CHECKS.get(Path(name).name, _installed)(name, given)


def _split(parts: list[str]) -> tuple[set[str], str | None, list[str]]:
    """The environment variables that are set before a command, the command, its arguments."""
    parts = parts[1:] if parts[0] == "export" else parts
    settings = {}
    while parts and (match := re.fullmatch(r"([A-Z_]+)=(.*)", parts[0])):
        settings[match[1]] = match[2]
        parts = parts[1:]
    return set(settings), parts[0] if parts else None, parts[1:]


def _settings() -> set[str]:
    """Every environment variable that the packages name."""
    sources = [path for package in ("jsae_core", "jsae_assets") for path in (ROOT / package).rglob("*.py")]
    return {name for path in sources for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", path.read_text("utf-8"))}


def _make(name: str, given: list[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    assert {word for word in given if "=" not in word} <= targets
    assert all(word.startswith("PYTHON=") for word in given if "=" in word)


def _jsae(name: str, given: list[str]) -> None:
    arguments(given)  # leaves with an error for what it does not know


def _python(name: str, given: list[str]) -> None:
    if given[0] == "-m":
        assert importlib.util.find_spec(given[1]) is not None
        if given[1] == "benchmarks":
            from benchmarks.__main__ import _options

            _options(given[2:])
    else:
        assert (ROOT / given[0]).is_file()


def _pip(name: str, given: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert given[0] == "install"
    for word in given[1:]:
        target, _, extra = word.removesuffix("]").partition("[")
        assert set(filter(None, extra.split(","))) <= set(extras) if target == "." else Requirement(word)


def _copy(name: str, given: list[str]) -> None:
    assert all((ROOT / source).exists() for source in given[:-1])


def _installed(name: str, given: list[str]) -> None:
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assert shutil.which(Path(name).name, path=beside_python) or (ROOT / name).exists()


CHECKS = {"make": _make, "jsae": _jsae, "python": _python, "python3": _python, "pip": _pip, "cp": _copy}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(there), f"{target}: there is no such heading"


def test_every_page_is_reached_from_the_readme():
    reached: set[Path] = set()
    ahead = {ROOT / "README.md"}
    while ahead:
        page = ahead.pop()
        reached.add(page)
        if page in PAGES:
            ahead |= {(page.parent / target.partition("#")[0]).resolve() for target in links(page)} - reached
    assert {*PAGES, NOTEBOOK} <= reached


@pytest.mark.parametrize("block", YAML, ids=str)
def test_every_catalog_in_the_documentation_is_accepted(block, tmp_path, language_model):
    given = yaml.safe_load(block.text)
    if set(given) == {"ops"}:  # what a job's launchpad is given
        Publication(**given["ops"]["publish"]["config"])
        return
    if set(given) == {"train"}:  # a recipe of a pair
        given = {"pairs": [{"variant": "jsae", "model": "my-model", "layers": [1]} | given]}
    entries = _completed(given)
    _make_what_is_named(entries, tmp_path, language_model)
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    load_catalog(path)


def _completed(given: dict) -> dict:
    """A catalog: what the block leaves out, the sections and the `{...}`, is that of a small one."""
    config = {"d_sae": 64, "k": 8, "jacobian_coefficient": 1, "steps": 9, "batch_tokens": 100}
    recipe = {"text": "my-text", "tokens": 1000, "config": config}
    models = {model for pair in given.get("pairs", []) for model in [pair["model"]]}
    models |= {sweep["local"]["model"] for sweep in given.get("sweeps", {}).values() if "local" in sweep}
    small = {
        "models": {model: {"embedded": "stdlib-1m", "text": "my-text"} for model in models or {"my-model"}},
        "text": {"my-text": {"dataset": "some/texts"}},
        "variants": {key: {"label": key, "colour": "#0072B2"} for key in ("jsae", "traditional")},
    }
    for name in given:
        if isinstance(given[name], dict) and name in small:
            small[name] |= given[name]
        else:
            small[name] = given[name]
    return _with_recipe(small, recipe)


def _with_recipe(value, recipe: dict):
    if value == PLACEHOLDER:
        return recipe
    if isinstance(value, dict):
        return {key: _with_recipe(item, recipe) for key, item in value.items()}
    return [_with_recipe(item, recipe) for item in value] if isinstance(value, list) else value


def _make_what_is_named(entries: dict, folder: Path, language_model: Path) -> None:
    """The folders and files that a catalog may only name if they are there."""
    for model in entries["models"].values():
        if "directory" in model:
            shutil.copytree(language_model, folder / model["directory"])
            config = folder / model["directory"] / "config.json"
            deep = json.loads(config.read_text("utf-8")) | {"num_hidden_layers": 100}  # it has any layer that is named
            config.write_text(json.dumps(deep), encoding="utf-8")
    for text in entries["text"].values():
        for pattern in text.get("files", []):
            path = folder / pattern.replace("*", "one")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"text": "one document, and another word"}\n', encoding="utf-8")
    for pair in entries.get("pairs", []):
        for layer in pair["layers"]:
            if "directory" in pair:
                (folder / pair["directory"].replace("{layer}", str(layer))).mkdir(parents=True)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_every_example_in_python_imports_what_there_is(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("jsae_core", "jsae_assets")):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, measured):
    """A folder with what the examples read: the language model of the checkout, and what `make demo` would store."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "jsae_core").symlink_to(ROOT / "jsae_core")
    stored = folder / "dagster_home" / "storage"
    for path in measured.graph.storage.rglob("1/tiny.*"):
        place = stored / path.relative_to(measured.graph.storage).with_stem("stdlib-1m")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


@pytest.fixture(scope="module")
def examples(workplace):
    """Runs the Python blocks of a page in order, in that folder."""

    def run(page: str, **names) -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(workplace)
            for block in blocks(ROOT / page):
                if block.language == "python":
                    exec(compile("\n" * block.line + block.text, page, "exec"), names)
        return names

    return run


def test_the_examples_of_the_python_surface_and_of_the_readme_run(examples, workplace):
    names = examples("docs/python.md")
    assert names["s"].jacobian.shape == (len(names["x"]) - 1, 8, 8)
    assert (workplace / "thresholds.html").stat().st_size

    # the README's example reads what the demo stores: a pair of the same language model
    stored = workplace / "dagster_home" / "storage" / "jsae" / "sae_pair" / "1" / "stdlib-1m.safetensors"
    stored.unlink()
    shutil.copytree(workplace / "my-pair", stored)
    assert examples("README.md")["pair"].config.d_sae == 256


def test_the_rule_for_lambda_takes_the_largest_that_keeps_its_score_within_the_errors(examples, workplace, capsys):
    runs = pd.DataFrame(
        {
            "jacobian_coefficient": [10.0, 0.0, 1.0, 3.0],
            "ce_score_pair": [0.5, 0.8, 0.79, 0.73],  # 95% of 0.8 is 0.76
            "ce_score_pair_se": [0.01, 0.02, 0.02, 0.02],
            "above_0.01": [0.1, 0.9, 0.7, 0.4],
        }
    )
    path = workplace / "dagster_home" / "storage" / "sweep_runs" / "mine.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.to_parquet(path)
    assert list(examples("docs/sweep.md")["good"].index) == [0, 1, 3]
    assert "λ up to 3" in capsys.readouterr().out


def test_every_asset_and_function_of_the_table_of_notebooks_exists(measured):
    """Names in code in its last two columns, as far as they are names of this project."""
    known = _names_of_the_packages() | {
        part for key in measured.graph.definitions.resolve_asset_graph().get_all_asset_keys() for part in key.path
    }
    page = (ROOT / "docs" / "from-the-notebook.md").read_text("utf-8")
    cells = [row.split("|")[-3:-1] for row in page.splitlines() if row.startswith("| ")]
    named = {name for pair in cells for cell in pair for name in re.findall(r"`(?:[\w<>]+/)*(\w{6,})`", cell)}
    assert len(named) > 30 and named <= known


def _names_of_the_packages() -> set[str]:
    names = set()
    for path in [*(ROOT / "jsae_core").rglob("*.py"), *(ROOT / "jsae_assets").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


def test_the_notebook_runs_on_any_stored_pair(measured, language_model):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = {target.id for node in ast.parse(parameters.source).body for target in node.targets}
    given = {"storage": str(measured.graph.storage), "model": "tiny", "layer": 1, "language_model": str(language_model)}
    assert names == set(given)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(ROOT), env=environment)
    drawn = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in output.data or "application/vnd.plotly.v1+json" in output.data for output in drawn)


def test_the_notebook_is_stored_as_it_ran_and_is_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type in ("error", "stream")]
    assert NOTEBOOK.stat().st_size < 300_000
