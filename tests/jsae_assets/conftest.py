"""A tiny catalog, and a fresh Dagster instance with the settings of dagster_home/dagster.yaml, for every test here."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import dagster as dg
import pytest
import yaml

from jsae_assets.catalog import Catalog
from jsae_assets.catalog_file import DEFAULT_CATALOG, load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import report
from jsae_assets.partitions import cell_key
from jsae_assets.resources import Compute
from jsae_assets.runs.plan import CELL_JOB, LAYERS_JOB, TOKENS_JOB
from jsae_core.locks import holding
from tests.jsae_assets.databases import quick_databases
from tests.jsae_core.builders import save_language_model
from tests.wandb_server import WandbServer

REPOSITORY = Path(__file__).parents[2]
SETTINGS = REPOSITORY / "dagster_home" / "dagster.yaml"
RECIPE = {
    "d_sae": 64,
    "k": 8,
    "jacobian_coefficient": 0.0,
    "steps": 40,
    "batch_tokens": 256,
    "learning_rate": 0.005,
}
ANYTHING_GOES = {"input": -1e9, "output": -1e9}
# what is measured and stored as a table
TABLES = (
    "ablation_samples",
    "function_shapes",
    "pair_quality",
    "latent_accounting",
    "latent_activity",
    "latent_contexts",
    "latent_connections",
)
PER_VARIANT = ("sae_pair", "jacobian_histogram", "jacobian_examples", *TABLES)
CELL_FIGURES = (
    "jacobian_histogram",
    "jacobian_thresholds",
    "jacobian_sparsity",
    "jacobian_examples",
    "jacobian_examples_l1",
    "jacobian_examples_l2",
    "ablation",
    "function_curves",
    "function_shapes",
    "edge_curve",
    "dead_latents",
    "differences",
)
WORDS = "def return self class for in range print not if else import value key list dict open read write".split()


@dataclass
class RecordedRun:
    """What an instance recorded of a run, in the words of one that has just ended."""

    instance: dg.DagsterInstance
    run_id: str

    @property
    def success(self) -> bool:
        return self.instance.get_run_by_id(self.run_id).is_success

    @cached_property
    def all_events(self) -> list[dg.DagsterEvent]:
        return [entry.dagster_event for entry in self.instance.all_logs(self.run_id) if entry.is_dagster_event]

    def get_asset_materialization_events(self) -> list[dg.DagsterEvent]:
        return [event for event in self.all_events if event.is_step_materialization]


@dataclass
class Results:
    """What the runs of one cell gave, as if they were one."""

    runs: list[dg.ExecuteInProcessResult] | list[RecordedRun]

    @property
    def success(self) -> bool:
        return all(run.success for run in self.runs)

    @property
    def all_events(self) -> list[dg.DagsterEvent]:
        return [event for run in self.runs for event in run.all_events]

    def get_asset_materialization_events(self) -> list[dg.DagsterEvent]:
        return [event for run in self.runs for event in run.get_asset_materialization_events()]

    def get_asset_check_evaluations(self) -> list[dg.AssetCheckEvaluation]:
        return [check for run in self.runs for check in run.get_asset_check_evaluations()]


@dataclass
class Graph:
    """A catalog's definitions and an instance to run them in."""

    catalog: Catalog
    instance: dg.DagsterInstance
    resources: dict = field(default_factory=dict)

    def __post_init__(self):
        self.definitions = build_definitions(
            self.catalog, resources={"compute": Compute(device="cpu")} | self.resources
        )
        report(self.catalog, self.instance)

    def with_catalog(self, catalog: Catalog) -> Graph:
        """The same instance after the catalog was edited."""
        return Graph(catalog, self.instance, self.resources)

    def tokenise(self, model: str = "tiny", raise_on_error: bool = True) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def(TOKENS_JOB)
        return job.execute_in_process(instance=self.instance, partition_key=model, raise_on_error=raise_on_error)

    def measure(self, layer: int, *assets: str, model: str = "tiny", raise_on_error: bool = False) -> Results:
        """Run one cell, job after job: all that exists there, or the assets named."""
        partition, named = cell_key(model, layer), {dg.AssetKey.from_user_string(asset) for asset in assets}
        results = []
        for job in self.definitions.resolve_all_job_defs():
            if job.name.startswith(CELL_JOB) and partition in job.partitions_def.get_partition_keys():
                held = job.asset_layer.selected_asset_keys
                if chosen := held & named if named else held:
                    results.append(
                        job.execute_in_process(
                            instance=self.instance,
                            partition_key=partition,
                            asset_selection=list(chosen),
                            raise_on_error=raise_on_error,
                        )
                    )
        assert results, f"nothing of {assets} exists at {partition}"
        return Results(results)

    def compare_layers(self, model: str = "tiny", raise_on_error: bool = True) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def(LAYERS_JOB)
        return job.execute_in_process(instance=self.instance, partition_key=model, raise_on_error=raise_on_error)

    @property
    def storage(self) -> Path:
        return Path(self.instance.storage_directory())

    def file(self, asset: str, layer: int | None = 1, model: str = "tiny", extension: str = "safetensors") -> Path:
        """Where an asset's partition is stored, whether it is there or not."""
        folder = self.storage / asset if layer is None else self.storage / asset / str(layer)
        return folder / f"{model}.{extension}"

    def stored(self) -> dict[str, bytes]:
        """Every stored file, to compare before and after. (What runs printed lies in the same folder.)"""
        return {
            path.relative_to(self.storage).as_posix(): path.read_bytes()
            for path in self.storage.rglob("*")
            if path.is_file() and "compute_logs" not in path.parts
        }

    def messages(self, result: dg.ExecuteInProcessResult | Results) -> str:
        """What the assets of a run logged."""
        runs = result.runs if isinstance(result, Results) else [result]
        return "\n".join(entry.user_message for run in runs for entry in self.instance.all_logs(run.run_id))


