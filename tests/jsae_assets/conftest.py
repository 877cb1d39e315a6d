"""A tiny catalog, and a fresh Dagster instance with the settings of dagster_home/dagster.yaml, for every test here."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest
import yaml

from jsae_assets.catalog import Catalog, load_catalog
from jsae_assets.definitions import build_definitions
from jsae_assets.entries import report
from jsae_assets.partitions import cell_key
from jsae_assets.plan import CELL_JOB, LAYERS_JOB, TOKENS_JOB
from jsae_assets.resources import Compute
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
class Results:
    """What the runs of one cell gave, as if they were one."""

    runs: list[dg.ExecuteInProcessResult]

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


def materialised(result: dg.ExecuteInProcessResult | Results) -> set[str]:
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    """What an asset said of itself in a run, as plain values."""
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key.to_user_string() == asset]
    return {name: value.value for name, value in event.materialization.metadata.items()}


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
def no_browser():
    """Drawing a picture starts a browser, which takes seconds: tests of pictures ask for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER_PATH", str(REPOSITORY / "there-is-no-browser-here"))
        yield


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A random GPT-NeoX: 3 layers, d_model 16, one token a character, a context of 32."""
    return save_language_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def fresh_home(tmp_path_factory) -> Path:
    """A DAGSTER_HOME whose databases exist; copying it is quicker than making them."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(SETTINGS, home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs(limit=1)
    return home


@pytest.fixture(scope="session")
def entries(language_model, tmp_path_factory):
    """Makes the entries of a tiny catalog: traditional pairs at layers 0 and 1, JSAE pairs at layer 1."""
    texts = tmp_path_factory.mktemp("texts")
    write_documents(texts / "train.jsonl", seed=1)
    write_documents(texts / "measured.jsonl", count=60, seed=2)

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
    tokens: dg.ExecuteInProcessResult
    cell: Results  # layer 1, which both variants hold


@pytest.fixture(scope="session")
def measured(fresh_home, entries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    home = folder / "home"
    shutil.copytree(fresh_home, home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        graph = Graph(load_catalog(write_catalog(folder, entries())), instance)
        yield Measured(graph, graph.tokenise(), graph.measure(1, raise_on_error=True))


@pytest.fixture
def server(point_client_at):
    """A wandb on loopback, and a client that is pointed at it."""
    with WandbServer() as server:
        point_client_at(server)
        yield server