def materialised(result: dg.ExecuteInProcessResult | RecordedRun | Results) -> set[str]:
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


def metadata(result: dg.ExecuteInProcessResult | RecordedRun | Results, asset: str) -> dict:
    """What an asset said of itself in a run, as plain values."""
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key.to_user_string() == asset]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def address(shown: str) -> str:
    """Where a link in metadata leads to."""
    return shown.removesuffix(")").rpartition("](")[2]


def failures(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """What each failed step raised."""
    errors = {
        event.step_key.replace("__", "/"): event.step_failure_data.error
        for event in result.all_events
        if event.is_step_failure
    }
    return {step: (error.cause or error).message for step, error in errors.items()}


def write_documents(path: Path, count: int = 200, seed: int = 0) -> None:
    """JSON lines of short documents that look a little like Python."""
    generator = random.Random(seed)
    lines = [json.dumps({"text": " ".join(generator.choices(WORDS, k=10))}) for _ in range(count)]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def quick():
    with quick_databases():
        yield


@pytest.fixture(scope="session", autouse=True)
def no_browser():
    """Drawing a picture starts a browser, which takes seconds: tests of pictures ask for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER_PATH", str(REPOSITORY / "there-is-no-browser-here"))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder that all processes of a session of tests share: to be read, not changed."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # a worker's own folder is below it

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, whole = shared / name, shared / f"{name}.whole"
        with holding(shared / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def language_model(made_once) -> Path:
    """A random GPT-NeoX: 3 layers, d_model 16, one token a character, a context of 32."""
    return made_once("model", lambda folder: save_language_model(folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def fresh_home(made_once) -> Path:
    """A DAGSTER_HOME whose databases exist; copying it is quicker than making them."""

    def make(home: Path) -> None:
        shutil.copy(SETTINGS, home)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            instance.get_runs(limit=1)

    return made_once("home", make)


@pytest.fixture(scope="session")
def entries(language_model, made_once):
    """Makes the entries of a tiny catalog: traditional pairs at layers 0 and 1, JSAE pairs at layer 1."""

    def write_texts(folder: Path) -> None:
        write_documents(folder / "train.jsonl", seed=1)
        write_documents(folder / "measured.jsonl", count=60, seed=2)

    texts = made_once("texts", write_texts)

    def make() -> dict:
        def pairs(variant: str, layers: list[int], coefficient: float) -> dict:
            return {
                "variant": variant,
                "model": "tiny",
                "layers": layers,
                "train": {
                    "text": "train",
                    "tokens": 3000,
                    "config": RECIPE | {"jacobian_coefficient": coefficient},
                },
                "least_explained_variance": dict(ANYTHING_GOES),
            }

        return {
            "models": {
                "tiny": {
                    "directory": str(language_model),
                    "text": "measured",
                    "tokens": 1000,
                    "ablation_samples": 500,
                    "function_shapes": 60,
                    "quality_tokens": 300,
                    "prompt": "def f(x): return x",
                }
            },
            "text": {
                "train": {"files": [str(texts / "train.jsonl")]},
                "measured": {"files": [str(texts / "measured.jsonl")]},
            },
            "variants": {
                "traditional": {"label": "Traditional", "colour": "#0072B2"},
                "jsae": {"label": "JSAE", "colour": "#D55E00", "compared_with": "traditional"},
            },
            "pairs": [pairs("traditional", [0, 1], 0.0), pairs("jsae", [1], 1.0)],
        }

    return make


@pytest.fixture(scope="session")
def controlled_entries(entries):
    """The same, with both variants trained on the randomised language model at layer 1 as well."""

    def make() -> dict:
        made = entries()
        made["variants"] |= {
            "traditional_randomised": {
                "label": "Traditional, randomised model",
                "colour": "#56B4E9",
                "control_of": "traditional",
            },
            "jsae_randomised": {
                "label": "JSAE, randomised model",
                "colour": "#E69F00",
                "compared_with": "traditional_randomised",
                "control_of": "jsae",
            },
        }
        made["pairs"] += [
            pair | {"variant": f"{pair['variant']}_randomised", "layers": [1]} for pair in list(made["pairs"])
        ]
        return made

    return make


def default_entries(layers: tuple[int, ...]) -> dict:
    """The entries of the default catalog, with these layers alone."""
    made = yaml.safe_load(DEFAULT_CATALOG.read_text(encoding="utf-8"))
    for pair in made["pairs"]:
        pair["layers"] = [layer for layer in pair["layers"] if layer in layers]
    made["pairs"] = [pair for pair in made["pairs"] if pair["layers"]]
    return made


def write_catalog(folder: Path, entries: dict) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def instance(fresh_home, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(fresh_home, home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture
def graph(instance, tmp_path):
    """Makes the graph of some catalog entries, in this test's instance."""

    def make(entries: dict, **resources) -> Graph:
        return Graph(load_catalog(write_catalog(tmp_path, entries)), instance, resources)

    return make


@dataclass
class Measured:
    """The tiny catalog with everything materialised once. To be read, not changed."""

    graph: Graph
    tokens: RecordedRun
    cell: Results  # that both variants hold: layer 1, unless another one was made


@pytest.fixture(scope="session")
def measured_home(fresh_home, entries, made_once) -> Path:
    """The home of `measured`. To be copied."""
    return made_once("measured", lambda home: make_measured_home(home, fresh_home, entries()))


@pytest.fixture(scope="session")
def measured(measured_home, tmp_path_factory):
    with opened_copy(measured_home, tmp_path_factory.mktemp("measured")) as measured:
        yield measured


@pytest.fixture
def measured_again(measured_home, tmp_path):
    """Makes the graph of some catalog entries in a copy of `measured`'s home: what they leave as it was is there."""
    with contextlib.ExitStack() as stack:

        def make(entries: dict, **resources) -> Graph:
            instance = stack.enter_context(opened_copy(measured_home, tmp_path / "again")).graph.instance
            return Graph(load_catalog(write_catalog(tmp_path, entries)), instance, resources)

        yield make


def make_measured_home(home: Path, fresh_home: Path, entries: dict, model: str = "tiny", layer: int = 1) -> None:
    """A home in which a tiny catalog's tokens and one cell are made, its catalog, and a file that names the runs."""
    shutil.copytree(fresh_home, home, dirs_exist_ok=True)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        graph = Graph(load_catalog(write_catalog(home, entries)), instance)
        tokens, cell = graph.tokenise(model), graph.measure(layer, model=model, raise_on_error=True)
    runs = {"tokens": tokens.run_id, "cell": [run.run_id for run in cell.runs]}
    (home / "runs.json").write_text(json.dumps(runs), encoding="utf-8")


@contextlib.contextmanager
def opened_copy(made: Path, folder: Path) -> Iterator[Measured]:
    """A copy of such a home, below a folder."""
    home = folder / "home"
    shutil.copytree(made, home)
    runs = json.loads((home / "runs.json").read_text(encoding="utf-8"))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        graph = Graph(load_catalog(home / "catalog.yaml"), instance)
        cell = Results([RecordedRun(instance, run) for run in runs["cell"]])
        yield Measured(graph, RecordedRun(instance, runs["tokens"]), cell)


@pytest.fixture
def server(point_client_at):
    """A wandb on loopback, and a client that is pointed at it."""
    with WandbServer() as server:
        point_client_at(server)
        yield server


def installed_browser() -> str:
    """The path of the browser that is installed; a test that needs one is skipped where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chrome or Chromium is installed here (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def browser():
    """A Chromium, for tests that open pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=installed_browser(), args=["--no-sandbox"])
        yield started
        started.close()
